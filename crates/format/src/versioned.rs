//! Bodies that are a version number and a postcard value: how they are written, and how untrusted ones are read.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::FormatError;

/// `[version u16][postcard]`.
pub(crate) fn encode<T: Serialize>(version: u16, value: &T) -> Vec<u8> {
    append(version.to_le_bytes().to_vec(), value)
}

/// Appends the postcard of `value`.
pub(crate) fn append<T: Serialize>(bytes: Vec<u8>, value: &T) -> Vec<u8> {
    postcard::to_extend(value, bytes).expect("plain values have known lengths, and memory takes them all")
}

/// Splits the version off and refuses unknown ones.
pub(crate) fn version<'a>(what: &'static str, newest: u16, bytes: &'a [u8]) -> Result<(u16, &'a [u8]), FormatError> {
    let have = bytes.len() as u64;
    let (found, rest) = bytes.split_first_chunk::<2>().ok_or(FormatError::Truncated { need: 2, have })?;
    let found = u16::from_le_bytes(*found);
    if found == 0 || found > newest {
        return Err(FormatError::Version { what, found: found.into(), newest: newest.into() });
    }
    Ok((found, rest))
}

/// Reads one postcard value and refuses anything behind it. postcard reserves at most a small constant before it has
/// seen the elements a length claims, so memory is bounded by a small multiple of `bytes`.
pub(crate) fn postcard<T: DeserializeOwned>(what: &'static str, bytes: &[u8]) -> Result<T, FormatError> {
    match postcard::take_from_bytes(bytes) {
        Ok((value, [])) => Ok(value),
        Ok((_, rest)) => Err(FormatError::TrailingBytes { extra: rest.len() as u64 }),
        Err(postcard::Error::DeserializeUnexpectedEnd) => {
            let have = bytes.len() as u64;
            Err(FormatError::Truncated { need: have + 1, have })
        }
        Err(_) => Err(FormatError::Invalid { what }),
    }
}

/// Reads what [`encode`] wrote, when there is one version only.
pub(crate) fn decode<T: DeserializeOwned>(what: &'static str, newest: u16, bytes: &[u8]) -> Result<T, FormatError> {
    let (_, rest) = version(what, newest, bytes)?;
    postcard(what, rest)
}
