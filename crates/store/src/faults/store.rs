//! Lets faults happen: an object store whose requests fare as its switches decide.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::TryStreamExt;
use futures::stream::{BoxStream, StreamExt};
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, Extensions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    ObjectStoreExt, PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

use super::past::{Deleted, body};
use super::{Call, Fault, Faults, Request, Strike};

/// Wraps an object store; behaves as [`Faults`] say.
#[derive(Clone)]
pub struct FaultStore {
    inner: Arc<dyn ObjectStore>,
    faults: Faults,
}

impl FaultStore {
    /// `inner`, seen through `faults`.
    pub fn new(inner: Arc<dyn ObjectStore>, faults: Faults) -> Self {
        Self { inner, faults }
    }

    /// Its switches.
    pub fn faults(&self) -> &Faults {
        &self.faults
    }

    /// Decides about a request and makes it wait for its turn.
    async fn begin(&self, request: Request, path: &Path) -> Strike {
        self.begin_call(Call { request, path, creates: false, has_body: false }).await
    }

    async fn begin_call(&self, call: Call<'_>) -> Strike {
        let strike = self.faults.decide(call);
        wait(strike.delay).await;
        strike
    }

    /// A put that is remembered when it takes place, however late that is.
    async fn put_now(self, path: Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        let result = self.inner.put_opts(&path, payload, opts).await?;
        self.faults.past.put(&path);
        Ok(result)
    }

    async fn delete_now(self, path: Path) -> Result<()> {
        let object = if self.faults.remembers_deleted() { self.look(&path).await } else { None };
        self.inner.delete(&path).await?;
        self.faults.past.deleted(&path, object);
        Ok(())
    }

    async fn look(&self, path: &Path) -> Option<Deleted> {
        let found = self.inner.get(path).await.ok()?;
        let meta = found.meta.clone();
        Some(Deleted { meta, bytes: found.bytes().await.ok()? })
    }

    /// What lies below the prefix, as this request is told, and the error it ends with.
    async fn list_struck(self, prefix: Option<Path>, strike: Strike) -> Result<(Vec<ObjectMeta>, Option<Error>)> {
        let (inner, at) = (self.inner.clone(), prefix.clone());
        let (fault, draw) = (strike.fault, strike.draw);
        let all = strike.carry(Request::List, move || {
            let (inner, at) = (inner.clone(), at.clone());
            async move { inner.list(at.as_ref()).try_collect::<Vec<_>>().await }
        });
        let mut all = all.await?;
        match fault {
            Some(Fault::StaleList(within)) => {
                let new = self.faults.past.created_within(within);
                all.retain(|meta| !new.contains(&meta.location));
                let there: BTreeSet<Path> = all.iter().map(|meta| meta.location.clone()).collect();
                let below = |path: &Path| {
                    prefix.as_ref().is_none_or(|at| path.prefix_match(at).is_some_and(|mut rest| rest.next().is_some()))
                };
                let deleted = self.faults.past.deleted_within(within).into_iter().map(|object| object.meta);
                all.extend(deleted.filter(|meta| below(&meta.location) && !there.contains(&meta.location)));
            }
            Some(Fault::PartialList | Fault::BrokenList) => {
                all.sort_by(|a, b| a.location.cmp(&b.location));
                all.truncate(draw.checked_rem(all.len() as u64).unwrap_or(0) as usize);
            }
            _ => {}
        }
        let broken = matches!(fault, Some(Fault::BrokenList)).then(|| failure("the listing broke off (injected)"));
        Ok((all, broken))
    }
}

