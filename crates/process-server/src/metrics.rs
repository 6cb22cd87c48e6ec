//! Every metric of the process server, by name, in one place. Base units; labels are from closed lists.

use std::time::Duration;

use format::Level;
use format::wire::Refusal;
use metrics::{counter, gauge, histogram};

use crate::pipeline::Done;

/// A batch came in.
pub(crate) fn ingested(bytes: u64, records: usize) {
    counter!("process_server_ingest_bytes_total").increment(bytes);
    counter!("process_server_ingest_records_total").increment(records as u64);
}

/// Jobs that wait for a worker.
pub(crate) fn queue_depth(jobs: usize) {
    gauge!("process_server_pipeline_queue_jobs").set(jobs as f64);
}

/// A worker finished a job.
pub(crate) fn job_done(done: &Done, took: Duration, level: Level) {
    let stage = match done {
        Done::Records { .. } => "seal",
        Done::Assembled(_) => "assemble",
        Done::Failed => "failed",
    };
    histogram!("process_server_pipeline_job_seconds", "stage" => stage).record(took.as_secs_f64());
    if let Done::Records { output, .. } = done {
        let level = if level == Level::Fast { "fast" } else { "normal" };
        counter!("process_server_pipeline_plain_bytes_total", "level" => level).increment(output.stats.plain_bytes);
        counter!("process_server_pipeline_zero_bytes_total").increment(output.stats.zero_bytes);
        counter!("process_server_pipeline_sealed_bytes_total").increment(output.stats.sealed_bytes);
        counter!("process_server_dedup_hits_total").increment(output.stats.dedup_hits);
        counter!("process_server_dedup_bytes_total").increment(output.stats.dedup_bytes);
    }
}

/// A segment was put.
pub(crate) fn uploaded(bytes: u64, took: Duration) {
    counter!("process_server_upload_bytes_total").increment(bytes);
    histogram!("process_server_upload_object_seconds").record(took.as_secs_f64());
}

/// PUTs in flight went up or down.
pub(crate) fn uploads_changed(by: i32) {
    gauge!("process_server_upload_busy_objects").increment(f64::from(by));
}

/// A try at the store failed and will be made again.
pub(crate) fn store_error(stage: &'static str) {
    counter!("process_server_store_errors_total", "stage" => stage).increment(1);
}

/// Records were acknowledged; from the arrival of the oldest of them.
pub(crate) fn stored(lag: Duration) {
    histogram!("process_server_stored_lag_seconds").record(lag.as_secs_f64());
}

/// An agent was refused.
pub(crate) fn refused(reason: Refusal) {
    let reason = match reason {
        Refusal::Protocol => "protocol",
        Refusal::UnknownMachine => "unknown-machine",
        Refusal::SecondAgent => "second-agent",
        Refusal::RevertedDisk => "reverted-disk",
        Refusal::RevertedMemory => "reverted-memory",
        Refusal::StoreLost => "store-lost",
        Refusal::StaleCompare => "stale-compare",
        Refusal::StoreUnavailable => "store-unavailable",
        Refusal::Busy => "busy",
    };
    counter!("process_server_refused_total", "reason" => reason).increment(1);
}

/// A session ended because its peer broke the protocol.
pub(crate) fn violation() {
    counter!("process_server_violations_total").increment(1);
}

/// An epoch of ours ended because another writer exists.
pub(crate) fn fenced() {
    counter!("process_server_fenced_total").increment(1);
}
