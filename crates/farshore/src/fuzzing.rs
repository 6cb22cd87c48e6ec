//! Entry points for fuzzing what users type: the configuration and selectors. Nothing may panic, what is accepted must
//! keep its promises, and what is written as text reads as what it was.

use std::path::Path;

use arbitrary::{Result, Unstructured};
use model::{ByteSize, PointId, Selector, Seq, Timestamp};

use crate::config::{
    ApplierTable, Config, ConfigFile, DiskTable, MachineTable, OneOrMany, PolicyTable, ProcessServerTable,
    RecoverTable, SiteTable, StoreTable,
};

/// Most machines, disks and addresses in a configuration that is built.
const LIST_MAX: usize = 4;

/// Any bytes as a configuration file, and as the choice of one.
pub fn config(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data) {
        accepted_or_refused(text);
        if let Ok(file) = toml::from_str::<ConfigFile>(text) {
            comes_back(&file);
        }
    }
    if let Ok(file) = file(&mut Unstructured::new(data)) {
        accepted_or_refused(&comes_back(&file));
    }
}

fn accepted_or_refused(text: &str) {
    match Config::parse(Path::new("/tmp/farshore.toml"), text) {
        Ok(config) => {
            let retention = &config.policy.retention;
            assert_eq!(retention.to_string().parse().as_ref(), Ok(retention));
            for machine in &config.machines {
                let socket = crate::control::Socket::Agent(machine.name.clone()).path(&config);
                assert!(socket.parent() == Some(config.run_dir().as_path()), "a name left its directory: {socket:?}");
            }
        }
        Err(error) => assert!(!error.to_string().contains('\n'), "an error of several lines: {error}"),
    }
}

/// A configuration has no equality of its own; its text has every field.
fn comes_back(file: &ConfigFile) -> String {
    let text = toml::to_string(file).expect("tables of text and sizes can be written");
    let again: ConfigFile = toml::from_str(&text).expect("own text");
    assert_eq!(toml::to_string(&again).as_deref(), Ok(text.as_str()));
    assert_eq!(format!("{again:?}"), format!("{file:?}"));
    text
}

type Source<'a, 'b> = &'a mut Unstructured<'b>;

fn list<T>(u: Source, mut one: impl FnMut(Source) -> Result<T>) -> Result<Vec<T>> {
    (0..u.int_in_range(0..=LIST_MAX)?).map(|_| one(u)).collect()
}

/// Often something that passes, so that what lies behind the first check is reached; else any text.
fn text(u: Source, good: &[&str]) -> Result<String> {
    if u.ratio(3, 4)? { Ok((*u.choose(good)?).to_owned()) } else { u.arbitrary() }
}

fn size(u: Source) -> Result<ByteSize> {
    Ok(ByteSize(if u.arbitrary()? { 1 << u.int_in_range(0..=45)? } else { u.arbitrary()? }))
}

fn file(u: Source) -> Result<ConfigFile> {
    Ok(ConfigFile {
        site: SiteTable {
            name: text(u, &["site-1", "s"])?,
            data_dir: text(u, &["data", "/var/lib/farshore"])?,
            vault_key: text(u, &["vault.key"])?,
            ca: text(u, &["pki"])?,
        },
        store: StoreTable {
            cache: text(u, &["file:store", "s3://bucket/prefix", "az://container", "gs://bucket"])?,
            vault: if u.arbitrary()? {
                Some(text(u, &["file:store", "file:vault", "s3://bucket/prefix"])?)
            } else {
                None
            },
        },
        process_server: ProcessServerTable {
            listen: text(u, &["127.0.0.1:9443", "[::1]:1", "host:65535"])?,
            transport: text(u, &["tls", "quic", "auto"])?,
            segment_bytes: size(u)?,
            segment_age: text(u, &["1s", "50ms", "1m"])?,
            epoch_life: text(u, &["6h", "1m", "7d"])?,
            in_flight_bytes: size(u)?,
            dedup_entries: u.arbitrary()?,
            share_entries: u.arbitrary()?,
        },
        applier: ApplierTable {
            gc: u.arbitrary()?,
            gc_shared: u.arbitrary()?,
            map_segments: u.arbitrary()?,
            state_digests: u.arbitrary()?,
        },
        recover: RecoverTable {
            cache_dir: if u.arbitrary()? { Some(text(u, &["cache", "/var/cache/farshore"])?) } else { None },
            cache_bytes: size(u)?,
        },
        policy: PolicyTable {
            crash_every: text(u, &["60s", "1h"])?,
            journal_window: text(u, &["24h", "0s"])?,
            retention: text(u, &["24h:all, 7d:1h, 30d:1d, 1y:1w", "1h:5m"])?,
            rpo_target: text(u, &["30s"])?,
            replica_lag: text(u, &["10m"])?,
        },
        machine: list(u, machine)?,
    })
}

fn machine(u: Source) -> Result<MachineTable> {
    let address = |u: Source| text(u, &["127.0.0.1:9443", "ps-1:9443", "ps-2:9443"]);
    Ok(MachineTable {
        name: text(u, &["db", "web", "db-01"])?,
        process_server: match u.int_in_range(0..=2)? {
            0 => None,
            1 => Some(OneOrMany::One(address(u)?)),
            _ => Some(OneOrMany::Many(list(u, address)?)),
        },
        queue_bytes: size(u)?,
        spool_bytes: size(u)?,
        replica: text(u, &["warm", "none"])?,
        replica_format: text(u, &["raw", "qcow2", "vhd"])?,
        disk: list(u, |u| {
            Ok(DiskTable {
                name: text(u, &["root", "data", "d"])?,
                source: text(u, &["a.img", "b.img", "/dev/sda"])?,
                listen: if u.arbitrary()? {
                    Some(text(u, &["nbd://127.0.0.1:10809", "nbd+unix:///run/x.sock", "nbds://host:1"])?)
                } else {
                    None
                },
                replica_device: if u.ratio(1, 8)? { Some(text(u, &["/dev/vdb", "/dev/sda"])?) } else { None },
            })
        })?,
    })
}

/// Last microsecond that a selector can spell: 9999-12-31T23:59:59.999999Z.
const TIME_MAX: u64 = 253_402_300_799_999_999;

/// Any bytes as a selector, and as the choice of one: what is read or chosen prints as something that reads the same.
pub fn selector(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data)
        && let Ok(selector) = text.parse::<Selector>()
    {
        assert_eq!(selector.to_string().parse(), Ok(selector), "{text:?}");
    }
    if let Ok(selector) = any_selector(&mut Unstructured::new(data)) {
        assert_eq!(selector.to_string().parse(), Ok(selector));
    }
}

fn any_selector(u: Source) -> Result<Selector> {
    Ok(match u.int_in_range(0..=4)? {
        0 => Selector::Latest,
        1 => Selector::LatestProcessed,
        2 => Selector::Id(PointId(u.arbitrary()?)),
        3 => Selector::Time(Timestamp(u.int_in_range(0..=TIME_MAX)?)),
        _ => Selector::Seq(Seq(u.arbitrary()?)),
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    fn over_corpus(target: &str, body: fn(&[u8])) {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(target);
        let files: Vec<_> =
            std::fs::read_dir(&dir).expect("corpus").map(|entry| entry.expect("entry").path()).collect();
        assert!(!files.is_empty(), "{} holds nothing", dir.display());
        files.iter().for_each(|file| body(&std::fs::read(file).expect("corpus file")));
    }

    #[test]
    fn config_takes_its_corpus() {
        over_corpus("config", super::config);
    }

    #[test]
    fn selector_takes_its_corpus() {
        over_corpus("selector", super::selector);
    }
}