impl Strike {
    /// Runs a request under whatever strikes it. Faults of bodies and listings are left to the caller.
    async fn carry<T, A, F>(self, request: Request, act: A) -> Result<T>
    where
        T: Send + 'static,
        A: Fn() -> F,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        match self.fault {
            Some(Fault::Before) => Err(failure("the store cannot be reached (injected)")),
            Some(Fault::LostResponse) => {
                let _lost = act().await;
                Err(failure("the answer was lost (injected)"))
            }
            Some(Fault::Late(after)) => {
                if matches!(request, Request::Put | Request::Delete) {
                    self.later(after, act());
                }
                Err(failure("the request timed out (injected)"))
            }
            Some(Fault::Twice(after)) => {
                self.later(after, act());
                act().await
            }
            Some(Fault::TooManyRequests { .. }) => Err(throttled(request, "429 Too Many Requests: TooManyRequests")),
            Some(Fault::ServiceUnavailable { .. }) => Err(throttled(request, "503 Service Unavailable: SlowDown")),
            Some(Fault::Hang(time)) => self.hang(tokio::time::sleep(time), act()).await,
            Some(Fault::HangUntilReleased) => {
                let mut released = self.released.clone();
                let wait = async move { drop(released.changed().await) };
                self.hang(wait, act()).await
            }
            Some(Fault::Slow { latency, .. }) => {
                wait(latency).await;
                act().await
            }
            _ => act().await,
        }
    }

    /// Runs behind the requester's back.
    fn later<T: Send + 'static>(&self, after: Duration, action: impl Future<Output = Result<T>> + Send + 'static) {
        (self.spawner)(Box::pin(async move {
            wait(after).await;
            let _unheard = action.await;
        }));
    }

    /// The requester hears nothing until the wait is over; when in it the request takes place is left to chance.
    async fn hang<T>(&self, wait: impl Future<Output = ()>, action: impl Future<Output = Result<T>>) -> Result<T> {
        if self.draw & 1 == 0 {
            wait.await;
            return action.await;
        }
        let answer = action.await;
        wait.await;
        answer
    }

    /// Waits as long as a slow line needs for a body.
    async fn transfer(fault: Option<Fault>, bytes: u64) {
        if let Some(Fault::Slow { bytes_per_second, .. }) = fault {
            let micros = bytes.saturating_mul(1_000_000).checked_div(bytes_per_second).unwrap_or(0);
            wait(Duration::from_micros(micros)).await;
        }
    }
}

async fn wait(time: Duration) {
    if !time.is_zero() {
        tokio::time::sleep(time).await;
    }
}

fn failure(why: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::Generic { store: "faults", source: why.into() }
}

/// As object_store's client puts it when it has repeated a request as often as it may.
fn throttled(request: Request, answer: &str) -> Error {
    failure(after_retries(request, answer))
}

fn after_retries(request: Request, answer: &str) -> String {
    let method = match request {
        Request::Put => "PUT",
        Request::Read | Request::List => "GET",
        Request::Delete => "DELETE",
    };
    format!(
        "Error performing {method} REDACTED in 1.7s, after 3 retries, max_retries: 3, retry_timeout: 20s  - Server \
         returned non-2xx status code: {answer} (injected)"
    )
}

fn conflict(path: &Path) -> Error {
    let source = after_retries(Request::Put, "409 Conflict: ConditionalRequestConflict").into();
    Error::AlreadyExists { path: path.to_string(), source }
}

fn not_found(request: Request, path: &Path) -> Error {
    Error::NotFound { path: path.to_string(), source: after_retries(request, "404 Not Found").into() }
}

/// A read's answer with its body spoilt; how, is left to chance. An empty body has nothing to spoil.
async fn spoil(answer: GetResult, fault: Fault, draw: u64) -> Result<GetResult> {
    let GetResult { meta, range, attributes, extensions, .. } = &answer;
    let (meta, range) = (meta.clone(), range.clone());
    let (attributes, extensions) = (attributes.clone(), extensions.clone());
    let bytes = answer.bytes().await?;
    let at = draw.checked_rem(bytes.len() as u64).unwrap_or(0) as usize;
    let payload = match fault {
        Fault::TruncatedBody => body(bytes.slice(..at), None),
        Fault::BrokenBody => body(bytes.slice(..at), Some(failure("the body broke off (injected)"))),
        _ => {
            let mut spoilt = bytes.to_vec();
            if let Some(byte) = spoilt.get_mut(at) {
                *byte ^= 1 << ((draw >> 32) % 8);
            }
            body(spoilt.into(), None)
        }
    };
    Ok(GetResult { payload, meta, range, attributes, extensions })
}

impl fmt::Display for FaultStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FaultStore({})", self.inner)
    }
}

