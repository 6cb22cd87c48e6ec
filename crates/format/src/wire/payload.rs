//! Frame headers, control payloads, and the dispatch between them.

use bytes::Bytes;
use model::{DiskName, Incarnation, LogHead, Seq};
use serde::{Deserialize, Serialize};

use super::{FRAME_HEADER_BYTES, Frame, FrameHeader, FrameKind, Hello, PROTOCOL_VERSION, Refused, Start, data};
use crate::{FormatError, versioned};

/// First bytes of every frame: the first four of BLAKE3 of `farshore wire frame`.
pub(super) const FRAME_MAGIC: [u8; 4] = [0x69, 0xfb, 0xb5, 0xec];

/// First bytes of HELLO's payload. With the protocol number behind them they never change, so that any two versions
/// can tell each other that they have none in common.
pub(super) const HELLO_MAGIC: &[u8; 8] = b"FARSHORE";

/// Longest explanation in REFUSED that is sent, in bytes; more is cut off.
const REFUSED_TEXT_BYTES_MAX: usize = 4 << 10;

impl FrameHeader {
    /// For a payload within the kind's cap.
    pub fn of(kind: FrameKind, payload: &[u8]) -> Self {
        Self::of_parts(kind, &[payload])
    }

    /// For a payload in parts.
    fn of_parts(kind: FrameKind, parts: &[&[u8]]) -> Self {
        let len: usize = parts.iter().map(|part| part.len()).sum();
        debug_assert!(len <= kind.payload_bytes_max(), "{kind:?} payload of {len} bytes: no peer takes it");
        let crc = parts.iter().fold(0, |crc, part| crc32c::crc32c_append(crc, part));
        // A length over 4 GiB saturates: the peer refuses it by its cap.
        Self { kind, payload_bytes: u32::try_from(len).unwrap_or(u32::MAX), crc }
    }

    /// Bytes of the header.
    pub fn encode(&self) -> [u8; FRAME_HEADER_BYTES] {
        let mut bytes = [0; FRAME_HEADER_BYTES];
        bytes[..4].copy_from_slice(&FRAME_MAGIC);
        bytes[4..6].copy_from_slice(&(self.kind as u16).to_le_bytes());
        bytes[8..12].copy_from_slice(&self.payload_bytes.to_le_bytes());
        bytes[12..].copy_from_slice(&self.crc.to_le_bytes());
        bytes
    }

    /// Reads a header; refuses a payload over the kind's cap before anything is allocated.
    /// Errors: `Magic`, `Invalid`.
    pub fn parse(bytes: &[u8; FRAME_HEADER_BYTES]) -> Result<Self, FormatError> {
        let [m0, m1, m2, m3, k0, k1, r0, r1, l0, l1, l2, l3, c0, c1, c2, c3] = *bytes;
        if [m0, m1, m2, m3] != FRAME_MAGIC {
            return Err(FormatError::Magic { what: "wire frame" });
        }
        let number = u16::from_le_bytes([k0, k1]);
        let kind = FrameKind::ALL.into_iter().find(|kind| *kind as u16 == number);
        let kind = kind.ok_or(FormatError::Invalid { what: "frame kind" })?;
        if [r0, r1] != [0, 0] {
            return Err(FormatError::Invalid { what: "reserved frame bytes (not zero)" });
        }
        let payload_bytes = u32::from_le_bytes([l0, l1, l2, l3]);
        if payload_bytes as usize > kind.payload_bytes_max() {
            return Err(FormatError::Invalid { what: "frame length (over the cap of its kind)" });
        }
        Ok(Self { kind, payload_bytes, crc: u32::from_le_bytes([c0, c1, c2, c3]) })
    }

    /// Checks the payload's length and checksum. Errors: `Truncated`, `TrailingBytes`, `Checksum`.
    pub fn check(&self, payload: &[u8]) -> Result<(), FormatError> {
        let (need, have) = (u64::from(self.payload_bytes), payload.len() as u64);
        if have < need {
            return Err(FormatError::Truncated { need, have });
        }
        if have > need {
            return Err(FormatError::TrailingBytes { extra: have - need });
        }
        if crc32c::crc32c(payload) != self.crc {
            return Err(FormatError::Checksum { what: "frame payload" });
        }
        Ok(())
    }
}

/// HELLO behind its magic and protocol number.
#[derive(Serialize, Deserialize)]
struct HelloBody {
    instance: [u8; 16],
    incarnation: Incarnation,
    start: Start,
    next_seq: Seq,
    map_version: u64,
    stored: LogHead,
    disks: Vec<(DiskName, u64)>,
}

fn encode_hello(hello: &Hello) -> Vec<u8> {
    let Hello { protocol, instance, incarnation, start, next_seq, map_version, stored, disks } = hello.clone();
    let mut bytes = HELLO_MAGIC.to_vec();
    bytes.extend_from_slice(&protocol.to_le_bytes());
    let body = HelloBody { instance, incarnation, start, next_seq, map_version, stored, disks };
    versioned::append(bytes, &body)
}

