//! The object header's 384 bytes: encoder, parser, and the checks that make it worth trusting.
//!
//! Offsets are fixed for ever and stand in FORMAT.md. Before the authentication code is checked nothing is looked at
//! but magic, version and vault, and those only to name the reason of a refusal.

use model::{Incarnation, LogHead, MachineName, Position, RecordDigest, Seq, Timestamp};

use super::{HEADER_BYTES, LogKind, OBJECT_BYTES_MAX, ObjectHash, ObjectHeader, ObjectId, ObjectKind, Place, VERSIONS};
use crate::FormatError;
use crate::keys::{Keys, VaultId};

/// Where each field begins. A field ends where the next begins.
pub(crate) mod offset {
    pub const MAGIC: usize = 0;
    pub const VERSION: usize = 8;
    pub const KIND: usize = 10;
    pub const HEADER_BYTES: usize = 12;
    pub const TOTAL_BYTES: usize = 16;
    pub const VAULT: usize = 24;
    pub const ID: usize = 40;
    pub const MACHINE: usize = 72;
    pub const LOG: usize = 136;
    pub const EPOCH: usize = 144;
    pub const SLOT: usize = 152;
    pub const PREV_HASH: usize = 160;
    pub const INCARNATION: usize = 192;
    pub const FIRST_SEQ: usize = 208;
    pub const LAST_SEQ: usize = 216;
    pub const MAP_VERSION: usize = 224;
    pub const FIRST_TIME: usize = 232;
    pub const LAST_TIME: usize = 240;
    pub const GC_SEEN: usize = 248;
    pub const RECORD_DIGEST: usize = 256;
    pub const FRAME_COUNT: usize = 288;
    pub const TABLE_SEALED_BYTES: usize = 292;
    pub const TABLE_PLAIN_BYTES: usize = 296;
    pub const ZERO: usize = 300;
    pub const BODY_DIGEST: usize = 304;
    pub const FLAGS: usize = 336;
    pub const RESERVED: usize = 337;
    pub const MAC: usize = 352;
}

/// Bytes of a machine name's field, its length byte left out.
const MACHINE_BYTES: usize = 63;

/// Header bytes being filled.
struct Writer([u8; HEADER_BYTES]);

impl Writer {
    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn put_u64(&mut self, at: usize, value: u64) {
        self.put(at, &value.to_le_bytes());
    }

    fn put_u32(&mut self, at: usize, value: u32) {
        self.put(at, &value.to_le_bytes());
    }
}

/// Header bytes being read; every offset is a constant within them.
struct Reader<'a>(&'a [u8; HEADER_BYTES]);

impl Reader<'_> {
    fn bytes<const N: usize>(&self, at: usize) -> [u8; N] {
        std::array::from_fn(|i| self.0[at + i])
    }

    fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.bytes(at))
    }

    fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.bytes(at))
    }

    fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes(self.bytes(at))
    }

    fn zeros(&self, from: usize, to: usize) -> Result<(), FormatError> {
        if self.0[from..to].iter().any(|&b| b != 0) {
            return Err(FormatError::Invalid { what: "reserved header bytes (not zero)" });
        }
        Ok(())
    }
}

impl ObjectHeader {
    /// Header bytes with their MAC. The header must be one that [`ObjectHeader::parse`] takes.
    pub fn encode(&self, keys: &Keys) -> [u8; HEADER_BYTES] {
        debug_assert_eq!(self.check_fields(), Ok(()), "a header that no reader takes: {self:?}");
        let mut w = Writer([0; HEADER_BYTES]);
        w.put(offset::MAGIC, &self.kind.magic());
        w.put(offset::VERSION, &VERSIONS[0].0.to_le_bytes());
        w.put(offset::KIND, &(self.kind as u16).to_le_bytes());
        w.put_u32(offset::HEADER_BYTES, HEADER_BYTES as u32);
        w.put_u64(offset::TOTAL_BYTES, self.total_bytes);
        w.put(offset::VAULT, &self.vault.0);
        w.put(offset::ID, &self.id.0);
        if let Some(machine) = &self.place.machine {
            let name = machine.as_str().as_bytes();
            w.put(offset::MACHINE, &[name.len() as u8]);
            w.put(offset::MACHINE + 1, name);
        }
        w.put(offset::LOG, &[self.place.log.map_or(0, |log| log as u8)]);
        w.put_u64(offset::EPOCH, self.place.epoch);
        w.put_u64(offset::SLOT, self.place.slot);
        w.put(offset::PREV_HASH, &self.prev_hash.0);
        w.put(offset::INCARNATION, &self.head.position.incarnation.0);
        w.put_u64(offset::FIRST_SEQ, self.first_seq.0);
        w.put_u64(offset::LAST_SEQ, self.head.position.seq.0);
        w.put_u64(offset::MAP_VERSION, self.head.map_version);
        w.put_u64(offset::FIRST_TIME, self.first_time.0);
        w.put_u64(offset::LAST_TIME, self.head.time.0);
        w.put_u64(offset::GC_SEEN, self.gc_seen);
        w.put(offset::RECORD_DIGEST, &self.head.digest.0);
        w.put_u32(offset::FRAME_COUNT, self.frame_count);
        w.put_u32(offset::TABLE_SEALED_BYTES, self.table_sealed_bytes);
        w.put_u32(offset::TABLE_PLAIN_BYTES, self.table_plain_bytes);
        w.put(offset::BODY_DIGEST, &self.body_digest);
        w.put(offset::FLAGS, &[u8::from(self.shared)]);
        let mac = keys.header_mac(&w.0[..offset::MAC]);
        w.put(offset::MAC, mac.as_bytes());
        w.0
    }

