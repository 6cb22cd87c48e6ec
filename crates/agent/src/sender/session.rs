//! One session with a process server, from HELLO to its end.
//!
//! What must hold: nothing is freed before our own digest agrees with the log's at the head it claims; records go out
//! in order without gaps, from the one behind that head; and no more payload is in flight than the credit window.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use format::wire::{Frame, Hello, PROTOCOL_VERSION, Refusal, Refused, Start, Stored, Welcome};
use futures::FutureExt;
use model::{DrainCause, EventKind, LogHead, Record, RecordBody, Seq, Severity};
use probe::Rule;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use transport::{Carrier, Connection, FrameReader, FrameWriter, TransportError};

use super::{DIAL_TIMEOUT, error_chain};
use crate::core::StoredMismatch;
use crate::queue::{Outgoing, Payload, batch_cost};
use crate::shared::Shared;
use crate::spool::Slot;

/// Payload and header bytes of one DATA frame: about one job of the process server.
const BATCH_BYTES: u64 = 1 << 20;

/// How often the peer is asked whether it is there.
const PING_INTERVAL: Duration = Duration::from_secs(2);

/// Silence after which it is taken for dead.
const SILENCE_MAX: Duration = Duration::from_secs(10);

/// Why a session ended.
#[derive(Debug)]
pub(super) enum SessionEnd {
    /// The incarnation it spoke for is over.
    NewLife,
    /// The agent stops; everything was said.
    Stopped,
    /// By the peer, or by our own check of what it said.
    Refused(Refused),
    /// Try again.
    Failed(String),
}

impl From<TransportError> for SessionEnd {
    fn from(error: TransportError) -> Self {
        SessionEnd::Failed(error_chain(&error))
    }
}

/// Runs a session to its end.
pub(super) async fn run(shared: &Arc<Shared>, mut connection: Connection, address: &str) -> SessionEnd {
    let life = shared.core().life;
    let welcome = match timeout(DIAL_TIMEOUT, greet(shared, &mut connection)).await {
        Ok(Ok(welcome)) => welcome,
        Ok(Err(end)) => return end,
        Err(_) => return SessionEnd::Failed(format!("{address} sent no welcome within {} s", DIAL_TIMEOUT.as_secs())),
    };
    if let Err(end) = agree(shared, life, &welcome.head).await {
        return end;
    }
    begin(shared, address, connection.carrier, &welcome.head);
    let (credit, _) = watch::channel(Credit(signed(welcome.credit)));
    let Connection { reader, mut writer, .. } = connection;
    let end = tokio::select! {
        biased;
        _ = shared.life.wait_for(|now| *now != life) => SessionEnd::NewLife,
        end = receive(shared, life, reader, &credit) => end,
        end = send(shared, life, &mut writer, &credit) => end,
    };
    if matches!(end, SessionEnd::Stopped) {
        // The peer learns that this silence is meant; whether it hears it changes nothing.
        let _ = timeout(PING_INTERVAL, async {
            writer.write(&Frame::Bye).await?;
            writer.close().await
        })
        .await;
    }
    end
}

/// What may be sent: below zero while a record that is larger than the window is in flight. How large the window is the
/// process server decides from moment to moment.
#[derive(Debug, Clone, Copy)]
struct Credit(i64);

fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

fn hello(shared: &Shared) -> Hello {
    let core = shared.core();
    let next = core.next_seq();
    let start = match next {
        Some(_) => Start::Resume,
        None => Start::New {
            cause: if core.compared_to.is_some() { DrainCause::Compare } else { core.sequencer.cause() },
            compared_to: core.compared_to,
        },
    };
    Hello {
        protocol: PROTOCOL_VERSION,
        instance: shared.instance,
        incarnation: core.sequencer.incarnation(),
        start,
        next_seq: next.unwrap_or(Seq::ZERO),
        map_version: core.attested_version(),
        stored: core.stored,
        disks: core.disks.iter().map(|disk| (disk.name.clone(), disk.regions.size())).collect(),
    }
}

async fn greet(shared: &Shared, connection: &mut Connection) -> Result<Welcome, SessionEnd> {
    connection.writer.write(&Frame::Hello(hello(shared))).await?;
    connection.writer.flush().await?;
    match connection.reader.read().await? {
        Frame::Welcome(welcome) => Ok(welcome),
        Frame::Refused(refused) => Err(SessionEnd::Refused(refused)),
        other => Err(SessionEnd::Failed(format!("the process server answered HELLO with {:?}", other.kind()))),
    }
}

fn refused(reason: Refusal, text: String) -> SessionEnd {
    SessionEnd::Refused(Refused { reason, text })
}

