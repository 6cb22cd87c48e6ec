//! What is read: a disk, or a part of one, that gives bytes at an offset.

use std::sync::Arc;

use quick_cache::sync::Cache;

use crate::FsError;

/// Why a volume did not give its bytes; kept as it is, so that the caller finds its own error again.
pub type ReadError = Box<dyn std::error::Error + Send + Sync>;

/// Something that gives bytes at an offset and does not change while it is read.
pub trait Volume: Send + Sync {
    /// Size in bytes.
    fn size(&self) -> u64;

    /// Fills `buf` with the bytes at `offset`; the range lies within the volume.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReadError>;
}

/// Reads a range after checking that it lies within the volume.
pub(crate) fn read(volume: &dyn Volume, offset: u64, buf: &mut [u8]) -> Result<(), FsError> {
    let len = buf.len() as u64;
    if offset.checked_add(len).is_none_or(|end| end > volume.size()) {
        return Err(FsError::damaged("it names bytes beyond its end", "byte", offset));
    }
    volume.read_at(offset, buf).map_err(|source| FsError::Read { offset, len, source })
}

impl Volume for Vec<u8> {
    fn size(&self) -> u64 {
        self.len() as u64
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReadError> {
        buf.copy_from_slice(&self[offset as usize..][..buf.len()]);
        Ok(())
    }
}

/// A partition of a volume.
pub struct Window {
    whole: Arc<dyn Volume>,
    start: u64,
    len: u64,
}

impl Window {
    /// `len` bytes at `start`, cut to what there is.
    pub fn new(whole: Arc<dyn Volume>, start: u64, len: u64) -> Self {
        let start = start.min(whole.size());
        let len = len.min(whole.size() - start);
        Self { whole, start, len }
    }
}

impl Volume for Window {
    fn size(&self) -> u64 {
        self.len
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReadError> {
        self.whole.read_at(self.start + offset, buf)
    }
}

/// Bytes of one entry of the cache, and its alignment.
const ENTRY_BYTES: u64 = 64 << 10;

/// Entries kept: 32 MiB.
const ENTRIES_MAX: usize = 512;

/// A volume whose small reads are remembered. Reads of an entry's size and more go by the cache: they are file contents,
/// which are read once.
pub struct Cached<V> {
    inner: V,
    entries: Cache<u64, Arc<[u8]>>,
}

impl<V: Volume> Cached<V> {
    /// A cache before `inner`.
    pub fn new(inner: V) -> Self {
        Self { inner, entries: Cache::new(ENTRIES_MAX) }
    }

    fn entry(&self, number: u64) -> Result<Arc<[u8]>, ReadError> {
        self.entries.get_or_insert_with(&number, || {
            let start = number * ENTRY_BYTES;
            let mut bytes = vec![0; ENTRY_BYTES.min(self.inner.size() - start) as usize];
            self.inner.read_at(start, &mut bytes)?;
            Ok(bytes.into())
        })
    }
}

impl<V: Volume> Volume for Cached<V> {
    fn size(&self) -> u64 {
        self.inner.size()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReadError> {
        if buf.len() as u64 >= ENTRY_BYTES {
            return self.inner.read_at(offset, buf);
        }
        let (mut at, mut rest) = (offset, buf);
        while !rest.is_empty() {
            let entry = self.entry(at / ENTRY_BYTES)?;
            let within = (at % ENTRY_BYTES) as usize;
            let len = rest.len().min(entry.len() - within);
            let (now, later) = rest.split_at_mut(len);
            now.copy_from_slice(&entry[within..within + len]);
            (at, rest) = (at + len as u64, later);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn cache_and_window_read_what_is_there(start in 0u64..300_000, len in 0u64..300_000, at in 0u64..400_000, n in 0usize..150_000) {
            let bytes: Vec<u8> = (0..250_000u32).map(|i| (i * 7 / 3) as u8).collect();
            let window = Window::new(Arc::new(Cached::new(bytes.clone())), start, len);
            let mut buf = vec![0; n];
            let end = (start + len).min(bytes.len() as u64);
            match read(&window, at, &mut buf) {
                Ok(()) => prop_assert_eq!(&buf[..], &bytes[(start.min(end) + at) as usize..][..n]),
                Err(_) => prop_assert!(at + n as u64 > end.saturating_sub(start)),
            }
        }
    }
}
