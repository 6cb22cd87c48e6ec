//! The hot path against its floor: chunk → keyed hash → dedup → compress → seal, next to bare zstd level 1 on the same
//! data, both on one thread.
//!
//! Run with `cargo bench -p benches`; `cargo xtask bench` begins with it. The claim measured: everything but compression costs so
//! little that the pipeline runs at most of zstd's own speed; on data that do not compress, or that the stream has
//! already, it runs far above it. Times are CPU time of the thread, which repeats on shared machines where wall time does not.

use std::sync::Arc;
use std::time::Duration;

use benches::{random, table_pages, thread_cpu};
use bytes::Bytes;
use criterion::{Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use format::Level;
use format::keys::{Keys, VaultKey};
use format::object::ObjectId;
use format::segment::FrameSealer;
use model::{DiskId, Extent, MachineName, Record, RecordBody, Seq, Timestamp};
use process_server::DedupIndex;
use process_server::pipeline::{FRAME_PLAIN_BYTES, RecordWorker, SegmentContext};

/// Bytes of each input.
const INPUT_BYTES: usize = 16 << 20;

/// Bytes of a job, as the process server cuts them.
const JOB_BYTES: usize = 1 << 20;

/// How long each runs before it counts, and while it does.
const WARM_UP: Duration = Duration::from_secs(1);
const MEASURED: Duration = Duration::from_secs(3);

/// Outputs kept at once, as a segment of 8 MiB keeps them until it is stored: memory is reused, as in the server.
const JOBS_KEPT: usize = 8;

/// Chunks the index remembers: all of the input, so that repeated data hit.
const DEDUP_ENTRIES: usize = 1 << 18;

criterion_group! {
    name = parts;
    config = Criterion::default().sample_size(20).warm_up_time(WARM_UP).measurement_time(MEASURED);
    targets = hot_path
}
criterion_main!(parts);

fn hot_path(criterion: &mut Criterion) {
    let pages = Bytes::from(table_pages(INPUT_BYTES, 1));
    let noise = Bytes::from(random(INPUT_BYTES, 2));
    let zeros = Bytes::from(vec![0; INPUT_BYTES]);
    compare(criterion, "database pages, 64 KiB writes", &pages, (64 << 10, Level::Normal, false));
    compare(criterion, "database pages, 4 KiB writes", &pages, (4 << 10, Level::Normal, false));
    compare(criterion, "database pages, 64 KiB, fast level", &pages, (64 << 10, Level::Fast, false));
    compare(criterion, "incompressible, 64 KiB writes", &noise, (64 << 10, Level::Normal, false));
    compare(criterion, "zeros, 64 KiB writes", &zeros, (64 << 10, Level::Normal, false));
    compare(criterion, "seen before, 64 KiB writes", &pages, (64 << 10, Level::Normal, true));
}

/// The pipeline beside its floor.
fn compare(criterion: &mut Criterion, name: &str, data: &Bytes, (write, level, again): (usize, Level, bool)) {
    let mut group = criterion.benchmark_group(name);
    group.sampling_mode(SamplingMode::Flat).throughput(Throughput::Bytes(data.len() as u64));
    group.bench_function("pipeline", |bencher| {
        bencher.iter_custom(|runs| (0..runs).map(|_| run_pipeline(data, write, level, again)).sum());
    });
    group.bench_function("zstd level 1", |bencher| bencher.iter_custom(|runs| (0..runs).map(|_| run_zstd(data)).sum()));
    group.finish();
}

/// Carries the data through a worker in jobs; `again` measures a second pass over the same data.
fn run_pipeline(data: &Bytes, write: usize, level: Level, again: bool) -> Duration {
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
        let mut segment_jobs = Vec::with_capacity(JOBS_KEPT);
        for (ordinal, job) in (0..).zip(jobs) {
            let output = worker.process(&segment, ordinal, job, false, level);
            segment_jobs.push(output);
            if segment_jobs.len() == JOBS_KEPT {
                segment_jobs.clear();
            }
        }
        thread_cpu() - begun
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
