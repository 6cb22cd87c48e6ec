//! The transmission phase: one reader takes requests off the connection, each runs as its own task, one writer sends the
//! replies in the order the requests complete.
//!
//! ```text
//!   reader ── slot + bytes ──► task per request ──► replies ──► writer
//!      ▲ waits while all slots or bytes are taken        │ gives slot and bytes back once the reply is sent
//! ```
//! On a thread of the connection's own a request is begun where it was read, and is a task only when it has to wait.
//!
//! What must hold:
//! - A request holds a slot, and the bytes it reads or writes, from before its payload is received until its reply is
//!   sent. So memory per connection is bounded however slowly the client reads.
//! - A request that has begun runs to its end even when the client is gone or the server stops; only the reply is lost.
//! - A FLUSH begins when it is received. Writes answered before it were complete before it began, which is all that the
//!   protocol lets a client rely on.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use bytes::Bytes;
use futures::FutureExt;
use tokio::io::{AsyncRead, AsyncReadExt, BufReader};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::task::JoinSet;

use super::negotiation::{Agreed, Offer};
use super::payloads::Payloads;
use super::replies::{Held, Reply, write_replies};
use super::requests::{Outcome, Refusal, check, perform};
use crate::protocol::{PAYLOAD_BYTES_MAX, Request, command};
use crate::stream::{ByteStream, discard, read_bytes_into};
use crate::to_the_end::ToTheEnd;
use crate::{Errno, Error};

/// Payload bytes in flight on one connection, of reads and writes together.
const INFLIGHT_BYTES_MAX: u32 = 64 << 20;
/// Longest refused write whose payload is skipped so that the connection can go on; a longer one ends it.
const DISCARD_BYTES_MAX: u32 = 2 * PAYLOAD_BYTES_MAX;
/// What one system call may bring in ahead of need. Larger payloads go straight to their own buffer.
const RECEIVE_BUFFER_BYTES: usize = 64 << 10;
/// Requests begun on a thread of the connection before replies are sent.
const BEGUN_MAX: u32 = 16;

/// How a connection is served.
pub(super) struct Terms {
    pub(super) agreed: Agreed,
    pub(super) inflight_max: usize,
    /// Where requests go on that have to wait, if they are begun where they were read.
    pub(super) runtime: Option<Handle>,
}

/// Serves requests until the client says goodbye, fails or `stop` turns true; returns once every request begun is done.
pub(super) async fn serve(
    stream: ByteStream,
    offer: Arc<Offer>,
    terms: Terms,
    mut stop: watch::Receiver<bool>,
) -> Result<(), Error> {
    let Terms { agreed, inflight_max, runtime } = terms;
    let (reader, writer) = tokio::io::split(stream);
    let (replies, queue) = mpsc::channel(inflight_max);
    // In a set, so that the writer ends with this connection also when it is cut off.
    let mut sending = JoinSet::new();
    sending.spawn(write_replies(writer, queue, agreed.structured));
    let slots = Arc::new(Semaphore::new(inflight_max));
    let mut intake = Intake {
        reader: BufReader::with_capacity(RECEIVE_BUFFER_BYTES, reader),
        offer,
        agreed,
        runtime,
        begun: 0,
        payloads: Payloads::default(),
        slots: slots.clone(),
        bytes: Arc::new(Semaphore::new(INFLIGHT_BYTES_MAX as usize)),
        replies: replies.clone(),
    };
    let ended = tokio::select! {
        biased;
        () = super::told_to_stop(&mut stop) => Ok(()),
        () = replies.closed() => Ok(()),
        ended = intake.run() => ended,
    };
    drop((intake, replies));
    let written = match sending.join_next().await {
        Some(written) => written.unwrap_or_else(|fault| Err(std::io::Error::other(fault))),
        None => Ok(()),
    };
    let every_slot = u32::try_from(inflight_max).expect("checked when the server started");
    let _all_done = slots.acquire_many(every_slot).await;
    ended.and(written.map_err(Error::from))
}

