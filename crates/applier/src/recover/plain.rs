//! Memory of opened frames, used again.
//!
//! The frames of one segment are gone when those of the next come, a step later again, and an allocator gives so much at once
//! back to the system: then each frame is unpacked into pages that the kernel clears first, which took a fifth of the applier's
//! CPU time. It is kept for the process, because what opens frames comes and goes with segments and points.

use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

/// Size of what is kept: a full frame of a process server.
const BUFFER_BYTES: usize = 64 << 10;

/// Buffers kept: 16 MiB, about the frames of one segment.
const KEPT_MAX: usize = 256;

static KEPT: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());

fn kept() -> MutexGuard<'static, Vec<Vec<u8>>> {
    KEPT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether a frame of `len` bytes lies in such a buffer. A small one would hold far more than it is long.
fn is_pooled(len: usize) -> bool {
    (BUFFER_BYTES / 2..=BUFFER_BYTES).contains(&len)
}

/// What a frame of `len` bytes holds of memory, for caches that are bounded by it.
pub(super) fn held_bytes(len: usize) -> usize {
    if is_pooled(len) { BUFFER_BYTES } else { len }
}

/// Memory for a frame of `len` bytes. What it holds is to be overwritten.
pub(super) fn take(len: usize) -> Vec<u8> {
    if !is_pooled(len) {
        return Vec::new();
    }
    let buffer = kept().pop();
    buffer.unwrap_or_else(|| Vec::with_capacity(BUFFER_BYTES))
}

/// A frame whose memory goes back when nobody reads it any more.
pub(super) fn share(plain: Vec<u8>) -> Bytes {
    if is_pooled(plain.len()) && plain.capacity() == BUFFER_BYTES {
        Bytes::from_owner(Plain(plain))
    } else {
        plain.into()
    }
}

struct Plain(Vec<u8>);

impl AsRef<[u8]> for Plain {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Plain {
    fn drop(&mut self) {
        let mut kept = kept();
        if kept.len() < KEPT_MAX {
            kept.push(std::mem::take(&mut self.0));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(byte: u8, len: usize) -> Bytes {
        let mut plain = take(len);
        plain.clear();
        plain.resize(len, byte);
        share(plain)
    }

    #[test]
    fn memory_that_somebody_reads_is_not_used_again() {
        let part = frame(1, BUFFER_BYTES).slice(100..200);
        let others: Vec<_> = (0..2 * KEPT_MAX).map(|n| frame(n as u8, BUFFER_BYTES)).collect();
        assert_eq!(part[..], [1; 100]);
        assert!(others.iter().enumerate().all(|(n, other)| other[..] == vec![n as u8; BUFFER_BYTES]));
        drop(others);
        assert!(kept().len() <= KEPT_MAX);
        assert_eq!(frame(7, 40_000)[..], [7; 40_000], "what a buffer held before is gone");
        assert_eq!(frame(8, 3 << 20)[..], vec![8; 3 << 20], "a larger one is the allocator's");
    }

    #[test]
    fn no_frame_holds_more_than_is_counted() {
        for len in
            [1, 512, 4096, BUFFER_BYTES / 2 - 1, BUFFER_BYTES / 2, BUFFER_BYTES - 1, BUFFER_BYTES, BUFFER_BYTES + 1]
        {
            let mut plain = take(len);
            plain.clear();
            plain.reserve_exact(len);
            assert_eq!(plain.capacity(), held_bytes(len), "a frame of {len} bytes");
        }
    }
}
