//! Segments: tables, frames and whole ones. The body and what must hold stand in `format::fuzzing`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| farshore_fuzz::watched(
    data,
    farshore_fuzz::cap::SEGMENT,
    format::fuzzing::segment
));