/// Makes sure that the log's head is one we can go on from, and goes on from it.
async fn agree(shared: &Shared, life: u64, head: &LogHead) -> Result<(), SessionEnd> {
    let new_incarnation = {
        let core = shared.core();
        if core.life != life {
            return Err(SessionEnd::NewLife);
        }
        core.sequencer.last().is_none()
    };
    if !new_incarnation {
        let went_on = {
            let mut core = shared.core();
            match core.stored(head.position.seq, head.digest) {
                // Careless: the log knows best.
                Err(StoredMismatch::Unknown) if !shared.rules.hold(Rule::RevertedMemoryRefused) => core.follow(*head),
                agreed => drop(agreed.map_err(|mismatch| mismatch_end(mismatch, head))?),
            }
            core.went_on()
        };
        if let Some(batch) = went_on {
            shared.wait_committed(batch).await;
        }
        return Ok(());
    }
    check_new(shared, head)?;
    // Records may not carry a version before it is durable, nor one the log would take for an older map.
    let raise = shared.core().taken_at(*head);
    if let Some(batch) = raise {
        shared.wait_committed(batch).await;
    }
    let now = shared.now();
    {
        let mut core = shared.core();
        if core.life != life {
            return Err(SessionEnd::NewLife);
        }
        core.adopt(now, *head);
    }
    probe::failpoint!("agent-incarnation-adopted");
    Ok(())
}

fn check_new(shared: &Shared, head: &LogHead) -> Result<(), SessionEnd> {
    let core = shared.core();
    if let Some(at) = core.compared_to {
        if at != head.position.seq {
            let text = format!("disks were compared to seq {at}, the log's head is {}", head.position.seq);
            return Err(refused(Refusal::StaleCompare, text));
        }
        return Ok(());
    }
    let known = core.stored;
    if head.position.seq < known.position.seq {
        return Err(mismatch_end(StoredMismatch::WentBack, head));
    }
    if head.position.seq == known.position.seq && head.digest != known.digest {
        return Err(mismatch_end(StoredMismatch::Digest, head));
    }
    if !core.is_ours(head) {
        let text =
            format!("the log ends with {}, which no incarnation of this agent wrote: a copy of it did", head.position);
        return Err(refused(Refusal::RevertedMemory, text));
    }
    Ok(())
}

fn mismatch_end(mismatch: StoredMismatch, head: &LogHead) -> SessionEnd {
    let reason = match mismatch {
        StoredMismatch::WentBack => Refusal::StoreLost,
        StoredMismatch::Unknown | StoredMismatch::Digest => Refusal::RevertedMemory,
    };
    refused(reason, format!("{mismatch} (the log's head is {})", head.position))
}

fn begin(shared: &Shared, address: &str, carrier: Option<Carrier>, head: &LogHead) {
    let now = shared.now();
    {
        let mut core = shared.core();
        core.sent = head.position.seq;
        core.connection = Some(address.to_owned());
        core.carrier = carrier;
        core.connection_failure = None;
        core.refusal = None;
        let by = carrier.map(|carrier| format!("; by {carrier}")).unwrap_or_default();
        let text = format!("connected to process server {address}; the log's head is seq {}{by}", head.position.seq);
        core.event(now, Severity::Info, EventKind::Connection, text);
    }
    shared.ring_all();
}

async fn receive(shared: &Shared, life: u64, mut reader: FrameReader, credit: &watch::Sender<Credit>) -> SessionEnd {
    loop {
        let frame = match timeout(SILENCE_MAX, reader.read()).await {
            Ok(Ok(frame)) => frame,
            Ok(Err(e)) => return e.into(),
            Err(_) => return SessionEnd::Failed(format!("silent for {} s", SILENCE_MAX.as_secs())),
        };
        match frame {
            Frame::Stored(stored) => {
                probe::failpoint!("agent-stored-heard");
                if let Err(end) = heard_stored(shared, life, stored) {
                    return end;
                }
                probe::failpoint!("agent-stored-freed");
            }
            Frame::Credit(more) => credit.send_modify(|c| c.0 = c.0.saturating_add(signed(more))),
            Frame::Pong(_) => {}
            Frame::Refused(refused) => return SessionEnd::Refused(refused),
            other => {
                return SessionEnd::Failed(format!("the process server sent {:?}, which is an agent's", other.kind()));
            }
        }
    }
}

fn heard_stored(shared: &Shared, life: u64, stored: Stored) -> Result<(), SessionEnd> {
    let now = shared.now();
    let (lag, freed) = {
        let mut core = shared.core();
        if core.life != life {
            return Err(SessionEnd::NewLife);
        }
        let oldest = core.queue.oldest_time();
        let result = core.stored(stored.seq, stored.digest);
        let head = core.stored;
        let freed = result.map_err(|mismatch| mismatch_end(mismatch, &head))?;
        (oldest.map(|time| now.since(time)), freed)
    };
    drop(freed);
    if let Some(lag) = lag {
        shared.metrics.replication_lag_seconds.record(lag.as_secs_f64());
    }
    shared.ring_all();
    Ok(())
}

