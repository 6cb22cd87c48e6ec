//! A position held for as long as a command reads it: asked for through the store, prolonged, let go at the end.
//!
//! A command that dies leaves its hold behind, which expires. Where the store cannot be written, or no applier answers, the
//! command goes on and says so: without an applier nothing is deleted either.

use std::time::Duration;

use applier::recover::{HoldAnswer, PointReader, PositionHold};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How long a hold outlives a command that died.
const LASTS: Duration = Duration::from_secs(2 * 3600);

/// How long a command may run without asking where nothing was ever let go: most are done before, and leave nothing in the store.
const FIRST_AFTER: Duration = Duration::from_secs(15);

/// Time between two requests.
const PROLONGED_EVERY: Duration = Duration::from_secs(1800);

/// How long a command waits for the first answer, where positions were let go before.
const ANSWER_WAIT: Duration = Duration::from_secs(4);

/// Time between two looks for an answer.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Keeps a position held until it is let go.
pub struct Keeper {
    stop: CancellationToken,
    task: JoinHandle<()>,
    /// Whether an applier has said that it holds the position.
    pub held: bool,
}

impl Keeper {
    /// Where positions were let go before, asks for the one of a reader to be held and waits a little for the answer; elsewhere asks
    /// when the command turns out to be a long one.
    pub async fn start(reader: &PointReader) -> Self {
        let mut hold = PositionHold::of(reader);
        let stop = CancellationToken::new();
        if !hold.matters_at_once() {
            let task = tokio::spawn(keep(hold, FIRST_AFTER, stop.clone()));
            return Self { stop, task, held: false };
        }
        let held = match hold.ask(LASTS).await {
            Ok(()) => is_held(&hold).await,
            Err(error) => {
                tracing::warn!(
                    "the position is not held, for the store takes no request: {error}; where an applier collects, pin its point"
                );
                false
            }
        };
        let task = tokio::spawn(keep(hold, PROLONGED_EVERY, stop.clone()));
        Self { stop, task, held }
    }

    /// Lets the position go.
    pub async fn end(self) {
        self.stop.cancel();
        // It cannot panic, and whatever it could not do expires.
        let _ended = self.task.await;
    }
}

async fn is_held(hold: &PositionHold) -> bool {
    let deadline = Instant::now() + ANSWER_WAIT;
    loop {
        match hold.answer().await {
            Ok(HoldAnswer::Held { .. }) => return true,
            Ok(HoldAnswer::Refused) => {
                tracing::warn!(
                    "the position is about to go, or too many are held: pin its point if you need it for long"
                );
                return false;
            }
            Ok(HoldAnswer::Waiting) if Instant::now() < deadline => tokio::time::sleep(LOOK_EVERY).await,
            Ok(HoldAnswer::Waiting) => {
                tracing::info!("no applier has answered: the position is held once one runs");
                return false;
            }
            Err(error) => {
                tracing::warn!("whether the position is held is not known: {error}");
                return false;
            }
        }
    }
}

async fn keep(mut hold: PositionHold, mut rest: Duration, stop: CancellationToken) {
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            () = tokio::time::sleep(rest) => rest = PROLONGED_EVERY,
        }
        if let Err(error) = hold.ask(LASTS).await {
            tracing::warn!("the hold of the position was not prolonged: {error}");
        }
    }
    if let Err(error) = hold.release().await {
        tracing::warn!("the hold of the position stays until it expires: {error}");
    }
}
