//! A vault in memory and process servers over it.

use std::sync::Arc;
use std::time::Duration;

use format::keys::{Keys, VaultKey};
use format::object::LogKind;
use model::MachineName;
use object_store::ObjectStore;
use object_store::memory::InMemory;
use store::{EpochLog, FaultStore, Faults, Genesis, Store};
use transport::{Connection, Peer, Role};

use crate::{ProcessServer, ProcessServerConfig, ServerRules};

/// Bytes a test connection holds in each direction.
const WIRE_BYTES: usize = 256 << 10;

/// Objects in memory, and the keys that open them.
pub struct Site {
    pub objects: Arc<dyn ObjectStore>,
    pub keys: Arc<Keys>,
}

pub fn machine(name: &str) -> MachineName {
    name.parse().expect("a name")
}

impl Site {
    pub fn new() -> Self {
        Site { objects: Arc::new(InMemory::new()), keys: Arc::new(Keys::new(&VaultKey::generate())) }
    }

    /// A server with inline workers, so that paused time decides everything.
    pub fn server(&self, faults: &Faults) -> Arc<ProcessServer> {
        self.server_with(faults, |_| {})
    }

    pub fn server_with(&self, faults: &Faults, change: impl FnOnce(&mut ProcessServerConfig)) -> Arc<ProcessServer> {
        self.server_by(faults, ServerRules::ALL, change)
    }

    pub fn server_by(
        &self,
        faults: &Faults,
        rules: ServerRules,
        change: impl FnOnce(&mut ProcessServerConfig),
    ) -> Arc<ProcessServer> {
        let mut config = ProcessServerConfig::new(machine("ps"));
        config.workers = 0;
        config.segment_bytes = 256 << 10;
        config.segment_age = Duration::from_millis(200);
        change(&mut config);
        let store = Store::from_object_store(Arc::new(FaultStore::new(self.objects.clone(), faults.clone())));
        ProcessServer::start_with_rules(config, store, self.keys.clone(), rules).expect("a valid configuration")
    }

    /// The log as a reader without faults sees it.
    pub fn log(&self, name: &str) -> EpochLog {
        EpochLog {
            store: Store::from_object_store(self.objects.clone()),
            keys: self.keys.clone(),
            machine: machine(name),
            kind: LogKind::Stream,
            base: Arc::new(Genesis),
        }
    }

    /// Paths and sizes of everything in the store.
    pub async fn list(&self) -> Vec<(String, u64)> {
        Store::from_object_store(self.objects.clone()).list("machine").await.expect("memory answers")
    }
}

/// Connects an agent of this machine; the server carries the other end in its own task.
pub fn dial(server: &Arc<ProcessServer>, name: &str) -> Connection {
    dial_as(server, name, Role::Agent)
}

pub fn dial_as(server: &Arc<ProcessServer>, name: &str, role: Role) -> Connection {
    dial_through(server, name, role, WIRE_BYTES)
}

/// Through a pipe that holds so many bytes.
pub fn dial_through(server: &Arc<ProcessServer>, name: &str, role: Role, bytes: usize) -> Connection {
    let (ours, theirs) = tokio::io::duplex(bytes);
    let agent = Peer { role, name: machine(name) };
    let connection = Connection::over(agent, "test".to_owned(), Box::new(theirs));
    let server = server.clone();
    tokio::spawn(async move { server.accept(connection).await });
    let peer = Peer { role: Role::ProcessServer, name: machine("ps") };
    Connection::over(peer, "test".to_owned(), Box::new(ours))
}

/// Waits until a condition holds; fails after a minute of test time.
pub async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    waiting::until(what, waiting::Deadline::after(Duration::from_secs(60)), async || holds()).await;
}
