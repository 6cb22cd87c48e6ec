//! The question a role asks before it trusts a store: does it keep the promises that the epoch log rests on?
//!
//! Stores that speak S3 differ in what they honour: some ignore `If-None-Match: *`, some check it and then race, some
//! answer reads from a cache, some gateways drop `Range`. With such a store two process servers could extend one stream,
//! and nobody would notice before a restore. So it is tried out, below `probe/<random id>`, with objects of a few bytes:
//! what was never there is absent, a second create is refused, of several at once one wins, and what was created is
//! read back at once, whole and by range.
//!
//! What must hold: a store is refused only for what it did, never for what it did not answer. When it does not answer,
//! nothing is proven, and the caller hears `Unavailable` as of any other request. The probe makes fewer than
//! 30 requests within [`TIME_MAX`], and deletes what it made; if the process dies half-way (or may not
//! delete), at most two tiny objects stay, which nobody ever reads. It proves a store that breaks its promises every
//! time or often; one that breaks them once in a million it does not find.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use format::object::ObjectId;
use object_store::path::Path;
use object_store::{Error, PutMode, PutOptions};

use crate::objects::{generic, unavailable};
use crate::{Store, StoreError};

/// A store that needs longer is not reachable in any useful sense. As long again is left for cleaning up.
const TIME_MAX: Duration = Duration::from_secs(30);

/// Creates of one object at the same time.
const RACERS: usize = 8;

/// How object_store's client reports a store that answers a ranged read with the whole object, and one that does not know
/// conditional PUT. It has no type of its own for either, so these are looked for in the text; a test with a server that
/// behaves so fails when the texts change.
const WHOLE_FOR_RANGE: &str = "non-partial response";
const NOT_IMPLEMENTED: &str = "501 Not Implemented";

/// Asked of an object: neither its beginning nor its end.
const RANGE: std::ops::Range<u64> = 3..11;

/// A promise that a store did not keep, and what follows from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BrokenPromise {
    /// It has no create-if-absent.
    NoCreate,
    /// A create of what existed was accepted, or replaced it.
    CreateIgnored,
    /// Of several creates at once more than one was told that it had won.
    CreateRaces,
    /// The one that was told it had won had not.
    WinnerReplaced,
    /// What was created could not be read at once.
    StaleRead,
    /// A ranged read gave other bytes than those asked for, or none at all.
    RangeIgnored,
}

impl fmt::Display for BrokenPromise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoCreate => {
                "cannot create an object only if it is absent (conditional PUT, If-None-Match: *), so it cannot keep two \
                 process servers from both extending a stream; use a store that supports conditional PUT"
            }
            Self::CreateIgnored => {
                "let a second writer create an object that existed: it does not honour conditional PUT (If-None-Match: *), \
                 so two process servers could both extend a stream; use a store that does"
            }
            Self::CreateRaces => {
                "let several writers create the same object at the same moment: its conditional PUT (If-None-Match: *) is \
                 not atomic, so two process servers could both extend a stream; use a store whose conditional PUT is atomic"
            }
            Self::WinnerReplaced => {
                "told one writer that it had created an object and kept the bytes of another: acknowledged data could be \
                 lost; use a store whose conditional PUT (If-None-Match: *) is atomic"
            }
            Self::StaleRead => {
                "did not show an object that had just been created: its reads are not consistent, so a process server could \
                 miss that another has taken its place, and what was acknowledged might not be there; use the store's \
                 primary endpoint, without a cache or a replica in between"
            }
            Self::RangeIgnored => {
                "did not answer a ranged read with the bytes asked for: restores and verification would read wrong data or \
                 none; use a store, or a gateway before it, that honours Range"
            }
        })
    }
}

/// What ends a probe early.
enum Stop {
    Broken(BrokenPromise),
    NoAnswer(StoreError),
}

impl From<BrokenPromise> for Stop {
    fn from(broken: BrokenPromise) -> Self {
        Self::Broken(broken)
    }
}

impl From<StoreError> for Stop {
    fn from(error: StoreError) -> Self {
        Self::NoAnswer(error)
    }
}

impl Store {
    /// Refuses a store that does not keep what the epoch log rests on: `Unfit`. Any other error says that the store did not
    /// answer, which proves nothing about it.
    pub async fn probe(&self) -> Result<(), StoreError> {
        let id: String = ObjectId::random().0[..8].iter().map(|byte| format!("{byte:02x}")).collect();
        let folder = format!("probe/{id}");
        let paths = [format!("{folder}/once"), format!("{folder}/race")];
        let asked = tokio::time::timeout(TIME_MAX, self.ask(&folder, &paths)).await;
        // Also after a refusal: whoever looks into the store finds no riddles.
        if tokio::time::timeout(TIME_MAX, self.clean(&folder, &paths)).await.is_err() {
            tracing::debug!(folder, "the objects of the store's probe are left behind");
        }
        match asked {
            Ok(Ok(())) => Ok(()),
            Ok(Err(Stop::NoAnswer(error))) => Err(error),
            Ok(Err(Stop::Broken(promise))) => Err(StoreError::Unfit { store: self.name(), promise }),
            Err(_late) => Err(unavailable("probe", &folder, generic(format!("no end within {TIME_MAX:?}")))),
        }
    }

