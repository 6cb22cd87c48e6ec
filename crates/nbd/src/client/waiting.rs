//! The requests that wait for their replies.
//!
//! Once the connection has failed the list takes no more: a request is either answered by the reader or failed with the
//! reason why the connection ended, never forgotten.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Mutex, MutexGuard};

use bytes::{Bytes, BytesMut};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use crate::protocol::Request;
use crate::{BlockStatus, Errno};

/// What a reply brought.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) data: Bytes,
    pub(super) runs: Vec<BlockStatus>,
}

/// One request in flight, and what of its reply has arrived.
pub(super) struct Waiting {
    pub(super) request: Request,
    /// Data of a read so far; filled in any order by chunks.
    pub(super) data: BytesMut,
    /// Bytes of a read that chunks have covered.
    pub(super) covered: u64,
    pub(super) runs: Vec<BlockStatus>,
    /// The first error chunk, with the server's own words.
    pub(super) failed: Option<(Errno, String)>,
    answer: oneshot::Sender<io::Result<Answer>>,
    _slot: OwnedSemaphorePermit,
}

impl Waiting {
    pub(super) fn new(
        request: Request,
        answer: oneshot::Sender<io::Result<Answer>>,
        slot: OwnedSemaphorePermit,
    ) -> Self {
        Self { request, data: BytesMut::new(), covered: 0, runs: Vec::new(), failed: None, answer, _slot: slot }
    }

    /// Gives the caller what has arrived. A caller that no longer waits is fine.
    pub(super) fn finish(self) {
        let answer = match self.failed {
            Some((errno, words)) => Err(describe(&self.request, errno, &words)),
            None => Ok(Answer { data: self.data.freeze(), runs: self.runs }),
        };
        let _ = self.answer.send(answer);
    }
}

/// An errno as an `io::Error` that says what failed where.
fn describe(request: &Request, errno: Errno, words: &str) -> io::Error {
    let kind = match errno {
        Errno::Permission => io::ErrorKind::PermissionDenied,
        Errno::NoMemory => io::ErrorKind::OutOfMemory,
        Errno::Invalid => io::ErrorKind::InvalidInput,
        Errno::NoSpace => io::ErrorKind::StorageFull,
        Errno::NotSupported => io::ErrorKind::Unsupported,
        Errno::Shutdown => io::ErrorKind::ConnectionAborted,
        Errno::Io | Errno::Overflow => io::ErrorKind::Other,
    };
    let (verb, offset, len) = (request.verb(), request.offset, request.len);
    let detail = if words.is_empty() || words == errno.meaning() { String::new() } else { format!(": {words}") };
    io::Error::new(kind, format!("{verb} of {len} bytes at {offset} failed: {}{detail}", errno.meaning()))
}

#[derive(Default)]
struct State {
    cookie: u64,
    requests: BTreeMap<u64, Waiting>,
    failed: Option<(io::ErrorKind, String)>,
}

/// All requests in flight on a connection.
#[derive(Default)]
pub(super) struct WaitingList {
    state: Mutex<State>,
}

impl WaitingList {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it holds the list")
    }

    /// Never zero, never twice.
    pub(super) fn next_cookie(&self) -> u64 {
        let mut state = self.state();
        state.cookie += 1;
        state.cookie
    }

    /// Adds a request before it is sent; fails once the connection has.
    pub(super) fn add(&self, cookie: u64, waiting: Waiting) -> io::Result<()> {
        let mut state = self.state();
        if let Some((kind, why)) = &state.failed {
            return Err(io::Error::new(*kind, why.clone()));
        }
        state.requests.insert(cookie, waiting);
        Ok(())
    }

    /// Takes a request out, to fill or finish it.
    pub(super) fn take(&self, cookie: u64) -> Option<Waiting> {
        self.state().requests.remove(&cookie)
    }

    /// Fails every request in flight and to come; the first reason stays.
    pub(super) fn fail_all(&self, kind: io::ErrorKind, why: &str) {
        let mut state = self.state();
        let (kind, why) = state.failed.get_or_insert_with(|| (kind, why.to_owned())).clone();
        for (_, waiting) in std::mem::take(&mut state.requests) {
            let _ = waiting.answer.send(Err(io::Error::new(kind, why.clone())));
        }
    }

    /// Why the connection failed.
    pub(super) fn failure(&self) -> io::Error {
        match &self.state().failed {
            Some((kind, why)) => io::Error::new(*kind, why.clone()),
            None => io::Error::new(io::ErrorKind::BrokenPipe, "the connection is closed"),
        }
    }
}
