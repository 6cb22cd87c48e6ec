//! A position that is held while it is read for long: by `serve` and `restore`, wherever they run (docs/rfcs/0006-horizon.md).

use std::time::Duration;

use format::hold::{HoldId, HoldRequest, LASTS_SECONDS_MAX};
use model::{Seq, Timestamp};
use std::sync::Arc;
use store::HoldRequests;

use super::history::Origin;
use super::{PointReader, RecoverError};

/// What came of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HoldAnswer {
    /// No applier has read it yet. None that has not read it has let the position go since it was asked for.
    Waiting,
    /// The position stays until then at least, by the applier's clock.
    Held {
        /// The moment.
        until: Timestamp,
    },
    /// The position is retained no longer, or too many are held.
    Refused,
}

/// Holds one position under a name of its own.
pub struct PositionHold {
    origin: Arc<Origin>,
    id: HoldId,
    seq: Seq,
    asked: Option<u64>,
}

impl PositionHold {
    /// For the position of a reader; nothing is asked yet.
    pub fn of(reader: &PointReader) -> Self {
        Self { origin: reader.origin().clone(), id: HoldId::random(), seq: reader.at().position.seq, asked: None }
    }

    /// Whether anything was let go of this history so far. Where nothing was, nothing will be before an applier has read what
    /// is asked now.
    pub fn matters_at_once(&self) -> bool {
        self.origin.horizon_seq() > Seq::ZERO
    }

    /// Asks for the position to be held for that long from when an applier reads it, a week at most; once more to prolong it.
    /// Errors: the store's: it must be possible to write.
    pub async fn ask(&mut self, lasts: Duration) -> Result<(), RecoverError> {
        let lasts_seconds = u32::try_from(lasts.as_secs()).unwrap_or(u32::MAX).clamp(1, LASTS_SECONDS_MAX);
        self.put(lasts_seconds).await
    }

    async fn put(&mut self, lasts_seconds: u32) -> Result<(), RecoverError> {
        let read = self.origin.newest().await?.holds_read;
        let request = HoldRequest { id: self.id, seq: self.seq, lasts_seconds };
        self.asked = Some(self.requests().ask(read, &request).await?);
        Ok(())
    }

    fn requests(&self) -> HoldRequests {
        self.origin.hold_requests()
    }

    /// What the newest manifest says of the last request. Errors: the store's, and damage of the manifest log.
    pub async fn answer(&self) -> Result<HoldAnswer, RecoverError> {
        let manifest = self.origin.newest().await?;
        let answered = self.asked.is_some_and(|asked| asked <= manifest.holds_read);
        Ok(match manifest.holds.get(&self.id).filter(|hold| hold.seq == self.seq) {
            _ if !answered => HoldAnswer::Waiting,
            Some(hold) => HoldAnswer::Held { until: hold.until },
            None => HoldAnswer::Refused,
        })
    }

    /// Lets it go, if it was asked for. Errors: the store's; then it goes when its time is over.
    pub async fn release(mut self) -> Result<(), RecoverError> {
        match self.asked {
            Some(_) => self.put(0).await,
            None => Ok(()),
        }
    }
}
