//! Disks as anybody may have written them. The body and what must hold stand in `filesystem::fuzzing`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| farshore_fuzz::watched(
    data,
    farshore_fuzz::cap::FILESYSTEM,
    filesystem::fuzzing::image
));
