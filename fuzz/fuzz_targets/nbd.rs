//! Everything an NBD client may send, and what a good one does. The body and what must hold stand in `nbd::fuzzing`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| farshore_fuzz::watched(data, farshore_fuzz::cap::NBD, nbd::fuzzing::nbd));
