//! Bytes: what travels on the wire and what lies in the store, and the keys that seal it.
//!
//! Nothing here does I/O or knows tokio. Every decoder takes untrusted bytes: it never panics, and never allocates more
//! than its declared cap. The layouts stand in each folder's `FORMAT.md`, field for field.

mod check;
mod codec;
pub mod consumers;
pub mod dump;
mod error;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
#[cfg(test)]
mod goldens;
pub mod hold;
pub mod keys;
pub mod manifest;
pub mod map;
pub mod object;
pub mod pack;
#[cfg(test)]
mod samples;
mod seal;
pub mod segment;
pub mod state;
pub mod trace;
mod versioned;
pub mod wire;

pub use codec::{Codec, Compressor, Level, decompress};
pub use error::FormatError;
