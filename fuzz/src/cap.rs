//! How much each target may allocate, from the caps that its parser declares.
//!
//! Where a parser's promise is "a small multiple of its input", the multiple is the largest a value takes for each byte
//! of its encoding, times the copies that the target holds at once. Where it is a constant, the constant stands here.

use std::mem::size_of;

use model::{DiskName, Record};

/// The most a target may allocate.
#[derive(Debug, Clone, Copy)]
pub struct Cap {
    /// Whatever the input.
    pub fixed: usize,
    /// For each byte of the input.
    pub per_byte: usize,
}

impl Cap {
    /// For an input of so many bytes.
    pub const fn bytes(self, input: usize) -> usize {
        self.fixed + self.per_byte * input
    }
}

/// What is needed for values that are built from the input: a dozen records with at most 8 KiB of payload each, or half a
/// dozen frames of as much, whatever the input says.
const BUILT: usize = 512 << 10;

/// For built values without payload.
const BUILT_SMALL: usize = 64 << 10;

/// A list that grows holds its old and its new half at once, and up to twice what it needs.
const GROWTH: usize = 3;

/// Copies held at once: the value, its encoding in parts and joined, the payload, the value decoded again.
const COPIES: usize = 4;

/// The shortest disk name takes two bytes of HELLO and its size one.
const HELLO_DISK: usize = (size_of::<(DiskName, u64)>() + 16) / 3;

/// The shortest record (a zero, or a write whose data is counted apart) takes 8 bytes of DATA's headers.
const DATA_RECORD: usize = size_of::<Record>() / 8 + 1;

const fn larger(a: usize, b: usize) -> usize {
    if a > b { a } else { b }
}

/// Frames: a list in HELLO or in DATA.
pub const WIRE: Cap = Cap { fixed: BUILT, per_byte: COPIES * GROWTH * larger(HELLO_DISK, DATA_RECORD) };

/// Tables: records and their pieces. The shortest piece takes three bytes and at most 32 in memory.
pub const SEGMENT: Cap = Cap { fixed: BUILT, per_byte: COPIES * GROWTH * larger(32 / 3 + 1, DATA_RECORD) };

/// Manifests: a drain takes three bytes and at most 24 in memory; other elements are about as long encoded as in memory.
pub const MANIFEST: Cap = Cap { fixed: BUILT_SMALL, per_byte: COPIES * GROWTH * 8 };

/// Maps: a run takes three bytes in a page and at most 56 in memory; a page holds 4096 at most.
pub const MAP: Cap = Cap { fixed: BUILT, per_byte: COPIES * GROWTH * 19 };

/// Objects: a table as in [`SEGMENT`], and the text of its dump.
pub const OBJECT: Cap = Cap { fixed: BUILT, per_byte: SEGMENT.per_byte };

/// Read traces: a range takes 16 bytes in a file, and 32 in memory besides a node of the tree of starts; one of the fuzzer's
/// choice takes 4 bytes of input.
pub const TRACE: Cap = Cap { fixed: BUILT_SMALL, per_byte: COPIES * GROWTH * 12 };

/// Spool slots: payloads are slices; the target copies its input, and writes two slots of it.
pub const SPOOL: Cap = Cap { fixed: 16 << 10, per_byte: 8 };

/// Dirty maps: pages must be there before their bits are, so bits take no more than the file. The target writes maps of
/// its own: two header slots and a few pages.
pub const DIRTY_MAP: Cap = Cap { fixed: 256 << 10, per_byte: 8 };

/// The NBD server: what it may hold for any client. Beside it: the disk, its model, what is read to compare them and what
/// is written, and the buffers of connection and runtime.
pub const NBD: Cap =
    Cap { fixed: nbd::fuzzing::SERVER_BYTES_MAX + 4 * nbd::fuzzing::DISK_BYTES as usize + (128 << 10), per_byte: 8 };

/// Configurations: a document of values with the place of each, then the tables made of them.
pub const CONFIG: Cap = Cap { fixed: 2 * BUILT_SMALL, per_byte: 600 };

/// Selectors: an error holds 80 characters of the text.
pub const SELECTOR: Cap = Cap { fixed: 4 << 10, per_byte: 2 };

/// The control's decoder.
pub const CARELESS: Cap = Cap { fixed: 1 << 20, per_byte: 8 };

/// Disks: the image of 4 MiB, a piece of a file of at most as much, and the lists of runs, names and copies, none of which
/// can be longer than an image that small allows.
pub const FILESYSTEM: Cap = Cap { fixed: 48 << 20, per_byte: 0 };
