//! Memory of large write payloads, used again.
//!
//! Memory fresh from the system costs a page fault for every 4 KiB, more than to copy them. A payload that nobody holds any
//! more when its reply was sent is kept for the next one, up to a bound for each connection.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};

/// Payloads below this come from the allocator, which has their memory at hand.
const BYTES_MIN: usize = 64 << 10;
/// Bytes kept for one connection.
const KEPT_BYTES_MAX: usize = 4 << 20;

/// The memory kept for one connection.
#[derive(Debug, Clone, Default)]
pub(super) struct Payloads {
    kept: Arc<Mutex<Vec<BytesMut>>>,
}

impl Payloads {
    fn kept(&self) -> MutexGuard<'_, Vec<BytesMut>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An empty buffer with room for `len` bytes.
    pub(super) fn take(&self, len: usize) -> BytesMut {
        let kept = (len >= BYTES_MIN).then(|| self.kept().pop()).flatten();
        match kept {
            Some(buffer) if buffer.capacity() >= len => buffer,
            _ => BytesMut::with_capacity(len),
        }
    }

    /// Keeps the memory of a payload, if nobody else has it and there is room.
    pub(super) fn give_back(&self, payload: Bytes) {
        if payload.len() < BYTES_MIN {
            return;
        }
        let Ok(mut buffer) = payload.try_into_mut() else { return };
        buffer.clear();
        let mut kept = self.kept();
        let bytes: usize = kept.iter().map(BytesMut::capacity).sum();
        if bytes + buffer.capacity() <= KEPT_BYTES_MAX {
            kept.push(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(payloads: &Payloads, len: usize) -> (Bytes, *const u8) {
        let mut buffer = payloads.take(len);
        buffer.resize(len, 7);
        let at = buffer.as_ptr();
        (buffer.freeze(), at)
    }

    #[test]
    fn memory_is_used_again_only_when_nobody_has_it() {
        let payloads = Payloads::default();
        let (first, at) = payload(&payloads, 1 << 20);
        let held = first.clone();
        payloads.give_back(first);
        let (second, elsewhere) = payload(&payloads, 1 << 20);
        assert_ne!(elsewhere, at, "somebody still reads the first");
        assert_eq!(held[..], vec![7; 1 << 20]);
        payloads.give_back(second);
        assert_eq!(payload(&payloads, BYTES_MIN).1, elsewhere, "the same memory");
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let payloads = Payloads::default();
        let all: Vec<_> = (0..8).map(|_| payload(&payloads, 1 << 20).0).collect();
        all.into_iter().for_each(|one| payloads.give_back(one));
        let kept: usize = payloads.kept().iter().map(BytesMut::capacity).sum();
        assert_eq!(kept, KEPT_BYTES_MAX);
        payloads.give_back(vec![0; 512].into());
        assert_eq!(payloads.kept().len(), 4, "small ones are the allocator's");
    }
}