struct Intake<R> {
    reader: BufReader<R>,
    offer: Arc<Offer>,
    agreed: Agreed,
    runtime: Option<Handle>,
    /// Requests begun in one go.
    begun: u32,
    payloads: Payloads,
    slots: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
    replies: mpsc::Sender<Reply>,
}

impl<R: AsyncRead + Unpin> Intake<R> {
    async fn run(&mut self) -> Result<(), Error> {
        loop {
            let slot = self.slots.clone().acquire_owned().await.expect("slots are never closed");
            let Some(request) = self.header().await? else { return Ok(()) };
            if request.command == command::DISCONNECT {
                return Ok(());
            }
            match check(&*self.offer.export, self.agreed, &request) {
                Ok(()) => self.begin(request, slot).await?,
                Err(refusal) => self.refuse(request, refusal, slot).await?,
            }
        }
    }

    /// The next header, or `None` if the client closed between two requests.
    async fn header(&mut self) -> Result<Option<Request>, Error> {
        let mut header = [0; Request::BYTES];
        let first = self.reader.read(&mut header).await?;
        if first == 0 {
            return Ok(None);
        }
        self.reader.read_exact(&mut header[first..]).await?;
        Request::decode(&header).map(Some)
    }

    async fn begin(&mut self, request: Request, slot: OwnedSemaphorePermit) -> Result<(), Error> {
        let carries = matches!(request.command, command::READ | command::WRITE);
        let need = if carries { request.len } else { 0 };
        let bytes = self.bytes.clone().acquire_many_owned(need).await.expect("the byte budget is never closed");
        let payload = match request.command {
            command::WRITE => {
                let len = request.len as usize;
                read_bytes_into(&mut self.reader, self.payloads.take(len), len).await?.freeze()
            }
            _ => Bytes::new(),
        };
        let (offer, replies) = (self.offer.clone(), self.replies.clone());
        let payloads = self.payloads.clone();
        let work = async move {
            let outcome = run(&offer, &request, payload.clone()).await;
            payloads.give_back(payload);
            // A closed queue means that the client is gone; nobody is left to tell.
            let _ = replies.send(Reply { request, outcome, held: Held { slot, bytes: Some(bytes) } }).await;
        };
        let Some(runtime) = &self.runtime else {
            tokio::spawn(work);
            return Ok(());
        };
        let mut work = Box::pin(work);
        if futures::poll!(&mut work).is_pending() {
            tokio::spawn(ToTheEnd::begun(work, runtime.clone()));
        }
        self.begun += 1;
        if self.begun == BEGUN_MAX {
            // Their replies are sent first.
            self.begun = 0;
            tokio::task::yield_now().await;
        }
        Ok(())
    }

    async fn refuse(&mut self, request: Request, refusal: Refusal, slot: OwnedSemaphorePermit) -> Result<(), Error> {
        tracing::debug!(
            command = request.verb(),
            offset = request.offset,
            len = request.len,
            refusal.why,
            "request refused"
        );
        if request.command == command::WRITE {
            if request.len > DISCARD_BYTES_MAX {
                return Err(Error::PayloadTooLong(request.len));
            }
            discard(&mut self.reader, request.len).await?;
        }
        let outcome = Outcome::Failed(refusal.errno, refusal.why);
        let _ = self.replies.send(Reply { request, outcome, held: Held { slot, bytes: None } }).await;
        Ok(())
    }
}

/// A fault in an export costs the request, not the connection.
async fn run(offer: &Offer, request: &Request, payload: Bytes) -> Outcome {
    match AssertUnwindSafe(perform(&*offer.export, request, payload)).catch_unwind().await {
        Ok(outcome) => outcome,
        Err(_) => {
            tracing::error!(command = request.verb(), request.offset, request.len, "the export panicked");
            Outcome::Failed(Errno::Io, "internal fault in the export")
        }
    }
}
