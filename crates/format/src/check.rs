//! What must hold of records wherever they are read, on the wire as in a table.

use model::{Mark, Record, RecordBody, Seq};

use crate::FormatError;

/// Longest label of a mark in bytes.
pub(crate) const LABEL_BYTES_MAX: usize = 200;

pub(crate) fn mark(mark: &Mark) -> Result<(), FormatError> {
    if mark.label.len() > LABEL_BYTES_MAX {
        return Err(FormatError::Invalid { what: "mark label (over 200 bytes)" });
    }
    Ok(())
}

/// Numbers run on without a gap from at least 1 and leave room for a next one; time never goes back; labels are short.
/// Ranges and names are valid by their types.
pub(crate) fn run_of_records<D>(records: &[Record<D>]) -> Result<(), FormatError> {
    let first = records.first().ok_or(FormatError::Invalid { what: "record list (empty)" })?;
    if first.seq == Seq::ZERO {
        return Err(FormatError::Invalid { what: "record number (zero)" });
    }
    let mut before: Option<&Record<D>> = None;
    for record in records {
        if record.seq.0 == u64::MAX || before.is_some_and(|b| b.seq.next() != record.seq) {
            return Err(FormatError::Invalid { what: "record numbers (not contiguous)" });
        }
        if before.is_some_and(|b| b.time > record.time) {
            return Err(FormatError::Invalid { what: "record time (goes back)" });
        }
        if let RecordBody::Mark(m) | RecordBody::DrainEnd(m) = &record.body {
            mark(m)?;
        }
        before = Some(record);
    }
    Ok(())
}
