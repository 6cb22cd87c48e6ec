//! Why a file system could not be read.

use crate::volume::ReadError;

/// A file system could not be read.
#[derive(Debug, thiserror::Error)]
pub enum FsError {
    /// The volume did not give its bytes.
    #[error("cannot read {len} bytes at {offset} of the volume")]
    Read {
        /// Where.
        offset: u64,
        /// How many.
        len: u64,
        /// Why.
        #[source]
        source: ReadError,
    },
    /// It contradicts itself.
    #[error("the file system is damaged: {what} ({place} {number})")]
    Damaged {
        /// What is wrong.
        what: &'static str,
        /// What `number` counts: `inode`, `block`, `byte`…
        place: &'static str,
        /// Where.
        number: u64,
    },
    /// It may be sound, but this reader does not know how to read it.
    #[error("{what} is not supported: export the disk with `farshore serve` and mount it there")]
    Unsupported {
        /// What.
        what: String,
    },
    /// There is no such file.
    #[error("{path}: no such file or directory")]
    NotFound {
        /// The path.
        path: String,
    },
    /// A directory was needed.
    #[error("{path} is not a directory")]
    NotADirectory {
        /// The path.
        path: String,
    },
    /// Symbolic links lead in a circle, or nearly.
    #[error("{path}: too many symbolic links on the way")]
    LinkLoop {
        /// The path.
        path: String,
    },
}

impl FsError {
    /// Damage at a place.
    pub(crate) fn damaged(what: &'static str, place: &'static str, number: impl Into<u64>) -> Self {
        FsError::Damaged { what, place, number: number.into() }
    }

    /// Something not known here.
    pub(crate) fn unsupported(what: impl Into<String>) -> Self {
        FsError::Unsupported { what: what.into() }
    }
}
