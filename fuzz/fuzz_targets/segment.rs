//! Segments: tables and frames. The body and what must hold stand in `format::fuzzing`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| format::fuzzing::segment(data));
