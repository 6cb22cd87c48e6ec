//! A leaf being made: the records of its segments laid over one another.

use std::collections::{BTreeMap, BTreeSet};

use format::keys::Keys;
use format::manifest::Promoted;
use format::map::{MapDisk, MapFacts, MapRun, MapSource, MapTooLarge, MapWriter, Owner, SealedMap, SegmentName, tag};
use format::object::Place;
use format::segment::Table;
use model::{DiskId, MachineName, RecordBody, Seq, Timestamp};

use probe::{Rule, Rules};

use crate::recover::{Disks, Source};

/// Records of some segments, laid over one another.
pub(crate) struct Leaf {
    machine: MachineName,
    disks: Disks,
    names: Names,
    /// Other machines that references name.
    owners: BTreeMap<Owner, MachineName>,
    first: Option<(Seq, Timestamp)>,
    segments: Vec<Promoted>,
    table_bytes: u64,
    rules: Rules,
}

/// Segments by small numbers, as [`Source`] names them.
#[derive(Default)]
struct Names {
    by_name: BTreeMap<SegmentName, u32>,
    names: Vec<SegmentName>,
}

impl Names {
    fn number(&mut self, name: SegmentName) -> u32 {
        *self.by_name.entry(name).or_insert_with(|| {
            self.names.push(name);
            u32::try_from(self.names.len() - 1).expect("a leaf holds few segments")
        })
    }
}

impl Leaf {
    /// An empty leaf behind a map with these disks.
    pub fn behind(machine: MachineName, disks: &[MapDisk]) -> Self {
        let mut empty = Disks::over();
        disks.iter().for_each(|disk| empty.insert(disk.id, disk.name.clone(), disk.size));
        Self {
            machine,
            disks: empty,
            names: Names::default(),
            owners: BTreeMap::new(),
            first: None,
            segments: Vec::new(),
            table_bytes: 0,
            rules: Rules::ALL,
        }
    }

    /// The same under these safety rules.
    pub fn with_rules(self, rules: Rules) -> Self {
        Self { rules, ..self }
    }

    /// Segments in it.
    pub fn segments(&self) -> &[Promoted] {
        &self.segments
    }

    /// Plain bytes of their tables.
    pub fn table_bytes(&self) -> u64 {
        self.table_bytes
    }

    /// Lays the records of the next segment over. Errors say what does not hold together.
    pub fn take(&mut self, segment: Promoted, table: &Table, table_bytes: u64) -> Result<(), String> {
        let (epoch, slot) = (segment.epoch, segment.slot);
        let own = SegmentName { owner: Owner::SELF, epoch, slot, tag: tag(&segment.id) };
        let own = self.names.number(own);
        let mut named = Vec::with_capacity(table.references.len());
        for reference in &table.references {
            let owner = self.owner(&reference.machine);
            let (epoch, slot) = (reference.epoch, reference.slot);
            if owner == Owner::SELF && (epoch, slot) >= (segment.epoch, segment.slot) {
                return Err(format!("it refers to epoch {epoch} slot {slot}, which does not lie before it"));
            }
            named.push(self.names.number(SegmentName { owner, epoch, slot, tag: tag(&reference.id) }));
        }
        let place_of = |reference: Option<u32>| match reference {
            None => Some(own),
            Some(i) => named.get(i as usize).copied(),
        };
        for record in &table.records {
            let pieces = match &record.body {
                RecordBody::Write { data, .. } => data.as_slice(),
                _ => &[],
            };
            self.disks.apply(record, pieces, place_of)?;
        }
        self.first = self.first.or(table.records.first().map(|record| (record.seq, record.time)));
        self.segments.push(segment);
        self.table_bytes += table_bytes;
        Ok(())
    }

    fn owner(&mut self, machine: &MachineName) -> Owner {
        if *machine == self.machine {
            return Owner::SELF;
        }
        let owner = Owner::of(machine);
        self.owners.entry(owner).or_insert_with(|| machine.clone());
        owner
    }

    /// Other machines from which runs read, by name.
    fn machines(&self) -> Vec<MachineName> {
        let owner = |run: MapRun| match run.source {
            MapSource::Data { segment, .. } => self.owners.get(&segment.owner),
            MapSource::Zero => None,
        };
        let read: BTreeSet<_> = self.runs().filter_map(|(_, run)| owner(run)).collect();
        read.into_iter().cloned().collect()
    }

    /// The disks after the last record.
    pub fn disks(&self) -> Vec<MapDisk> {
        let disk = |(id, name, size): (DiskId, _, _)| MapDisk { id, name, size };
        self.disks.list().into_iter().map(disk).collect()
    }

    /// All runs by disk and offset.
    pub fn runs(&self) -> impl Iterator<Item = (DiskId, MapRun)> + '_ {
        // Careless: what was never written reads as zeros anyway.
        let says_zeros = self.rules.hold(Rule::MapSaysZeros);
        let runs = self.disks.runs().filter(move |(_, _, source)| says_zeros || *source != Source::Zero);
        runs.map(|(disk, extent, source)| {
            let source = match source {
                Source::Zero => MapSource::Zero,
                Source::Data { place, frame, offset } => {
                    MapSource::Data { segment: self.names.names[place as usize], frame, offset }
                }
            };
            (disk, MapRun { extent, source })
        })
    }

    /// The map of it, to be put at `place`.
    ///
    /// # Panics
    /// When nothing was taken in.
    pub fn seal(&self, keys: &Keys, place: Place) -> Result<SealedMap, MapTooLarge> {
        self.seal_naming(keys, place, self.segments.clone())
    }

    /// The same as the map of a point: it names its end alone.
    pub fn seal_for_point(&self, keys: &Keys, place: Place) -> Result<SealedMap, MapTooLarge> {
        self.seal_naming(keys, place, self.segments.last().cloned().into_iter().collect())
    }

    fn seal_naming(&self, keys: &Keys, place: Place, segments: Vec<Promoted>) -> Result<SealedMap, MapTooLarge> {
        let (first_seq, first_time) = self.first.expect("a leaf is sealed when it holds something");
        let head = segments.last().expect("as above").head;
        let mut writer = MapWriter::new(keys);
        for (disk, run) in self.runs() {
            writer.push(disk, run)?;
        }
        let (children, machines) = (Vec::new(), self.machines());
        let facts = MapFacts { place, first_seq, first_time, head, disks: self.disks(), children, segments, machines };
        writer.finish(keys, facts)
    }
}
