//! The agent's dirty map. The body and what must hold stand in `agent::fuzzing`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| farshore_fuzz::watched(
    data,
    farshore_fuzz::cap::DIRTY_MAP,
    agent::fuzzing::dirty_map
));
