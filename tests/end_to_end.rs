//! End to end: the shipping binary in real processes, with real programs and real faults, judged by content.

mod harness;

mod adversaries;
#[path = "../crates/store/tests/common/emulators.rs"]
mod emulators;
#[path = "../crates/store/tests/servers/mini_s3.rs"]
mod mini_s3;
#[path = "../crates/store/tests/common/ports.rs"]
mod ports;
#[path = "../crates/filesystem/tests/real/trees.rs"]
mod trees;

mod bad_input;
mod bare_machine;
mod basic;
mod carriers;
mod clones;
mod disks;
mod failpoints;
mod files;
mod filesystems;
mod guest_files;
mod horizon;
mod kill;
mod memory;
mod nbd_tls;
mod object_stores;
mod outage;
mod power_cut;
mod power_recording;
mod prefix;
mod reads;
mod refused;
mod replica;
mod restore;
mod system_disk;
mod two_stores;
mod zombies;
