//! Packs (docs/rfcs/0009-packs.md): frames that points still read, copied out of segments of which little else is needed, so
//! that the rest of those segments can go.
//!
//! ```text
//!  segments   ▪▫▫▫▫▫▫▪ ▫▫▫▪▫▫▫▫ ▪▪▪▪▪▪▪▪ ▫▪▫▫▫▫▫▫ ┊ ▪▪▪▪      ▪ a frame that is needed
//!             └──────pack─────┘   stays   └─pack─┘ horizon
//! ```
//! One file for each step: `choose` says what is worth being put together, `make` copies the frames and puts the packs,
//! `read` finds a segment's frames in them.
//!
//! What must hold: a pack holds every needed frame of every segment from its first to its last; each was proven before it was
//! copied; the pack is put before a commit names it, and no segment goes before that commit is acknowledged. Needed before the
//! horizon only ever becomes less, so what was enough once is enough for good. If the process dies in between, the pack is
//! never named, and garbage of an older manifest epoch once there is a newer one.

mod choose;
mod make;
mod read;

pub(crate) use make::{Packing, Repacked, Sources};
pub(crate) use read::{Packs, pack_path, pack_place};
