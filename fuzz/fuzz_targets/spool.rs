//! Slots of the agent's spool file. The body and what must hold stand in `agent::fuzzing`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| farshore_fuzz::watched(
    data,
    farshore_fuzz::cap::SPOOL,
    agent::fuzzing::spool
));
