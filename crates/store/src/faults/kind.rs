//! Requests, the faults that can strike them, and rules that say which strike when.
//!
//! What must hold: every fault is something a real store, proxy or client library does, except [`Fault::StaleRead`], which
//! breaks the one promise of reading that the epoch log rests on and exists so that a check can be seen to fail.

use std::time::Duration;

/// A kind of request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Request {
    /// A put of any mode.
    Put,
    /// A read, ranged read or head.
    Read,
    /// A listing of any kind.
    List,
    /// A delete.
    Delete,
}

impl Request {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Put, Self::Read, Self::List, Self::Delete];

    /// As tables print it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Put => "put",
            Self::Read => "read",
            Self::List => "list",
            Self::Delete => "delete",
        }
    }
}

/// A way to fail, or to be slow, or to lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The store is not reached: nothing happens.
    Before,
    /// It happens, and the answer is lost.
    LostResponse,
    /// The requester is told of a timeout now; a put or delete happens after this time (a read never does).
    Late(Duration),
    /// It happens and is answered, and happens once more after this time: somebody on the way repeated the request. The
    /// second create finds the object there, unless it was deleted meanwhile.
    Twice(Duration),
    /// 429 for this request and the next ones of the same rule (of the same kind, if planned), `run` in all. The error is
    /// what object_store's client gives when its own retries are used up; nothing happens.
    TooManyRequests {
        /// Requests in a row; at least 1.
        run: u32,
    },
    /// The same with 503.
    ServiceUnavailable {
        /// Requests in a row; at least 1.
        run: u32,
    },
    /// A create is answered by 409, though this very request created the object: its first answer was lost below us.
    ConflictCreated,
    /// A create is answered by 409, though nothing was created: another request for the object was under way.
    ConflictAbsent,
    /// The answer comes after this time. The seed decides whether the request takes place before or after the wait.
    Hang(Duration),
    /// The same until [`Faults::clear`](super::Faults::clear) or [`Faults::release`](super::Faults::release).
    HangUntilReleased,
    /// Takes this long, and longer by what the body needs at this many bytes per second.
    Slow {
        /// Until the first byte.
        latency: Duration,
        /// Of the body, in either direction; 0 is no limit.
        bytes_per_second: u64,
    },
    /// The body of a read ends early, and nobody says so.
    TruncatedBody,
    /// The body of a read breaks off with an error.
    BrokenBody,
    /// One bit of the body of a read is another.
    FlippedBit,
    /// A listing misses what was created within this time, and holds what was deleted within it.
    StaleList(Duration),
    /// A listing ends early, and nobody says so.
    PartialList,
    /// A listing breaks off with an error.
    BrokenList,
    /// A delete takes place and is answered by 404: its first answer was lost below us.
    DeleteNotFound,
    /// A read still finds an object that was deleted within this time.
    ReadAfterDelete(Duration),
    /// A read does not find an object that was created within this time. **No store we support does this**: it is the
    /// negative control of whoever checks for it.
    StaleRead(Duration),
}

