//! DATA payloads: record headers together, then the data of every write back to back, so that neither side copies them.
//!
//! ```text
//! │ meta bytes u32 │ postcard of record headers … │ data of 1st write │ data of 2nd write │ …
//! ```

use bytes::Bytes;
use model::{Record, RecordBody};

use super::DATA_META_BYTES_MAX;
use crate::{FormatError, check, versioned};

/// Head of the payload, and the data that follow it.
pub(super) fn encode(records: &[Record]) -> (Vec<u8>, Vec<Bytes>) {
    let mut data = Vec::with_capacity(records.len());
    let strip = |record: &Record| {
        let Record { seq, time, map_version, body } = record.clone();
        Record { seq, time, map_version, body: body.map_data(|_, bytes| data.push(bytes)) }
    };
    let metas: Vec<Record<()>> = records.iter().map(strip).collect();
    debug_assert_eq!(check::run_of_records(&metas), Ok(()), "a batch that no peer takes");
    let mut head = versioned::append(vec![0; 4], &metas);
    // A length over 4 GiB saturates: the peer refuses it by its cap.
    let meta_bytes = u32::try_from(head.len() - 4).unwrap_or(u32::MAX);
    head[..4].copy_from_slice(&meta_bytes.to_le_bytes());
    (head, data)
}

pub(super) fn decode(payload: Bytes) -> Result<Vec<Record>, FormatError> {
    let have = payload.len() as u64;
    let (meta_bytes, rest) = payload.split_first_chunk::<4>().ok_or(FormatError::Truncated { need: 4, have })?;
    let meta_bytes = u32::from_le_bytes(*meta_bytes) as usize;
    if meta_bytes > DATA_META_BYTES_MAX {
        return Err(FormatError::Invalid { what: "record headers of DATA (over their cap)" });
    }
    let need = 4 + meta_bytes as u64;
    let metas = rest.get(..meta_bytes).ok_or(FormatError::Truncated { need, have })?;
    let metas: Vec<Record<()>> = versioned::postcard("record headers of DATA", metas)?;
    check::run_of_records(&metas)?;
    attach(metas, payload.slice(4 + meta_bytes..))
}

/// Gives each write its slice of `data`, which must come out even.
fn attach(metas: Vec<Record<()>>, mut data: Bytes) -> Result<Vec<Record>, FormatError> {
    let length = |record: &Record<()>| match &record.body {
        RecordBody::Write { extent, .. } => extent.len(),
        _ => 0,
    };
    let have = data.len() as u64;
    let need = metas.iter().try_fold(0u64, |sum, record| sum.checked_add(length(record)));
    let need = need.ok_or(FormatError::Invalid { what: "data length of DATA" })?;
    if have < need {
        return Err(FormatError::Truncated { need, have });
    }
    if have > need {
        return Err(FormatError::TrailingBytes { extra: have - need });
    }
    let give = |record: Record<()>| {
        let Record { seq, time, map_version, body } = record;
        // The sum was checked above, so each length is within what is left and within memory.
        let body = body.map_data(|extent, ()| data.split_to(extent.len() as usize));
        Record { seq, time, map_version, body }
    };
    Ok(metas.into_iter().map(give).collect())
}
