//! The whole server against a real epoch log in memory, driven by an agent that speaks the wire.
//!
//! The oracle is the [`Witness`]: it reads the log back as any reader would, rebuilds every record's bytes, and compares
//! with what the agent numbered. It does so whenever `stored` is heard, so `stored` before the bytes can be read back
//! fails at once. Most tests run the workers inline under paused time, and are repeatable to the byte.

mod adversaries;
mod agent;
mod credit;
mod faults;
mod protocol;
mod rules;
mod sharing;
mod site;
mod streams;
mod takeover;
mod witness;
mod workload;
