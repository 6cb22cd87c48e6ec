//! From what is written to what is run: every rule of the configuration in one place.
//!
//! Each table is taken apart exhaustively, so a new key cannot be forgotten. Every refusal names the key and says what to
//! write instead.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use applier::ReplicaConfig;
use model::{ByteSize, DiskName, MachineName, parse_duration};
use nbd::ListenAddress;

use super::{
    Applier, ApplierTable, CACHE_BYTES, Config, ConfigError, ConfigFile, DISKS_MAX, Disk, DiskTable, ENTRIES_MAX,
    EPOCH_LIFE, IN_FLIGHT_BYTES, JOURNAL_WINDOW, MACHINES_MAX, Machine, MachineTable, OneOrMany, POLICY_INTERVAL,
    PROCESS_SERVERS_MAX, Policy, PolicyTable, ProcessServer, ProcessServerTable, QUEUE_BYTES, Recover, RecoverTable,
    SEGMENT_AGE, SEGMENT_BYTES, SOCKET_PATH_BYTES_MAX, SPOOL_BYTES, Site, SiteTable, StoreTable, Stores, Transport,
};

/// "line N: message", on one line.
pub(super) fn syntax_line(text: &str, at: Option<usize>, message: &str) -> String {
    let message = message.replace('\n', " ");
    match at.and_then(|at| text.get(..at)) {
        Some(before) => format!("line {}: {message}", before.matches('\n').count() + 1),
        None => message,
    }
}

/// Segments in a map.
const MAP_SEGMENTS: std::ops::RangeInclusive<usize> = 1..=1024;

/// Turns what is written into what is run.
pub(super) struct Checker<'a> {
    /// The file, for messages.
    pub path: &'a Path,
    /// What relative paths are relative to.
    pub base: &'a Path,
}

