//! Sessions: one connection of an agent, from HELLO to its end.
//!
//! Reading and writing run side by side, so an echo is answered while everything else is full. What must hold: nothing
//! of a frame reaches the stream before it is checked; bytes received and not stored never exceed the credit window; a
//! peer that breaks a rule costs its own session and nothing else. Identity is the certificate's: no frame names a
//! machine.

mod ingest;
mod outbox;
#[cfg(test)]
mod outbox_tests;
mod window;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use format::wire::{Frame, Hello, Refusal, Refused, Welcome, credit_cost};
use model::MachineName;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use transport::{Connection, FrameReader, FrameWriter, TransportError};

pub(crate) use ingest::Batch;
use ingest::{Ingest, Violation};
use outbox::Outbox;
use window::Overdrawn;
#[cfg(test)]
pub(crate) use window::SURE_BYTES;
pub(crate) use window::{Budget, Window};

use crate::stages::Stages;
use crate::stream::{Admitted, Message, StreamHandle};
use crate::sync;

/// A peer says HELLO within this time.
const HELLO_MAX: Duration = Duration::from_secs(10);

/// A peer that says nothing for this long is gone; agents ask for an echo every few seconds.
const SILENCE_MAX: Duration = Duration::from_secs(120);

/// A peer that does not take what we write for this long is gone.
const WRITE_MAX: Duration = Duration::from_secs(30);

/// What the stream knows of a session.
pub(crate) struct SessionHandle {
    /// Unique in this process.
    pub id: u64,
    /// Names the agent's process.
    pub instance: [u8; 16],
    /// Where it connects from.
    pub address: String,
    /// What it is still to be told.
    pub outbox: Outbox,
    /// Ends it at once.
    pub ended: CancellationToken,
    /// What it may send.
    pub window: Window,
    /// Where its work is counted.
    stages: Arc<Stages>,
    heard: Mutex<Instant>,
}

impl SessionHandle {
    /// A new session of the agent that said this.
    pub(crate) fn new(id: u64, hello: &Hello, address: String, stages: Arc<Stages>, window: Window) -> Self {
        SessionHandle {
            id,
            instance: hello.instance,
            address,
            outbox: Outbox::default(),
            ended: CancellationToken::new(),
            window,
            stages,
            heard: Mutex::new(Instant::now()),
        }
    }

