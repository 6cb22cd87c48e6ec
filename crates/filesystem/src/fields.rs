//! Numbers in a block of bytes. Offsets are constants within blocks whose length has been checked.

/// A block whose fields are read.
#[derive(Clone, Copy)]
pub(crate) struct Fields<'a>(pub &'a [u8]);

impl Fields<'_> {
    fn array<const N: usize>(self, at: usize) -> [u8; N] {
        self.0[at..at + N].try_into().expect("the slice has that length")
    }

    /// Little-endian, 16 bits.
    pub fn le16(self, at: usize) -> u16 {
        u16::from_le_bytes(self.array(at))
    }

    /// Little-endian, 32 bits.
    pub fn le32(self, at: usize) -> u32 {
        u32::from_le_bytes(self.array(at))
    }

    /// Two little-endian fields of 32 bits that make one number.
    pub fn le64_of(self, low: usize, high: usize) -> u64 {
        u64::from(self.le32(high)) << 32 | u64::from(self.le32(low))
    }

    /// Big-endian, 16 bits.
    pub fn be16(self, at: usize) -> u16 {
        u16::from_be_bytes(self.array(at))
    }

    /// Big-endian, 32 bits.
    pub fn be32(self, at: usize) -> u32 {
        u32::from_be_bytes(self.array(at))
    }

    /// Big-endian, 64 bits.
    pub fn be64(self, at: usize) -> u64 {
        u64::from_be_bytes(self.array(at))
    }
}

/// CRC-32C as ext4 computes it: `seed` is the value so far, and nothing is inverted at the end.
pub(crate) fn checksum(seed: u32, bytes: &[u8]) -> u32 {
    !crc32c::crc32c_append(!seed, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksum_goes_on_from_a_seed_without_inversion() {
        // CRC-32C of "123456789" is e3069283 with its inversions.
        assert_eq!(checksum(!0, b"123456789"), !0xe306_9283);
        assert_eq!(checksum(checksum(!0, b"1234"), b"56789"), checksum(!0, b"123456789"));
    }
}
