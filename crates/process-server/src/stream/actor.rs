//! The task of one stream: who may feed it, and what happens next.
//!
//! What must hold: only the current session's records are taken, contiguous behind the head WELCOME named. A session is
//! welcomed only when no slot of the one before is open: what has no slot yet is dropped, what has one is stored, or
//! the epoch has ended. When the epoch ends the session ends with it; the agent's next HELLO opens a new one.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use format::wire::{Hello, Refusal, Refused, Stored};
use futures::future::BoxFuture;
use model::Seq;
use store::StoreError;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio::time::{Instant, sleep_until};

mod sessions;

use super::epoch::{EpochEvent, EpochOver, OpenEpoch};
use super::segments::Acknowledged;
use super::{Admitted, Message, StreamContext};
use crate::pipeline::JobResult;
use crate::session::{Batch, SessionHandle};
use crate::share::Opened;

/// An agent heard within this time is alive: another one of its machine is refused.
const ALIVE: Duration = Duration::from_secs(10);

/// How long HELLO waits for the former session's segments, or for the store.
const ATTACH_MAX: Duration = Duration::from_secs(20);

/// A stream without an agent is let go after this time; its memory goes with it.
const IDLE_MAX: Duration = Duration::from_secs(600);

/// How often a stream looks whether it is still its own while its agent has nothing to say: one request to the store.
const LOOK_AT_REST: Duration = Duration::from_secs(30);

/// A session that waits for WELCOME.
struct Attaching {
    hello: Box<Hello>,
    session: Arc<SessionHandle>,
    reply: oneshot::Sender<Result<Admitted, Refused>>,
    until: Instant,
}

enum Event {
    Abort,
    Result(JobResult),
    Epoch(EpochEvent),
    Opened(Result<Opened, StoreError>),
    Verified(Result<(), StoreError>),
    Permit(OwnedSemaphorePermit),
    Message(Option<Message>),
    Tick,
}

/// One stream's state.
pub(crate) struct Actor {
    context: Arc<StreamContext>,
    messages: mpsc::Receiver<Message>,
    results: (mpsc::Sender<JobResult>, mpsc::Receiver<JobResult>),
    epoch: Option<OpenEpoch>,
    /// When the epoch began to hold segments.
    epoch_since: Instant,
    session: Option<Arc<SessionHandle>>,
    /// The session before, while what it sent is in memory: what it borrowed is not lent again before.
    former: Option<Arc<SessionHandle>>,
    /// Records that have no slot yet. Bounded by the credit window.
    pending: VecDeque<Batch>,
    /// The last record that got a slot, and whether a drain is open behind it.
    draining: (Seq, bool),
    attaching: Option<Attaching>,
    opening: Option<BoxFuture<'static, Result<Opened, StoreError>>>,
    /// The look before a session is welcomed to an epoch that was open already.
    verifying: Option<BoxFuture<'static, Result<(), StoreError>>>,
    permit: Option<OwnedSemaphorePermit>,
    permit_wait: Option<BoxFuture<'static, Option<OwnedSemaphorePermit>>>,
    idle_since: Instant,
    /// When a stream at rest last looked, or ceased to be at rest.
    looked: Instant,
    stopping: bool,
}

impl Actor {
    /// Owns nothing yet.
    pub(crate) fn new(context: Arc<StreamContext>, messages: mpsc::Receiver<Message>) -> Self {
        Actor {
            results: mpsc::channel(context.pipeline.jobs_max()),
            context,
            messages,
            epoch: None,
            epoch_since: Instant::now(),
            session: None,
            former: None,
            pending: VecDeque::new(),
            draining: (Seq::ZERO, false),
            attaching: None,
            opening: None,
            verifying: None,
            permit: None,
            permit_wait: None,
            idle_since: Instant::now(),
            looked: Instant::now(),
            stopping: false,
        }
    }

    /// Runs until stopped, aborted, or idle for long.
    pub(crate) async fn run(mut self) {
        loop {
            self.step();
            self.publish();
            if self.is_finished() {
                break;
            }
            match self.next().await {
                Event::Abort => break,
                Event::Result(result) => self.on_result(result),
                Event::Epoch(event) => self.on_epoch(event),
                Event::Opened(result) => self.on_opened(result),
                Event::Verified(result) => self.on_verified(result),
                Event::Permit(permit) => self.permit = Some(permit),
                Event::Message(Some(message)) => self.on_message(message),
                Event::Message(None) => self.stopping = true,
                Event::Tick => {}
            }
        }
    }

