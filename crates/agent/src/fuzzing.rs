//! Entry points for fuzzers: every parser of the agent's own files. None may panic, whatever it is given.
#![doc(hidden)]

use bytes::{Bytes, BytesMut};
use model::Seq;

use crate::spool::SpoolCipher;

/// Reads a slot of the spool file, under a key that is always the same. The first 8 bytes stand for the seq that is
/// expected. No input is likely to carry a right seal, so what it holds is sealed too, and must come back.
pub fn spool(data: &[u8]) {
    let (seq, slot) = data.split_at(data.len().min(8));
    let mut number = [0; 8];
    number[..seq.len()].copy_from_slice(seq);
    let (cipher, seq) = (SpoolCipher::with_key(&[7; 32]), Seq(u64::from_le_bytes(number)));
    let _ = cipher.open(seq, Bytes::copy_from_slice(slot));
    let mut sealed = BytesMut::new();
    cipher.seal(seq, slot, &mut sealed);
    assert_eq!(cipher.open(seq, sealed.freeze()).as_deref(), Ok(slot), "a slot comes back as it was sealed");
}

/// Reads a dirty map.
pub fn dirty_map(data: &[u8]) {
    let _ = crate::map::parse_map(data);
}
