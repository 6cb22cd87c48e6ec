//! Read traces of the cache directory. The body and what must hold stand in `format::fuzzing`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| farshore_fuzz::watched(
    data,
    farshore_fuzz::cap::TRACE,
    format::fuzzing::trace
));
