//! What an agent learns from its map file when it starts, and the file it writes before it serves anything.
//!
//! The file is written anew at each start, whole and durably, without a clean-stop marker: so the marker is gone before
//! the first write, disks that came, went or grew have their pages, and no page of an older layout is ever read. If
//! that fails, the old file is spoiled, since it may claim what will soon not be true.

use std::io;
use std::sync::Arc;

use model::{DiskChange, DiskName, DrainCause, EventKind, Incarnation, LogHead, Severity};
use probe::{Rule, Rules};

use super::committer::MAP_FILE;
use super::layout::{DiskEntry, Header, MapFileState, PAGE_REGIONS, PAGES_OFFSET, encode_map, parse_map};
use crate::AgentError;
use crate::bits::BitSet;
use crate::config::AgentConfig;
use crate::core::CoreDisk;
use crate::regions::Regions;
use crate::state_dir::{StateDir, StateFile};

/// Longest map file that is read: 250 TiB of disks at 1 MiB a region are 32 MiB.
const MAP_BYTES_MAX: u64 = 1 << 30;

/// What a start rests on.
pub(crate) struct Loaded {
    pub(crate) disks: Vec<CoreDisk>,
    /// Disks of the former life that are no longer protected.
    pub(crate) removed: Vec<(DiskName, u64)>,
    /// The same incarnation goes on; otherwise a new one, for this cause.
    pub(crate) start: Result<Incarnation, DrainCause>,
    pub(crate) incarnation: Incarnation,
    pub(crate) stored: LogHead,
    pub(crate) map_version: u64,
    /// The version that HELLO must answer for, until a log has taken it.
    pub(crate) attested: Option<u64>,
    /// The last incarnation that a log has taken.
    pub(crate) taken: Incarnation,
    pub(crate) generation: u64,
    /// The file; nothing if it could not be written.
    pub(crate) file: Option<Arc<dyn StateFile>>,
    /// What the operator must hear.
    pub(crate) events: Vec<(Severity, EventKind, String)>,
}

type Events = Vec<(Severity, EventKind, String)>;

/// Reads the map, decides how the sequence goes on, and writes the map for this life.
pub(crate) async fn load(
    config: &AgentConfig,
    dir: Option<&dyn StateDir>,
    fresh: Incarnation,
    rules: Rules,
) -> Result<Loaded, AgentError> {
    let mut events = Events::new();
    let mut former = read(dir, &mut events).await;
    if let Ok(Some(state)) = &former
        && state.header.machine != config.machine
    {
        let found = &state.header.machine;
        let why = format!(
            "the state directory belongs to machine {found}, not {}: give each machine its own",
            config.machine
        );
        return Err(AgentError::Config { why });
    }
    let marker_stays = former.as_mut().is_ok_and(|state| state.as_mut().is_some_and(|state| believe(state, rules)));
    let mut loaded = merge(config, former, fresh, events, rules);
    write(config, dir, &mut loaded, marker_stays).await;
    Ok(loaded)
}

/// With all rules in force a map says what it says. Without one of them a start believes more than is true. Returns
/// whether it leaves the clean-stop marker where it is.
fn believe(state: &mut MapFileState, rules: Rules) -> bool {
    let blank = |bits: &mut Vec<BitSet>| bits.iter_mut().for_each(|bits| *bits = BitSet::new(bits.len()));
    let Header { incarnation, stored, clean, .. } = state.header;
    // Careless: whoever stopped had sent everything, so the life of which the log has records goes on.
    if !rules.hold(Rule::FreshIncarnation) && !clean && stored.position.incarnation == incarnation {
        state.header.clean = true;
        blank(&mut state.bits);
    }
    // Careless: a clean stop leaves no bits, so they need not be looked at, and a later commit takes the marker away.
    let marker_stays = !rules.hold(Rule::MarkerRemovedFirst) && clean;
    if marker_stays {
        blank(&mut state.bits);
    }
    marker_stays
}

/// The former map; `Ok(None)` if there never was one, an error if there was and it says nothing.
async fn read(dir: Option<&dyn StateDir>, events: &mut Events) -> Result<Option<MapFileState>, ()> {
    let Some(dir) = dir else { return Err(()) };
    let lost = |why: String| {
        let text = format!("the dirty map says nothing: {why}; unless the stream is empty, a compare is needed");
        (Severity::Critical, EventKind::AgentState, text)
    };
    let file = match dir.read(MAP_FILE, MAP_BYTES_MAX).await {
        Ok(Some(file)) => file,
        Ok(None) => return Ok(None),
        Err(e) => {
            events.push(lost(e.to_string()));
            return Err(());
        }
    };
    match parse_map(&file) {
        Ok(state) => {
            if state.bad_pages > 0 {
                let text = format!("{} pages of the dirty map are damaged: all they cover is drained", state.bad_pages);
                events.push((Severity::Critical, EventKind::AgentState, text));
            }
            Ok(Some(state))
        }
        Err(damage) => {
            events.push(lost(damage.to_string()));
            Err(())
        }
    }
}

fn all_set(regions: u64) -> BitSet {
    let mut bits = BitSet::new(regions);
    (0..regions).for_each(|region| {
        bits.set(region);
    });
    bits
}

