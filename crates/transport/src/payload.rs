//! Memory of large payloads: mapped apart from everything else, used again, and gone from the process when it is given back.
//!
//! A payload lives until its records are sealed, and among it many small things are allocated that live longer. In a common
//! heap they pin what was freed between them: a process server that once was behind with sealing kept the memory of all it
//! had received (85 MiB of 271 were measured, with glibc's allocator and with jemalloc). Mapped by itself, it is either in use,
//! one of the few buffers kept, or the system's. A map's pages come when they are written: a length that was announced and
//! not sent holds nothing.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use memmap2::MmapMut;

/// Payloads below this lie in the heap.
pub(crate) const BYTES_MIN: usize = 64 << 10;

/// Size of the buffers that are used again: a DATA frame of an agent's usual size, with its headers. A larger payload has a map of its own.
const BUFFER_BYTES: usize = 2 << 20;

/// Buffers kept though nobody needs them.
const KEPT_MAX: usize = 8;

/// Buffers that nobody needs now; shared by the connections of a listener.
#[derive(Clone, Default)]
pub(crate) struct Payloads {
    kept: Arc<Mutex<Vec<MmapMut>>>,
}

impl Payloads {
    fn kept(&self) -> MutexGuard<'_, Vec<MmapMut>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A payload of `len` bytes, none of which has come. Errors: the system has no memory.
    pub(crate) fn begin(&self, len: usize) -> io::Result<Payload> {
        let kept = (len <= BUFFER_BYTES).then(|| self.kept().pop()).flatten();
        let map = match kept {
            Some(map) => map,
            None => MmapMut::map_anon(len.max(BUFFER_BYTES))?,
        };
        Ok(Payload { map: Some(map), len, filled: 0, home: self.clone() })
    }
}

/// A payload on its way, and then whole. Its memory goes back when it is dropped.
pub(crate) struct Payload {
    /// Nothing only while it is dropped.
    map: Option<MmapMut>,
    len: usize,
    filled: usize,
    home: Payloads,
}

impl Payload {
    /// Where the bytes belong that have not come.
    pub(crate) fn missing(&mut self) -> &mut [u8] {
        let map = self.map.as_mut().expect("it is not dropped");
        &mut map[self.filled..self.len]
    }

    /// So many of them have come.
    pub(crate) fn advance(&mut self, count: usize) {
        self.filled += count;
        assert!(self.filled <= self.len, "no more comes than belongs to it");
    }

    /// Takes what has come already.
    pub(crate) fn put(&mut self, bytes: &[u8]) {
        self.missing()[..bytes.len()].copy_from_slice(bytes);
        self.advance(bytes.len());
    }

    /// Whether all of it has come.
    pub(crate) fn is_whole(&self) -> bool {
        self.filled == self.len
    }

    /// Bytes that have come.
    #[cfg(test)]
    pub(crate) fn filled(&self) -> usize {
        self.filled
    }

    /// The payload, which must be whole: what a buffer held before is shown to nobody.
    pub(crate) fn freeze(self) -> Bytes {
        assert!(self.is_whole(), "what has not come is not shown");
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Payload {
    fn as_ref(&self) -> &[u8] {
        let map = self.map.as_ref().expect("it is not dropped");
        &map[..self.len]
    }
}

impl Drop for Payload {
    fn drop(&mut self) {
        let Some(map) = self.map.take().filter(|map| map.len() == BUFFER_BYTES) else { return };
        let mut kept = self.home.kept();
        if kept.len() < KEPT_MAX {
            kept.push(map);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(payloads: &Payloads, byte: u8, len: usize) -> (Bytes, *const u8) {
        let mut payload = payloads.begin(len).expect("memory");
        payload.put(&vec![byte; len]);
        let bytes = payload.freeze();
        let at = bytes.as_ptr();
        (bytes, at)
    }

    #[test]
    fn memory_is_used_again_only_when_nobody_reads_it() {
        let payloads = Payloads::default();
        let (first, at) = payload(&payloads, 1, 1 << 20);
        let part = first.slice(7..9);
        drop(first);
        let (second, elsewhere) = payload(&payloads, 2, 1 << 20);
        assert_ne!(elsewhere, at, "somebody still reads a part of the first");
        assert_eq!(part[..], [1, 1]);
        drop(part);
        assert_eq!(payload(&payloads, 3, BYTES_MIN).1, at, "the same memory");
        assert_eq!(second[..], vec![2; 1 << 20]);
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let payloads = Payloads::default();
        let all: Vec<_> = (0..2 * KEPT_MAX).map(|_| payload(&payloads, 1, 1 << 20)).collect();
        drop(all);
        drop(payload(&payloads, 1, 32 << 20));
        let kept: Vec<_> = payloads.kept().iter().map(|map| map.len()).collect();
        assert_eq!(kept, [BUFFER_BYTES; KEPT_MAX], "a large one goes back to the system");
    }

    #[test]
    fn what_a_buffer_held_before_is_never_shown() {
        let payloads = Payloads::default();
        drop(payload(&payloads, 9, BUFFER_BYTES));
        let mut second = payloads.begin(BYTES_MIN).expect("memory");
        second.put(&[1; 100]);
        let told = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| second.freeze()));
        assert!(told.is_err(), "it is not whole");
        let (whole, _) = payload(&payloads, 1, BYTES_MIN);
        assert_eq!(whole[..], vec![1; BYTES_MIN]);
    }
}