    fn heard_now(&self) {
        *self.heard.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// Whether the peer was heard within this time and the session has not ended.
    pub(crate) fn is_alive(&self, within: Duration) -> bool {
        let heard = *self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        !self.ended.is_cancelled() && heard.elapsed() < within
    }
}

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SessionEnd {
    /// The peer said BYE, or we closed in order.
    #[error("said goodbye")]
    Bye,
    /// Another connection of the agent replaced it, or its epoch ended.
    #[error("the stream let it go")]
    Ended,
    /// It was refused.
    #[error("refused: {0:?}")]
    Refused(Refusal),
    /// It broke the protocol.
    #[error(transparent)]
    Violation(#[from] Violation),
    /// It said nothing, or took nothing, for too long.
    #[error("no {what} for {} s", .after.as_secs())]
    Silent {
        /// What was missing.
        what: &'static str,
        /// The limit.
        after: Duration,
    },
    /// The connection failed.
    #[error(transparent)]
    Transport(#[from] TransportError),
}

/// Reads HELLO.
pub(crate) async fn hello(connection: &mut Connection) -> Result<Hello, SessionEnd> {
    match within(HELLO_MAX, "HELLO", connection.reader.read()).await? {
        Frame::Hello(hello) => Ok(hello),
        other => Err(unexpected(&other)),
    }
}

/// Tells a peer no, and ends the connection in order.
pub(crate) async fn refuse(writer: &mut FrameWriter, refused: Refused) -> SessionEnd {
    crate::metrics::refused(refused.reason);
    let reason = refused.reason;
    let told = async {
        writer.write(&Frame::Refused(refused)).await?;
        writer.close().await
    };
    match within(WRITE_MAX, "reading of REFUSED", told).await {
        Ok(()) => SessionEnd::Refused(reason),
        Err(end) => end,
    }
}

/// Attaches to the stream and carries the session to its end.
pub(crate) async fn run(
    stream: &StreamHandle,
    machine: &MachineName,
    session: &Arc<SessionHandle>,
    hello: Hello,
    connection: &mut Connection,
) -> SessionEnd {
    let decision = match attach(stream, session, hello, &mut connection.reader).await {
        Ok(decision) => decision,
        Err(end) => return end,
    };
    let admitted = match decision {
        Ok(admitted) => admitted,
        Err(refused) => return refuse(&mut connection.writer, refused).await,
    };
    let Connection { reader, writer, .. } = connection;
    let write = write_frames(session, &admitted, writer);
    let read = read_frames(stream, machine, session, &admitted, reader);
    let end = tokio::select! {
        biased;
        () = session.ended.cancelled() => SessionEnd::Ended,
        end = write => end,
        end = read => end,
    };
    // The actor may be gone; then there is nothing to detach from.
    let _ = stream.sender.send(Message::Detach { session: session.id }).await;
    end
}

/// Waits for the stream's decision; the peer may ask for echoes meanwhile, and may go away.
async fn attach(
    stream: &StreamHandle,
    session: &Arc<SessionHandle>,
    hello: Hello,
    reader: &mut FrameReader,
) -> Result<Result<Admitted, Refused>, SessionEnd> {
    let (reply, mut decision) = oneshot::channel();
    let busy = || Refused { reason: Refusal::Busy, text: "the stream has just ended: try again".to_owned() };
    let message = Message::Attach { hello: Box::new(hello), session: session.clone(), reply };
    if stream.sender.send(message).await.is_err() {
        return Ok(Err(busy()));
    }
    loop {
        tokio::select! {
            biased;
            decision = &mut decision => return Ok(decision.unwrap_or_else(|_| Err(busy()))),
            frame = reader.read() => match frame? {
                Frame::Ping(nonce) => {
                    session.heard_now();
                    session.outbox.pong(nonce);
                }
                Frame::Bye => return Err(SessionEnd::Bye),
                other => return Err(unexpected(&other)),
            },
        }
    }
}

async fn write_frames(session: &SessionHandle, admitted: &Admitted, writer: &mut FrameWriter) -> SessionEnd {
    let credit = session.window.bytes();
    let mut frames = vec![Frame::Welcome(Welcome { protocol: admitted.protocol, head: admitted.head, credit })];
    loop {
        let write = async {
            for frame in &frames {
                writer.write(frame).await?;
            }
            writer.flush().await
        };
        if let Err(end) = within(WRITE_MAX, "reading of what we write", write).await {
            return end;
        }
        if frames.iter().any(|frame| matches!(frame, Frame::Stored(_))) {
            probe::failpoint!("process-server-stored-written");
        }
        frames = match session.outbox.next().await {
            Some(frames) => frames,
            None => break,
        };
    }
    match within(WRITE_MAX, "reading of what we write", writer.close()).await {
        Ok(()) => SessionEnd::Bye,
        Err(end) => end,
    }
}

async fn read_frames(
    stream: &StreamHandle,
    machine: &MachineName,
    session: &SessionHandle,
    admitted: &Admitted,
    reader: &mut FrameReader,
) -> SessionEnd {
    let mut ingest = Ingest::new(admitted);
    loop {
        let frame = match within(SILENCE_MAX, "frame", reader.read()).await {
            Ok(frame) => frame,
            Err(end) => return end,
        };
        session.heard_now();
        let records = match frame {
            Frame::Data(records) => records,
            Frame::Ping(nonce) => {
                session.outbox.pong(nonce);
                continue;
            }
            Frame::Bye => return SessionEnd::Bye,
            other => return unexpected(&other),
        };
        let cost = credit_cost(&records);
        match session.window.take(cost) {
            Ok(0) => {}
            Ok(more) => session.outbox.credit(more),
            Err(Overdrawn { in_flight, window }) => return Violation::Credit { in_flight, credit: window }.into(),
        }
        crate::metrics::ingested(cost, records.len());
        let begun = Instant::now();
        let batches = match ingest.take(records, begun) {
            Ok(batches) => batches,
            Err(violation) => return violation.into(),
        };
        session.stages.ingest.worked(cost, begun.elapsed());
        for batch in batches {
            if stream.sender.send(Message::Data { session: session.id, batch }).await.is_err() {
                // The stream has ended and told the writing side to close: let it write what is still owed.
                tracing::debug!(%machine, "stream ended under its session");
                return std::future::pending().await;
            }
        }
    }
}

async fn within<T>(
    limit: Duration,
    what: &'static str,
    work: impl Future<Output = Result<T, TransportError>>,
) -> Result<T, SessionEnd> {
    match timeout(limit, work).await {
        Ok(result) => Ok(result?),
        Err(_) => Err(SessionEnd::Silent { what, after: limit }),
    }
}

fn unexpected(frame: &Frame) -> SessionEnd {
    let kind = match frame {
        Frame::Hello(_) => "HELLO",
        Frame::Welcome(_) => "WELCOME",
        Frame::Refused(_) => "REFUSED",
        Frame::Data(_) => "DATA",
        Frame::Stored(_) => "STORED",
        Frame::Credit(_) => "CREDIT",
        Frame::Ping(_) => "PING",
        Frame::Pong(_) => "PONG",
        Frame::Bye => "BYE",
    };
    Violation::Unexpected { kind }.into()
}
