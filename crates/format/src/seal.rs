//! Sealing: AES-256-GCM frames under the key of one object.
//!
//! The nonce is the frame's number, so a number must never be sealed twice under one object id. What a frame is (vault,
//! object, number, role, codec, plain length) is authenticated with it: a frame put in another's place does not open.

use ring::aead::{Aad, LessSafeKey, Nonce};

use crate::FormatError;
use crate::codec::{Codec, Compressor, Level, decompress};
use crate::keys::{Keys, VaultId};
use crate::object::ObjectId;

/// Bytes sealing adds.
pub(crate) const TAG_BYTES: usize = 16;

/// What every frame's associated data begin with.
const AAD_PREFIX: &[u8; 17] = b"farshore frame v1";
const AAD_BYTES: usize = 75;

/// What a frame is for; part of its associated data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Role {
    /// Chunks of a segment.
    Data = 1,
    /// A segment's table.
    Table = 2,
    /// The body of a small object.
    Body = 3,
}

/// The number under which a segment's table is sealed; no data frame has it.
pub(crate) const TABLE_NUMBER: u32 = u32::MAX;

/// The number under which a small object's body is sealed.
pub(crate) const BODY_NUMBER: u32 = 0;

/// Which frame of the object is meant.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FrameName {
    pub number: u32,
    pub role: Role,
    pub codec: Codec,
    pub plain_bytes: u32,
}

/// Seals and opens the frames of one object.
pub(crate) struct ObjectCipher {
    key: LessSafeKey,
    vault: VaultId,
    id: ObjectId,
}

impl ObjectCipher {
    pub fn new(keys: &Keys, id: ObjectId) -> Self {
        Self { key: keys.object_key(&id), vault: keys.vault(), id }
    }

    pub fn id(&self) -> ObjectId {
        self.id
    }

    fn nonce(number: u32) -> Nonce {
        let mut nonce = [0; 12];
        nonce[..4].copy_from_slice(&number.to_le_bytes());
        Nonce::assume_unique_for_key(nonce)
    }

    fn aad(&self, name: &FrameName) -> Aad<[u8; AAD_BYTES]> {
        let mut aad = [0; AAD_BYTES];
        aad[..17].copy_from_slice(AAD_PREFIX);
        aad[17..33].copy_from_slice(&self.vault.0);
        aad[33..65].copy_from_slice(&self.id.0);
        aad[65..69].copy_from_slice(&name.number.to_le_bytes());
        aad[69] = name.role as u8;
        aad[70] = name.codec as u8;
        aad[71..75].copy_from_slice(&name.plain_bytes.to_le_bytes());
        Aad::from(aad)
    }

    /// Seals in place and appends the tag.
    pub fn seal(&self, name: &FrameName, bytes: &mut Vec<u8>) {
        bytes.reserve_exact(TAG_BYTES);
        self.key
            .seal_in_place_append_tag(Self::nonce(name.number), self.aad(name), bytes)
            .expect("a frame is far below the 64 GiB that AES-GCM takes");
    }

    /// Opens to the still packed bytes.
    pub fn open(&self, name: &FrameName, what: &'static str, sealed: &[u8]) -> Result<Vec<u8>, FormatError> {
        let mut bytes = sealed.to_vec();
        let opened = self.key.open_in_place(Self::nonce(name.number), self.aad(name), &mut bytes);
        let len = opened.map_err(|_| FormatError::Authentication { what })?.len();
        bytes.truncate(len);
        Ok(bytes)
    }

    /// Seals a table or body: its codec and plain length go before the packed bytes, as nothing else states them.
    pub fn seal_envelope(&self, role: Role, plain: &[u8], packing: Packing) -> Vec<u8> {
        let plain_bytes = u32::try_from(plain.len()).expect("tables and bodies are within their caps, far below 4 GiB");
        let (codec, packed) = match packing {
            Packing::WhenItPays => Compressor::new().compress(Level::Normal, plain),
            #[cfg(test)]
            Packing::Raw => (Codec::Raw, plain.to_vec()),
        };
        let mut bytes = Vec::with_capacity(ENVELOPE_BYTES + packed.len() + TAG_BYTES);
        bytes.push(codec as u8);
        bytes.extend_from_slice(&plain_bytes.to_le_bytes());
        bytes.extend_from_slice(&packed);
        self.seal(&envelope_name(role, bytes.len()), &mut bytes);
        bytes
    }

    /// Opens a table or body of at most `plain_max` plain bytes.
    pub fn open_envelope(
        &self,
        role: Role,
        what: &'static str,
        sealed: &[u8],
        plain_max: usize,
    ) -> Result<Vec<u8>, FormatError> {
        let least = ENVELOPE_BYTES + TAG_BYTES;
        if sealed.len() < least {
            return Err(FormatError::Truncated { need: least as u64, have: sealed.len() as u64 });
        }
        let bytes = self.open(&envelope_name(role, sealed.len() - TAG_BYTES), what, sealed)?;
        let (codec, rest) = bytes.split_first().ok_or(FormatError::Invalid { what })?;
        let (plain_bytes, packed) = rest.split_first_chunk::<4>().ok_or(FormatError::Invalid { what })?;
        let plain_bytes = u32::from_le_bytes(*plain_bytes) as usize;
        if plain_bytes > plain_max {
            return Err(FormatError::Invalid { what });
        }
        decompress(Codec::try_from(*codec)?, packed, plain_bytes)
    }
}

/// Codec (1) and plain length (4) before the packed bytes of a table or body.
const ENVELOPE_BYTES: usize = 5;

/// An envelope is raw as far as its seal is concerned. A length over 4 GiB saturates and so cannot authenticate.
fn envelope_name(role: Role, envelope_bytes: usize) -> FrameName {
    let number = if role == Role::Table { TABLE_NUMBER } else { BODY_NUMBER };
    let plain_bytes = u32::try_from(envelope_bytes).unwrap_or(u32::MAX);
    FrameName { number, role, codec: Codec::Raw, plain_bytes }
}

/// Whether to compress a table or body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Packing {
    /// What the program does.
    WhenItPays,
    /// Never: golden files must come out the same with every version of zstd.
    #[cfg(test)]
    Raw,
}
