//! The process server itself: accepts agents, keeps one stream for each machine, stops in order.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use format::keys::Keys;
use format::wire::{Refusal, Refused};
use model::MachineName;
use probe::Rules;
use store::{LogRules, Store, VaultLists};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use transport::{Connection, Listener, Peer, Role};

use crate::dedup::Dedup;
use crate::pipeline::Pipeline;
use crate::session::{self, Budget, SessionEnd, SessionHandle, Window};
use crate::share::Sharing;
use crate::stages::Stages;
use crate::status::ProcessServerStatus;
use crate::stream::{self, Message, StreamContext, StreamHandle, StreamShared};
use crate::{ProcessServerConfig, ProcessServerError};

/// Connections at once; more wait in the kernel.
const CONNECTIONS_MAX: usize = 4096;

/// How long sessions may take to write their last frames when the server stops.
const LAST_WORDS_MAX: Duration = Duration::from_millis(500);

/// A running process server. It keeps no state outside memory: another one can take any stream over at any moment.
pub struct ProcessServer {
    config: Arc<ProcessServerConfig>,
    store: Store,
    keys: Arc<Keys>,
    pipeline: Arc<Pipeline>,
    stages: Arc<Stages>,
    sharing: Option<Arc<Sharing>>,
    dedup: Arc<Dedup>,
    budget: Arc<Budget>,
    streams: Mutex<BTreeMap<MachineName, StreamHandle>>,
    sessions: AtomicU64,
    connections: Arc<Semaphore>,
    /// Connections being carried.
    open: TaskTracker,
    /// No new connection and no new session.
    stopping: CancellationToken,
    /// Ends every task at once.
    abort: CancellationToken,
    rules: ServerRules,
}

/// The safety rules in force: all, but for the tests and the simulation that show what each is good for.
#[doc(hidden)]
#[derive(Debug, Clone, Copy)]
pub struct ServerRules {
    /// Those of the epoch log.
    pub log: LogRules,
    /// Those of the process server itself.
    pub server: Rules,
}

impl ServerRules {
    /// Every rule.
    pub const ALL: ServerRules = ServerRules { log: LogRules::ALL, server: Rules::ALL };
}

impl ProcessServer {
    /// Checks the settings and starts the worker threads. Streams are opened when their agents say HELLO.
    pub fn start(
        config: ProcessServerConfig,
        store: Store,
        keys: Arc<Keys>,
    ) -> Result<Arc<ProcessServer>, ProcessServerError> {
        Self::start_with_rules(config, store, keys, ServerRules::ALL)
    }

    /// As [`ProcessServer::start`]; tests take a rule away to prove that their oracle notices.
    #[doc(hidden)]
    pub fn start_with_rules(
        config: ProcessServerConfig,
        store: Store,
        keys: Arc<Keys>,
        rules: ServerRules,
    ) -> Result<Arc<ProcessServer>, ProcessServerError> {
        let config = Arc::new(config.validated()?);
        let sharing = (config.share_entries_max > 0).then(|| {
            let lists = VaultLists::new(store.clone(), keys.clone());
            Arc::new(Sharing::new(config.share_entries_max, lists, rules.server))
        });
        let stages = Arc::<Stages>::default();
        Ok(Arc::new(ProcessServer {
            pipeline: Arc::new(Pipeline::start(config.workers, keys.clone(), stages.clone())?),
            stages,
            sharing,
            dedup: Arc::new(Dedup::new(config.dedup_entries_max)),
            budget: Budget::new(config.in_flight_bytes),
            config,
            store,
            keys,
            streams: Mutex::default(),
            sessions: AtomicU64::new(0),
            connections: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
            open: TaskTracker::new(),
            stopping: CancellationToken::new(),
            abort: CancellationToken::new(),
            rules,
        }))
    }

    /// Accepts agents until the server stops.
    pub async fn serve(self: Arc<Self>, mut listener: Listener) {
        let mut sessions = JoinSet::new();
        loop {
            let permit = tokio::select! {
                biased;
                () = self.stopping.cancelled() => break,
                Some(_) = sessions.join_next() => continue,
                permit = self.connections.clone().acquire_owned() => permit,
            };
            let connection = tokio::select! {
                biased;
                () = self.stopping.cancelled() => break,
                connection = listener.accept() => connection,
            };
            let server = self.clone();
            sessions.spawn(async move {
                let _permit = permit;
                server.accept(connection).await;
            });
        }
        // Sessions end with their streams, which `stop` sees to.
        while sessions.join_next().await.is_some() {}
    }

    /// Carries one connection to its end.
    pub async fn accept(self: &Arc<Self>, mut connection: Connection) {
        let _open = self.open.token();
        let (machine, address) = (connection.peer.name.clone(), connection.address.clone());
        let end = tokio::select! {
            biased;
            () = self.abort.cancelled() => SessionEnd::Ended,
            end = self.session(&mut connection) => end,
        };
        match end {
            SessionEnd::Violation(violation) => {
                crate::metrics::violation();
                tracing::warn!(%machine, address, %violation, "agent broke the protocol and was dropped");
            }
            SessionEnd::Transport(error) => tracing::info!(%machine, address, %error, "agent disconnected"),
            end => tracing::info!(%machine, address, %end, "session ended"),
        }
    }

