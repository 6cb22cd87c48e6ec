//! Maps: each is there and whole, and says exactly what its records say: a leaf is made again from its segments, a merge
//! from its parts.
//!
//! A damaged map hides nothing that the log does not hold: positions behind it open without maps.

use std::collections::BTreeSet;
use std::sync::Arc;

use format::FormatError;
use format::keys::Keys;
use format::manifest::{Manifest, Promoted};
use format::map::{MapDisk, MapIndex, MapName, MapRun, Node, index_of, open_page, page_range};
use format::object::ObjectHeader;
use futures::future::BoxFuture;
use model::{DiskId, MachineName, Seq};
use store::{LogEnd, ReadMode, Store};

use super::{Findings, Got, obtain};
use crate::maps::{Leaf, Maps, Merged, Stretch, map_path, map_place};
use crate::recover::{RecoverError, stream_log};
use crate::segments;

/// Every run of a map by disk and offset.
type Runs = Vec<(DiskId, MapRun)>;

/// What a damaged map means for who wants to recover.
const WAY_OUT: &str = "; positions behind it open with --without-maps";

/// Checks the maps of a manifest and gives the names of all segments that it promoted.
pub(super) async fn check(
    store: &Store,
    keys: &Arc<Keys>,
    machine: &MachineName,
    manifest: &Manifest,
    kept: &BTreeSet<MapName>,
    findings: &mut Findings,
) -> Result<Vec<Promoted>, RecoverError> {
    let maps = Maps::new(store.clone(), keys.clone(), machine.clone());
    let horizon = manifest.horizon.as_ref().map(|last| last.head.position.seq).unwrap_or_default();
    let (disks, end, named) = (Some(Vec::new()), LogEnd::default(), Vec::new());
    let mut walk = MapWalk { maps: &maps, findings, horizon, kept, disks, end, named };
    for (number, node) in manifest.nodes.iter().enumerate() {
        walk.node(node, number == 0).await?;
    }
    for node in manifest.point_maps.values() {
        walk.kept(node).await?;
    }
    let mut named = walk.named;
    named.extend(manifest.segments.iter().cloned());
    Ok(named)
}

struct MapWalk<'a> {
    maps: &'a Maps,
    findings: &'a mut Findings,
    /// Up to it segments, and maps that are not kept, may be gone.
    horizon: Seq,
    kept: &'a BTreeSet<MapName>,
    /// Disks at the end of the leaf before; none when it cannot be read.
    disks: Option<Vec<MapDisk>>,
    /// Where that leaf ends.
    end: LogEnd,
    named: Vec<Promoted>,
}

