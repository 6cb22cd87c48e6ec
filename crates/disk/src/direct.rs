//! Large writes past the page cache (`O_DIRECT`).
//!
//! Who writes a whole disk does not read it again soon. Through the cache every byte takes a page that the kernel has to find,
//! fill and write back, and the sync at the end waits for all of them; past it the device takes the bytes from memory of ours,
//! while the next are made ready. They are copied once, into memory that lies on a page, because that is all that devices take.
//!
//! What must hold: only whole pages go past the cache. So no page is ever written in both ways at once, and what the cache still
//! holds of a range is written before and forgotten afterwards by the kernel (`open(2)`, NOTES, O_DIRECT). Where a file cannot
//! do it, the bytes go through the cache; a sync makes both kinds of writes durable.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use bytes::Bytes;
use rustix::fs::OFlags;

/// Bytes of one such write; as many are copied for it.
const BUFFER_BYTES: usize = 1 << 20;

/// Least bytes of one: a device takes longer for less than the cache does, and may want to put small ones in order.
const LEAST_BYTES: usize = 256 << 10;

/// Buffers that the process keeps, 8 MiB; whoever writes more at once allocates.
const BUFFERS_KEPT: usize = 8;

/// Memory to copy into, used again: each has room for a page more, because it may lie anywhere.
static BUFFERS: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());

fn buffers() -> MutexGuard<'static, Vec<Vec<u8>>> {
    BUFFERS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The way past the cache of one file, opened when it is first wanted.
#[derive(Debug, Default)]
pub(crate) struct Direct {
    file: OnceLock<Option<File>>,
    /// The file took none after all.
    refused: AtomicBool,
}

impl Direct {
    /// Writes parts one behind the other from `offset` on: what of them is large and whole pages past the cache of `file`, the
    /// rest through it.
    pub(crate) fn write(&self, file: &File, offset: u64, parts: &[Bytes]) -> io::Result<()> {
        let (page, len) = (rustix::param::page_size(), parts.iter().map(Bytes::len).sum::<usize>());
        // Less than a page.
        let head = (offset.next_multiple_of(page as u64) - offset) as usize;
        let body = len.saturating_sub(head) / page * page;
        if body < LEAST_BYTES {
            return cached(file, offset, parts, 0, len);
        }
        cached(file, offset, parts, 0, head)?;
        let mut at = head;
        while at < head + body {
            let end = (head + body).min(at + BUFFER_BYTES);
            if !self.past_cache(file, offset, parts, (at, end))? {
                cached(file, offset, parts, at, end)?;
            }
            at = end;
        }
        cached(file, offset, parts, head + body, len)
    }

