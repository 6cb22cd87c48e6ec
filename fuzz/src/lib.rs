//! What every fuzz target is held to beside its own assertions: it does not panic, and it does not allocate more than
//! its cap.
//!
//! The cap is on the peak of allocated bytes above what was there when the input came, everything included: the decoder,
//! the values, and the encodings the target makes to compare. Memory of C libraries (zstd's contexts) is not seen here;
//! the fuzzer's limit on the whole process sees it.
#![forbid(unsafe_code)]

use std::sync::LazyLock;

use peak_alloc::PeakAlloc;

pub mod cap;

use cap::Cap;

#[global_allocator]
static HEAP: PeakAlloc = PeakAlloc;

/// Set to see how near to its cap each input comes: how the caps were chosen.
static SHOW_PEAKS: LazyLock<bool> = LazyLock::new(|| std::env::var_os("FARSHORE_FUZZ_SHOW_PEAKS").is_some());

/// Runs a target's body on one input.
///
/// # Panics
/// When the body does, and when it allocates more than `cap`.
pub fn watched(data: &[u8], cap: Cap, body: impl FnOnce(&[u8])) {
    let show = *SHOW_PEAKS;
    HEAP.reset_peak_usage();
    let before = HEAP.current_usage();
    body(data);
    let peak = HEAP.peak_usage().saturating_sub(before);
    let allowed = cap.bytes(data.len());
    assert!(peak <= allowed, "allocated {peak} bytes for {} bytes of input: the cap is {allowed}", data.len());
    if show {
        eprintln!("peak {peak} of {allowed} bytes for {} bytes of input", data.len());
    }
}