impl Checker<'_> {
    fn refuse(&self, key: impl Into<String>, why: impl ToString) -> ConfigError {
        ConfigError::Value { file: self.path.to_owned(), key: key.into(), why: why.to_string().replace('\n', " ") }
    }

    /// The whole file.
    pub fn config(&self, file: ConfigFile) -> Result<Config, ConfigError> {
        let ConfigFile { site, store, process_server, applier, recover, policy, machine } = file;
        let site = self.site(site)?;
        let store = self.store(store)?;
        let process_server = self.process_server(process_server)?;
        let applier = self.applier(applier)?;
        let recover = self.recover(recover)?;
        let policy = self.policy(policy)?;
        if machine.len() > MACHINES_MAX {
            return Err(self.refuse("machine", format!("{} machines; at most {MACHINES_MAX}", machine.len())));
        }
        let mut machines: Vec<Machine> = Vec::new();
        for table in machine {
            let machine = self.machine(table, &site, &process_server)?;
            if machines.iter().any(|m| m.name == machine.name) {
                return Err(self.refuse(format!("machine {}", machine.name), "two machines have this name; rename one"));
            }
            machines.push(machine);
        }
        self.sources_and_listeners_are_distinct(&machines)?;
        if store.vault.is_some() && (process_server.share_entries > 0 || applier.gc_shared) {
            let why = "streams that share segments are not promoted into a store of their own: leave store.vault out";
            return Err(self.refuse("process_server.share_entries", why));
        }
        Ok(Config { file: self.path.to_owned(), site, store, process_server, applier, recover, policy, machines })
    }

    fn site(&self, table: SiteTable) -> Result<Site, ConfigError> {
        let SiteTable { name, data_dir, vault_key, ca } = table;
        Ok(Site {
            name: name.parse().map_err(|e| self.refuse("site.name", e))?,
            data_dir: self.file_path("site.data_dir", &data_dir)?,
            vault_key: self.file_path("site.vault_key", &vault_key)?,
            ca: self.file_path("site.ca", &ca)?,
        })
    }

    fn store(&self, table: StoreTable) -> Result<Stores, ConfigError> {
        let StoreTable { cache, vault } = table;
        let url = |key, text: &str| store_url(text, self.base).map_err(|why| self.refuse(key, why));
        let cache = url("store.cache", &cache)?;
        let vault = vault.map(|vault| url("store.vault", &vault)).transpose()?.filter(|vault| *vault != cache);
        let holds = |outer: &str, inner: &str| inner.strip_prefix(outer).is_some_and(|rest| rest.starts_with('/'));
        if vault.as_ref().is_some_and(|vault| holds(vault, &cache) || holds(&cache, vault)) {
            let why = "it and store.cache lie one within the other: give each a place of its own";
            return Err(self.refuse("store.vault", why));
        }
        Ok(Stores { cache, vault })
    }

    fn process_server(&self, table: ProcessServerTable) -> Result<ProcessServer, ConfigError> {
        let ProcessServerTable {
            listen,
            transport,
            segment_bytes,
            segment_age,
            epoch_life,
            in_flight_bytes,
            dedup_entries,
            share_entries,
        } = table;
        let transport = match transport.as_str() {
            "tls" => Transport::Tls,
            "quic" => Transport::Quic,
            "auto" => Transport::Auto,
            other => {
                let why = format!("{other:?} is no transport: write \"tls\", \"quic\" or \"auto\"");
                return Err(self.refuse("process_server.transport", why));
            }
        };
        Ok(ProcessServer {
            listen: self.host_port("process_server.listen", listen, true)?,
            transport,
            segment_bytes: self.size("process_server.segment_bytes", segment_bytes, SEGMENT_BYTES)?,
            segment_age: self.duration("process_server.segment_age", &segment_age, SEGMENT_AGE)?,
            epoch_life: self.duration("process_server.epoch_life", &epoch_life, EPOCH_LIFE)?,
            in_flight_bytes: self.size("process_server.in_flight_bytes", in_flight_bytes, IN_FLIGHT_BYTES)?,
            dedup_entries: self.entries("process_server.dedup_entries", dedup_entries)?,
            share_entries: self.entries("process_server.share_entries", share_entries)?,
        })
    }

    fn entries(&self, key: &'static str, entries: u64) -> Result<usize, ConfigError> {
        match usize::try_from(entries).ok().filter(|_| entries <= ENTRIES_MAX) {
            Some(entries) => Ok(entries),
            None => {
                let why = format!("{entries} is out of range: 0 to {ENTRIES_MAX}");
                Err(self.refuse(key, why))
            }
        }
    }

    fn applier(&self, table: ApplierTable) -> Result<Applier, ConfigError> {
        let ApplierTable { gc, gc_shared, map_segments, state_digests } = table;
        let map_segments = map_segments as usize;
        match MAP_SEGMENTS.contains(&map_segments) {
            true => Ok(Applier { gc, gc_shared, map_segments, state_digests }),
            false => {
                let why = format!("{map_segments} is out of range: 1 to {}", MAP_SEGMENTS.end());
                Err(self.refuse("applier.map_segments", why))
            }
        }
    }

    fn recover(&self, table: RecoverTable) -> Result<Recover, ConfigError> {
        let RecoverTable { cache_dir, cache_bytes } = table;
        let cache_dir = cache_dir.map(|dir| self.file_path("recover.cache_dir", &dir)).transpose()?;
        Ok(Recover { cache_dir, cache_bytes: self.size("recover.cache_bytes", cache_bytes, CACHE_BYTES)? })
    }

    fn policy(&self, table: PolicyTable) -> Result<Policy, ConfigError> {
        let PolicyTable { crash_every, journal_window, retention, rpo_target, replica_lag } = table;
        Ok(Policy {
            crash_every: self.duration("policy.crash_every", &crash_every, POLICY_INTERVAL)?,
            journal_window: self.duration("policy.journal_window", &journal_window, JOURNAL_WINDOW)?,
            retention: retention.parse().map_err(|e| self.refuse("policy.retention", e))?,
            rpo_target: self.duration("policy.rpo_target", &rpo_target, POLICY_INTERVAL)?,
            replica_lag: self.duration("policy.replica_lag", &replica_lag, POLICY_INTERVAL)?,
        })
    }

    fn machine(&self, table: MachineTable, site: &Site, server: &ProcessServer) -> Result<Machine, ConfigError> {
        let MachineTable { name, process_server, queue_bytes, spool_bytes, replica, replica_format, disk } = table;
        let name: MachineName = name.parse().map_err(|e| self.refuse("machine.name", e))?;
        let key = |key: &str| format!("machine {name}: {key}");
        let addresses = match process_server {
            None => vec![server.listen.clone()],
            Some(OneOrMany::One(one)) => vec![one],
            Some(OneOrMany::Many(many)) => many,
        };
        if addresses.is_empty() || addresses.len() > PROCESS_SERVERS_MAX {
            let why = format!("give 1 to {PROCESS_SERVERS_MAX} addresses, or leave the key out");
            return Err(self.refuse(key("process_server"), why));
        }
        let process_servers = addresses
            .into_iter()
            .map(|a| self.host_port(&key("process_server"), a, false))
            .collect::<Result<Vec<_>, _>>()?;
        if disk.is_empty() || disk.len() > DISKS_MAX {
            let why = format!("a machine has 1 to {DISKS_MAX} disks; add a [[machine.disk]] table below it");
            return Err(self.refuse(key("disk"), why));
        }
        let (mut disks, mut devices) = (Vec::<Disk>::new(), BTreeMap::new());
        for mut table in disk {
            let device = table.replica_device.take();
            let disk = self.disk(table, &name, site)?;
            if let Some(device) = device {
                let key = key(&format!("disk {}: replica_device", disk.name));
                devices.insert(disk.name.clone(), self.file_path(&key, &device)?);
            }
            self.disk_identity_is_new(&name, &disks, &disk)?;
            disks.push(disk);
        }
        Ok(Machine {
            process_servers,
            queue_bytes: self.size(&key("queue_bytes"), queue_bytes, QUEUE_BYTES)?,
            spool_bytes: self.size(&key("spool_bytes"), spool_bytes, SPOOL_BYTES)?,
            replica: self.replica(&name, &replica, &replica_format, devices)?,
            disks,
            name,
        })
    }

    fn replica(
        &self,
        machine: &MachineName,
        replica: &str,
        format: &str,
        devices: BTreeMap<DiskName, PathBuf>,
    ) -> Result<Option<ReplicaConfig>, ConfigError> {
        let key = |key: &str| format!("machine {machine}: {key}");
        let format = format.parse().map_err(|e| self.refuse(key("replica_format"), e))?;
        match (replica, devices.keys().next()) {
            ("warm", _) => Ok(Some(ReplicaConfig { format, devices })),
            ("none", None) => Ok(None),
            ("none", Some(disk)) => {
                let why = "with replica = \"none\" no replica is kept: leave the key out, or write replica = \"warm\"";
                Err(self.refuse(key(&format!("disk {disk}: replica_device")), why))
            }
            (other, _) => {
                let shown: String = other.chars().take(80).collect();
                Err(self.refuse(key("replica"), format!("{shown:?} is no policy: write \"warm\" or \"none\"")))
            }
        }
    }

    fn disk(&self, table: DiskTable, machine: &MachineName, site: &Site) -> Result<Disk, ConfigError> {
        let DiskTable { name, source, listen, replica_device: _ } = table;
        let name: DiskName = name.parse().map_err(|e| self.refuse(format!("machine {machine}: disk.name"), e))?;
        let key = |key: &str| format!("machine {machine}: disk {name}: {key}");
        let listen = match listen {
            None => ListenAddress::Unix(site.data_dir.join("run").join(format!("nbd-{machine}-{name}.sock"))),
            Some(text) => match text.parse::<ListenAddress>().map_err(|why| self.refuse(key("listen"), why))? {
                ListenAddress::Unix(path) => ListenAddress::Unix(self.base.join(path)),
                network => network,
            },
        };
        if let ListenAddress::Unix(path) = &listen
            && path.as_os_str().len() > SOCKET_PATH_BYTES_MAX
        {
            let why = format!(
                "the socket path {} is longer than the {SOCKET_PATH_BYTES_MAX} bytes a Unix socket may have: \
                 write a shorter listen = \"unix:PATH\"",
                path.display()
            );
            return Err(self.refuse(key("listen"), why));
        }
        Ok(Disk { source: self.file_path(&key("source"), &source)?, listen, name })
    }

    /// Records carry a hash of the disk's name: neither may meet another's.
    fn disk_identity_is_new(&self, machine: &MachineName, disks: &[Disk], new: &Disk) -> Result<(), ConfigError> {
        let key = format!("machine {machine}: disk {}", new.name);
        for old in disks {
            if old.name == new.name {
                return Err(self.refuse(key, "two disks of the machine have this name; rename one"));
            }
            if old.name.id() == new.name.id() {
                let why = format!("its identity {} is that of disk {} too; rename one", new.name.id(), old.name);
                return Err(self.refuse(key, why));
            }
        }
        Ok(())
    }

    /// Two writers on one source, or two exports on one address, would destroy data.
    fn sources_and_listeners_are_distinct(&self, machines: &[Machine]) -> Result<(), ConfigError> {
        let mut sources = BTreeMap::new();
        let mut listeners = BTreeMap::new();
        for machine in machines {
            for disk in &machine.disks {
                let key = format!("machine {}: disk {}", machine.name, disk.name);
                if let Some(other) = sources.insert(disk.source.clone(), key.clone()) {
                    return Err(self.refuse(format!("{key}: source"), format!("{other} has the same source")));
                }
                let device = machine.replica.as_ref().and_then(|replica| replica.devices.get(&disk.name));
                if let Some(device) = device
                    && let Some(other) = sources.insert(device.clone(), format!("{key}: replica_device"))
                {
                    let why = format!("{other} is the same: what is there would be destroyed");
                    return Err(self.refuse(format!("{key}: replica_device"), why));
                }
                if let Some(other) = listeners.insert(place(&disk.listen), key.clone()) {
                    return Err(self.refuse(format!("{key}: listen"), format!("{other} has the same address")));
                }
            }
        }
        Ok(())
    }

    fn file_path(&self, key: &str, text: &str) -> Result<PathBuf, ConfigError> {
        if text.is_empty() || text.contains('\0') {
            return Err(self.refuse(key, "the path is empty or holds a zero byte; write a path"));
        }
        Ok(self.base.join(text))
    }

    fn host_port(&self, key: &str, text: String, zero_port: bool) -> Result<String, ConfigError> {
        let parts = text.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse::<u16>().ok()?)));
        let good = parts.is_some_and(|(host, port)| {
            let bracketed = host.starts_with('[') && host.ends_with(']');
            let plain = !host.is_empty() && !host.contains(['/', '@', ' ', '\0']) && (bracketed || !host.contains(':'));
            plain && (zero_port || port != 0)
        });
        if good {
            return Ok(text);
        }
        let shown: String = text.chars().take(80).collect();
        Err(self.refuse(key, format!("{shown:?} is not host:port; write such as \"10.0.0.5:9443\" or \"[::1]:9443\"")))
    }

    fn size(&self, key: &str, size: ByteSize, range: RangeInclusive<u64>) -> Result<u64, ConfigError> {
        if range.contains(&size.0) {
            return Ok(size.0);
        }
        let why = format!("{size} is out of range; write {} to {}", ByteSize(*range.start()), ByteSize(*range.end()));
        Err(self.refuse(key, why))
    }

    fn duration(&self, key: &str, text: &str, range: RangeInclusive<Duration>) -> Result<Duration, ConfigError> {
        let duration = parse_duration(text).map_err(|e| self.refuse(key, e))?;
        if range.contains(&duration) {
            return Ok(duration);
        }
        let show = humantime::format_duration;
        let why =
            format!("{} is out of range; write {} to {}", show(duration), show(*range.start()), show(*range.end()));
        Err(self.refuse(key, why))
    }
}