impl Fault {
    /// As tables print it. Faults of one name differ only in numbers.
    pub fn name(self) -> &'static str {
        match self {
            Self::Before => "before",
            Self::LostResponse => "lost-response",
            Self::Late(_) => "late",
            Self::Twice(_) => "twice",
            Self::TooManyRequests { .. } => "too-many-requests",
            Self::ServiceUnavailable { .. } => "service-unavailable",
            Self::ConflictCreated => "conflict-created",
            Self::ConflictAbsent => "conflict-absent",
            Self::Hang(_) => "hang",
            Self::HangUntilReleased => "hang-until-released",
            Self::Slow { .. } => "slow",
            Self::TruncatedBody => "truncated-body",
            Self::BrokenBody => "broken-body",
            Self::FlippedBit => "flipped-bit",
            Self::StaleList(_) => "stale-list",
            Self::PartialList => "partial-list",
            Self::BrokenList => "broken-list",
            Self::DeleteNotFound => "delete-not-found",
            Self::ReadAfterDelete(_) => "read-after-delete",
            Self::StaleRead(_) => "stale-read",
        }
    }

    /// The kinds of request it can strike.
    pub fn requests(self) -> &'static [Request] {
        match self {
            Self::Twice(_) => &[Request::Put, Request::Delete],
            Self::ConflictCreated | Self::ConflictAbsent => &[Request::Put],
            Self::TruncatedBody | Self::BrokenBody | Self::FlippedBit => &[Request::Read],
            Self::ReadAfterDelete(_) | Self::StaleRead(_) => &[Request::Read],
            Self::StaleList(_) | Self::PartialList | Self::BrokenList => &[Request::List],
            Self::DeleteNotFound => &[Request::Delete],
            Self::Before | Self::LostResponse | Self::Late(_) | Self::Slow { .. } => &Request::ALL,
            Self::TooManyRequests { .. } | Self::ServiceUnavailable { .. } => &Request::ALL,
            Self::Hang(_) | Self::HangUntilReleased => &Request::ALL,
        }
    }

    /// The same fault with a longer time, where it has one.
    pub(super) fn longer_by(self, more: Duration) -> Self {
        match self {
            Self::Late(time) => Self::Late(time + more),
            Self::Twice(time) => Self::Twice(time + more),
            Self::Hang(time) => Self::Hang(time + more),
            Self::Slow { latency, bytes_per_second } => Self::Slow { latency: latency + more, bytes_per_second },
            Self::StaleList(time) => Self::StaleList(time + more),
            Self::ReadAfterDelete(time) => Self::ReadAfterDelete(time + more),
            Self::StaleRead(time) => Self::StaleRead(time + more),
            other => other,
        }
    }

    /// Whether how it strikes is left to the seed.
    pub(super) fn leaves_to_chance(self) -> bool {
        use Fault::{BrokenBody, BrokenList, FlippedBit, Hang, HangUntilReleased, PartialList, TruncatedBody};
        matches!(self, Hang(_) | HangUntilReleased | TruncatedBody | BrokenBody | FlippedBit | PartialList | BrokenList)
    }

    /// Requests in a row that one strike makes fail.
    pub(super) fn run(self) -> u32 {
        match self {
            Self::TooManyRequests { run } | Self::ServiceUnavailable { run } => run,
            _ => 1,
        }
    }
}

/// Which requests a fault strikes, and how often. Of several rules that fit a request the first that strikes counts.
#[derive(Debug, Clone)]
pub struct FaultRule {
    /// What happens.
    pub fault: Fault,
    /// With which probability, for each request that fits.
    pub probability: f64,
    /// Kinds of request.
    pub requests: Vec<Request>,
    /// Beginning of the paths (of the prefix, for a listing); empty for all.
    pub prefix: String,
    /// Up to this much, by the seed, is added to the fault's time.
    pub jitter: Duration,
    /// Strikes after which the rule is used up; a run counts once.
    pub strikes_max: u64,
}

impl FaultRule {
    /// A rule for every request that the fault can strike, everywhere, without end.
    pub fn new(fault: Fault, probability: f64) -> Self {
        let (requests, prefix) = (fault.requests().to_vec(), String::new());
        Self { fault, probability, requests, prefix, jitter: Duration::ZERO, strikes_max: u64::MAX }
    }

    /// Only for these kinds of request.
    pub fn on(mut self, requests: &[Request]) -> Self {
        self.requests = requests.to_vec();
        self
    }

    /// Only for paths that begin so.
    pub fn below(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// The fault's time varies by up to this much.
    pub fn jitter(mut self, jitter: Duration) -> Self {
        self.jitter = jitter;
        self
    }

    /// At most so many times.
    pub fn at_most(mut self, strikes_max: u64) -> Self {
        self.strikes_max = strikes_max;
        self
    }

    pub(super) fn fits(&self, request: Request, path: &str) -> bool {
        self.strikes_max > 0 && self.requests.contains(&request) && path.starts_with(&self.prefix)
    }
}
