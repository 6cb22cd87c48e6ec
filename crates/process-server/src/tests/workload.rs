//! Seeded records: several disks, overlaps, duplicates, zeros, incompressible and compressible bytes, marks.

use bytes::Bytes;
use model::{
    DiskChange, DiskId, DiskName, DrainCause, Extent, Incarnation, Mark, MarkKind, Record, RecordBody, Seq, Timestamp,
};
use store::SplitMix64;

/// Sectors of each disk.
const DISK_SECTORS: u64 = 32 << 11;

/// Makes record bodies.
pub struct Workload {
    rng: SplitMix64,
    seen: Vec<Bytes>,
    /// Longest write in sectors.
    pub sectors_max: u64,
}

impl Workload {
    pub fn new(seed: u64) -> Self {
        Workload { rng: SplitMix64::new(seed), seen: Vec::new(), sectors_max: 700 }
    }

    pub fn disk(n: u32) -> DiskId {
        DiskId(n + 1)
    }

    fn extent(&mut self, sectors: u64) -> Extent {
        let at = self.rng.below(DISK_SECTORS - sectors);
        let at = if self.rng.chance(0.7) { at / 8 * 8 } else { at };
        Extent::new(at * 512, sectors * 512).expect("aligned")
    }

    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        for word in bytes.chunks_exact_mut(8) {
            word.copy_from_slice(&self.rng.next_u64().to_le_bytes());
        }
        bytes
    }

    pub fn write_at(offset: u64, data: impl Into<Bytes>) -> RecordBody {
        let data = data.into();
        let extent = Extent::new(offset, data.len() as u64).expect("aligned");
        RecordBody::Write { disk: Self::disk(0), extent, data }
    }

    /// The next body.
    pub fn next(&mut self) -> RecordBody {
        let disk = Self::disk(self.rng.below(3) as u32);
        match self.rng.below(20) {
            0 => {
                let id = self.rng.next_u64().to_le_bytes();
                let mark =
                    Mark { kind: MarkKind::Crash, id: [id, id].concat().try_into().expect("16"), label: "m".into() };
                RecordBody::Mark(mark)
            }
            1..=2 => {
                let sectors = 1 + self.rng.below(20_000);
                RecordBody::Zero { disk, extent: self.extent(sectors) }
            }
            kind => {
                let sectors = 1 + self.rng.below(self.sectors_max);
                let extent = self.extent(sectors);
                let len = extent.len() as usize;
                let data = match kind {
                    3..=4 => Bytes::from(vec![0; len]),
                    5..=8 => self.bytes(len).into(),
                    9..=10 => {
                        let mut data = vec![0; len];
                        data[len / 2] = 1;
                        data.into()
                    }
                    11..=15 if !self.seen.is_empty() => {
                        let again = self.rng.below(self.seen.len() as u64) as usize;
                        let data = self.seen[again].clone();
                        // The same bytes at the same place in their 64 KiB, as a clone of a template would have.
                        let extent = Extent::new(self.rng.below(100) << 16, data.len() as u64).expect("aligned");
                        return RecordBody::Write { disk, extent, data };
                    }
                    _ => {
                        let word = self.rng.next_u64().to_le_bytes();
                        let data: Vec<u8> = (0..len).map(|i| word[i / 64 % 8] ^ (i % 64) as u8).collect();
                        Bytes::from(data)
                    }
                };
                if self.seen.len() < 64 && data.len() >= 64 << 10 {
                    self.seen.push(data.clone());
                }
                RecordBody::Write { disk, extent, data }
            }
        }
    }
}

/// The drain that opens a life.
pub fn drain_begin(incarnation: Incarnation, lost_after: Seq) -> RecordBody {
    RecordBody::DrainBegin { cause: DrainCause::Initial, incarnation, lost_after }
}

/// A disk that appears.
pub fn disk_added(name: &str) -> RecordBody {
    let name: DiskName = name.parse().expect("a name");
    RecordBody::Disk { disk: name.id(), name, size: DISK_SECTORS * 512, change: DiskChange::Added }
}

/// A record of the agent's clock.
pub fn record(seq: u64, map_version: u64, body: RecordBody) -> Record {
    Record { seq: Seq(seq), time: Timestamp(1_000_000 + seq), map_version, body }
}
