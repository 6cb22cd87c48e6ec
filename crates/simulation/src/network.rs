//! The network between hosts: packets that are delayed, lost, repeated and reordered, under streams that are not.
//!
//! ```text
//!  writer ─► numbered packets ─► link (loss, delay, duplication, partition in one direction) ─► reassembly ─► reader
//! ```
//! A stream is what TCP gives: bytes in order or a reset. What the link does to its packets shows as delay, as silence,
//! and after a while as a reset. A host that is killed closes its streams; one that loses power says nothing. A packet
//! that is not delivered is sent again until [`GIVE_UP`], as a kernel does.
//!
//! Requests to the object store travel as parcels of the same queue, see `object_service`.

mod stream;

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::Duration;

use bytes::Bytes;
use store::SplitMix64;
use tokio::sync::{mpsc, oneshot};

use crate::world::{Boot, HostId, VirtualClock};
pub use stream::SimStream;

/// Bytes sent and not yet read by the peer: the window of a stream.
const WINDOW_BYTES: usize = 256 << 10;

/// Largest packet.
const PACKET_BYTES: usize = 16 << 10;

/// First wait before a lost packet is sent again; doubled each time.
const RESEND_AFTER: Duration = Duration::from_millis(200);

/// Longest such wait.
const RESEND_MAX: Duration = Duration::from_secs(3);

/// A packet undelivered for this long resets its stream.
pub const GIVE_UP: Duration = Duration::from_secs(20);

/// How one direction between two hosts behaves.
#[derive(Debug, Clone, Copy)]
pub struct Link {
    /// Whether anything passes.
    pub up: bool,
    /// Least and greatest delay.
    pub latency: (Duration, Duration),
    /// Probability that a packet is lost.
    pub loss: f64,
    /// Probability that a packet arrives twice.
    pub duplicate: f64,
}

impl Default for Link {
    fn default() -> Self {
        let latency = (Duration::from_micros(200), Duration::from_millis(4));
        Self { up: true, latency, loss: 0.0, duplicate: 0.0 }
    }
}

/// What happened to packets so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NetworkCounts {
    /// Delivered.
    pub delivered: u64,
    /// Lost, by chance or by a partition.
    pub lost: u64,
    /// Delivered a second time, and dropped by the receiver.
    pub repeated: u64,
    /// Delivered before one that was sent earlier.
    pub reordered: u64,
    /// Streams reset.
    pub resets: u64,
}

type Action = Box<dyn FnOnce(&Network) + Send>;

enum Parcel {
    Packet { stream: u64, from: usize, kind: Kind, first_sent: u64, tries: u32 },
    Action(Action),
}

#[derive(Clone)]
enum Kind {
    Syn,
    SynAck,
    Data { number: u64, bytes: Bytes },
    Fin { number: u64 },
    Reset,
}

