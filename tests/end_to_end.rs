//! End to end: the shipping binary in real processes, with real programs and real faults, judged by content.

mod harness;

mod bare_machine;
mod basic;
mod filesystems;
mod kill;
mod object_stores;
mod outage;
mod refused;