    /// Parses and authenticates the first [`HEADER_BYTES`] of `bytes`. The caller checks `place` with
    /// [`ObjectHeader::expect_place`]. Errors, in this order: `Truncated`, `Magic`, `Version`, `OtherVault`,
    /// `Authentication`, `Invalid`.
    pub fn parse(keys: &Keys, bytes: &[u8]) -> Result<Self, FormatError> {
        let bytes = header_bytes(bytes)?;
        let kind = kind_and_version(bytes)?;
        let vault = VaultId(Reader(bytes).bytes(offset::VAULT));
        if vault != keys.vault() {
            return Err(FormatError::OtherVault { found: vault.to_string(), expected: keys.vault().to_string() });
        }
        let mac = blake3::Hash::from_bytes(Reader(bytes).bytes(offset::MAC));
        if keys.header_mac(&bytes[..offset::MAC]) != mac {
            return Err(FormatError::Authentication { what: "object header" });
        }
        Self::read_fields(kind, bytes)
    }

    /// Parses without a key, for `dump` of a damaged or foreign object; nothing in it may be trusted.
    pub fn parse_unauthenticated(bytes: &[u8]) -> Result<Self, FormatError> {
        let bytes = header_bytes(bytes)?;
        Self::read_fields(kind_and_version(bytes)?, bytes)
    }

    fn read_fields(kind: ObjectKind, bytes: &[u8; HEADER_BYTES]) -> Result<Self, FormatError> {
        let r = Reader(bytes);
        if r.u16(offset::KIND) != kind as u16 {
            return Err(FormatError::Invalid { what: "object kind (differs from the magic number)" });
        }
        if r.u32(offset::HEADER_BYTES) as usize != HEADER_BYTES {
            return Err(FormatError::Invalid { what: "header length" });
        }
        r.zeros(offset::LOG + 1, offset::EPOCH)?;
        r.zeros(offset::ZERO, offset::BODY_DIGEST)?;
        r.zeros(offset::RESERVED, offset::MAC)?;
        let header = ObjectHeader {
            kind,
            total_bytes: r.u64(offset::TOTAL_BYTES),
            vault: VaultId(r.bytes(offset::VAULT)),
            id: ObjectId(r.bytes(offset::ID)),
            place: Place {
                machine: read_machine(&r)?,
                log: read_log(r.0[offset::LOG])?,
                epoch: r.u64(offset::EPOCH),
                slot: r.u64(offset::SLOT),
            },
            prev_hash: ObjectHash(r.bytes(offset::PREV_HASH)),
            first_seq: Seq(r.u64(offset::FIRST_SEQ)),
            first_time: Timestamp(r.u64(offset::FIRST_TIME)),
            head: LogHead {
                position: Position {
                    incarnation: Incarnation(r.bytes(offset::INCARNATION)),
                    seq: Seq(r.u64(offset::LAST_SEQ)),
                },
                digest: RecordDigest(r.bytes(offset::RECORD_DIGEST)),
                map_version: r.u64(offset::MAP_VERSION),
                time: Timestamp(r.u64(offset::LAST_TIME)),
            },
            gc_seen: r.u64(offset::GC_SEEN),
            frame_count: r.u32(offset::FRAME_COUNT),
            table_sealed_bytes: r.u32(offset::TABLE_SEALED_BYTES),
            table_plain_bytes: r.u32(offset::TABLE_PLAIN_BYTES),
            body_digest: r.bytes(offset::BODY_DIGEST),
            shared: read_flags(r.0[offset::FLAGS])?,
        };
        header.check_fields()?;
        Ok(header)
    }

