//! Whole agents in memory: real splitter, map, queue, spool, drain and sender; disks, state files and the process server
//! are in memory, time is tokio's paused clock, and every choice comes from a seed.

mod faults;
mod files;
mod history;
mod kills;
mod peer;
mod rig;
mod rules;
mod stream;
mod workload;