    async fn next(&mut self) -> Event {
        let deadline = self.deadline();
        let epoch = async {
            match &mut self.epoch {
                Some(epoch) => epoch.next().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = self.context.abort.cancelled() => Event::Abort,
            Some(result) = self.results.1.recv() => Event::Result(result),
            event = epoch => Event::Epoch(event),
            result = or_never(&mut self.opening) => { self.opening = None; Event::Opened(result) }
            result = or_never(&mut self.verifying) => { self.verifying = None; Event::Verified(result) }
            Some(permit) = or_never(&mut self.permit_wait) => { self.permit_wait = None; Event::Permit(permit) }
            message = self.messages.recv(), if !self.messages.is_closed() => Event::Message(message),
            () = sleep_until(deadline) => Event::Tick,
        }
    }

    /// When something is due though nothing happens.
    fn deadline(&self) -> Instant {
        let attach = self.attaching.as_ref().map(|attaching| attaching.until);
        let look = self.rests().then(|| self.looked + LOOK_AT_REST);
        let retire =
            (self.session.is_some() && self.has_segments()).then(|| self.epoch_since + self.context.config.epoch_life);
        let attach = [attach, look, retire].into_iter().flatten().min();
        let segment = self.epoch.as_ref().and_then(|epoch| epoch.segments().close_at());
        [attach, segment].into_iter().flatten().min().unwrap_or(self.idle_since + IDLE_MAX).max(Instant::now())
    }

    /// Starts everything that is due.
    fn step(&mut self) {
        let now = Instant::now();
        self.retire(now);
        self.attach(now);
        if let Some(epoch) = &mut self.epoch {
            epoch.close_aged(now);
            if self.stopping && self.pending.is_empty() {
                epoch.close_segment();
            }
        }
        self.feed_pipeline();
        if let Some(epoch) = &mut self.epoch {
            epoch.advance();
        }
        self.look_at_rest(now);
        if self.is_drained() {
            self.former = None;
        }
        if self.session.is_some() || self.attaching.is_some() || !self.is_drained() {
            self.idle_since = now;
        }
    }

    /// An epoch has its time: then what has a slot is stored, what has none is left to the agent, who connects again and
    /// goes on in a new one. The time of an epoch begins with its first segment.
    fn retire(&mut self, now: Instant) {
        if !self.has_segments() {
            self.epoch_since = now;
        }
        if now < self.epoch_since + self.context.config.epoch_life {
            return;
        }
        if self.session.is_some() {
            tracing::info!(machine = %self.context.machine, "epoch has its time; the agent goes on in a new one");
            self.end_session();
        }
        if let Some(epoch) = &mut self.epoch {
            epoch.close_segment();
            if epoch.is_drained() {
                self.epoch = None;
                self.verifying = None;
            }
        }
    }

    /// Whether the epoch holds an accepted segment.
    fn has_segments(&self) -> bool {
        self.epoch.as_ref().is_some_and(|epoch| epoch.acked().0 > 0)
    }

    /// An agent is connected and has nothing to say.
    fn rests(&self) -> bool {
        self.session.is_some() && self.attaching.is_none() && self.verifying.is_none() && self.is_drained()
    }

    /// Whoever has nothing to store never hears that another writer took the stream over, and an agent that is told of no
    /// trouble would go on with a log that is no longer its own: so a stream at rest looks from time to time.
    fn look_at_rest(&mut self, now: Instant) {
        if !self.rests() {
            self.looked = now;
        } else if now >= self.looked + LOOK_AT_REST
            && let Some(epoch) = &self.epoch
        {
            let writer = epoch.writer();
            self.looked = now;
            self.verifying = Some(Box::pin(async move { writer.look().await }));
        }
    }

    fn is_drained(&self) -> bool {
        self.pending.is_empty() && self.epoch.as_ref().is_none_or(OpenEpoch::is_drained)
    }

    fn is_finished(&self) -> bool {
        let done = self.is_drained() && self.attaching.is_none() && self.opening.is_none();
        done && (self.stopping || self.idle_since.elapsed() >= IDLE_MAX)
    }

    /// Puts complete segments together first, they free memory; then gives waiting records their slots.
    fn feed_pipeline(&mut self) {
        while let Some(epoch) = &mut self.epoch {
            if !epoch.segments().can_assemble() && self.pending.is_empty() {
                self.permit = None;
                return;
            }
            let Some(permit) = self.permit.take() else {
                let permits = self.context.pipeline.permits();
                match permits.clone().try_acquire_owned() {
                    Ok(permit) => self.permit = Some(permit),
                    Err(_) if self.permit_wait.is_some() => return,
                    Err(_) => {
                        self.permit_wait = Some(Box::pin(async move { permits.acquire_owned().await.ok() }));
                        return;
                    }
                }
                continue;
            };
            if epoch.segments().can_assemble() {
                epoch.assemble(permit);
            } else if let Some(batch) = self.pending.pop_front() {
                self.draining = (batch.head.position.seq, batch.drains_after());
                let window = self.session.as_ref().or(self.former.as_ref()).map_or(0, |session| session.window.bytes());
                epoch.dispatch(batch, window, permit);
            }
        }
        self.permit = None;
    }

    fn on_message(&mut self, message: Message) {
        match message {
            Message::Attach { hello, session, reply } => self.on_attach(hello, session, reply),
            Message::Data { session, batch } => self.on_data(session, batch),
            Message::Detach { session } => {
                if let Some(gone) = self.session.take_if(|current| current.id == session) {
                    self.former = Some(gone);
                }
            }
            Message::Stop => {
                self.stopping = true;
                self.refuse(Refusal::Busy, "this process server is stopping".to_owned());
            }
        }
    }

    fn on_data(&mut self, session: u64, batch: Batch) {
        let current = self.session.as_ref().is_some_and(|current| current.id == session);
        if !current || self.stopping || self.epoch.is_none() {
            return;
        }
        self.context.shared.received(batch.cost, batch.head.position.seq.0);
        let rest = match self.pending.back_mut() {
            Some(last) => last.absorb(batch),
            None => Some(batch),
        };
        self.pending.extend(rest);
    }

    fn on_result(&mut self, result: JobResult) {
        let Some(epoch) = self.epoch.as_mut().filter(|epoch| epoch.number() == result.epoch) else { return };
        match epoch.take(result.slot, result.done) {
            Ok(stats) => self.context.shared.job_done(&stats),
            Err(over) => self.epoch_over(&over),
        }
    }

    fn on_epoch(&mut self, event: EpochEvent) {
        let Some(epoch) = &mut self.epoch else { return };
        match epoch.handle(event) {
            Ok(acknowledged) => self.acknowledge(&acknowledged),
            Err(over) => self.epoch_over(&over),
        }
    }

    fn acknowledge(&self, acknowledged: &[Acknowledged]) {
        let Some(last) = acknowledged.last() else { return };
        for segment in acknowledged {
            crate::metrics::stored(segment.arrived.elapsed());
            self.context.shared.acknowledged(segment.object_bytes);
        }
        let credit = acknowledged.iter().map(|segment| segment.cost).sum();
        if let Some(session) = &self.session {
            let credit = session.window.give_back(credit);
            session.outbox.stored(Stored { seq: last.head.position.seq, digest: last.head.digest }, credit);
        }
        tracing::debug!(machine = %self.context.machine, slot = last.slot, seq = last.head.position.seq.0, "stored");
    }

    fn epoch_over(&mut self, over: &EpochOver) {
        tracing::warn!(machine = %self.context.machine, error = %over, "epoch ended; nothing more of it is acknowledged");
        if matches!(over, EpochOver::Store(StoreError::Fenced { .. })) {
            crate::metrics::fenced();
        }
        self.epoch = None;
        self.verifying = None;
        self.end_session();
    }

    fn publish(&self) {
        let (slot, acked) = self.epoch.as_ref().map(OpenEpoch::acked).unwrap_or_default();
        let oldest = self.epoch.as_ref().and_then(|epoch| epoch.segments().oldest());
        let oldest = oldest.or_else(|| self.pending.front().map(|batch| batch.arrived));
        let session = self.session.as_deref();
        self.context.shared.update(|live| {
            if live.address.as_deref() != session.map(|session| session.address.as_str()) {
                live.address = session.map(|session| session.address.clone());
            }
            live.epoch = self.epoch.as_ref().map(OpenEpoch::number);
            if self.epoch.is_some() {
                (live.slot, live.acked) = (slot, acked);
            }
            live.oldest = oldest;
            live.segments = self.epoch.as_ref().map_or(0, |epoch| epoch.segments().len());
            live.uploads = self.epoch.as_ref().map_or(0, OpenEpoch::uploads);
            live.waiting = self.pending.len();
            live.in_flight = session.map_or(0, |session| session.window.in_flight());
        });
    }
}

/// However the actor ends, its session writes what it still owes and closes, and nothing is shown as going on.
impl Drop for Actor {
    fn drop(&mut self) {
        if let Some(session) = self.session.take() {
            session.outbox.close();
        }
        self.context.shared.update(|live| {
            (live.address, live.epoch, live.oldest) = (None, None, None);
            (live.segments, live.uploads, live.waiting, live.in_flight) = (0, 0, 0, 0);
        });
    }
}

/// The future's result, or nothing for ever while there is none.
async fn or_never<T>(future: &mut Option<BoxFuture<'static, T>>) -> T {
    match future {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}
