//! The vault key and everything derived from it (docs/rfcs/0002-formats-and-keys.md).
//!
//! ```text
//! vault key (256 random bits)
//!   ├─ derive "vault id"   → 128 bits, public: names the vault in every header
//!   ├─ derive "header mac" → key of keyed BLAKE3 over object headers
//!   ├─ derive "chunk id"   → key of keyed BLAKE3 over chunk plaintext
//!   └─ HKDF-SHA256(salt = object id, info) → AES-256-GCM key of one object; nonce = frame number
//! ```
//! An object id is 256 random bits, and nothing is ever sealed twice under one id. Secrets are zeroed when dropped and
//! no `Debug` shows them.

mod text;

use std::fmt;

use ring::rand::{SecureRandom, SystemRandom};
use ring::{aead, hkdf};
use zeroize::Zeroizing;

use crate::FormatError;
use crate::object::ObjectId;

/// Contexts of BLAKE3's key derivation: changing one changes every vault, so they are part of the format.
const VAULT_ID_CONTEXT: &str = "farshore 2026 vault id";
const HEADER_MAC_CONTEXT: &str = "farshore 2026 header mac";
const CHUNK_ID_CONTEXT: &str = "farshore 2026 chunk id";
const STATE_CONTEXT: &str = "farshore 2026 state digest";

/// HKDF's info for the key of one object.
const OBJECT_KEY_INFO: &[u8] = b"farshore object v1";

/// Bytes from the operating system's randomness: the one place in this crate where randomness comes in.
pub(crate) fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).expect("the operating system always has randomness to give");
    bytes
}

/// The root of a vault's secrets. Zeroed when dropped; `Debug` never shows it.
pub struct VaultKey {
    bytes: Zeroizing<[u8; 32]>,
}

impl VaultKey {
    /// A new random key.
    pub fn generate() -> Self {
        Self { bytes: Zeroizing::new(random_bytes()) }
    }

    /// A key from its 256 bits, which must be secret and random: for key management services and fixed test vaults.
    pub fn from_bytes(bytes: Zeroizing<[u8; 32]>) -> Self {
        Self { bytes }
    }

    /// Reads a key as printed by [`VaultKey::to_text`]: white space, dashes and case do not matter; a checksum catches
    /// typing errors. Errors: `Invalid` (not a key), `Version` (a later form), `Checksum` (mistyped).
    pub fn parse(text: &str) -> Result<Self, FormatError> {
        text::parse(text).map(|bytes| Self { bytes })
    }

    /// The key as text an operator can print and type: `FARSHORE-KEY-1-xxxxxxx-xxxxxxx-…` (eight base32 groups with
    /// checksum). The recovery key is this text.
    pub fn to_text(&self) -> Zeroizing<String> {
        text::print(&self.bytes)
    }
}

impl fmt::Debug for VaultKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("VaultKey(secret)")
    }
}

/// Names a vault; public.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct VaultId(pub [u8; 16]);

impl fmt::Display for VaultId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

/// Keyed BLAKE3 of a chunk's plaintext: equal chunks of one vault have equal ids, and the ids tell nobody else anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ChunkId(pub [u8; 32]);

/// Everything derived from the vault key once.
pub struct Keys {
    vault: VaultId,
    header_mac: Zeroizing<[u8; 32]>,
    chunk_id: Zeroizing<[u8; 32]>,
    state: Zeroizing<[u8; 32]>,
    /// Input of the key derivation of objects.
    root: Zeroizing<[u8; 32]>,
}

impl Keys {
    /// Derives all keys.
    pub fn new(vault_key: &VaultKey) -> Self {
        let root = &vault_key.bytes;
        let derive = |context| blake3::derive_key(context, root.as_slice());
        let [id, _] = *derive(VAULT_ID_CONTEXT).as_chunks::<16>().0 else { unreachable!("32 bytes are twice 16") };
        Self {
            vault: VaultId(id),
            header_mac: Zeroizing::new(derive(HEADER_MAC_CONTEXT)),
            chunk_id: Zeroizing::new(derive(CHUNK_ID_CONTEXT)),
            state: Zeroizing::new(derive(STATE_CONTEXT)),
            root: root.clone(),
        }
    }

    /// The vault these keys open.
    pub fn vault(&self) -> VaultId {
        self.vault
    }

    /// The id of a chunk.
    pub fn chunk_id(&self, plain: &[u8]) -> ChunkId {
        ChunkId(*blake3::keyed_hash(&self.chunk_id, plain).as_bytes())
    }

    /// The keyed hash of state digests.
    pub(crate) fn state_hash(&self, input: &[u8]) -> [u8; 32] {
        *blake3::keyed_hash(&self.state, input).as_bytes()
    }

    /// The authentication code of header bytes. Comparing two [`blake3::Hash`]es takes constant time.
    pub(crate) fn header_mac(&self, header: &[u8]) -> blake3::Hash {
        blake3::keyed_hash(&self.header_mac, header)
    }

    /// The key that seals the frames of one object.
    pub(crate) fn object_key(&self, id: &ObjectId) -> aead::LessSafeKey {
        let extracted = hkdf::Salt::new(hkdf::HKDF_SHA256, &id.0).extract(self.root.as_slice());
        let expanded = extracted.expand(&[OBJECT_KEY_INFO], &aead::AES_256_GCM);
        aead::LessSafeKey::new(expanded.expect("32 bytes are within what HKDF gives").into())
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keys(vault {})", self.vault)
    }
}
