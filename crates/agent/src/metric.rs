//! The agent's metrics, registered once so that the write path only adds.

use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};

/// Handles of all `agent_*` metrics of one machine.
pub(crate) struct Metrics {
    pub(crate) written_bytes: Counter,
    pub(crate) sent_bytes: Counter,
    pub(crate) resent_bytes: Counter,
    pub(crate) drained_bytes: Counter,
    pub(crate) cold_region_syncs: Counter,
    pub(crate) cold_region_seconds: Histogram,
    pub(crate) map_commits: Counter,
    pub(crate) active_regions_over: Counter,
    pub(crate) replication_lag_seconds: Histogram,
    pub(crate) rpo_seconds: Gauge,
    pub(crate) queue_bytes: Gauge,
    pub(crate) spool_bytes: Gauge,
    pub(crate) to_drain_bytes: Gauge,
    pub(crate) active_regions: Gauge,
    pub(crate) bitmap_mode: Gauge,
}

impl Metrics {
    /// Registers them with the recorder in force.
    pub(crate) fn new(machine: &str) -> Self {
        let machine = machine.to_owned();
        macro_rules! register {
            ($kind:ident, $name:literal) => {
                $kind!($name, "machine" => machine.clone())
            };
        }
        Metrics {
            written_bytes: register!(counter, "agent_written_bytes_total"),
            sent_bytes: register!(counter, "agent_sent_bytes_total"),
            resent_bytes: register!(counter, "agent_resent_bytes_total"),
            drained_bytes: register!(counter, "agent_drained_bytes_total"),
            cold_region_syncs: register!(counter, "agent_cold_region_syncs_total"),
            cold_region_seconds: register!(histogram, "agent_cold_region_sync_seconds"),
            map_commits: register!(counter, "agent_map_commits_total"),
            active_regions_over: register!(counter, "agent_active_regions_over_total"),
            replication_lag_seconds: register!(histogram, "agent_replication_lag_seconds"),
            rpo_seconds: register!(gauge, "agent_rpo_seconds"),
            queue_bytes: register!(gauge, "agent_queue_bytes"),
            spool_bytes: register!(gauge, "agent_spool_bytes"),
            to_drain_bytes: register!(gauge, "agent_to_drain_bytes"),
            active_regions: register!(gauge, "agent_active_regions"),
            bitmap_mode: register!(gauge, "agent_bitmap_mode"),
        }
    }
}
