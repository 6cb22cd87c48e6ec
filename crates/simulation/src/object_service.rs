//! The object store as a service of the simulated world: one truth, reached over links that lose requests and answers.
//!
//! A request travels to the service, takes effect there, and its answer travels back. Either way may fail on its own: an
//! answer that is lost leaves an object that the requester does not know of, and a request that is held up takes effect
//! after its requester gave up, or died. Further faults (refusals, late landings, damaged bodies) are put in front of this
//! by [`store::FaultStore`], the same that the tests of every backend use.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::FutureExt;
use futures::stream::{BoxStream, StreamExt};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use tokio::sync::oneshot;

use crate::network::Network;
use crate::world::{Boot, HostId};

/// How long a requester waits for an answer.
const ANSWER_MAX: Duration = Duration::from_secs(6);

/// How often a request or answer that does not pass is sent again.
const RESEND_AFTER: Duration = Duration::from_millis(700);

/// Times it is sent again.
const RESENDS_MAX: u32 = 12;

/// The service: what every host's requests end in.
#[derive(Debug, Clone)]
pub struct ObjectService {
    /// The host it runs on; it never dies.
    pub host: HostId,
    /// What it holds.
    pub truth: Arc<InMemory>,
}

impl ObjectService {
    /// An empty store on a host.
    pub fn new(host: HostId) -> Self {
        Self { host, truth: Arc::new(InMemory::new()) }
    }

    /// The store as one host sees it.
    pub fn seen_from(&self, boot: &Boot, network: &Network) -> Arc<dyn ObjectStore> {
        Arc::new(Remote { service: self.clone(), boot: boot.clone(), network: network.clone() })
    }
}

#[derive(Debug, Clone)]
struct Remote {
    service: ObjectService,
    boot: Boot,
    network: Network,
}

impl fmt::Debug for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Network")
    }
}

impl fmt::Display for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "simulated store seen from host {}", self.boot.host)
    }
}

type Work<T> = Box<dyn FnOnce(&InMemory) -> Result<T> + Send>;

fn timed_out() -> Error {
    Error::Generic { store: "simulated", source: "the request timed out".into() }
}

/// The truth answers at once: it does no I/O.
fn now<T>(answer: impl Future<Output = Result<T>>) -> Result<T> {
    answer.now_or_never().expect("a store in memory never waits")
}

impl Remote {
    /// What was asked for is under way whatever becomes of the host; an answer to a dead one is heard by nobody.
    async fn request<T: Send + 'static>(&self, work: Work<T>) -> Result<T> {
        let (answer, answered) = oneshot::channel();
        go(&self.network, &self.service, self.boot.host, 0, work, answer);
        let answered = tokio::time::timeout(ANSWER_MAX, answered).await;
        answered.unwrap_or_else(|_| Ok(Err(timed_out()))).unwrap_or_else(|_| Err(timed_out()))
    }
}

/// The way there.
fn go<T: Send + 'static>(
    network: &Network,
    service: &ObjectService,
    from: HostId,
    tries: u32,
    work: Work<T>,
    answer: oneshot::Sender<Result<T>>,
) {
    let (passes, delay) = network.passage(from, service.host);
    let service = service.clone();
    if passes {
        let arrive = move |network: &Network| {
            let result = work(&service.truth);
            come_back(network, service.host, from, 0, result, answer);
        };
        network.after(delay, Box::new(arrive));
    } else if tries < RESENDS_MAX {
        let again = move |network: &Network| go(network, &service, from, tries + 1, work, answer);
        network.after(RESEND_AFTER, Box::new(again));
    }
}

/// The way back.
fn come_back<T: Send + 'static>(
    network: &Network,
    service: HostId,
    to: HostId,
    tries: u32,
    result: Result<T>,
    answer: oneshot::Sender<Result<T>>,
) {
    let (passes, delay) = network.passage(service, to);
    if passes {
        let arrive = move |_: &Network| {
            let _gave_up = answer.send(result);
        };
        network.after(delay, Box::new(arrive));
    } else if tries < RESENDS_MAX {
        let again = move |network: &Network| come_back(network, service, to, tries + 1, result, answer);
        network.after(RESEND_AFTER, Box::new(again));
    }
}

#[async_trait]
impl ObjectStore for Remote {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        let location = location.clone();
        self.request(Box::new(move |truth| now(truth.put_opts(&location, payload, options)))).await
    }

    async fn put_multipart_opts(&self, _: &Path, _: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        Err(Error::NotImplemented { operation: "multipart".to_owned(), implementer: "simulated store".to_owned() })
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let location = location.clone();
        self.request(Box::new(move |truth| now(truth.get_opts(&location, options)))).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let this = self.clone();
        let delete_one = move |location: Result<Path>| {
            let this = this.clone();
            async move {
                let location = location?;
                let path = location.clone();
                this.request(Box::new(move |truth| now(truth.delete(&path)))).await?;
                Ok(location)
            }
        };
        locations.then(delete_one).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (this, prefix) = (self.clone(), prefix.cloned());
        let start = async move {
            let found: Result<Vec<Result<ObjectMeta>>> = this
                .request(Box::new(move |truth| {
                    Ok(truth.list(prefix.as_ref()).collect::<Vec<_>>().now_or_never().expect("in memory"))
                }))
                .await;
            futures::stream::iter(found.unwrap_or_else(|error| vec![Err(error)]))
        };
        futures::stream::once(start).flatten().boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let prefix = prefix.cloned();
        self.request(Box::new(move |truth| now(truth.list_with_delimiter(prefix.as_ref())))).await
    }

    async fn copy_opts(&self, _: &Path, _: &Path, _: CopyOptions) -> Result<()> {
        Err(Error::NotImplemented { operation: "copy".to_owned(), implementer: "simulated store".to_owned() })
    }
}
