//! Putting maps: a leaf when its segments are promoted, a merge whenever there are eight of a level.

use std::sync::Arc;

use format::manifest::{Manifest, Promoted};
use format::map::{FANOUT, LEVEL_MAX, MapName, MapTooLarge, Node, SealedMap};
use format::segment::Table;
use model::{EventKind, Severity};
use probe::Rules;
use store::{Created, StoreError};

use super::merge::{MergeError, Merged};
use super::read::{map_path, map_place};
use super::{Leaf, Maps};
use crate::ApplierError;
use crate::applier::Shared;
use crate::replica::describe;

/// Plain bytes of record tables in a leaf, unless its first segment alone has more.
const LEAF_TABLE_BYTES: u64 = 4 << 20;

/// Makes maps of one manifest epoch.
pub(crate) struct Mapping {
    maps: Arc<Maps>,
    leaf: Leaf,
    leaf_segments: usize,
    /// Number of the last map put under our epoch.
    number: u64,
    /// What stood in the way of the last merge.
    trouble: Option<String>,
    rules: Rules,
}

impl Mapping {
    /// Goes on behind the last node of a manifest: its map says which disks there are.
    pub async fn behind(
        maps: Arc<Maps>,
        manifest: &Manifest,
        leaf_segments: usize,
        rules: Rules,
    ) -> Result<Self, ApplierError> {
        let leaf = match manifest.nodes.last() {
            Some(node) => Leaf::behind(maps.machine().clone(), &maps.open(node).await?.index.disks),
            None => Leaf::behind(maps.machine().clone(), &[]),
        };
        let (leaf, leaf_segments) = (leaf.with_rules(rules), leaf_segments.max(1));
        Ok(Self { maps, leaf, leaf_segments, number: 0, trouble: None, rules })
    }

    /// Takes the next segment of the stream in. Errors say what does not hold together.
    pub fn take(&mut self, segment: Promoted, table: &Table, table_bytes: u64) -> Result<(), String> {
        self.leaf.take(segment, table, table_bytes)
    }

    /// Whether the leaf is to be put before a segment of this epoch is taken in: a leaf holds no more than one epoch, so that a
    /// horizon can lie at the end of any.
    pub fn is_of_other_epoch(&self, epoch: u64) -> bool {
        self.leaf.segments().last().is_some_and(|last| last.epoch != epoch)
    }

    /// Whether the leaf is to be put before another segment is taken in.
    pub fn is_full(&self) -> bool {
        self.leaf.segments().len() >= self.leaf_segments || self.leaf.table_bytes() >= LEAF_TABLE_BYTES
    }

    /// Maps are numbered anew under the next epoch of their owner.
    pub fn under_new_epoch(&mut self) {
        self.number = 0;
    }

    /// Puts the leaf, whose segments the acknowledged `manifest` names, and the merges that it makes possible. Gives what
    /// the next commit is to name. A merge that cannot be made is left for later: positions open through its parts.
    pub async fn put(&mut self, shared: &Shared, epoch: u64, manifest: &Manifest) -> Result<Vec<Node>, ApplierError> {
        let mut nodes = manifest.nodes.clone();
        let name = self.next_name(epoch);
        let machine = self.maps.machine().clone();
        let too_large = |error: MapTooLarge| ApplierError::MapTooLarge { machine: machine.clone(), source: error };
        let sealed = self.leaf.seal(self.maps.keys(), map_place(&machine, name)).map_err(too_large)?;
        let end = self.leaf.segments().last().expect("a leaf that is put holds segments").clone();
        let leaf = self.create(name, 0, end, sealed).await?;
        self.leaf = Leaf::behind(machine, &self.leaf.disks()).with_rules(self.rules);
        nodes.push(leaf.clone());
        let mut made = vec![leaf];
        while let Some(first) = mergeable(&nodes) {
            let (name, parts) = (self.next_name(epoch), first..first + FANOUT);
            let sealed = match self.merge(name, &nodes[parts.clone()], first == 0).await {
                Ok(sealed) => sealed,
                Err(error) => {
                    self.tell(shared, &error);
                    break;
                }
            };
            self.trouble = None;
            let last = &nodes[parts.end - 1];
            let node = self.create(name, last.level + 1, last.end.clone(), sealed).await?;
            made.push(node.clone());
            nodes.splice(parts, [node]);
        }
        Ok(made)
    }

    /// The maps that are read.
    pub fn maps(&self) -> &Arc<Maps> {
        &self.maps
    }

    /// Puts the map of a point: what the records of its leaf up to it say.
    pub async fn put_for_point(&mut self, epoch: u64, leaf: &Leaf) -> Result<Node, ApplierError> {
        let name = self.next_name(epoch);
        let machine = self.maps.machine().clone();
        let too_large = |error: MapTooLarge| ApplierError::MapTooLarge { machine: machine.clone(), source: error };
        let sealed = leaf.seal_for_point(self.maps.keys(), map_place(&machine, name)).map_err(too_large)?;
        let end = leaf.segments().last().expect("a point lies behind some record").clone();
        self.create(name, 0, end, sealed).await
    }

    async fn merge(&self, name: MapName, parts: &[Node], from_start: bool) -> Result<SealedMap, MergeError> {
        let merged = Merged::open(&self.maps, parts, from_start).await?.with_rules(self.rules);
        merged.seal(map_place(self.maps.machine(), name)).await
    }

    fn next_name(&mut self, epoch: u64) -> MapName {
        self.number += 1;
        MapName { epoch, number: self.number }
    }

    /// A name of ours that holds other bytes would mean that somebody else writes under our epoch: nothing goes on there.
    async fn create(&self, map: MapName, level: u8, end: Promoted, sealed: SealedMap) -> Result<Node, ApplierError> {
        let path = map_path(self.maps.machine(), map);
        let node =
            Node { level, map, index_bytes: sealed.header.table_sealed_bytes, bytes: sealed.header.total_bytes, end };
        probe::failpoint!("applier-map-put-before");
        let created = self.maps.store().create(&path, sealed.parts).await?;
        probe::failpoint!("applier-map-put");
        match created {
            Created::Ours => {
                let machine = self.maps.machine().to_string();
                metrics::counter!("applier_maps_total", "machine" => machine.clone()).increment(1);
                metrics::counter!("applier_map_bytes_total", "machine" => machine).increment(node.bytes);
                Ok(node)
            }
            Created::Other => Err(StoreError::Unclear { path }.into()),
        }
    }

    fn tell(&mut self, shared: &Shared, error: &MergeError) {
        let text = format!("maps are not merged, and opening positions takes more reads: {}", describe(error));
        if self.trouble.as_ref() != Some(&text) {
            shared.event(Severity::Warning, EventKind::Store, text.clone());
        }
        self.trouble = Some(text);
    }
}

/// Where the first of eight nodes of one level lies that may be merged: the last such run that is long enough.
fn mergeable(nodes: &[Node]) -> Option<usize> {
    let last = nodes.last()?;
    let run = nodes.iter().rev().take_while(|node| node.level == last.level).count();
    (run >= FANOUT && last.level + 1 < LEVEL_MAX).then(|| nodes.len() - run)
}