    /// Writes whole pages; false when the file cannot, which may leave any of them old or new.
    fn past_cache(&self, file: &File, offset: u64, parts: &[Bytes], (from, to): (usize, usize)) -> io::Result<bool> {
        // Relaxed: whoever does not see it yet is refused too.
        let refused = || self.refused.load(Ordering::Relaxed);
        let Some(direct) = self.file.get_or_init(|| open(file)).as_ref().filter(|_| !refused()) else {
            return Ok(false);
        };
        let page = rustix::param::page_size();
        let kept = buffers().pop();
        let mut buffer = kept.unwrap_or_else(|| vec![0; BUFFER_BYTES + page]);
        let start = buffer.as_ptr().addr().next_multiple_of(page) - buffer.as_ptr().addr();
        let pages = &mut buffer[start..start + to - from];
        for (at, piece) in cut(parts, from, to) {
            pages[at - from..at - from + piece.len()].copy_from_slice(&piece);
        }
        let written = direct.write_all_at(pages, offset + from as u64);
        keep(buffer);
        match written {
            Ok(()) => Ok(true),
            // The device's sectors are larger than a page, or the file system has its own rules.
            Err(error) if matches!(error.kind(), ErrorKind::InvalidInput | ErrorKind::Unsupported) => {
                // Relaxed: see above.
                self.refused.store(true, Ordering::Relaxed);
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }
}

/// The same file once more, past the cache; none where it or its file system cannot. Its path may name another by now.
fn open(file: &File) -> Option<File> {
    let same = format!("/proc/self/fd/{}", file.as_raw_fd());
    OpenOptions::new().write(true).custom_flags(OFlags::DIRECT.bits() as i32).open(same).ok()
}

fn keep(buffer: Vec<u8>) {
    let mut buffers = buffers();
    if buffers.len() < BUFFERS_KEPT {
        buffers.push(buffer);
    }
}

fn cached(file: &File, offset: u64, parts: &[Bytes], from: usize, to: usize) -> io::Result<()> {
    cut(parts, from, to).try_for_each(|(at, piece)| file.write_all_at(&piece, offset + at as u64))
}

/// What lies between `from` and `to` of parts put together, and where in them each piece begins.
pub(crate) fn cut(parts: &[Bytes], from: usize, to: usize) -> impl Iterator<Item = (usize, Bytes)> {
    let mut end = 0;
    parts.iter().filter_map(move |part| {
        let start = end;
        end += part.len();
        let (first, last) = (start.max(from), end.min(to));
        (first < last).then(|| (first, part.slice(first - start..last - start)))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SIZE: usize = 4 << 20;

    fn new_file() -> File {
        // Beside what is built, because a temporary directory may lie in memory, where nothing goes past the cache.
        let file = tempfile::tempfile_in(env!("CARGO_MANIFEST_DIR")).expect("temp file");
        file.set_len(SIZE as u64).expect("sized");
        file
    }

    /// Bytes that differ from page to page and from write to write.
    fn parts(seed: u64, lengths: &[usize]) -> Vec<Bytes> {
        let byte = |n: usize, i: usize| (seed as usize * 31 + n * 7 + i / 512 + i) as u8;
        lengths.iter().enumerate().map(|(n, len)| (0..*len).map(|i| byte(n, i)).collect()).collect()
    }

    fn contents(file: &File) -> Vec<u8> {
        let mut found = vec![0; SIZE];
        file.read_exact_at(&mut found, 0).expect("read");
        found
    }

    /// Offset in sectors, lengths of parts in sectors.
    fn write() -> impl Strategy<Value = (usize, Vec<usize>)> {
        (0..SIZE / 512, proptest::collection::vec(prop_oneof![1..16usize, 100..140usize, 1000..2500usize], 1..6))
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            cases: 64,
            rng_seed: proptest::test_runner::RngSeed::Fixed(1),
            failure_persistence: None,
            ..ProptestConfig::default()
        })]

        /// Large and small writes over one another, and what the cache holds meanwhile is read between them.
        #[test]
        fn a_file_is_an_array_of_bytes_however_it_is_written(writes in proptest::collection::vec(write(), 1..12)) {
            let (file, direct, mut model) = (new_file(), Direct::default(), vec![0; SIZE]);
            for (seed, (sector, lengths)) in (1..).zip(&writes) {
                let mut parts = parts(seed, &lengths.iter().map(|sectors| sectors * 512).collect::<Vec<_>>());
                let offset = sector * 512;
                let mut left = SIZE - offset;
                parts.iter_mut().for_each(|part| { part.truncate(left); left -= part.len(); });
                direct.write(&file, offset as u64, &parts).expect("written");
                let whole = parts.concat();
                model[offset..offset + whole.len()].copy_from_slice(&whole);
                prop_assert!(contents(&file) == model, "write {seed} of {} bytes at {offset}", whole.len());
            }
        }
    }

    #[test]
    fn only_large_writes_go_past_the_cache() {
        let (file, direct) = (new_file(), Direct::default());
        let looked = |direct: &Direct| direct.file.get().is_some();
        direct.write(&file, 512, &parts(1, &[LEAST_BYTES])).expect("written");
        assert!(!looked(&direct), "with half a page at each end it is less than the least");
        direct.write(&file, 512, &parts(2, &[1 << 20, 512, 4096])).expect("written");
        assert!(looked(&direct));
        let many: Vec<_> = (0..2 * BUFFERS_KEPT).map(|_| vec![0; BUFFER_BYTES + rustix::param::page_size()]).collect();
        many.into_iter().for_each(keep);
        assert!(buffers().len() <= BUFFERS_KEPT, "what is kept is bounded");
    }

    #[test]
    fn a_file_that_cannot_is_written_through_the_cache() {
        let (file, whole) = (new_file(), parts(3, &[1 << 20]));
        let without = Direct { file: OnceLock::from(None), ..Direct::default() };
        without.write(&file, 4096, &whole).expect("written");
        assert!(contents(&file)[4096..4096 + (1 << 20)] == whole[0]);
        // Opened for reading only it refuses each write, as a device does whose sectors are larger: but says that of its rights.
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let failing = Direct { file: OnceLock::from(File::open(path).ok()), ..Direct::default() };
        failing.write(&file, 0, &whole).expect_err("an error that is none of alignment is told");
        let refusing = Direct { refused: AtomicBool::new(true), ..failing };
        refusing.write(&file, 0, &whole).expect("written");
        assert!(contents(&file)[..1 << 20] == whole[0]);
    }

    #[test]
    fn breaking_the_rules_of_alignment_is_invalid_input() {
        let file = new_file();
        let Some(direct) = open(&file) else { return };
        // What tmpfs, which has no rules, takes is written.
        let odd = direct.write_all_at(&[1; 100], 3);
        assert!(
            odd.as_ref().is_ok_and(|()| contents(&file)[3] == 1)
                || odd.is_err_and(|e| e.kind() == ErrorKind::InvalidInput)
        );
    }
}
