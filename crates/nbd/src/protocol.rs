//! The numbers of the protocol and the one fixed header both sides read and write.
//!
//! Everything here is copied from the public specification (doc/proto.md of the NBD project) and must never change:
//! clients we do not control depend on each value. All integers on the wire are big-endian.

use crate::Error;

/// "NBDMAGIC": first eight bytes a server sends.
pub(crate) const GREETING_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// "IHAVEOPT": second eight bytes a server sends, and the start of each option a client sends.
pub(crate) const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// Start of each reply to an option.
pub(crate) const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// Start of each request.
pub(crate) const REQUEST_MAGIC: u32 = 0x2560_9513;
/// Start of a simple reply.
pub(crate) const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// Start of a chunk of a structured reply.
pub(crate) const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;

/// Largest payload of one read or write in bytes; advertised to clients, and the bound of one buffer.
pub(crate) const PAYLOAD_BYTES_MAX: u32 = 32 << 20;
/// Block size clients are advised to use, in bytes.
pub(crate) const PREFERRED_BLOCK_BYTES: u32 = 4096;
/// Longest string the protocol allows (names, messages), in bytes.
pub(crate) const STRING_BYTES_MAX: usize = 4096;
/// The one metadata context we know.
pub(crate) const BASE_ALLOCATION: &str = "base:allocation";

/// Handshake flags of the server and of the client: the same bits on both sides.
pub(crate) mod handshake {
    pub(crate) const FIXED_NEWSTYLE: u16 = 1;
    pub(crate) const NO_ZEROES: u16 = 2;
}

/// Options of the negotiation.
pub(crate) mod option {
    pub(crate) const EXPORT_NAME: u32 = 1;
    pub(crate) const ABORT: u32 = 2;
    pub(crate) const LIST: u32 = 3;
    pub(crate) const STARTTLS: u32 = 5;
    pub(crate) const INFO: u32 = 6;
    pub(crate) const GO: u32 = 7;
    pub(crate) const STRUCTURED_REPLY: u32 = 8;
    pub(crate) const LIST_META_CONTEXT: u32 = 9;
    pub(crate) const SET_META_CONTEXT: u32 = 10;
}

/// Replies to options; errors have the top bit set.
pub(crate) mod reply {
    pub(crate) const ACK: u32 = 1;
    pub(crate) const SERVER: u32 = 2;
    pub(crate) const INFO: u32 = 3;
    pub(crate) const META_CONTEXT: u32 = 4;
    pub(crate) const ERROR_BIT: u32 = 1 << 31;
    pub(crate) const ERR_UNSUP: u32 = ERROR_BIT + 1;
    pub(crate) const ERR_POLICY: u32 = ERROR_BIT + 2;
    pub(crate) const ERR_INVALID: u32 = ERROR_BIT + 3;
    pub(crate) const ERR_TLS_REQD: u32 = ERROR_BIT + 5;
    pub(crate) const ERR_UNKNOWN: u32 = ERROR_BIT + 6;
    pub(crate) const ERR_TOO_BIG: u32 = ERROR_BIT + 9;
}

/// Kinds of information in a reply to INFO or GO.
pub(crate) mod info {
    pub(crate) const EXPORT: u16 = 0;
    pub(crate) const NAME: u16 = 1;
    pub(crate) const BLOCK_SIZE: u16 = 3;
}

/// Transmission flags: what the export can do.
pub(crate) mod transmission {
    pub(crate) const HAS_FLAGS: u16 = 1;
    pub(crate) const READ_ONLY: u16 = 1 << 1;
    pub(crate) const SEND_FLUSH: u16 = 1 << 2;
    pub(crate) const SEND_FUA: u16 = 1 << 3;
    pub(crate) const SEND_TRIM: u16 = 1 << 5;
    pub(crate) const SEND_WRITE_ZEROES: u16 = 1 << 6;
    pub(crate) const SEND_DF: u16 = 1 << 7;
    pub(crate) const CAN_MULTI_CONN: u16 = 1 << 8;
    pub(crate) const SEND_FAST_ZERO: u16 = 1 << 11;
}

/// Commands.
pub(crate) mod command {
    pub(crate) const READ: u16 = 0;
    pub(crate) const WRITE: u16 = 1;
    pub(crate) const DISCONNECT: u16 = 2;
    pub(crate) const FLUSH: u16 = 3;
    pub(crate) const TRIM: u16 = 4;
    pub(crate) const WRITE_ZEROES: u16 = 6;
    pub(crate) const BLOCK_STATUS: u16 = 7;
}