impl MapWalk<'_> {
    fn node<'a>(&'a mut self, node: &'a Node, from_start: bool) -> BoxFuture<'a, Result<(), RecoverError>> {
        Box::pin(async move {
            if node.end.head.position.seq <= self.horizon {
                return self.before_horizon(node).await;
            }
            let path = map_path(self.maps.machine(), node.map);
            let (store, keys) = (self.maps.store(), self.maps.keys());
            let Some(object) = obtain(store, keys, &path, self.findings).await? else {
                self.damage(&path, "missing, though the manifest names it");
                self.disks = None;
                return Ok(());
            };
            let (header, index, runs) = match self.contents(node, &object) {
                Ok(contents) => contents,
                Err(error) => {
                    self.damage(&path, &error);
                    self.disks = None;
                    return Ok(());
                }
            };
            for (number, child) in index.children.iter().enumerate() {
                self.node(child, from_start && number == 0).await?;
            }
            self.findings.maps.take(header.total_bytes, object.whole, object.earlier);
            self.named.extend(index.segments.iter().cloned());
            let right = match node.level {
                _ if !object.whole => None,
                0 => self.leaf(&index, &runs).await?,
                _ => self.merge(node, &index, &runs, from_start).await,
            };
            match right {
                Some(false) => self.damage(&path, "it does not say what its records say"),
                Some(true) => {
                    self.findings.state.found_whole(&path, ObjectHeader::hash(&object.bytes).unwrap_or_default())
                }
                None => {}
            }
            self.findings.state.save_if_due().await?;
            self.disks = Some(index.disks);
            self.end = Stretch::behind(vec![node.clone()]).start();
            Ok(())
        })
    }

    /// Maps of what lies before the horizon: whole, where they are kept. What they were made of may be gone.
    fn before_horizon<'a>(&'a mut self, node: &'a Node) -> BoxFuture<'a, Result<(), RecoverError>> {
        Box::pin(async move {
            let index = match self.kept.contains(&node.map) {
                true => self.kept(node).await?,
                false => None,
            };
            for child in index.iter().flat_map(|index| &index.children) {
                self.before_horizon(child).await?;
            }
            self.disks = index.map(|index| index.disks);
            self.end = Stretch::behind(vec![node.clone()]).start();
            Ok(())
        })
    }

    /// Checks a map by itself and gives its index.
    async fn kept(&mut self, node: &Node) -> Result<Option<MapIndex>, RecoverError> {
        let path = map_path(self.maps.machine(), node.map);
        let problem = match obtain(self.maps.store(), self.maps.keys(), &path, self.findings).await? {
            None => "missing, though points open through it".to_owned(),
            Some(object) => match self.contents(node, &object) {
                Ok((header, index, _)) => {
                    self.findings.maps.take(header.total_bytes, object.whole, object.earlier);
                    if object.whole {
                        let hash = ObjectHeader::hash(&object.bytes).unwrap_or_default();
                        self.findings.state.found_whole(&path, hash);
                    }
                    return Ok(Some(index));
                }
                Err(error) => error,
            },
        };
        self.findings.damage(&path, problem);
        Ok(None)
    }

    fn damage(&mut self, path: &str, what: &str) {
        // The log says the same as long as it is whole.
        let way_out = if self.horizon == Seq::ZERO { WAY_OUT } else { "" };
        self.findings.damage(path, format!("{what}{way_out}"));
    }

    /// Everything in a map, in order; no runs of one that was not read whole.
    fn contents(&self, node: &Node, object: &Got) -> Result<(ObjectHeader, MapIndex, Runs), String> {
        let Got { bytes: object, whole, .. } = object;
        let place = map_place(self.maps.machine(), node.map);
        let open = || -> Result<(ObjectHeader, MapIndex, Runs), FormatError> {
            let (header, index) = index_of(self.maps.keys(), &place, object)?;
            let mut runs = Vec::new();
            if *whole {
                header.check_body(object)?;
            }
            for page in index.pages.iter().filter(|_| *whole) {
                let range = page_range(&header, page);
                let len = object.len() as u64;
                let sealed = &object[range.start.min(len) as usize..range.end.min(len) as usize];
                runs.extend(
                    open_page(self.maps.keys(), header.id, page, sealed)?.into_iter().map(|run| (page.disk, run)),
                );
            }
            Ok((header, index, runs))
        };
        let (header, index, runs) = open().map_err(|error| error.to_string())?;
        let leaf = index.children.is_empty();
        match header.head == node.end.head && header.table_sealed_bytes == node.index_bytes && leaf == (node.level == 0)
        {
            true => Ok((header, index, runs)),
            false => Err("it is not the map that its node names".to_owned()),
        }
    }

    /// Whether a leaf says what its segments say; none when they cannot be read.
    async fn leaf(&mut self, index: &MapIndex, runs: &[(DiskId, MapRun)]) -> Result<Option<bool>, RecoverError> {
        let Some(before) = &self.disks else { return Ok(None) };
        let log = stream_log(self.maps.store(), self.maps.keys(), self.maps.machine());
        let mut leaf = Leaf::behind(self.maps.machine().clone(), before);
        let (mut end, mut left) = (self.end, index.segments.as_slice());
        while !left.is_empty() {
            // Damage in the stream is named where the stream is checked.
            let Ok(read) = log.read_promoted(end, left, ReadMode::Table).await else { return Ok(None) };
            for (segment, entry) in left.iter().zip(&read) {
                end = entry.end();
                let Ok(table) = segments::table(self.maps.keys(), &entry.header, &entry.bytes) else { return Ok(None) };
                if leaf.take(segment.clone(), &table, 0).is_err() {
                    return Ok(None);
                }
            }
            left = &left[read.len()..];
        }
        Ok(Some(leaf.runs().eq(runs.iter().copied()) && leaf.disks() == index.disks))
    }

    /// Whether a merge says what its parts say; none when they cannot be read.
    async fn merge(&self, node: &Node, index: &MapIndex, runs: &[(DiskId, MapRun)], from_start: bool) -> Option<bool> {
        let merged = Merged::open(self.maps, &index.children, from_start).await.ok()?;
        let mut left = runs.iter();
        let mut same = merged.disks() == index.disks && index.children.last().is_some_and(|last| last.end == node.end);
        let swept = merged.sweep(|disk, run| -> Result<(), RecoverError> {
            same &= left.next() == Some(&(disk, run));
            Ok(())
        });
        swept.await.ok()?;
        Some(same && left.next().is_none())
    }
}
