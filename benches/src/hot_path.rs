//! The hot path against its floor: chunk → keyed hash → dedup → compress → seal, next to bare zstd level 1 on the same
//! data, both on one thread in one run.
//!
//! Run with `cargo run --profile ci -p benches --bin hot-path`. The claim measured: everything but compression costs so
//! little that the pipeline runs at most of zstd's own speed; on data that do not compress, or that the stream has
//! already, it runs far above it.

use std::sync::Arc;
use std::time::Duration;

use benches::{random, table_pages, thread_cpu};
use bytes::Bytes;
use format::Level;
use format::keys::{Keys, VaultKey};
use format::object::ObjectId;
use format::segment::FrameSealer;
use model::{DiskId, Extent, MachineName, Record, RecordBody, Seq, Timestamp};
use process_server::DedupIndex;
use process_server::pipeline::{FRAME_PLAIN_BYTES, RecordWorker, SegmentContext};

/// Bytes of each input.
const INPUT_BYTES: usize = 64 << 20;

/// Bytes of a job, as the process server cuts them.
const JOB_BYTES: usize = 1 << 20;

/// Runs of which the fastest counts: noise only adds.
const RUNS: usize = 3;

/// Outputs kept at once, as a segment of 8 MiB keeps them until it is stored: memory is reused, as in the server.
const JOBS_KEPT: usize = 8;

/// Chunks the index remembers: all of the input, so that repeated data hit.
const DEDUP_ENTRIES: usize = 1 << 18;

fn main() {
    println!("MB/s of one core's CPU time (10^6 bytes), best of {RUNS} runs over {} MiB", INPUT_BYTES >> 20);
    println!("{:<34}{:>10}{:>10}{:>8}{:>10}", "input", "pipeline", "zstd 1", "ratio", "stored");
    let pages = Bytes::from(table_pages(INPUT_BYTES, 1));
    let noise = Bytes::from(random(INPUT_BYTES, 2));
    report("database pages, 64 KiB writes", &pages, 64 << 10, Level::Normal, false);
    report("database pages, 4 KiB writes", &pages, 4 << 10, Level::Normal, false);
    report("database pages, 64 KiB, fast level", &pages, 64 << 10, Level::Fast, false);
    report("incompressible, 64 KiB writes", &noise, 64 << 10, Level::Normal, false);
    report("zeros, 64 KiB writes", &Bytes::from(vec![0; INPUT_BYTES]), 64 << 10, Level::Normal, false);
    report("seen before, 64 KiB writes", &pages, 64 << 10, Level::Normal, true);
}

fn report(name: &str, data: &Bytes, write: usize, level: Level, again: bool) {
    let (mut pipeline, mut zstd, mut stored) = (Duration::MAX, Duration::MAX, 0);
    for _ in 0..RUNS {
        let (took, sealed) = run_pipeline(data, write, level, again);
        (pipeline, stored) = (pipeline.min(took), sealed);
        zstd = zstd.min(run_zstd(data));
    }
    let speed = |took: Duration| data.len() as f64 / 1e6 / took.as_secs_f64();
    println!(
        "{name:<34}{:>10.0}{:>10.0}{:>8.2}{:>9.1}%",
        speed(pipeline),
        speed(zstd),
        speed(pipeline) / speed(zstd),
        stored as f64 * 100.0 / data.len() as f64
    );
}

/// Carries the data through a worker in jobs; `again` measures a second pass over the same data.
fn run_pipeline(data: &Bytes, write: usize, level: Level, again: bool) -> (Duration, u64) {
    let keys = Arc::new(Keys::new(&VaultKey::generate()));
    let machine: MachineName = "bench".parse().expect("a valid name");
    let dedup = Arc::new(DedupIndex::new(DEDUP_ENTRIES));
    let mut worker = RecordWorker::new(keys.clone());
    let mut pass = |slot| {
        let sealer = Arc::new(FrameSealer::new(&keys, ObjectId::random()));
        let segment =
            SegmentContext { sealer, machine: machine.clone(), epoch: 1, slot, dedup: dedup.clone(), share: None };
        let jobs: Vec<Vec<Record>> = (0..data.len()).step_by(JOB_BYTES).map(|at| records(data, at, write)).collect();
        let begun = thread_cpu();
        let mut sealed_bytes = 0;
        let mut segment_jobs = Vec::with_capacity(JOBS_KEPT);
        for (ordinal, job) in (0..).zip(jobs) {
            let output = worker.process(&segment, ordinal, job, false, level);
            sealed_bytes += output.stats.sealed_bytes;
            segment_jobs.push(output);
            if segment_jobs.len() == JOBS_KEPT {
                segment_jobs.clear();
            }
        }
        (thread_cpu() - begun, sealed_bytes)
    };
    let first = pass(1);
    if again { pass(2) } else { first }
}

fn records(data: &Bytes, at: usize, write: usize) -> Vec<Record> {
    (at..at + JOB_BYTES)
        .step_by(write)
        .map(|offset| {
            let extent = Extent::new(offset as u64, write as u64).expect("aligned by construction");
            let data = data.slice(offset..offset + write);
            let body = RecordBody::Write { disk: DiskId(1), extent, data };
            Record { seq: Seq((offset / write) as u64 + 1), time: Timestamp(1), map_version: 1, body }
        })
        .collect()
}

/// The floor: zstd level 1 with one context over frames of the same size.
fn run_zstd(data: &[u8]) -> Duration {
    let mut zstd = zstd::bulk::Compressor::new(1).expect("level 1 exists");
    let mut out = Vec::with_capacity(zstd::zstd_safe::compress_bound(FRAME_PLAIN_BYTES));
    let begun = thread_cpu();
    for frame in data.chunks(FRAME_PLAIN_BYTES) {
        out.clear();
        zstd.compress_to_buffer(frame, &mut out).expect("the buffer holds the worst case");
        std::hint::black_box(&out);
    }
    thread_cpu() - begun
}
