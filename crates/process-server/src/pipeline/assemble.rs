//! A segment from its jobs: outputs in order of dispatch, references merged, table and commit header added.

use std::collections::BTreeMap;

use format::keys::Keys;
use format::object::ObjectId;
use format::segment::{ChunkAt, Commit, FrameSealer, SealedSegment, SegmentRef, assemble};
use model::RecordBody;

use super::chunk::JobOutput;

/// Puts a segment together. `outputs` are all its jobs in order and hold at least one record.
pub fn assemble_segment(keys: &Keys, sealer: &FrameSealer, commit: Commit, outputs: Vec<JobOutput>) -> SealedSegment {
    let mut references: Vec<SegmentRef> = Vec::new();
    let mut known: BTreeMap<ObjectId, u32> = BTreeMap::new();
    let mut frames = Vec::with_capacity(outputs.iter().map(|o| o.frames.len()).sum());
    let mut records = Vec::with_capacity(outputs.iter().map(|o| o.records.len()).sum());
    for output in outputs {
        let merged: Vec<u32> = output.references.into_iter().map(|r| merge(&mut references, &mut known, r)).collect();
        frames.extend(output.frames);
        for mut record in output.records {
            if let RecordBody::Write { data: pieces, .. } = &mut record.body {
                for piece in pieces {
                    if let ChunkAt::Other { reference, .. } = &mut piece.at {
                        *reference = merged[*reference as usize];
                    }
                }
            }
            records.push(record);
        }
    }
    assemble(keys, sealer, commit, frames, references, records)
}

/// The number of a reference in the segment, given once to each segment named.
fn merge(references: &mut Vec<SegmentRef>, known: &mut BTreeMap<ObjectId, u32>, reference: SegmentRef) -> u32 {
    let next = u32::try_from(references.len()).expect("fewer references than records of one segment");
    let number = *known.entry(reference.id).or_insert(next);
    if number == next {
        references.push(reference);
    }
    number
}