/// One end of a stream.
struct End {
    boot: Boot,
    open: bool,
    reset: bool,
    /// Packets behind a gap; an empty one is the end of the stream.
    early: BTreeMap<u64, Option<Bytes>>,
    next_in: u64,
    ready: VecDeque<Bytes>,
    ended: bool,
    next_out: u64,
    unread_bytes: usize,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl End {
    fn new(boot: Boot, open: bool) -> Self {
        End {
            boot,
            open,
            reset: false,
            early: BTreeMap::new(),
            next_in: 0,
            ready: VecDeque::new(),
            ended: false,
            next_out: 0,
            unread_bytes: 0,
            reader: None,
            writer: None,
        }
    }

    fn wake(&mut self) {
        [self.reader.take(), self.writer.take()].into_iter().flatten().for_each(Waker::wake);
    }
}

struct Stream {
    ends: [End; 2],
    /// Answers the one who connects.
    connecting: Option<oneshot::Sender<io::Result<()>>>,
    /// What the one who connects says of itself.
    greeting: String,
}

/// A stream that a listener took.
pub struct Incoming {
    /// The stream.
    pub stream: SimStream,
    /// What the other end said of itself when it connected: stands in for its certificate.
    pub greeting: String,
}

struct State {
    rng: SplitMix64,
    queue: BTreeMap<(u64, u64), Parcel>,
    order: u64,
    links: BTreeMap<(HostId, HostId), Link>,
    streams: BTreeMap<u64, Stream>,
    next_stream: u64,
    listeners: BTreeMap<HostId, (Boot, mpsc::UnboundedSender<Incoming>)>,
    /// Hosts that lost power: nothing is said on their behalf.
    silent: std::collections::BTreeSet<HostId>,
    counts: NetworkCounts,
    last_delivered_order: u64,
}

/// The network. Cheap to clone.
#[derive(Clone)]
pub struct Network {
    state: Arc<Mutex<State>>,
    clock: VirtualClock,
}

impl Network {
    pub(crate) fn new(rng: SplitMix64, clock: VirtualClock) -> Self {
        let state = State {
            rng,
            queue: BTreeMap::new(),
            order: 0,
            links: BTreeMap::new(),
            streams: BTreeMap::new(),
            next_stream: 0,
            listeners: BTreeMap::new(),
            silent: Default::default(),
            counts: NetworkCounts::default(),
            last_delivered_order: 0,
        };
        Self { state: Arc::new(Mutex::new(state)), clock }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets how packets from one host to another fare.
    pub fn set_link(&self, from: HostId, to: HostId, link: Link) {
        self.state().links.insert((from, to), link);
    }

    /// How packets from one host to another fare.
    pub fn link(&self, from: HostId, to: HostId) -> Link {
        self.state().links.get(&(from, to)).copied().unwrap_or_default()
    }

    /// What happened to packets so far.
    pub fn counts(&self) -> NetworkCounts {
        self.state().counts
    }

    /// Takes connections for a host until its life ends.
    pub fn listen(&self, boot: &Boot) -> mpsc::UnboundedReceiver<Incoming> {
        let (sender, receiver) = mpsc::unbounded_channel();
        self.state().listeners.insert(boot.host, (boot.clone(), sender));
        receiver
    }

    /// Connects to a host. Errors: refused (nobody listens), or nothing was heard for [`GIVE_UP`].
    pub async fn connect(&self, boot: &Boot, to: HostId, greeting: String) -> io::Result<SimStream> {
        boot.live().await;
        let (answer, answered) = oneshot::channel();
        let stream = {
            let mut state = self.state();
            let id = state.next_stream;
            state.next_stream += 1;
            let nobody = Boot { host: to, ..boot.clone() };
            let ends = [End::new(boot.clone(), true), End::new(nobody, false)];
            state.streams.insert(id, Stream { ends, connecting: Some(answer), greeting });
            self.send(&mut state, id, 0, Kind::Syn);
            SimStream { network: self.clone(), id, side: 0, boot: boot.clone() }
        };
        answered.await.unwrap_or_else(|_| Err(io::ErrorKind::ConnectionReset.into()))?;
        Ok(stream)
    }

    /// Runs `action` after a delay, whatever becomes of the host that asked.
    pub(crate) fn after(&self, delay: Duration, action: Action) {
        let at = self.clock.micros() + micros(delay);
        self.state().push(at, Parcel::Action(action));
    }

    /// Whether a parcel from one host to another passes now, and how long the next one takes.
    pub(crate) fn passage(&self, from: HostId, to: HostId) -> (bool, Duration) {
        let mut state = self.state();
        let link = state.links.get(&(from, to)).copied().unwrap_or_default();
        let passes = link.up && !state.rng.chance(link.loss);
        (passes, state.rng.duration(link.latency.0, link.latency.1))
    }

    /// Everything that is due arrives.
    pub(crate) fn deliver(&self) {
        let now = self.clock.micros();
        loop {
            let mut state = self.state();
            let Some(entry) = state.queue.first_entry().filter(|entry| entry.key().0 <= now) else { return };
            let (_, order) = *entry.key();
            match entry.remove() {
                Parcel::Action(action) => {
                    drop(state);
                    action(self);
                }
                Parcel::Packet { stream, from, kind, first_sent, tries } => {
                    self.arrive(&mut state, order, stream, from, kind, first_sent, tries);
                }
            }
        }
    }

    fn send(&self, state: &mut State, stream: u64, from: usize, kind: Kind) {
        let now = self.clock.micros();
        let delay = state.delay(stream, from);
        state.push(now + delay, Parcel::Packet { stream, from, kind, first_sent: now, tries: 0 });
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of one packet")]
    fn arrive(&self, state: &mut State, order: u64, id: u64, from: usize, kind: Kind, first_sent: u64, tries: u32) {
        let now = self.clock.micros();
        let Some((source, target)) = state.hosts(id, from) else { return };
        let link = state.links.get(&(source, target)).copied().unwrap_or_default();
        if !link.up || state.rng.chance(link.loss) || state.silent.contains(&target) {
            state.counts.lost += 1;
            self.send_again(state, id, from, kind, first_sent, tries);
            return;
        }
        state.counts.delivered += 1;
        state.counts.reordered += u64::from(order < state.last_delivered_order);
        state.last_delivered_order = state.last_delivered_order.max(order);
        if matches!(kind, Kind::Data { .. }) && state.rng.chance(link.duplicate) {
            let delay = state.delay(id, from);
            let again = Parcel::Packet { stream: id, from, kind: kind.clone(), first_sent: now, tries: 0 };
            state.push(now + delay, again);
        }
        match kind {
            Kind::Syn => self.arrive_syn(state, id, target),
            Kind::SynAck => {
                if let Some(answer) = state.streams.get_mut(&id).and_then(|stream| stream.connecting.take()) {
                    let _gone = answer.send(Ok(()));
                }
            }
            Kind::Data { number, bytes } => self.arrive_data(state, id, from, number, Some(bytes)),
            Kind::Fin { number } => self.arrive_data(state, id, from, number, None),
            Kind::Reset => state.reset(id, 1 - from),
        }
    }

    fn send_again(&self, state: &mut State, id: u64, from: usize, kind: Kind, first_sent: u64, tries: u32) {
        let now = self.clock.micros();
        if matches!(kind, Kind::Reset) {
            return;
        }
        if now - first_sent > micros(GIVE_UP) {
            state.reset(id, from);
            return;
        }
        let wait = micros((RESEND_AFTER * 2u32.pow(tries.min(6))).min(RESEND_MAX));
        state.push(now + wait, Parcel::Packet { stream: id, from, kind, first_sent, tries: tries + 1 });
    }

    fn arrive_syn(&self, state: &mut State, id: u64, target: HostId) {
        let listener = state.listeners.get(&target).filter(|(boot, _)| boot.alive()).cloned();
        let Some((boot, sender)) = listener else {
            self.send(state, id, 1, Kind::Reset);
            return;
        };
        let Some(stream) = state.streams.get_mut(&id).filter(|stream| !stream.ends[1].open) else { return };
        stream.ends[1] = End::new(boot.clone(), true);
        let greeting = stream.greeting.clone();
        let taken = SimStream { network: self.clone(), id, side: 1, boot };
        if let Err(refused) = sender.send(Incoming { stream: taken, greeting }) {
            // Its drop locks the state, which we hold.
            std::mem::forget(refused);
            self.send(state, id, 1, Kind::Reset);
            return;
        }
        self.send(state, id, 1, Kind::SynAck);
    }

    fn arrive_data(&self, state: &mut State, id: u64, from: usize, number: u64, bytes: Option<Bytes>) {
        let Some(stream) = state.streams.get_mut(&id) else { return };
        let end = &mut stream.ends[1 - from];
        if !end.open {
            self.send(state, id, 1 - from, Kind::Reset);
            return;
        }
        if number < end.next_in || end.early.contains_key(&number) {
            state.counts.repeated += 1;
            return;
        }
        end.early.insert(number, bytes);
        while let Some(next) = end.early.remove(&end.next_in) {
            end.next_in += 1;
            match next {
                Some(bytes) => end.ready.push_back(bytes),
                None => end.ended = true,
            }
        }
        if let Some(reader) = end.reader.take() {
            reader.wake();
        }
    }

    /// A host's life ended.
    pub(crate) fn host_died(&self, host: HostId, silently: bool) {
        let mut state = self.state();
        if silently {
            state.silent.insert(host);
        }
        state.listeners.retain(|listening, _| *listening != host);
        // By number, and before the runtime drops its tasks: it does so in an order that no seed decides.
        let ends: Vec<(u64, usize)> = state
            .streams
            .iter()
            .flat_map(|(id, stream)| [(*id, 0), (*id, 1)].map(|(id, side)| (id, side, &stream.ends[side])))
            .filter(|(_, _, end)| end.open && end.boot.host == host)
            .map(|(id, side, _)| (id, side))
            .collect();
        for (id, side) in ends {
            self.close(&mut state, id, side);
        }
    }

    /// A host has power again: what arrives for its former life is answered with a reset.
    pub fn host_returned(&self, host: HostId) {
        self.state().silent.remove(&host);
    }

    /// One end is closed: by whoever held it, or by the death of its host.
    fn close(&self, state: &mut State, id: u64, side: usize) {
        let Some(stream) = state.streams.get_mut(&id).filter(|stream| stream.ends[side].open) else { return };
        let end = &mut stream.ends[side];
        let (host, number, was_reset) = (end.boot.host, end.next_out, end.reset);
        (end.open, end.reader, end.writer) = (false, None, None);
        if stream.ends.iter().all(|end| !end.open) && stream.connecting.is_none() {
            state.streams.remove(&id);
            return;
        }
        if !was_reset && !state.silent.contains(&host) {
            self.send(state, id, side, Kind::Fin { number });
        }
    }
}

impl State {
    fn push(&mut self, at: u64, parcel: Parcel) {
        self.order += 1;
        self.queue.insert((at, self.order), parcel);
    }

    fn hosts(&self, id: u64, from: usize) -> Option<(HostId, HostId)> {
        let stream = self.streams.get(&id)?;
        Some((stream.ends[from].boot.host, stream.ends[1 - from].boot.host))
    }

    fn delay(&mut self, id: u64, from: usize) -> u64 {
        let link = self.hosts(id, from).and_then(|hosts| self.links.get(&hosts).copied()).unwrap_or_default();
        micros(self.rng.duration(link.latency.0, link.latency.1))
    }

    /// One end learns that the stream is no more.
    fn reset(&mut self, id: u64, side: usize) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if let Some(answer) = stream.connecting.take() {
            let _gone = answer.send(Err(io::ErrorKind::ConnectionRefused.into()));
        }
        let end = &mut stream.ends[side];
        if !end.reset {
            self.counts.resets += 1;
        }
        end.reset = true;
        end.wake();
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).expect("simulated times are short")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::World;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// Sends `len` bytes over a link and returns what arrived, or the error.
    fn carry(link: Link, len: usize) -> (Vec<u8>, io::Result<()>, NetworkCounts) {
        let mut world = World::new(9);
        let (a, b) = (world.add_host("a"), world.add_host("b"));
        let (boot_a, boot_b) = (world.boot(a), world.boot(b));
        world.network.set_link(a, b, link);
        let mut listener = world.network.listen(&boot_b);
        let network = world.network.clone();
        let sent: Vec<u8> = (0..len).map(|i| (i % 251) as u8).collect();
        world.spawn(a, async move {
            let Ok(mut stream) = network.connect(&boot_a, b, "hello".to_owned()).await else { return };
            let _broken = stream.write_all(&sent).await;
            let _broken = stream.shutdown().await;
            std::future::pending::<()>().await;
        });
        let received = world.complete(b, Duration::from_secs(120), async move {
            let mut incoming = listener.recv().await.expect("the network lives");
            assert_eq!(incoming.greeting, "hello");
            let mut bytes = Vec::new();
            let read = incoming.stream.read_to_end(&mut bytes).await;
            (bytes, read.map(|_| ()))
        });
        let (bytes, result) = received.unwrap_or((Vec::new(), Err(io::ErrorKind::TimedOut.into())));
        (bytes, result, world.network.counts())
    }

    #[test]
    fn loss_delay_repetition_and_reordering_never_change_the_bytes() {
        let latency = (Duration::from_millis(1), Duration::from_millis(60));
        let link = Link { up: true, latency, loss: 0.2, duplicate: 0.2 };
        let (bytes, result, counts) = carry(link, 1 << 20);
        result.expect("it arrives");
        assert!(bytes.iter().enumerate().all(|(i, byte)| *byte == (i % 251) as u8));
        assert_eq!(bytes.len(), 1 << 20);
        assert!(counts.lost > 5 && counts.repeated > 5 && counts.reordered > 5, "{counts:?}");
    }

    #[test]
    fn nothing_passes_a_link_that_is_down() {
        let (bytes, result, counts) = carry(Link { up: false, ..Link::default() }, 100);
        assert!(result.is_err() && bytes.is_empty(), "{result:?}");
        assert!(counts.lost > 0);
    }
}