/// What two exports cannot share, whatever they speak there.
fn place(listen: &ListenAddress) -> String {
    listen.host_port().map_or_else(|| listen.to_string(), |host_port| format!("tcp:{host_port}"))
}

/// The store's URL in full: a `file:` path may be relative to `base`, and a plain path is a `file:` URL.
pub fn store_url(text: &str, base: &Path) -> Result<String, String> {
    let bad = |why: &str| {
        let shown: String = text.chars().take(200).collect();
        Err(format!(
            "{shown:?} {why}; write file:PATH, az://container/prefix, s3://bucket/prefix or gs://bucket/prefix"
        ))
    };
    let path = match text.split_once(':') {
        Some(("az" | "s3" | "gs", rest)) if rest.len() > 2 && rest.starts_with("//") => return Ok(text.to_owned()),
        Some(("file", rest)) => match rest.strip_prefix("//") {
            Some(absolute) if absolute.starts_with('/') => absolute,
            Some(_) => return bad("names a host; a file store is local, so write file:///PATH or file:PATH"),
            None => rest,
        },
        Some((scheme, _)) if !scheme.contains('/') => return bad("is of a kind this program does not know"),
        _ => text,
    };
    if path.is_empty() || path.chars().any(char::is_control) {
        return bad("names no directory");
    }
    let joined = base.join(path);
    let mut clean = PathBuf::new();
    for part in joined.components() {
        match part {
            std::path::Component::CurDir => {}
            std::path::Component::ParentDir => {
                clean.pop();
            }
            other => clean.push(other),
        }
    }
    match clean.to_str() {
        Some(path) => Ok(format!("file://{path}")),
        None => bad("is not UTF-8"),
    }
}