impl fmt::Debug for FaultStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[async_trait]
impl ObjectStore for FaultStore {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        let creates = matches!(opts.mode, PutMode::Create);
        let strike = self.begin_call(Call { request: Request::Put, path: location, creates, has_body: false }).await;
        let fault = strike.fault;
        if fault == Some(Fault::ConflictAbsent) {
            return Err(conflict(location));
        }
        Strike::transfer(fault, payload.content_length() as u64).await;
        let act = || self.clone().put_now(location.clone(), payload.clone(), opts.clone());
        let answer = strike.carry(Request::Put, act).await;
        match fault {
            Some(Fault::ConflictCreated) => answer.and_then(|_| Err(conflict(location))),
            _ => answer,
        }
    }

    async fn put_multipart_opts(&self, location: &Path, opts: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        let strike = self.begin(Request::Put, location).await;
        let act = || {
            let (inner, location, opts) = (self.inner.clone(), location.clone(), opts.clone());
            async move { inner.put_multipart_opts(&location, opts).await }
        };
        strike.carry(Request::Put, act).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let call = Call { request: Request::Read, path: location, creates: false, has_body: !options.head };
        let strike = self.begin_call(call).await;
        let (fault, draw) = (strike.fault, strike.draw);
        match fault {
            Some(Fault::StaleRead(_)) => return Err(not_found(Request::Read, location)),
            Some(Fault::ReadAfterDelete(within)) => {
                if let Some(object) = self.faults.past.find_deleted(location, within) {
                    return object.read(&options);
                }
            }
            _ => {}
        }
        let has_body = !options.head;
        let act = || {
            let (inner, location, options) = (self.inner.clone(), location.clone(), options.clone());
            async move { inner.get_opts(&location, options).await }
        };
        let answer = strike.carry(Request::Read, act).await?;
        match fault {
            Some(fault @ (Fault::TruncatedBody | Fault::BrokenBody | Fault::FlippedBit)) => {
                spoil(answer, fault, draw).await
            }
            _ => {
                let bytes = if has_body { answer.range.end - answer.range.start } else { 0 };
                Strike::transfer(fault, bytes).await;
                Ok(answer)
            }
        }
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let this = self.clone();
        let delete_one = move |location: Result<Path>| {
            let this = this.clone();
            async move {
                let location = location?;
                let strike = this.begin(Request::Delete, &location).await;
                let fault = strike.fault;
                strike.carry(Request::Delete, || this.clone().delete_now(location.clone())).await?;
                match fault {
                    Some(Fault::DeleteNotFound) => Err(not_found(Request::Delete, &location)),
                    _ => Ok(location),
                }
            }
        };
        locations.then(delete_one).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (this, prefix) = (self.clone(), prefix.cloned());
        let start = async move {
            let strike = this.begin(Request::List, &prefix.clone().unwrap_or_default()).await;
            match this.list_struck(prefix, strike).await {
                Ok((all, broken)) => futures::stream::iter(all.into_iter().map(Ok).chain(broken.map(Err))).boxed(),
                Err(error) => futures::stream::once(async { Err(error) }).boxed(),
            }
        };
        futures::stream::once(start).flatten().boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let at = prefix.cloned().unwrap_or_default();
        let strike = self.begin(Request::List, &at).await;
        if !matches!(strike.fault, Some(Fault::StaleList(_) | Fault::PartialList | Fault::BrokenList)) {
            let act = || {
                let (inner, prefix) = (self.inner.clone(), prefix.cloned());
                async move { inner.list_with_delimiter(prefix.as_ref()).await }
            };
            return strike.carry(Request::List, act).await;
        }
        match self.clone().list_struck(prefix.cloned(), strike).await? {
            (_, Some(broken)) => Err(broken),
            (all, None) => Ok(fold(&at, all)),
        }
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        let strike = self.begin(Request::Put, to).await;
        let act = || {
            let (inner, from, to, options) = (self.inner.clone(), from.clone(), to.clone(), options.clone());
            async move { inner.copy_opts(&from, &to, options).await }
        };
        strike.carry(Request::Put, act).await
    }
}

/// A flat listing of what lies below `at` as one with a delimiter: what lies deeper shows as its folder.
fn fold(at: &Path, all: Vec<ObjectMeta>) -> ListResult {
    let mut folders = BTreeSet::new();
    let mut objects = Vec::new();
    for meta in all {
        let Some(mut rest) = meta.location.prefix_match(at) else { continue };
        let (first, deeper) = (rest.next(), rest.next().is_some());
        match first {
            Some(first) if deeper => {
                folders.insert(at.clone().join(first));
            }
            Some(_) => objects.push(meta.clone()),
            None => {}
        }
    }
    ListResult { common_prefixes: folders.into_iter().collect(), objects, extensions: Extensions::new() }
}
