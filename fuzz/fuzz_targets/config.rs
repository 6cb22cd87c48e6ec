//! Configuration files as users write them. The body and what must hold stand in `farshore::fuzzing`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| farshore_fuzz::watched(
    data,
    farshore_fuzz::cap::CONFIG,
    farshore::fuzzing::config
));
