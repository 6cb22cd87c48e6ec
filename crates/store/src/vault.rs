//! The object `vault`, which ties a store to one vault key, and the list of machines.

use bytes::Bytes;
use format::FormatError;
use format::keys::Keys;
use format::object::{LogKind, ObjectHash, ObjectHeader, ObjectKind, Place, SmallObject, open_small, seal_small};
use model::{LogHead, MachineName};

use crate::{Created, Store, StoreError};

const VAULT_PATH: &str = "vault";
pub(crate) const MACHINES_PREFIX: &str = "machine";

fn vault_place() -> Place {
    Place { machine: None, log: None, epoch: 0, slot: 0 }
}

/// Checks that the store holds the vault of these keys. `Missing` when the store holds no vault, `WrongKey` when it
/// holds another.
pub async fn open_vault(store: &Store, keys: &Keys) -> Result<(), StoreError> {
    match store.get(VAULT_PATH).await? {
        Some(object) => check_vault(keys, &object),
        None => Err(StoreError::Missing {
            path: VAULT_PATH.to_owned(),
            because: "every Farshore store has one: check the store URL, or run `farshore init`".to_owned(),
        }),
    }
}

/// Makes the store hold the vault of these keys; idempotent, `WrongKey` when it holds another.
pub async fn create_vault(store: &Store, keys: &Keys) -> Result<(), StoreError> {
    if let Some(object) = store.get(VAULT_PATH).await? {
        check_vault(keys, &object)?;
        return store.settle(VAULT_PATH).await;
    }
    let object = seal_small(
        keys,
        &SmallObject {
            kind: ObjectKind::Vault,
            place: vault_place(),
            prev_hash: ObjectHash::default(),
            head: LogHead::default(),
            gc_seen: 0,
            body: &[],
        },
    );
    match store.create(VAULT_PATH, vec![object]).await? {
        Created::Ours => {
            probe::failpoint!("init-vault-created");
            Ok(())
        }
        // Somebody else was first, perhaps with the same key: every sealing gives other bytes.
        Created::Other => {
            open_vault(store, keys).await?;
            store.settle(VAULT_PATH).await
        }
    }
}

fn check_vault(keys: &Keys, object: &Bytes) -> Result<(), StoreError> {
    let damaged = |source: FormatError| StoreError::Damaged { path: VAULT_PATH.to_owned(), source };
    // The vault id is public and read before anything can be authenticated: a wrong key must be told from damage.
    let found = ObjectHeader::parse_unauthenticated(object).map_err(damaged)?.vault;
    if found != keys.vault() {
        return Err(StoreError::WrongKey { store: found.to_string(), key: keys.vault().to_string() });
    }
    open_small(keys, ObjectKind::Vault, &vault_place(), object).map(|_| ()).map_err(damaged)
}

/// Machines with objects in the store, in order of name; for display, never for safety.
pub async fn list_machines(store: &Store) -> Result<Vec<MachineName>, StoreError> {
    let names = store.list_names(MACHINES_PREFIX).await?;
    let mut machines = Vec::new();
    for name in names.into_iter().filter_map(|name| name.parse::<MachineName>().ok()) {
        // A directory may outlive a purge; a machine has at least the first epoch of its stream.
        let first = format!("{}/epoch/{:016x}", log_prefix(&name, LogKind::Stream), 1);
        if store.get_range(&first, 0..1).await?.is_some() {
            machines.push(name);
        }
    }
    Ok(machines)
}

/// Where everything of one log lies.
pub(crate) fn log_prefix(machine: &MachineName, kind: LogKind) -> String {
    let kind = match kind {
        LogKind::Stream => "stream",
        LogKind::Manifest => "manifest",
    };
    format!("{MACHINES_PREFIX}/{machine}/{kind}")
}

/// Where the packs of a machine lie.
pub(crate) fn pack_prefix(machine: &MachineName) -> String {
    format!("{MACHINES_PREFIX}/{machine}/pack")
}

/// Where the maps of a machine lie.
pub(crate) fn map_prefix(machine: &MachineName) -> String {
    format!("{MACHINES_PREFIX}/{machine}/map")
}
