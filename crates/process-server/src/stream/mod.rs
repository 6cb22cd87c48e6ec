//! Streams: one task for each machine that orders, segments and acknowledges what its agent sends.
//!
//! ```text
//! session ── Attach, Data, Detach ──► actor ── jobs ──► pipeline
//!    ▲                                  │ ◄─ results ──┘
//!    └── WELCOME, STORED, CREDIT ───────┤
//!                                       └─► epoch: segments, PUTs, looks
//! ```
//! The actor never waits inside a step: it reacts to what comes and starts what is due, so a full pipeline or a store
//! that is away delays nothing but itself.

mod actor;
mod admit;
mod epoch;
mod segments;
mod shared;
mod upload;

#[cfg(test)]
mod segments_tests;

use std::sync::Arc;

use format::keys::Keys;
use format::wire::{Hello, Refused};
use model::MachineName;
use store::Store;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::dedup::Dedup;
use crate::pipeline::Pipeline;
use crate::session::{Batch, SessionHandle};
use crate::share::Sharing;
use crate::stages::Stages;
use crate::{ProcessServerConfig, ServerRules};

pub use admit::{Admitted, admit, admit_with};
pub(crate) use shared::StreamShared;

/// Messages that wait for an actor; it takes them in at once, so senders hardly ever wait.
const MESSAGES_MAX: usize = 64;

/// What a stream needs of its surroundings.
pub(crate) struct StreamContext {
    /// Whose stream.
    pub machine: MachineName,
    /// Settings.
    pub config: Arc<ProcessServerConfig>,
    /// Where the log lives.
    pub store: Store,
    /// How it is sealed.
    pub keys: Arc<Keys>,
    /// What it shares with others.
    pub sharing: Option<Arc<Sharing>>,
    /// Chunks that are found again.
    pub dedup: Arc<Dedup>,
    /// Workers.
    pub pipeline: Arc<Pipeline>,
    /// What stages have done.
    pub stages: Arc<Stages>,
    /// What the outside may look at.
    pub shared: Arc<StreamShared>,
    /// Ends the actor at once.
    pub abort: CancellationToken,
    /// The safety rules in force.
    pub rules: ServerRules,
}

/// What sessions and the server tell an actor.
pub(crate) enum Message {
    /// An agent said HELLO; the answer comes when the stream is ready for it.
    Attach {
        /// What it said.
        hello: Box<Hello>,
        /// The session.
        session: Arc<SessionHandle>,
        /// Where the answer goes.
        reply: oneshot::Sender<Result<Admitted, Refused>>,
    },
    /// Records of a session.
    Data {
        /// Which session.
        session: u64,
        /// In order.
        batch: Batch,
    },
    /// A session ended.
    Detach {
        /// Which.
        session: u64,
    },
    /// Seal what is open, upload, acknowledge, end.
    Stop,
}

/// How to reach a stream's actor.
#[derive(Clone)]
pub(crate) struct StreamHandle {
    /// Its messages.
    pub sender: mpsc::Sender<Message>,
    /// What may be looked at.
    pub shared: Arc<StreamShared>,
}

/// Starts a stream's actor.
pub(crate) fn spawn(context: StreamContext) -> StreamHandle {
    let (sender, receiver) = mpsc::channel(MESSAGES_MAX);
    let shared = context.shared.clone();
    tokio::spawn(actor::Actor::new(Arc::new(context), receiver).run());
    StreamHandle { sender, shared }
}