/// Takes any protocol number but 0: whether it is spoken is for the server to say, in REFUSED.
fn decode_hello(payload: &[u8]) -> Result<Hello, FormatError> {
    let have = payload.len() as u64;
    let Some((head, rest)) = payload.split_first_chunk::<10>() else {
        return Err(FormatError::Truncated { need: 10, have });
    };
    let [magic @ .., p0, p1] = head;
    if magic != HELLO_MAGIC {
        return Err(FormatError::Magic { what: "HELLO" });
    }
    let protocol = u16::from_le_bytes([*p0, *p1]);
    if protocol == 0 {
        return Err(FormatError::Invalid { what: "protocol version" });
    }
    let HelloBody { instance, incarnation, start, next_seq, map_version, stored, disks } =
        versioned::postcard("HELLO", rest)?;
    Ok(Hello { protocol, instance, incarnation, start, next_seq, map_version, stored, disks })
}

fn encode_refused(refused: &Refused) -> Vec<u8> {
    let cut = refused.text.floor_char_boundary(REFUSED_TEXT_BYTES_MAX);
    control(&Refused { reason: refused.reason, text: refused.text[..cut].to_owned() })
}

fn control<T: Serialize>(value: &T) -> Vec<u8> {
    versioned::encode(PROTOCOL_VERSION, value)
}

impl Frame {
    /// Its kind.
    pub fn kind(&self) -> FrameKind {
        match self {
            Frame::Hello(_) => FrameKind::Hello,
            Frame::Welcome(_) => FrameKind::Welcome,
            Frame::Refused(_) => FrameKind::Refused,
            Frame::Data(_) => FrameKind::Data,
            Frame::Stored(_) => FrameKind::Stored,
            Frame::Credit(_) => FrameKind::Credit,
            Frame::Ping(_) => FrameKind::Ping,
            Frame::Pong(_) => FrameKind::Pong,
            Frame::Bye => FrameKind::Bye,
        }
    }

    /// The frame's bytes, ready for a vectored write: header and payload head in the first part, each record's data,
    /// uncopied, in a part of its own. A DATA frame must keep within [`super::DATA_BYTES_MAX`] and
    /// [`super::DATA_META_BYTES_MAX`], or the peer refuses it.
    pub fn encode(&self) -> Vec<Bytes> {
        let (head, data) = match self {
            Frame::Hello(hello) => (encode_hello(hello), Vec::new()),
            Frame::Welcome(welcome) => (control(welcome), Vec::new()),
            Frame::Refused(refused) => (encode_refused(refused), Vec::new()),
            Frame::Data(records) => data::encode(records),
            Frame::Stored(stored) => (control(stored), Vec::new()),
            Frame::Credit(number) | Frame::Ping(number) | Frame::Pong(number) => (control(number), Vec::new()),
            Frame::Bye => (control(&()), Vec::new()),
        };
        let payload: Vec<&[u8]> = std::iter::once(head.as_slice()).chain(data.iter().map(Bytes::as_ref)).collect();
        let header = FrameHeader::of_parts(self.kind(), &payload).encode();
        let mut first = Vec::with_capacity(header.len() + head.len());
        first.extend_from_slice(&header);
        first.extend_from_slice(&head);
        std::iter::once(first.into()).chain(data).collect()
    }

    /// Decodes a checked payload. Record data are slices of `payload`, not copies.
    /// Errors: `Truncated`, `TrailingBytes`, `Magic`, `Version`, `Invalid`.
    pub fn decode(kind: FrameKind, payload: Bytes) -> Result<Self, FormatError> {
        if payload.len() > kind.payload_bytes_max() {
            return Err(FormatError::Invalid { what: "frame length (over the cap of its kind)" });
        }
        Ok(match kind {
            FrameKind::Hello => Frame::Hello(decode_hello(&payload)?),
            FrameKind::Welcome => Frame::Welcome(read("WELCOME", &payload)?),
            FrameKind::Refused => Frame::Refused(read("REFUSED", &payload)?),
            FrameKind::Data => Frame::Data(data::decode(payload)?),
            FrameKind::Stored => Frame::Stored(read("STORED", &payload)?),
            FrameKind::Credit => Frame::Credit(read("CREDIT", &payload)?),
            FrameKind::Ping => Frame::Ping(read("PING", &payload)?),
            FrameKind::Pong => Frame::Pong(read("PONG", &payload)?),
            FrameKind::Bye => {
                let () = read("BYE", &payload)?;
                Frame::Bye
            }
        })
    }
}

fn read<T: serde::de::DeserializeOwned>(what: &'static str, payload: &[u8]) -> Result<T, FormatError> {
    versioned::decode(what, PROTOCOL_VERSION, payload)
}
