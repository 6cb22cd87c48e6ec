//! One machine: disks, state files, process server, and agents that come and go.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use disk::memory::MemoryDisk;
use model::{DiskId, DiskName, Seq, Timestamp};
use probe::Rules;
use waiting::Deadline;

use super::files::MemoryDir;
use super::peer::FakePeer;
use crate::{Agent, AgentConfig, AgentDisk, AgentParts, AgentStatus, Clock, Random};

/// Numbers from a seed (xorshift).
#[derive(Debug, Clone)]
pub(super) struct Rng(u64);

impl Rng {
    pub(super) fn new(seed: u64) -> Self {
        Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub(super) fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 11) % n
    }
}

/// Time that follows tokio's.
pub(super) struct TestClock(tokio::time::Instant);

impl Clock for TestClock {
    fn now(&self) -> Timestamp {
        Timestamp(1_000_000_000 + self.0.elapsed().as_micros() as u64)
    }
}

/// Bits that are never the same and always the same.
pub(super) struct TestRandom(AtomicU64);

impl Random for TestRandom {
    fn bits(&self) -> [u8; 16] {
        let n = self.0.fetch_add(1, Ordering::Relaxed);
        let mut bits = [7; 16];
        bits[..8].copy_from_slice(&n.to_le_bytes());
        bits
    }
}

pub(super) const REGION: u64 = 64 << 10;

pub(super) struct Rig {
    pub(super) disks: Vec<(DiskName, Arc<MemoryDisk>)>,
    pub(super) dir: MemoryDir,
    pub(super) peer: Arc<FakePeer>,
    pub(super) clock: Arc<TestClock>,
    pub(super) random: Arc<TestRandom>,
    pub(super) queue_bytes: u64,
    pub(super) spool_bytes: u64,
    pub(super) trim_zeroes: bool,
    pub(super) rules: Rules,
}

impl Rig {
    pub(super) fn new(disks: usize, bytes: u64) -> Self {
        let disk = |n: usize| (format!("d{n}").parse().expect("a name"), Arc::new(MemoryDisk::new(bytes)));
        Rig {
            disks: (0..disks).map(disk).collect(),
            dir: MemoryDir::default(),
            peer: FakePeer::new(),
            clock: Arc::new(TestClock(tokio::time::Instant::now())),
            random: Arc::new(TestRandom(AtomicU64::new(1))),
            queue_bytes: 2 << 20,
            spool_bytes: 0,
            trim_zeroes: true,
            rules: Rules::ALL,
        }
    }

    pub(super) fn config(&self) -> AgentConfig {
        let disk = |(name, source): &(DiskName, Arc<MemoryDisk>)| AgentDisk {
            name: name.clone(),
            source: Arc::clone(source) as Arc<dyn disk::Disk>,
            trim_zeroes: self.trim_zeroes,
        };
        AgentConfig {
            machine: "m1".parse().expect("a name"),
            state_dir: "unused".into(),
            process_servers: vec!["ps1:9443".to_owned()],
            queue_bytes: self.queue_bytes,
            spool_bytes: self.spool_bytes,
            region_bytes: REGION,
            active_regions_max: 1024,
            rpo_target: Duration::from_secs(10),
            disks: self.disks.iter().map(disk).collect(),
        }
    }

    pub(super) async fn start(&self) -> Arc<Agent> {
        let parts = AgentParts {
            dialer: Arc::new(Arc::clone(&self.peer)),
            clock: Arc::clone(&self.clock) as _,
            random: Arc::clone(&self.random) as _,
            state_dir: Some(Arc::new(self.dir.clone())),
            rules: self.rules,
        };
        Agent::start_with(self.config(), parts).await.expect("a good configuration")
    }

    pub(super) fn sizes(&self) -> BTreeMap<DiskId, usize> {
        self.disks.iter().map(|(name, disk)| (name.id(), disk::Disk::size(disk.as_ref()) as usize)).collect()
    }

    /// What the log says equals what the disks hold.
    pub(super) fn log_equals_sources(&self) -> bool {
        let images = self.peer.images(Seq(u64::MAX), &self.sizes());
        self.disks.iter().all(|(name, disk)| images[&name.id()] == disk.contents())
    }

    pub(super) fn assert_log_equals_sources(&self) {
        let images = self.peer.images(Seq(u64::MAX), &self.sizes());
        for (name, disk) in &self.disks {
            let (image, source) = (&images[&name.id()], disk.contents());
            let differs =
                (0..source.len() / 512).find(|s| image[s * 512..(s + 1) * 512] != source[s * 512..(s + 1) * 512]);
            assert_eq!(differs, None, "first differing sector of {name}");
        }
        assert_eq!(self.peer.log().violations, Vec::<String>::new());
    }
}

/// Waits until the agent's status is as wanted; fails after a (virtual) while with what it was.
pub(super) async fn until(agent: &Agent, what: &str, wanted: impl Fn(&AgentStatus) -> bool) -> AgentStatus {
    let deadline = Deadline::after(Duration::from_secs(300));
    loop {
        let status = agent.status();
        if wanted(&status) {
            return status;
        }
        deadline.look_again(format_args!("{what}: {status:#?}")).await;
    }
}

/// Everything is in the log and the agent is in data mode.
pub(super) async fn until_settled(agent: &Agent) -> AgentStatus {
    until(agent, "settled", |s| s.mode == "data" && s.next_seq.is_some_and(|next| s.stored.position.seq.next() == next))
        .await
}

/// Bytes that say where and when they were written: every sector carries the operation's number.
pub(super) fn stamped(operation: u64, len: usize) -> bytes::Bytes {
    let mut data = vec![0xa5; len];
    for sector in data.chunks_mut(512) {
        sector[..8].copy_from_slice(&operation.to_le_bytes());
    }
    data.into()
}
