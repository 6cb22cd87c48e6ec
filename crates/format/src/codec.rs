//! Compression of frames: zstd by level, lz4, or raw when compressing does not pay.
//!
//! Packed bytes are untrusted when they are unpacked: no more is ever allocated than the stated plain length, whatever
//! they claim.

use std::cell::RefCell;

use crate::FormatError;

/// How a frame's bytes were compressed; the number is part of the segment format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Codec {
    /// Not at all.
    Raw = 0,
    /// Zstandard, any level.
    Zstd = 1,
    /// LZ4 block.
    Lz4 = 2,
}

impl TryFrom<u8> for Codec {
    type Error = FormatError;
    fn try_from(number: u8) -> Result<Self, FormatError> {
        match number {
            0 => Ok(Codec::Raw),
            1 => Ok(Codec::Zstd),
            2 => Ok(Codec::Lz4),
            _ => Err(FormatError::Invalid { what: "frame codec" }),
        }
    }
}

/// How hard to try; chosen by load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// zstd level 1: the default.
    Normal,
    /// zstd level -5: queues are over half full.
    Fast,
}

impl Level {
    fn zstd(self) -> i32 {
        match self {
            Level::Normal => 1,
            Level::Fast => -5,
        }
    }
}

/// Room kept behind packed bytes for the tag that sealing appends, so that sealing never copies.
const TAG_ROOM: usize = 16;

/// Compressing must save at least one part in this many, or the frame stays raw: unpacking costs time at recovery.
const SAVING_DIVISOR: usize = 16;

/// Compresses frames, keeping one zstd context for its whole life (one for each worker thread).
pub struct Compressor {
    zstd: zstd::bulk::Compressor<'static>,
    level: Level,
    /// What zstd writes into: a frame is kept until it is stored, in no more memory than it needs.
    packed: Vec<u8>,
}

impl Compressor {
    /// A fresh compressor.
    pub fn new() -> Self {
        let zstd = zstd::bulk::Compressor::new(Level::Normal.zstd()).expect("level 1 exists in every zstd");
        Self { zstd, level: Level::Normal, packed: Vec::new() }
    }

    /// Compresses `plain`, or returns it raw when compressing saves less than 1/16.
    pub fn compress(&mut self, level: Level, plain: &[u8]) -> (Codec, Vec<u8>) {
        match self.try_zstd(level, plain) {
            Some(packed) => (Codec::Zstd, sealable(packed)),
            None => (Codec::Raw, sealable(plain)),
        }
    }

    /// `None` when the result would not pay: zstd is given no more room than was ever needed, and stops at its end.
    fn try_zstd(&mut self, level: Level, plain: &[u8]) -> Option<&[u8]> {
        if level != self.level {
            self.zstd.set_compression_level(level.zstd()).ok()?;
            self.level = level;
        }
        let pays = plain.len() - plain.len() / SAVING_DIVISOR - 1.min(plain.len());
        self.packed.clear();
        self.packed.reserve(pays);
        if self.zstd.compress_to_buffer(plain, &mut self.packed).is_err() {
            // Stopped half-way, the context would refuse the next change of level.
            self.zstd.context_mut().reset(zstd::zstd_safe::ResetDirective::SessionOnly).ok()?;
            return None;
        }
        (self.packed.len() <= pays && !self.packed.is_empty()).then_some(&self.packed)
    }

    /// Compresses with LZ4, or returns `plain` raw when that saves less than 1/16.
    pub fn compress_lz4(&mut self, plain: &[u8]) -> (Codec, Vec<u8>) {
        let packed = lz4_flex::block::compress(plain);
        if packed.len() < plain.len() - plain.len() / SAVING_DIVISOR {
            (Codec::Lz4, packed)
        } else {
            (Codec::Raw, plain.to_vec())
        }
    }
}

/// Bytes with room for the tag, in memory of just that size.
fn sealable(bytes: &[u8]) -> Vec<u8> {
    let mut copy = Vec::with_capacity(bytes.len() + TAG_ROOM);
    copy.extend_from_slice(bytes);
    copy
}

impl Default for Compressor {
    fn default() -> Self {
        Self::new()
    }
}

thread_local! {
    /// One context for each thread that reads: making one for each frame costs more than unpacking it.
    static DECOMPRESSOR: RefCell<Option<zstd::bulk::Decompressor<'static>>> = const { RefCell::new(None) };
}

/// Restores exactly `plain_len` bytes; anything else is an error. `plain_len` is bounded by the caller, and no more is
/// allocated than it says. Errors: `Invalid`.
pub fn decompress(codec: Codec, packed: &[u8], plain_len: usize) -> Result<Vec<u8>, FormatError> {
    decompress_into(codec, packed, plain_len, Vec::new())
}