async fn send(shared: &Shared, life: u64, writer: &mut FrameWriter, credit: &watch::Sender<Credit>) -> SessionEnd {
    let mut ping = interval(PING_INTERVAL);
    ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let started = Instant::now();
    let mut more = credit.subscribe();
    loop {
        // Also between batches: on a slow link there may be a next one for minutes, and nothing `stored` meanwhile.
        if ping.tick().now_or_never().is_some()
            && let Err(e) = writer.write(&ping_frame(started)).await
        {
            return e.into();
        }
        let batch = next_batch(shared, *more.borrow_and_update());
        if batch.is_empty() {
            if finished(shared) {
                return SessionEnd::Stopped;
            }
            if let Err(e) = writer.flush().await {
                return e.into();
            }
            tokio::select! {
                biased;
                _ = ping.tick() => {
                    if let Err(e) = writer.write(&ping_frame(started)).await {
                        return e.into();
                    }
                }
                () = shared.send_bell.notified() => {}
                _ = more.changed() => {}
            }
            continue;
        }
        match give(shared, life, writer, credit, batch).await {
            Ok(()) => {}
            Err(end) => return end,
        }
    }
}

fn ping_frame(started: Instant) -> Frame {
    Frame::Ping(u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX))
}

fn next_batch(shared: &Shared, credit: Credit) -> Vec<Outgoing> {
    let core = shared.core();
    let nothing_in_flight = core.sent == core.stored.position.seq;
    core.queue.batch(core.sent, BATCH_BYTES, u64::try_from(credit.0).unwrap_or(0), nothing_in_flight)
}

/// The agent is stopping and there is nothing more to say.
fn finished(shared: &Shared) -> bool {
    let core = shared.core();
    core.stopped
}

async fn give(
    shared: &Shared,
    life: u64,
    writer: &mut FrameWriter,
    credit: &watch::Sender<Credit>,
    batch: Vec<Outgoing>,
) -> Result<(), SessionEnd> {
    let mut records = Vec::with_capacity(batch.len());
    for outgoing in batch {
        records.push(load(shared, life, outgoing.record).await?);
    }
    let cost = batch_cost(&records);
    let payload = cost - 64 * records.len() as u64;
    let last = records.last().expect("the batch was not empty").seq;
    credit.send_modify(|c| c.0 = c.0.saturating_sub(signed(cost)));
    count_sent(shared, &records, last, payload);
    writer.write(&Frame::Data(records)).await?;
    if !shared.rules.hold(Rule::KeptUntilStored) {
        // Careless: it is on its way, so its memory may serve others.
        shared.core().queue.give_payloads_away(last);
    }
    Ok(())
}

fn count_sent(shared: &Shared, records: &[Record], last: Seq, payload: u64) {
    let mut core = shared.core();
    let again: u64 = records
        .iter()
        .filter(|record| record.seq <= core.sent_max)
        .map(|record| if let RecordBody::Write { data, .. } = &record.body { data.len() as u64 } else { 0 })
        .sum();
    core.sent = last;
    core.sent_max = core.sent_max.max(last);
    core.counters.sent_bytes += payload;
    core.counters.resent_bytes += again;
    drop(core);
    shared.metrics.sent_bytes.increment(payload);
    shared.metrics.resent_bytes.increment(again);
}

/// The record with its payload in memory.
async fn load(shared: &Shared, life: u64, record: Record<Payload>) -> Result<Record, SessionEnd> {
    let Record { seq, time, map_version, body } = record;
    let body = match body {
        RecordBody::Write { disk, extent, data: Payload::Memory(data) } => RecordBody::Write { disk, extent, data },
        RecordBody::Write { disk, extent, data: Payload::Spooled(slot) } => {
            let data = match read_slot(shared, seq, slot).await {
                Ok(data) => data,
                Err(e) => return Err(spool_lost(shared, life, seq, &e)),
            };
            RecordBody::Write { disk, extent, data }
        }
        // No other kind has a payload, so the exchange never happens.
        other => other.map_data(|_, _| Bytes::new()),
    };
    Ok(Record { seq, time, map_version, body })
}

async fn read_slot(shared: &Shared, seq: Seq, slot: Slot) -> io::Result<Bytes> {
    let file = shared.spool.get(shared).await?;
    let len = usize::try_from(slot.extent.len()).map_err(io::Error::other)?;
    let bytes = file.read_at(slot.extent.offset(), len).await?;
    shared.spool.cipher.open(seq, bytes).map_err(io::Error::other)
}

/// A number was given and its bytes are gone: nothing behind it may be sent, so the incarnation is over.
fn spool_lost(shared: &Shared, life: u64, seq: Seq, error: &io::Error) -> SessionEnd {
    if shared.core().life == life {
        let text = format!("record {seq} cannot be read back from the spool: {error}; what was not stored is drained");
        shared.event(Severity::Critical, EventKind::AgentState, text);
        shared.reincarnate(DrainCause::AgentState, "the spool could not be read back");
    }
    SessionEnd::NewLife
}
