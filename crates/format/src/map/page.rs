//! A page: runs of one disk in columns, which compress far better than rows.

use std::collections::BTreeMap;

use model::{Extent, SECTOR_BYTES};
use serde::{Deserialize, Serialize};

use super::{MapRun, MapSource, PAGE_RUNS_MAX, SegmentName, VERSIONS};
use crate::object::FRAME_PLAIN_BYTES_MAX;
use crate::{FormatError, versioned};

/// The columns. All have one value for each run, but `frames` and `offsets`, which have one for each run of data.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Columns {
    /// Segments that hold data.
    segments: Vec<SegmentName>,
    /// Sectors between the end of the run before and this one.
    gaps: Vec<u64>,
    /// Sectors.
    lens: Vec<u64>,
    /// 0 for zeros, else one more than an index into `segments`.
    sources: Vec<u32>,
    /// Frame numbers.
    frames: Vec<u32>,
    /// Offsets in the frames' plain bytes.
    offsets: Vec<u32>,
}

/// Bytes of a page. `runs` ascend and do not overlap; at most [`PAGE_RUNS_MAX`].
pub(crate) fn encode(runs: &[MapRun]) -> Vec<u8> {
    let (mut columns, mut end) = (Columns::default(), 0);
    let mut numbers = BTreeMap::new();
    for run in runs {
        columns.gaps.push((run.extent.offset() - end) / SECTOR_BYTES);
        columns.lens.push(run.extent.len() / SECTOR_BYTES);
        end = run.extent.end();
        let MapSource::Data { segment, frame, offset } = run.source else {
            columns.sources.push(0);
            continue;
        };
        let number = *numbers.entry(segment).or_insert_with(|| {
            columns.segments.push(segment);
            u32::try_from(columns.segments.len()).expect("a page has few runs")
        });
        columns.sources.push(number);
        columns.frames.push(frame);
        columns.offsets.push(offset);
    }
    versioned::encode(VERSIONS[0].0, &columns)
}

/// Reads a page. Everything in the result is in range: runs ascend, are sectors long and lie within a frame.
/// Errors: `Truncated`, `TrailingBytes`, `Version`, `Invalid`.
pub(crate) fn decode(bytes: &[u8]) -> Result<Vec<MapRun>, FormatError> {
    const BAD: FormatError = FormatError::Invalid { what: "page of a map" };
    let columns: Columns = versioned::decode("page of a map", VERSIONS[0].0, bytes)?;
    let count = columns.lens.len();
    if count > PAGE_RUNS_MAX || columns.gaps.len() != count || columns.sources.len() != count {
        return Err(BAD);
    }
    let mut data = columns.frames.iter().zip(&columns.offsets);
    let (mut runs, mut end) = (Vec::with_capacity(count), 0u64);
    for ((gap, len), source) in columns.gaps.iter().zip(&columns.lens).zip(&columns.sources) {
        let start = gap.checked_mul(SECTOR_BYTES).and_then(|gap| end.checked_add(gap)).ok_or(BAD)?;
        let len = len.checked_mul(SECTOR_BYTES).ok_or(BAD)?;
        let extent = Extent::new(start, len).map_err(|_| BAD)?;
        let source = match source.checked_sub(1) {
            None => MapSource::Zero,
            Some(number) => {
                let segment = *columns.segments.get(number as usize).ok_or(BAD)?;
                let (frame, offset) = data.next().ok_or(BAD)?;
                if len.saturating_add(u64::from(*offset)) > FRAME_PLAIN_BYTES_MAX as u64 {
                    return Err(BAD);
                }
                MapSource::Data { segment, frame: *frame, offset: *offset }
            }
        };
        runs.push(MapRun { extent, source });
        end = extent.end();
    }
    match data.next().is_some() || columns.frames.len() != columns.offsets.len() {
        true => Err(BAD),
        false => Ok(runs),
    }
}