    async fn session(&self, connection: &mut Connection) -> SessionEnd {
        let hello = match session::hello(connection).await {
            Ok(hello) => hello,
            Err(end) => return end,
        };
        if let Err(refused) = self.takes(&connection.peer) {
            tracing::warn!(machine = %connection.peer.name, text = refused.text, "agent refused");
            return session::refuse(&mut connection.writer, refused).await;
        }
        // Relaxed: only that no two sessions have one number matters.
        let id = self.sessions.fetch_add(1, Ordering::Relaxed);
        let window = Window::new(self.budget.clone(), self.config.credit_bytes);
        let address = connection.address.clone();
        let handle = Arc::new(SessionHandle::new(id, &hello, address, self.stages.clone(), window));
        let machine = connection.peer.name.clone();
        let stream = self.stream(&machine);
        session::run(&stream, &machine, &handle, hello, connection).await
    }

    fn takes(&self, peer: &Peer) -> Result<(), Refused> {
        let refuse = |reason, text: String| Err(Refused { reason, text });
        if peer.role != Role::Agent {
            return refuse(Refusal::UnknownMachine, "only agents are served here".to_owned());
        }
        if self.config.machines.as_ref().is_some_and(|known| !known.contains(&peer.name)) {
            let text = format!("machine {} is not in this process server's configuration", peer.name);
            return refuse(Refusal::UnknownMachine, text);
        }
        if self.stopping.is_cancelled() {
            return refuse(Refusal::Busy, "this process server is stopping".to_owned());
        }
        Ok(())
    }

    /// The machine's stream; starts it when there is none, or when the one there has ended.
    fn stream(&self, machine: &MachineName) -> StreamHandle {
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        let known = streams.get(machine).cloned();
        match known {
            Some(stream) if !stream.sender.is_closed() => stream,
            known => {
                let shared = known.map(|ended| ended.shared);
                let stream = stream::spawn(StreamContext {
                    machine: machine.clone(),
                    config: self.config.clone(),
                    store: self.store.clone(),
                    keys: self.keys.clone(),
                    sharing: self.sharing.clone(),
                    dedup: self.dedup.clone(),
                    pipeline: self.pipeline.clone(),
                    stages: self.stages.clone(),
                    shared: shared.unwrap_or_else(|| Arc::new(StreamShared::new(machine.to_string()))),
                    abort: self.abort.child_token(),
                    rules: self.rules,
                });
                streams.insert(machine.clone(), stream.clone());
                stream
            }
        }
    }

    fn all_streams(&self) -> Vec<StreamHandle> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// What it does right now.
    pub fn status(&self) -> ProcessServerStatus {
        let (now, streams) = (Instant::now(), self.all_streams());
        let machines: Vec<_> = streams.iter().map(|stream| stream.shared.status(now)).collect();
        let (uploads, waiting) = streams
            .iter()
            .map(|stream| stream.shared.stage_counts())
            .fold((0, 0), |(uploads, waiting), (more_uploads, more_waiting)| {
                (uploads + more_uploads, waiting + more_waiting)
            });
        let connected = machines.iter().filter(|machine| machine.connected).count();
        let pending: usize = machines.iter().map(|machine| machine.segments_pending).sum();
        ProcessServerStatus {
            name: self.config.name.to_string(),
            stopping: self.stopping.is_cancelled(),
            stages: vec![
                self.stages.ingest.status("ingest", connected.max(1), connected, waiting),
                self.pipeline.status(),
                self.stages.upload.status(
                    "upload",
                    self.config.uploads_max * machines.len().max(1),
                    uploads,
                    pending.saturating_sub(uploads),
                ),
            ],
            machines,
        }
    }

    /// Seals what is open, uploads, acknowledges, and ends. What is not stored by the deadline is left to the agents,
    /// who still have it. Connections are closed either way.
    pub async fn stop(&self, deadline: Duration) {
        self.stopping.cancel();
        let streams = self.all_streams();
        let orderly = async {
            for stream in &streams {
                // An actor that has ended already needs no stop.
                let _ = stream.sender.send(Message::Stop).await;
            }
            for stream in &streams {
                stream.sender.closed().await;
            }
        };
        if timeout(deadline, orderly).await.is_err() {
            tracing::warn!(
                seconds = deadline.as_secs_f64(),
                "stopped before everything was stored; agents send it again"
            );
        }
        self.open.close();
        // Sessions write what they still owe; a peer that does not read is not waited for.
        let _ = timeout(LAST_WORDS_MAX, self.open.wait()).await;
        self.abort.cancel();
        self.pipeline.close();
    }
}

impl Drop for ProcessServer {
    fn drop(&mut self) {
        self.abort.cancel();
        self.pipeline.close();
    }
}
