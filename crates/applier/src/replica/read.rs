//! Promoted segments, whole and checked: the next one is read while the one before is applied.
//!
//! One ahead is enough: a replica that reads faster than it writes gains nothing from a second, which holds as much memory.

use std::sync::Arc;

use bytes::Bytes;
use format::keys::Keys;
use format::manifest::Promoted;
use format::object::{LogKind, ObjectHeader, ObjectKind, Place};
use format::segment::Table;
use model::MachineName;
use store::Store;
use tokio_util::task::AbortOnDropHandle;

use crate::ApplierError;
use crate::manifest::promoted_path;
use crate::segments;
use crate::stages::{Stage, Stages};

/// A segment's object, and what it says of itself.
pub(super) type ReadSegment = (Bytes, (ObjectHeader, Table));

/// Reads segments of one machine.
#[derive(Clone)]
pub(super) struct SegmentReader {
    store: Store,
    keys: Arc<Keys>,
    machine: MachineName,
    stages: Arc<Stages>,
}

impl SegmentReader {
    pub fn new(store: Store, keys: Arc<Keys>, machine: MachineName, stages: Arc<Stages>) -> Self {
        Self { store, keys, machine, stages }
    }

    /// Reads one. Errors: `Diverged` when it is not the one that was promoted; whatever stops the reading.
    pub async fn read(&self, segment: &Promoted) -> Result<ReadSegment, ApplierError> {
        let path = promoted_path(&self.machine, segment);
        let fetching = self.stages.at(Stage::Fetch);
        let found = self.store.get(&path).await?;
        let object = found.ok_or_else(|| segments::missing(path.clone(), "the manifest has promoted it"))?;
        fetching.moved(object.len() as u64);
        drop(fetching);
        let opening = self.stages.at(Stage::Open);
        let refused = |source| ApplierError::damaged(path.clone(), source);
        let header = ObjectHeader::parse(&self.keys, &object).map_err(refused)?;
        let place = Place {
            machine: Some(self.machine.clone()),
            log: Some(LogKind::Stream),
            epoch: segment.epoch,
            slot: segment.slot,
        };
        header.expect_place(ObjectKind::Segment, &place).map_err(refused)?;
        header.check_body(&object).map_err(refused)?;
        if ObjectHeader::hash(&object).map_err(refused)? != segment.hash {
            return Err(ApplierError::Diverged { path });
        }
        let table = segments::table(&self.keys, &header, &object).map_err(refused)?;
        opening.moved(u64::from(header.table_plain_bytes));
        Ok((object, (header, table)))
    }

    /// Reads these one behind the other.
    pub fn in_turn(self, segments: &[Promoted]) -> InTurn<'_> {
        InTurn { reader: self, segments, ahead: None }
    }
}

/// Segments that are read in turn, one of them ahead.
pub(super) struct InTurn<'a> {
    reader: SegmentReader,
    segments: &'a [Promoted],
    ahead: Option<AbortOnDropHandle<Result<ReadSegment, ApplierError>>>,
}

impl InTurn<'_> {
    /// The next one, while the one behind it is begun. To be asked for as often as there are segments.
    pub async fn next(&mut self) -> Result<ReadSegment, ApplierError> {
        let ahead = match self.ahead.take() {
            Some(ahead) => ahead,
            None => self.begin(),
        };
        let read = ahead.await.unwrap_or_else(|join| match join.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // Nobody aborts it: the runtime ends.
            Err(_) => Err(ApplierError::Stopped),
        })?;
        if !self.segments.is_empty() {
            self.ahead = Some(self.begin());
        }
        Ok(read)
    }

    fn begin(&mut self) -> AbortOnDropHandle<Result<ReadSegment, ApplierError>> {
        let (segment, behind) = self.segments.split_first().expect("as many are asked for as there are");
        self.segments = behind;
        let (reader, segment) = (self.reader.clone(), segment.clone());
        AbortOnDropHandle::new(tokio::spawn(async move { reader.read(&segment).await }))
    }
}
