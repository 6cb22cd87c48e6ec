//! The way from a manifest's nodes to a position.

use format::manifest::Promoted;
use format::map::Node;
use futures::future::BoxFuture;
use model::{Seq, Timestamp};
use store::{LogEnd, LogPosition};

use super::Maps;
use crate::recover::RecoverError;

/// A stretch of the stream: a leaf, or what lies behind the last node.
#[derive(Debug, Clone, Default)]
pub(crate) struct Stretch {
    /// Nodes of everything before it, oldest first.
    pub before: Vec<Node>,
    /// Its promoted segments.
    pub segments: Vec<Promoted>,
}

impl Stretch {
    /// What lies behind the last of these nodes.
    pub fn behind(before: Vec<Node>) -> Self {
        Self { before, segments: Vec::new() }
    }

    /// Where the stream stands before it.
    pub fn start(&self) -> LogEnd {
        self.before.last().map(|node| end_of(&node.end)).unwrap_or_default()
    }

    /// Where the stream stands after the last of its promoted segments.
    pub fn end(&self) -> LogEnd {
        self.segments.last().map_or_else(|| self.start(), end_of)
    }
}

/// Where the stream stands behind a segment.
pub(crate) fn end_of(last: &Promoted) -> LogEnd {
    LogEnd { position: LogPosition { epoch: last.epoch, slot: last.slot }, hash: last.hash, head: last.head }
}

/// The stretch that holds record `seq`.
pub(crate) async fn stretch_of_seq(maps: &Maps, nodes: &[Node], seq: Seq) -> Result<Stretch, RecoverError> {
    descend(maps, nodes, |node| node.end.head.position.seq < seq).await
}

/// The stretch that holds the first record later than `time`.
pub(crate) async fn stretch_of_time(maps: &Maps, nodes: &[Node], time: Timestamp) -> Result<Stretch, RecoverError> {
    descend(maps, nodes, |node| node.end.head.time <= time).await
}

/// How to get to a record without its leaf.
#[derive(Debug, Clone, Default)]
pub(crate) struct Way {
    /// Nodes of everything before its leaf, oldest first.
    pub before: Vec<Node>,
    /// The merges passed on the way down.
    pub through: Vec<Node>,
}

/// The way to the leaf that holds record `seq`, or behind the last node.
pub(crate) async fn way_to(maps: &Maps, nodes: &[Node], seq: Seq) -> Result<Way, RecoverError> {
    let (mut nodes, mut way) = (nodes.to_vec(), Way::default());
    loop {
        let at = nodes.partition_point(|node| node.end.head.position.seq < seq);
        let within = nodes.get(at).filter(|node| node.level > 0).cloned();
        way.before.extend(nodes.drain(..at));
        let Some(node) = within else { return Ok(way) };
        nodes = maps.open(&node).await?.index.children.clone();
        way.through.push(node);
    }
}

/// The nodes of everything before a stream epoch. A leaf holds one epoch, so they end where the epoch begins.
pub(crate) async fn nodes_before_epoch(maps: &Maps, nodes: &[Node], epoch: u64) -> Result<Vec<Node>, RecoverError> {
    Ok(descend(maps, nodes, |node| node.end.epoch < epoch).await?.before)
}

/// Goes down, past the nodes that lie before: one read for each level.
async fn descend(maps: &Maps, nodes: &[Node], lies_before: impl Fn(&Node) -> bool) -> Result<Stretch, RecoverError> {
    let (mut nodes, mut before) = (nodes.to_vec(), Vec::new());
    loop {
        let at = nodes.partition_point(&lies_before);
        let within = nodes.get(at).cloned();
        before.extend(nodes.drain(..at));
        let Some(node) = within else { return Ok(Stretch::behind(before)) };
        let map = maps.open(&node).await?;
        if node.level == 0 {
            return Ok(Stretch { before, segments: map.index.segments.clone() });
        }
        nodes = map.index.children.clone();
    }
}

/// The nodes that together say what every record behind `seq` changed, oldest first. The first may say more: it is the leaf
/// that holds `seq`, or begins right behind it. One read for each level.
pub(crate) async fn nodes_behind(maps: &Maps, nodes: &[Node], seq: Seq) -> Result<Vec<Node>, RecoverError> {
    let (mut nodes, mut start, mut behind) = (nodes.to_vec(), Seq::ZERO, Vec::new());
    loop {
        let end = |node: &Node| node.end.head.position.seq;
        let at = nodes.partition_point(|node| end(node) <= seq);
        start = at.checked_sub(1).map_or(start, |before| end(&nodes[before]));
        behind.extend(nodes.drain(at..).rev());
        let Some(first) = behind.pop() else { break };
        if first.level == 0 || start == seq {
            behind.push(first);
            break;
        }
        nodes = maps.open(&first).await?.index.children.clone();
    }
    behind.reverse();
    Ok(behind)
}

/// All segments of these nodes whose records go beyond `seq`, in order: one read for each leaf and merge above it.
pub(crate) fn segments_behind<'a>(
    maps: &'a Maps,
    nodes: &'a [Node],
    seq: Seq,
) -> BoxFuture<'a, Result<Vec<Promoted>, RecoverError>> {
    Box::pin(async move {
        let mut segments = Vec::new();
        for node in nodes.iter().filter(|node| node.end.head.position.seq > seq) {
            let map = maps.open(node).await?;
            let behind = map.index.segments.iter().filter(|segment| segment.head.position.seq > seq);
            segments.extend(behind.cloned());
            segments.extend(segments_behind(maps, &map.index.children, seq).await?);
        }
        Ok(segments)
    })
}