/// The same into this memory, whose contents go.
pub(crate) fn decompress_into(
    codec: Codec,
    packed: &[u8],
    plain_len: usize,
    mut plain: Vec<u8>,
) -> Result<Vec<u8>, FormatError> {
    plain.clear();
    plain.reserve_exact(plain_len);
    match codec {
        Codec::Raw => plain.extend_from_slice(packed.get(..plain_len).unwrap_or_default()),
        Codec::Zstd => unpack_zstd(packed, &mut plain)?,
        Codec::Lz4 => {
            plain.resize(plain_len, 0);
            let unpacked = lz4_flex::block::decompress_into(packed, &mut plain).map_err(|_| UNPACKED)?;
            plain.truncate(unpacked);
        }
    }
    let whole = plain.len() == plain_len && (codec != Codec::Raw || packed.len() == plain_len);
    if whole { Ok(plain) } else { Err(UNPACKED) }
}

const UNPACKED: FormatError =
    FormatError::Invalid { what: "compressed frame (it does not unpack to its stated length)" };

fn unpack_zstd(packed: &[u8], plain: &mut Vec<u8>) -> Result<(), FormatError> {
    DECOMPRESSOR.with_borrow_mut(|slot| {
        let context = match slot {
            Some(context) => context,
            None => slot.insert(zstd::bulk::Decompressor::new().map_err(|_| UNPACKED)?),
        };
        context.decompress_to_buffer(packed, plain).map_err(|_| UNPACKED)?;
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    static ZEROS: [u8; 65536] = [0; 65536];

    fn noise(len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        blake3::Hasher::new().finalize_xof().fill(&mut bytes);
        bytes
    }

    #[test]
    fn compressible_bytes_shrink_and_noise_stays_raw() {
        let mut compressor = Compressor::new();
        for level in [Level::Normal, Level::Fast, Level::Normal] {
            let (codec, packed) = compressor.compress(level, &ZEROS);
            assert_eq!(codec, Codec::Zstd);
            assert!(packed.len() < 100);
            assert_eq!(compressor.compress(level, &noise(65536)), (Codec::Raw, noise(65536)));
        }
        assert_eq!(compressor.compress_lz4(&ZEROS).0, Codec::Lz4);
        assert_eq!(compressor.compress_lz4(&noise(65536)), (Codec::Raw, noise(65536)));
    }

    #[test]
    fn a_saving_below_a_sixteenth_is_not_taken() {
        // 1/32 zeros, the rest noise: zstd would save about 1/32.
        let mut plain = noise(65536);
        plain[..2048].fill(0);
        assert_eq!(Compressor::new().compress(Level::Normal, &plain).0, Codec::Raw);
        plain[..8192].fill(0);
        assert_eq!(Compressor::new().compress(Level::Normal, &plain).0, Codec::Zstd);
    }

    #[test]
    fn a_decompression_bomb_is_refused() {
        let bomb = zstd::bulk::compress(&vec![0; 32 << 20], 1).expect("zstd compresses zeros");
        assert!(bomb.len() < 1 << 16);
        assert!(decompress(Codec::Zstd, &bomb, 4096).is_err());
        assert!(decompress(Codec::Lz4, &lz4_flex::block::compress(&ZEROS), 4096).is_err());
        assert!(decompress(Codec::Raw, &ZEROS, 4096).is_err());
    }

    #[test]
    fn damaged_bytes_never_unpack_to_another_length() {
        let (_, packed) = Compressor::new().compress(Level::Normal, &ZEROS);
        for end in 0..packed.len() {
            assert!(decompress(Codec::Zstd, &packed[..end], ZEROS.len()).is_err());
        }
        let long = [packed.as_slice(), &[0]].concat();
        assert!(decompress(Codec::Zstd, &long, ZEROS.len()).is_err());
        assert!(decompress(Codec::Zstd, &packed, ZEROS.len() + 1).is_err());
    }

    proptest! {
        #[test]
        fn what_is_packed_unpacks(noise in proptest::collection::vec(any::<u8>(), 0..300), run in 0usize..5000, fast: bool) {
            let plain = [noise.as_slice(), &vec![7; run], &noise].concat();
            let mut compressor = Compressor::new();
            let level = if fast { Level::Fast } else { Level::Normal };
            for (codec, packed) in [compressor.compress(level, &plain), compressor.compress_lz4(&plain)] {
                prop_assert_eq!(decompress(codec, &packed, plain.len()), Ok(plain.clone()));
            }
        }
    }
}
