//! Bodies of manifests, commits and openings, and the vault key's text. The body and what must hold stand in `format::fuzzing`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| farshore_fuzz::watched(
    data,
    farshore_fuzz::cap::MANIFEST,
    format::fuzzing::manifest
));
