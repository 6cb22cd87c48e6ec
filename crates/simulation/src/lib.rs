//! Whole systems in one process under one seed: the shipping code with simulated hosts, network, disks and store.
//!
//! ```text
//!   clients ─► agent ═══════ network ═══════► process server ─── requests ──► object service ◄── applier, restorer
//!      │         │      (loss, delay, cuts)        │          (lost, late)         │
//!      ▼         ▼                                 ▼                               ▼
//!   history    disks, state files            crashes, pauses              judges: prefix, stamps, causes,
//!   (issued,   (torn, unflushed)                                          liveness, bounds, plaintext, verify
//!    answered)
//! ```
//! Agent, process server, applier and recovery are the crates that ship, on the seams they have for it: dialer, clock,
//! random bits, disks, state directory, object store. What is swapped is transport security (a stream in memory whose peer
//! is known), HTTP (the object service) and worker threads (run inline). [`scenario`] is the course of a run, [`world`] how
//! hosts live and die, [`history`] and [`judge`] the oracles; docs/rfcs/0003-simulation.md has the reasons.

mod chaos;
mod client;
mod disks;
pub mod fault;
mod files;
pub mod history;
pub mod judge;
mod machine;
mod network;
mod object_service;
mod operator;
pub mod rng;
pub mod scenario;
mod scene;
mod servers;
pub mod stamp;
pub mod world;

pub use scene::{Options, Sabotage};