    /// What must hold between the fields of any header.
    fn check_fields(&self) -> Result<(), FormatError> {
        let least = HEADER_BYTES as u64 + u64::from(self.table_sealed_bytes);
        if self.total_bytes < least || self.total_bytes > OBJECT_BYTES_MAX {
            return Err(FormatError::Invalid { what: "object length" });
        }
        let place = &self.place;
        let fits = match self.kind {
            ObjectKind::Hold | ObjectKind::Consumer => {
                place.machine.is_some() && place.log.is_none() && place.epoch == 0 && place.slot > 0
            }
            ObjectKind::Vault => place.machine.is_none() && place.log.is_none() && place.epoch == 0 && place.slot == 0,
            ObjectKind::Condemn | ObjectKind::Registry => {
                place.machine.is_none() && place.log.is_none() && place.epoch > 0 && place.slot == 0
            }
            ObjectKind::Epoch | ObjectKind::Opening => {
                place.machine.is_some() && place.log.is_some() && place.slot == 0
            }
            ObjectKind::Segment => place.machine.is_some() && place.log == Some(LogKind::Stream) && place.slot > 0,
            ObjectKind::Manifest | ObjectKind::Map | ObjectKind::Pack => {
                place.machine.is_some() && place.log == Some(LogKind::Manifest) && place.slot > 0
            }
        };
        if !fits {
            return Err(FormatError::Invalid { what: "object place (not one of this kind)" });
        }
        if self.shared && self.kind != ObjectKind::Segment {
            return Err(FormatError::Invalid { what: "flags in the header (only a segment is shared)" });
        }
        let last = self.head.position.seq;
        let holds_records = self.kind.has_records();
        let numbers = last.0 < u64::MAX
            && if holds_records {
                self.first_seq > Seq::ZERO && self.first_seq <= last && self.first_time <= self.head.time
            } else {
                self.first_seq == last.next()
            };
        if !numbers {
            return Err(FormatError::Invalid { what: "record numbers or times in the header" });
        }
        let has_table = self.kind.has_table();
        if has_table == (self.table_sealed_bytes == 0) || has_table == (self.table_plain_bytes == 0) {
            return Err(FormatError::Invalid {
                what: "table length (segments, maps and packs have a table, others have none)",
            });
        }
        if !has_table && self.frame_count != 1 {
            return Err(FormatError::Invalid { what: "frame count (a small object has one)" });
        }
        Ok(())
    }

    /// The chain link of the object whose encoded header this is: its first [`HEADER_BYTES`] are hashed as they are,
    /// so it stands for an object only when they parse. Errors: truncated.
    pub fn hash(header_bytes_given: &[u8]) -> Result<ObjectHash, FormatError> {
        Ok(ObjectHash(*blake3::hash(header_bytes(header_bytes_given)?).as_bytes()))
    }

    /// Refuses an intact object that lies in another's place.
    pub fn expect_place(&self, kind: ObjectKind, place: &Place) -> Result<(), FormatError> {
        if self.kind != kind || self.place != *place {
            return Err(FormatError::Misplaced {
                found: format!("{} of {}", self.kind.name(), self.place),
                expected: format!("{} of {place}", kind.name()),
            });
        }
        Ok(())
    }

    /// Checks length and body digest of a whole object against its header.
    /// Errors: `Truncated`, `TrailingBytes`, `Checksum`.
    pub fn check_body(&self, object: &[u8]) -> Result<(), FormatError> {
        let have = object.len() as u64;
        if have < self.total_bytes {
            return Err(FormatError::Truncated { need: self.total_bytes, have });
        }
        if have > self.total_bytes {
            return Err(FormatError::TrailingBytes { extra: have - self.total_bytes });
        }
        let body = object.get(HEADER_BYTES..).unwrap_or_default();
        if blake3::hash(body) != blake3::Hash::from_bytes(self.body_digest) {
            return Err(FormatError::Checksum { what: "object body" });
        }
        Ok(())
    }
}

fn header_bytes(bytes: &[u8]) -> Result<&[u8; HEADER_BYTES], FormatError> {
    let have = bytes.len() as u64;
    bytes.first_chunk().ok_or(FormatError::Truncated { need: HEADER_BYTES as u64, have })
}

fn kind_and_version(bytes: &[u8; HEADER_BYTES]) -> Result<ObjectKind, FormatError> {
    let magic = Reader(bytes).bytes(offset::MAGIC);
    let kind = ObjectKind::ALL.into_iter().find(|kind| kind.magic() == magic);
    let kind = kind.ok_or(FormatError::Magic { what: "object" })?;
    let (found, newest) = (Reader(bytes).u16(offset::VERSION), VERSIONS[0].0);
    if found == 0 || found > newest {
        return Err(FormatError::Version { what: "object", found: found.into(), newest: newest.into() });
    }
    Ok(kind)
}

fn read_machine(r: &Reader<'_>) -> Result<Option<MachineName>, FormatError> {
    const BAD: FormatError = FormatError::Invalid { what: "machine name" };
    let len = usize::from(r.0[offset::MACHINE]);
    if len > MACHINE_BYTES {
        return Err(BAD);
    }
    let start = offset::MACHINE + 1;
    r.zeros(start + len, offset::LOG)?;
    if len == 0 {
        return Ok(None);
    }
    let text = std::str::from_utf8(&r.0[start..start + len]).map_err(|_| BAD)?;
    text.parse().map(Some).map_err(|_| BAD)
}

fn read_flags(flags: u8) -> Result<bool, FormatError> {
    match flags {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(FormatError::Invalid { what: "flags in the header" }),
    }
}

fn read_log(number: u8) -> Result<Option<LogKind>, FormatError> {
    match number {
        0 => Ok(None),
        1 => Ok(Some(LogKind::Stream)),
        2 => Ok(Some(LogKind::Manifest)),
        _ => Err(FormatError::Invalid { what: "log kind" }),
    }
}
