//! The dirty map: which regions of the disks the log may not fully hold, kept through crashes and power cuts.
//!
//! One file, `map`, in the agent's state directory (layout: `FORMAT.md` beside this file). What must hold:
//! - a region's bit is durable before the first write in it is submitted to its disk;
//! - the map version rises with each durable update that sets a bit, and records carry a version only once it is durable;
//! - the clean-stop marker is durable only when everything is stored and flushed, and is durably gone before the first
//!   write of the next life is submitted.
//!
//! If the process dies half-way through a commit, the bits of that commit may or may not be there; no write was
//! submitted on their strength. A page that cannot be trusted counts as all set. A map that cannot be kept at all is
//! spoiled on purpose, so that the next start knows that it knows nothing.

mod committer;
mod layout;
mod load;
mod state;

pub(crate) use committer::{commit_clean_stop, run as run_committer};
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use layout::{
    DiskEntry, HEADER_SLOT_BYTES, Header, MapFileState, PAGE_BYTES, PAGE_REGIONS, PAGES_OFFSET, encode_map, parse_map,
};
pub(crate) use load::{Loaded, load};
pub(crate) use state::MapState;