/// The bits a disk starts with, given what the former map said of it; and whether it is not the disk it was.
fn bits_of(entry: &DiskEntry, former: Option<(&DiskEntry, &BitSet)>) -> (BitSet, bool) {
    let Some((old, old_bits)) = former else { return (all_set(entry.regions()), true) };
    let mut bits = BitSet::new(entry.regions());
    for region in 0..entry.regions() {
        // The last region of the old size may have been a part only, so growth begins with it.
        let grown = entry.size > old.size && (region + 1) * entry.region_bytes > old.size;
        if grown || (region < old_bits.len() && old_bits.get(region)) {
            bits.set(region);
        }
    }
    (bits, entry.size != old.size)
}

fn merge(
    config: &AgentConfig,
    former: Result<Option<MapFileState>, ()>,
    fresh: Incarnation,
    events: Events,
    rules: Rules,
) -> Loaded {
    let first_start = matches!(former, Ok(None));
    let former = former.ok().flatten();
    let known = |name: &DiskName| {
        let state = former.as_ref()?;
        let index = state.header.disks.iter().position(|disk| disk.name == *name)?;
        Some((&state.header.disks[index], &state.bits[index]))
    };
    let (mut disks, mut changed) = (Vec::new(), false);
    for disk in &config.disks {
        let old = known(&disk.name);
        let region_bytes = old.map_or(config.region_bytes, |(old, _)| old.region_bytes);
        let entry = DiskEntry { name: disk.name.clone(), size: disk.source.size(), region_bytes };
        let (bits, differs) = bits_of(&entry, old);
        changed |= differs;
        let change = if old.is_some() { DiskChange::Resized } else { DiskChange::Added };
        // A map that is not there may have been lost with the life that met the failed flush.
        let regions = Regions::new(entry.size, region_bytes, bits, PAGE_REGIONS).with_rules(rules).doubting_the_cache();
        disks.push(CoreDisk { name: entry.name, regions, change });
    }
    let in_config = |name: &DiskName| config.disks.iter().any(|disk| disk.name == *name);
    let former_disks = former.iter().flat_map(|state| &state.header.disks);
    let removed: Vec<_> = former_disks.filter(|d| !in_config(&d.name)).map(|d| (d.name.clone(), d.size)).collect();
    let untouched = !changed && removed.is_empty() && disks.iter().all(|d| d.regions.owed() == 0);
    let start = match &former {
        Some(state) if state.header.clean && untouched => Ok(state.header.incarnation),
        Some(state) if state.header.clean && (changed || !removed.is_empty()) => Err(DrainCause::DiskChange),
        Some(_) => Err(DrainCause::UncleanStop),
        None if first_start => Err(DrainCause::Initial),
        None => Err(DrainCause::AgentState),
    };
    Loaded {
        disks,
        removed,
        incarnation: start.unwrap_or(fresh),
        start,
        stored: former.as_ref().map(|state| state.header.stored).unwrap_or_default(),
        map_version: former.as_ref().map_or(0, |state| state.map_version),
        taken: former.as_ref().map(|state| state.header.taken).unwrap_or_default(),
        attested: Some(former.as_ref().map_or(0, MapFileState::attested)),
        generation: former.as_ref().map_or(0, |state| state.header.generation),
        file: None,
        events,
    }
}

async fn write(config: &AgentConfig, dir: Option<&dyn StateDir>, loaded: &mut Loaded, marker_stays: bool) {
    // Bits set here that the former file did not have are a durable update that sets bits, so the version rises.
    if loaded.start.is_err() {
        loaded.map_version = loaded.map_version.saturating_add(1);
    }
    loaded.generation = loaded.generation.saturating_add(1);
    let entry = |disk: &CoreDisk| DiskEntry {
        name: disk.name.clone(),
        size: disk.regions.size(),
        region_bytes: disk.regions.region_bytes(),
    };
    let header = Header {
        generation: loaded.generation,
        map_version: loaded.map_version,
        incarnation: loaded.incarnation,
        stored: loaded.stored,
        clean: marker_stays && loaded.start.is_ok(),
        attested: loaded.attested,
        taken: loaded.taken,
        machine: config.machine.clone(),
        disks: loaded.disks.iter().map(entry).collect(),
    };
    let content = encode_map(&header, loaded.disks.iter().map(|disk| disk.regions.image()));
    probe::failpoint!("agent-map-replace-before");
    if loaded.start.is_ok() {
        probe::failpoint!("agent-marker-removal-before");
    }
    let written: io::Result<_> = match dir {
        Some(dir) => dir.replace(MAP_FILE, content).await,
        None => Err(io::Error::other("the state directory cannot be used")),
    };
    probe::failpoint!("agent-map-replace-after");
    if loaded.start.is_ok() {
        probe::failpoint!("agent-marker-removal-after");
    }
    match written {
        Ok(file) => loaded.file = Some(file),
        Err(e) => {
            let text = format!(
                "the dirty map cannot be written: {e}; writes are served, and the next start will need a compare"
            );
            loaded.events.push((Severity::Critical, EventKind::AgentState, text));
            // Two past anything the file can hold: the log will tell the next start that its map is old.
            loaded.map_version = loaded.map_version.saturating_add(2);
            if let Some(dir) = dir
                && let Err(e) = dir.spoil(MAP_FILE, PAGES_OFFSET as usize).await
            {
                tracing::error!("the former dirty map could not be spoiled either: {e}");
            }
        }
    }
}
