//! Entry points for fuzzers: every parser of the agent's own files. None may panic, whatever it is given.
#![doc(hidden)]

use bytes::Bytes;
use model::Seq;

/// Reads a slot of the spool file. The first 8 bytes stand for the seq that is expected.
pub fn spool(data: &[u8]) {
    let (seq, slot) = data.split_at(data.len().min(8));
    let mut number = [0; 8];
    number[..seq.len()].copy_from_slice(seq);
    let _ = crate::spool::decode_slot(Seq(u64::from_le_bytes(number)), &Bytes::copy_from_slice(slot));
}

/// Reads a dirty map.
pub fn dirty_map(data: &[u8]) {
    let _ = crate::map::parse_map(data);
}
