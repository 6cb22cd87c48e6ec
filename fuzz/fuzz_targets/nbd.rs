//! Everything an NBD client may send. The body and what must hold stand in `nbd::fuzzing`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| nbd::fuzzing::nbd(data));
