//! The words every other crate speaks: names, units, extents, records, positions, selectors, stages, retention.
//!
//! This crate holds plain values and the rules that make them valid. It does no I/O, knows no byte format and reads no
//! clock: `now` is always passed in. Whatever two services must agree on, and only that, belongs here.

mod digest;
mod event;
mod extent;
mod name;
mod position;
mod record;
pub mod retention;
mod selector;
mod stage;
mod time;
mod units;

pub use digest::{RecordDigest, RecordDigester};
pub use event::{Event, EventKind, Severity};
pub use extent::{Extent, ExtentError, ExtentSet, SECTOR_BYTES};
pub use name::{DiskId, DiskName, MachineName, NameError};
pub use position::{Incarnation, LogHead, Position, Seq};
pub use record::{DiskChange, DrainCause, Mark, MarkKind, Record, RecordBody};
pub use retention::{Retention, RetentionError};
pub use selector::{PointId, Selector, SelectorError};
pub use stage::{StageStatus, StageWork};
pub use time::Timestamp;
pub use units::{ByteSize, UnitError, parse_duration, parse_size};