    async fn ask(&self, folder: &str, paths: &[String; 2]) -> Result<(), Stop> {
        let [once, race] = paths;
        let held = self.create_once(once).await?;
        self.range(once, &held).await?;
        self.race(race).await?;
        self.listed(folder, paths).await;
        Ok(())
    }

    /// One after the other: the first creates, the second is refused, and the first's bytes are there.
    async fn create_once(&self, path: &str) -> Result<Bytes, Stop> {
        // Whoever answers from a cache learns here that there is nothing: it must not say so again.
        self.get(path).await?;
        let (first, second) = (bytes_of("the first writer"), bytes_of("the second writer"));
        // "Exists" is no clear answer here: the client below may have repeated a request that had taken place, and some
        // stores say so of a request that was under way and came to nothing.
        self.raw_create(path, first.clone()).await.map_err(|source| no_answer(path, source))?;
        match self.raw_create(path, second).await {
            Ok(()) => return Err(BrokenPromise::CreateIgnored.into()),
            Err(Error::AlreadyExists { .. }) => {}
            Err(source) => return Err(no_answer(path, source)),
        }
        match self.get(path).await? {
            None => Err(BrokenPromise::StaleRead.into()),
            Some(held) if held != first => Err(BrokenPromise::CreateIgnored.into()),
            Some(held) => Ok(held),
        }
    }

    /// All at once: one writer wins, and its bytes are there.
    async fn race(&self, path: &str) -> Result<(), Stop> {
        self.get(path).await?;
        let bytes: Vec<Bytes> = (0..RACERS).map(|racer| bytes_of(&format!("racer {racer}"))).collect();
        let all = bytes.iter().map(|bytes| self.raw_create(path, bytes.clone()));
        let answers = futures::future::join_all(all).await;
        let won: Vec<&Bytes> = bytes.iter().zip(&answers).filter(|(_, a)| a.is_ok()).map(|(bytes, _)| bytes).collect();
        if won.len() > 1 {
            return Err(BrokenPromise::CreateRaces.into());
        }
        match (won.first(), self.get(path).await?) {
            (Some(bytes), Some(held)) if held == **bytes => Ok(()),
            (Some(_), Some(_)) => Err(BrokenPromise::WinnerReplaced.into()),
            (Some(_), None) => Err(BrokenPromise::StaleRead.into()),
            // Somebody's answer was lost, and the object may be anyone's.
            (None, Some(_)) => Ok(()),
            (None, None) => {
                let cause = answers.into_iter().find_map(Result::err);
                Err(no_answer(path, cause.unwrap_or_else(|| generic("nobody created the object"))))
            }
        }
    }

    /// A create whose answer is taken as it comes.
    async fn raw_create(&self, path: &str, bytes: Bytes) -> Result<(), Error> {
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        self.object_store().put_opts(&Path::from(path), bytes.into(), options).await.map(drop)
    }

    /// A range is answered by that range.
    async fn range(&self, path: &str, held: &Bytes) -> Result<(), Stop> {
        match self.get_range(path, RANGE).await {
            Ok(Some(part)) if part == held[RANGE.start as usize..RANGE.end as usize] => Ok(()),
            Ok(Some(_)) => Err(BrokenPromise::RangeIgnored.into()),
            Ok(None) => Err(BrokenPromise::StaleRead.into()),
            Err(error) if says(&error, WHOLE_FOR_RANGE) => Err(BrokenPromise::RangeIgnored.into()),
            Err(error) => Err(error.into()),
        }
    }

    /// No rule rests on LIST: a bad one is worth a line in the log.
    async fn listed(&self, folder: &str, paths: &[String; 2]) {
        let found = match self.list(folder).await {
            Ok(found) => found,
            Err(error) => return tracing::warn!(%error, "the store does not list: purge and status need that"),
        };
        if !found.iter().map(|(path, _)| path).eq(paths) {
            tracing::warn!(?found, "the store's listings lag behind: purge and status may miss the newest objects");
        }
    }

    async fn clean(&self, folder: &str, paths: &[String; 2]) {
        for path in paths {
            if let Err(error) = self.delete(path).await {
                tracing::debug!(path, %error, "an object of the store's probe is left behind");
            }
        }
        self.forget_folder(folder).await;
    }
}

/// Longer than the range that is read.
fn bytes_of(who: &str) -> Bytes {
    Bytes::from(format!("farshore probe: {who}"))
}

fn no_answer(path: &str, source: Error) -> Stop {
    match source {
        Error::NotImplemented { .. } | Error::NotSupported { .. } => BrokenPromise::NoCreate.into(),
        source if says(&source, NOT_IMPLEMENTED) => BrokenPromise::NoCreate.into(),
        source => unavailable("create", path, source).into(),
    }
}

/// Whether an error or one of its causes has this text.
fn says(error: &(dyn std::error::Error + 'static), text: &str) -> bool {
    std::iter::successors(Some(error), |error| error.source()).any(|error| error.to_string().contains(text))
}
