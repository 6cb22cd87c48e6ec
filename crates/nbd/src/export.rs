//! What a server exports: a disk seen from the NBD side.
//!
//! The server checks each request before it gets here: ranges lie inside the disk, are not empty, are multiples of the
//! minimum block and are allowed by `read_only`. What is left to an export is the disk itself. A request that has begun is
//! never cancelled by the server, so an export need not survive being dropped half-way.

use async_trait::async_trait;
use bytes::Bytes;

/// Error numbers of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Errno {
    /// EPERM: read-only.
    Permission = 1,
    /// EIO.
    Io = 5,
    /// ENOMEM.
    NoMemory = 12,
    /// EINVAL.
    Invalid = 22,
    /// ENOSPC.
    NoSpace = 28,
    /// EOVERFLOW.
    Overflow = 75,
    /// ENOTSUP.
    NotSupported = 95,
    /// ESHUTDOWN.
    Shutdown = 108,
}

impl Errno {
    /// The number on the wire.
    pub fn code(self) -> u32 {
        self as u32
    }

    /// Reads a number from the wire; what the protocol does not name is EINVAL, as its specification says.
    pub fn from_code(code: u32) -> Self {
        match code {
            1 => Self::Permission,
            5 => Self::Io,
            12 => Self::NoMemory,
            28 => Self::NoSpace,
            75 => Self::Overflow,
            95 => Self::NotSupported,
            108 => Self::Shutdown,
            _ => Self::Invalid,
        }
    }

    /// Its meaning in words.
    pub fn meaning(self) -> &'static str {
        match self {
            Self::Permission => "operation not permitted, the export is read-only (EPERM)",
            Self::Io => "input/output error (EIO)",
            Self::NoMemory => "out of memory (ENOMEM)",
            Self::Invalid => "invalid request (EINVAL)",
            Self::NoSpace => "no space left, or beyond the end of the export (ENOSPC)",
            Self::Overflow => "value too large (EOVERFLOW)",
            Self::NotSupported => "operation not supported (ENOTSUP)",
            Self::Shutdown => "server is shutting down (ESHUTDOWN)",
        }
    }
}

/// Flags of a write-zeroes request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ZeroFlags {
    /// Durable before the reply.
    pub fua: bool,
    /// The range must not become a hole.
    pub no_hole: bool,
    /// Fail rather than be slower than a write.
    pub fast: bool,
}

/// A run of base:allocation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockStatus {
    /// Bytes.
    pub len: u64,
    /// NBD_STATE_HOLE.
    pub hole: bool,
    /// NBD_STATE_ZERO.
    pub zero: bool,
}

/// A disk to export. Requests arrive in range, in parallel, possibly unaligned only when `minimum_block` is 1.
#[async_trait]
pub trait Export: Send + Sync {
    /// Size in bytes.
    fn size(&self) -> u64;

    /// No writes.
    fn read_only(&self) -> bool;

    /// Smallest block in bytes a client may address: 1 or 512. The size is a multiple of it.
    fn minimum_block(&self) -> u32 {
        512
    }

    /// Whether [`ZeroFlags::fast`] is understood: zeros are then written faster than data or refused with
    /// [`Errno::NotSupported`] before anything changed. Clients are told.
    fn fast_zero(&self) -> bool {
        false
    }

    /// Reads `len` bytes.
    async fn read(&self, offset: u64, len: u32) -> Result<Bytes, Errno>;

    /// Writes; durable before the reply when `fua`.
    async fn write(&self, offset: u64, data: Bytes, fua: bool) -> Result<(), Errno>;

    /// Everything completed before is durable.
    async fn flush(&self) -> Result<(), Errno>;

    /// The range may read as anything from now on.
    async fn trim(&self, offset: u64, len: u64, fua: bool) -> Result<(), Errno>;

    /// The range reads as zeros.
    async fn write_zeroes(&self, offset: u64, len: u64, flags: ZeroFlags) -> Result<(), Errno>;

    /// base:allocation of a range; runs sum to at most `len`, at least one run, each a multiple of the minimum block.
    async fn block_status(&self, offset: u64, len: u64) -> Result<Vec<BlockStatus>, Errno>;
}
