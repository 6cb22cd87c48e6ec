//! Maps of the history (docs/rfcs/0005-maps.md): made by the applier behind the stream, so that any position opens with a
//! number of reads that grows with the logarithm of the history alone.
//!
//! ```text
//!  segments   ▪▪▪▪▪▪▪▪ ▪▪▪▪▪▪▪▪ … ▪▪▪▪▪▪▪▪ ▪▪▪▪▪▪▪▪ ▪▪▪        the tail: at most one leaf's worth
//!  leaves     └──0───┘ └──0───┘   └──0───┘ └──0───┘
//!  merges     └────────────1─────────────┘                    eight of the level below
//! ```
//! A position is the chain of maps of all nodes that end before it, and the records of the segments behind the last of
//! them. One file for each step: `leaf` lays records into a leaf, `merge` makes one map of eight, `mapping` puts maps and
//! names them for the manifest, `read` fetches index and pages, `chain` looks ranges up, `tree` finds the way to a
//! position.
//!
//! What must hold: a map says exactly what its records say (`verify` recomputes it); a map is put before the manifest
//! names it; nothing but a manifest names one. If the process dies in between, the map is never named and the next owner
//! makes another under a name of its own.

mod chain;
mod leaf;
mod mapping;
mod merge;
mod read;
#[cfg(test)]
mod tests;
mod tree;

pub(crate) use chain::Chain;
pub(crate) use leaf::Leaf;
pub(crate) use mapping::Mapping;
pub(crate) use merge::Merged;
pub(crate) use read::{Maps, OpenMap, map_path, map_place};
pub(crate) use tree::{
    Stretch, end_of, nodes_before_epoch, nodes_behind, segments_behind, stretch_of_seq, stretch_of_time, way_to,
};
