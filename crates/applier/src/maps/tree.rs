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
    /// Its segments; none for what lies behind the last node.
    pub segments: Option<Vec<Promoted>>,
}

impl Stretch {
    /// Where the stream stands before it.
    pub fn start(&self) -> LogEnd {
        self.before.last().map(|node| end_of(&node.end)).unwrap_or_default()
    }
}

fn end_of(last: &Promoted) -> LogEnd {
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

/// Goes down, past the nodes that lie before: one read for each level.
async fn descend(maps: &Maps, nodes: &[Node], lies_before: impl Fn(&Node) -> bool) -> Result<Stretch, RecoverError> {
    let (mut nodes, mut before) = (nodes.to_vec(), Vec::new());
    loop {
        let at = nodes.partition_point(&lies_before);
        let within = nodes.get(at).cloned();
        before.extend(nodes.drain(..at));
        let Some(node) = within else { return Ok(Stretch { before, segments: None }) };
        let map = maps.open(&node).await?;
        if node.level == 0 {
            return Ok(Stretch { before, segments: Some(map.index.segments.clone()) });
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