/// Flags of a command.
pub(crate) mod command_flag {
    pub(crate) const FUA: u16 = 1;
    pub(crate) const NO_HOLE: u16 = 1 << 1;
    pub(crate) const DF: u16 = 1 << 2;
    pub(crate) const REQ_ONE: u16 = 1 << 3;
    pub(crate) const FAST_ZERO: u16 = 1 << 4;
}

/// Chunks of a structured reply; errors have the top bit set.
pub(crate) mod chunk {
    pub(crate) const FLAG_DONE: u16 = 1;
    pub(crate) const NONE: u16 = 0;
    pub(crate) const OFFSET_DATA: u16 = 1;
    pub(crate) const OFFSET_HOLE: u16 = 2;
    pub(crate) const BLOCK_STATUS: u16 = 5;
    pub(crate) const ERROR_BIT: u16 = 1 << 15;
    pub(crate) const ERROR: u16 = ERROR_BIT + 1;
}

/// Flags of a base:allocation run.
pub(crate) mod state {
    pub(crate) const HOLE: u32 = 1;
    pub(crate) const ZERO: u32 = 2;
}

/// The header of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) flags: u16,
    pub(crate) command: u16,
    /// Chosen by the client; its reply carries it back.
    pub(crate) cookie: u64,
    /// In bytes.
    pub(crate) offset: u64,
    /// In bytes.
    pub(crate) len: u32,
}

impl Request {
    /// Bytes on the wire.
    pub(crate) const BYTES: usize = 28;

    /// The wire form.
    pub(crate) fn encode(&self) -> [u8; Self::BYTES] {
        let mut out = [0; Self::BYTES];
        out[0..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
        out[4..6].copy_from_slice(&self.flags.to_be_bytes());
        out[6..8].copy_from_slice(&self.command.to_be_bytes());
        out[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        out[16..24].copy_from_slice(&self.offset.to_be_bytes());
        out[24..28].copy_from_slice(&self.len.to_be_bytes());
        out
    }

    /// Reads the wire form; a wrong magic means the two sides no longer agree where a request starts.
    pub(crate) fn decode(bytes: &[u8; Self::BYTES]) -> Result<Self, Error> {
        let mut fields = Fields::new(bytes);
        let whole = "the header has exactly these fields";
        let magic = fields.u32().expect(whole);
        if magic != REQUEST_MAGIC {
            return Err(Error::Magic { what: "a request", found: u64::from(magic) });
        }
        Ok(Self {
            flags: fields.u16().expect(whole),
            command: fields.u16().expect(whole),
            cookie: fields.u64().expect(whole),
            offset: fields.u64().expect(whole),
            len: fields.u32().expect(whole),
        })
    }

    /// Whether a flag is set.
    pub(crate) fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }

    /// The command in words, for messages.
    pub(crate) fn verb(&self) -> &'static str {
        match self.command {
            command::READ => "read",
            command::WRITE => "write",
            command::DISCONNECT => "disconnect",
            command::FLUSH => "flush",
            command::TRIM => "trim",
            command::WRITE_ZEROES => "write of zeros",
            command::BLOCK_STATUS => "block status",
            _ => "unknown command",
        }
    }
}

/// Takes fields off the front of received bytes; `None` once they do not suffice, never a panic.
pub(crate) struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub(crate) fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.rest.split_at_checked(len)?;
        self.rest = rest;
        Some(head)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.rest.split_first_chunk::<N>()?;
        self.rest = rest;
        Some(*head)
    }

    pub(crate) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    /// A string with its length in front.
    pub(crate) fn string(&mut self) -> Option<&'a [u8]> {
        let len = self.u32()?;
        self.take(usize::try_from(len).ok()?)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    pub(crate) fn rest(self) -> &'a [u8] {
        self.rest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WRITE: Request =
        Request { flags: command_flag::FUA, command: command::WRITE, cookie: 0x0102, offset: 4096, len: 512 };

    #[test]
    fn a_request_has_exactly_these_bytes() {
        let expected =
            [0x25, 0x60, 0x95, 0x13, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 2, 0];
        assert_eq!(WRITE.encode(), expected);
        assert_eq!(Request::decode(&expected).unwrap(), WRITE);
    }

    #[test]
    fn a_request_with_another_magic_is_refused() {
        let mut bytes = WRITE.encode();
        bytes[3] ^= 1;
        assert!(matches!(Request::decode(&bytes), Err(Error::Magic { .. })));
    }

    #[test]
    fn fields_end_instead_of_panicking() {
        let mut fields = Fields::new(&[0, 0, 0, 9, b'x']);
        assert_eq!(fields.string(), None);
        assert_eq!(Fields::new(&[1]).u16(), None);
        assert_eq!(Fields::new(&[0, 0, 0, 1, b'x']).string(), Some(&b"x"[..]));
    }
}
