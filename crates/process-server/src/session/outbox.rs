//! What a session still has to tell its agent. Bounded by merging: the newest `stored` stands for all before it,
//! credits add up, and of echoes only the last few are owed. So a peer that does not read costs no memory. `scheduled` tries this source under
//! many schedules: nothing said is left unheard.

use std::collections::VecDeque;

use format::wire::{Frame, Stored};
use tokio::sync::Notify;

use super::sync::{Mutex, MutexGuard, PoisonError};

/// Echoes owed at most; a peer that asks faster than it reads loses the oldest.
pub(crate) const PONGS_MAX: usize = 16;

#[derive(Default)]
struct Pending {
    stored: Option<Stored>,
    credit: u64,
    pongs: VecDeque<u64>,
    closing: bool,
}

/// Frames to write, merged.
#[derive(Default)]
pub(crate) struct Outbox {
    pending: Mutex<Pending>,
    changed: Notify,
}

impl Outbox {
    fn lock(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All up to here is stored, and so much credit comes back for it.
    pub(crate) fn stored(&self, stored: Stored, credit: u64) {
        let mut pending = self.lock();
        pending.stored = Some(stored);
        pending.credit += credit;
        self.changed.notify_one();
    }

    /// So much more may be sent.
    pub(crate) fn credit(&self, credit: u64) {
        let mut pending = self.lock();
        pending.credit += credit;
        self.changed.notify_one();
    }

    /// Answers an echo request.
    pub(crate) fn pong(&self, nonce: u64) {
        let mut pending = self.lock();
        if pending.pongs.len() == PONGS_MAX {
            pending.pongs.pop_front();
        }
        pending.pongs.push_back(nonce);
        self.changed.notify_one();
    }

    /// Ends the session once everything said so far is written.
    pub(crate) fn close(&self) {
        self.lock().closing = true;
        self.changed.notify_one();
    }

    /// Frames to write next, echoes first; none once closed and empty. Cancel-safe: frames are taken only at the end.
    pub(crate) async fn next(&self) -> Option<Vec<Frame>> {
        loop {
            {
                let mut pending = self.lock();
                let mut frames: Vec<Frame> = pending.pongs.drain(..).map(Frame::Pong).collect();
                frames.extend(pending.stored.take().map(Frame::Stored));
                if pending.credit > 0 {
                    frames.push(Frame::Credit(std::mem::take(&mut pending.credit)));
                }
                if !frames.is_empty() {
                    return Some(frames);
                }
                if pending.closing {
                    return None;
                }
            }
            self.changed.notified().await;
        }
    }
}
