//! What the agent knows of its map file while it runs: which commit is open, which version is in force.

use crate::regions::Batch;

/// The map file as the core sees it. Pure: the committer does the writing.
#[derive(Debug)]
pub(crate) struct MapState {
    open_batch: Batch,
    version: u64,
    /// The version must reach at least this with the next commit.
    version_min: u64,
    header_changed: bool,
    generation: u64,
    failed: bool,
}

/// What a commit will do to the version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Commit {
    /// Its number.
    pub(crate) batch: Batch,
    /// The version in force once it is durable.
    pub(crate) version: u64,
    /// Whether the header must be written.
    pub(crate) header: bool,
}

/// How far the version jumps when the file fails: past the one a half-written commit may have left in it.
const VERSION_JUMP_ON_FAILURE: u64 = 2;

impl MapState {
    /// A map file just written with this version; or, if there is none, one that failed from the start.
    pub(crate) fn new(version: u64, generation: u64, failed: bool) -> Self {
        MapState { open_batch: 1, version, version_min: 0, header_changed: false, generation, failed }
    }

    /// The commit that bits set now will be in.
    pub(crate) fn open_batch(&self) -> Batch {
        self.open_batch
    }

    /// Whether a write must wait for this commit: not if there is no file to wait for.
    pub(crate) fn must_wait(&self, wait: Option<Batch>) -> Option<Batch> {
        wait.filter(|_| !self.failed)
    }

    /// The version that records carry.
    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    /// Whether the map is kept in memory only.
    pub(crate) fn failed(&self) -> bool {
        self.failed
    }

    /// The header is to be written with a later commit.
    pub(crate) fn header_changed(&mut self) {
        self.header_changed = true;
    }

    /// The generation of the next header: higher than any before.
    pub(crate) fn next_generation(&mut self) -> u64 {
        self.generation = self.generation.saturating_add(1);
        self.generation
    }

    /// Whether somebody waits for a higher version.
    pub(crate) fn version_waits(&self) -> bool {
        self.version_min > self.version
    }

    /// Whether the header waits to be written.
    pub(crate) fn header_waits(&self) -> bool {
        self.header_changed
    }

    /// The log has seen version `seen`: ours must be above it before anything is numbered. Returns the commit to wait
    /// for, if it is not yet.
    pub(crate) fn raise_above(&mut self, seen: u64) -> Option<Batch> {
        if self.version > seen {
            return None;
        }
        self.version_min = self.version_min.max(seen.saturating_add(1));
        self.header_changed = true;
        if self.failed {
            self.version = self.version_min;
            return None;
        }
        Some(self.open_batch)
    }

    /// Closes the open commit for writing.
    pub(crate) fn take(&mut self, sets_bits: bool, with_header: bool) -> Commit {
        let batch = self.open_batch;
        self.open_batch += 1;
        let raised = if sets_bits { self.version.saturating_add(1) } else { self.version };
        let header = with_header || self.version_min > self.version;
        if header {
            self.header_changed = false;
        }
        Commit { batch, version: raised.max(self.version_min), header }
    }

    /// The commit is durable.
    pub(crate) fn committed(&mut self, commit: Commit) {
        self.version = self.version.max(commit.version);
    }

    /// The file failed for good.
    pub(crate) fn fail(&mut self) {
        self.failed = true;
        self.version = self.version.max(self.version_min).saturating_add(VERSION_JUMP_ON_FAILURE);
    }
}
