//! The object store as Farshore uses it: create-only objects in one store or two, the epoch log on top, and stores for tests: one that misbehaves on demand, one that counts.
//!
//! Layout below the store's URL:
//! ```text
//! vault                                              names the vault (sealed)
//! condemn/<n>, registry/<n>                          the vault's lists, for sharing between machines
//! machine/<name>/stream/epoch/<n>                    who owns epoch n of the stream
//! machine/<name>/stream/seg/<n>/<slot>               slot 0 = opening, 1… = segments
//! machine/<name>/manifest/epoch/<n>, seg/<n>/<slot>  the manifest log, by the same rules
//! machine/<name>/hold/<n>                            request n to hold a position, deleted once it is answered
//! machine/<name>/consumer/<n>                        state n of the list of consumers of the stream, in the cache store
//! probe/<random id>/<n>                              tried out when a role starts, deleted at once, never read again
//! ```
//! `<n>` and `<slot>` are 16 lower-case hex digits, so a LIST is in order; but no rule rests on LIST.

mod consumers;
mod counting;
mod error;
mod faults;
mod holds;
mod lists;
mod local;
mod log;
mod numbered;
mod objects;
mod probe;
mod two;
mod url;
mod vault;

pub use consumers::{ConsumerList, Refused};
pub use counting::CountingStore;
pub use error::{CacheRequest, StoreError};
pub use faults::{Fault, FaultRule, FaultStore, Faults, Request, Spawner, SplitMix64, StrikeHook};
pub use holds::HoldRequests;
pub use lists::{Condemned, VaultLists};
pub use log::{
    Attached, Base, CollectError, Collected, EpochLog, Garbage, Genesis, LogEnd, LogEntry, LogPosition, LogReader,
    LogRules, LogWriter, ManifestBase, Needed, Newest, Next, Plan, Proof, ReadMode, Why, preview_collection,
};
pub use objects::{Created, Store};
pub use probe::BrokenPromise;
pub use vault::{create_vault, list_machines, open_vault};
