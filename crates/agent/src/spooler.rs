//! Moves payloads from memory to the spool file while memory is over half full.
//!
//! The write path never waits for it: if it cannot keep up, memory fills and the agent goes to bitmap mode (P3). A
//! spool that fails is an event; payloads stay in memory, and it is tried again after a while.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use model::{EventKind, Severity};
use tokio::time::sleep;

use crate::queue::SpoolBatch;
use crate::shared::Shared;
use crate::spool::{encode_slot, slot_bytes};
use crate::state_dir::StateFile;

/// Name of the spool file.
pub(crate) const SPOOL_FILE: &str = "spool";

/// Payload bytes moved by one write.
const SPOOL_WRITE_BYTES: u64 = 1 << 20;

/// Part of memory (1/4) kept for payloads about to be sent.
const SEND_WINDOW_DIVISOR: u64 = 4;

/// How long a failed spool is left alone.
const SPOOL_RETRY: Duration = Duration::from_secs(10);

/// The spool file, opened when it is first needed.
#[derive(Default)]
pub(crate) struct SpoolFile {
    file: tokio::sync::OnceCell<Arc<dyn StateFile>>,
}

impl SpoolFile {
    /// The file; created empty by whoever asks first.
    pub(crate) async fn get(&self, shared: &Shared) -> io::Result<&Arc<dyn StateFile>> {
        let dir = shared.state_dir.as_ref().ok_or_else(|| io::Error::other("the state directory cannot be used"))?;
        self.file.get_or_try_init(|| dir.scratch(SPOOL_FILE)).await
    }
}

/// Runs for the life of the agent.
pub(crate) async fn run(shared: &Shared) {
    if shared.config.spool_bytes == 0 {
        return;
    }
    let mut file_used = false;
    loop {
        shared.spool_bell.notified().await;
        if let Err(e) = move_out(shared, &mut file_used).await {
            shared.core().spool_failed = true;
            let text = format!("the spool cannot be written: {e}; payloads stay in memory until it can");
            shared.event(Severity::Critical, EventKind::AgentState, text);
            sleep(SPOOL_RETRY).await;
            shared.spool_bell.notify_one();
        }
    }
}

async fn move_out(shared: &Shared, file_used: &mut bool) -> io::Result<()> {
    loop {
        let batch = {
            let mut core = shared.core();
            let (used, max) = core.queue.memory();
            let sent = core.sent;
            if used <= max / 2 {
                None
            } else {
                core.queue.take_for_spool(sent, max / SEND_WINDOW_DIVISOR, SPOOL_WRITE_BYTES)
            }
        };
        let Some(batch) = batch else { break };
        *file_used = true;
        probe::failpoint!("agent-spool-write-before");
        if let Err(e) = write(shared, &batch).await {
            shared.core().queue.spool_failed(&batch);
            return Err(e);
        }
        probe::failpoint!("agent-spool-write-after");
        let recovered = {
            let mut core = shared.core();
            core.queue.spooled(&batch);
            std::mem::take(&mut core.spool_failed)
        };
        if recovered {
            let text = "the spool can be written again".to_owned();
            shared.event(Severity::Info, EventKind::AgentState, text);
        }
        shared.drain_bell.notify_one();
    }
    // Only this task takes slots, so an empty spool stays empty while the file is cut.
    let empty = shared.core().queue.spool().0 == 0;
    if empty && std::mem::take(file_used) {
        shared.spool.get(shared).await?.set_len(0).await?;
    }
    Ok(())
}

async fn write(shared: &Shared, batch: &SpoolBatch) -> io::Result<()> {
    let bytes: u64 = batch.payloads.iter().map(|(_, data)| slot_bytes(data.len())).sum();
    let mut out = BytesMut::with_capacity(usize::try_from(bytes).unwrap_or(0));
    batch.payloads.iter().for_each(|(seq, data)| encode_slot(*seq, data, &mut out));
    shared.spool.get(shared).await?.write_at(batch.run.offset(), out.freeze()).await
}
