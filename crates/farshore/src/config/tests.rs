//! What a configuration may say, what it may not, and how a refusal reads.

use std::collections::BTreeMap;

use model::ByteSize;

use super::*;

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(Path::new("/etc/farshore/farshore.toml"), text)
}

/// A small valid file with `extra` behind it.
fn with(extra: &str) -> String {
    format!("[site]\nname = \"here\"\n[store]\ncache = \"file:store\"\n{extra}")
}

/// The same with a vault store.
fn of_two_stores(vault: &str) -> String {
    with("").replace("[store]\n", &format!("[store]\nvault = \"{vault}\"\n"))
}

const WEB: &str = "[[machine]]\nname = \"web\"\n[[machine.disk]]\nname = \"root\"\nsource = \"root.img\"\n";

/// The refusal of a text, which must be one line and name the file.
fn refusal(text: &str) -> String {
    let line = parse(text).expect_err(text).to_string();
    assert!(line.starts_with("/etc/farshore/farshore.toml: ") && !line.contains('\n'), "{line:?}");
    line
}

#[test]
fn template_is_valid_with_and_without_its_sample_machine() {
    let text = TEMPLATE.replace("{site}", "here");
    let config = parse(&text).expect("template");
    assert!(config.machines.is_empty());
    let sample: String = text
        .lines()
        .map(|l| match l.strip_prefix("# ") {
            Some(rest) if rest.contains(" = ") || rest.starts_with("[[") => format!("{rest}\n"),
            _ => format!("{l}\n"),
        })
        .collect();
    let config = parse(&sample).expect("template with its sample machine");
    assert_eq!(config.machines.len(), 1);
    assert_eq!(config.machines[0].disks.len(), 1);
}

#[test]
fn template_states_the_defaults() {
    let written = parse(&TEMPLATE.replace("{site}", "here")).expect("template");
    let bare = parse(&with("")).expect("bare");
    assert_eq!(format!("{written:?}"), format!("{bare:?}"));
}

/// Every key of every table, from a file in which all are set.
fn every_key() -> Vec<String> {
    let replica_device = Some("r".into());
    let disk = DiskTable { name: "d".into(), source: "s".into(), listen: Some("l".into()), replica_device };
    let file = ConfigFile {
        site: SiteTable { name: "n".into(), data_dir: "d".into(), vault_key: "v".into(), ca: "c".into() },
        store: StoreTable { cache: "c".into(), vault: Some("v".into()) },
        process_server: ProcessServerTable::default(),
        applier: ApplierTable::default(),
        recover: RecoverTable { cache_dir: Some("c".into()), ..RecoverTable::default() },
        policy: PolicyTable::default(),
        machine: vec![MachineTable {
            name: "m".into(),
            process_server: Some(OneOrMany::One("p".into())),
            queue_bytes: ByteSize(0),
            spool_bytes: ByteSize(0),
            replica: "warm".into(),
            replica_format: "raw".into(),
            disk: vec![disk],
        }],
    };
    let text = toml::to_string(&file).expect("serialises");
    text.lines().filter_map(|l| l.split_once(" = ")).map(|(key, _)| key.trim().to_owned()).collect()
}

#[test]
fn every_key_stands_in_the_template_and_in_the_manual() {
    let manual = include_str!("../../../../docs/config.md");
    let keys = every_key();
    assert!(keys.len() >= 20, "{keys:?}");
    for key in keys {
        let in_template = TEMPLATE.lines().any(|l| l.trim_start_matches(['#', ' ']).starts_with(&format!("{key} = ")));
        assert!(in_template, "{key} is missing in the template");
        assert!(manual.contains(&format!("`{key}`")), "{key} is missing in docs/config.md");
    }
}

#[test]
fn nothing_is_collected_unless_it_is_asked_for() {
    assert!(parse(&with("")).expect("bare").applier.gc);
    assert!(!parse(&with("[applier]\ngc = false\n")).expect("valid").applier.gc);
}

#[test]
fn a_policy_says_how_long_what_stays() {
    let policy =
        parse(&with("[policy]\njournal_window = \"0s\"\nretention = \"48h:all,1w:1h\"\n")).expect("valid").policy;
    assert_eq!(policy.journal_window, Duration::ZERO);
    assert_eq!(policy.retention.to_string(), "48h:all, 1w:1h");
}

#[test]
fn a_replica_is_kept_as_the_machine_says() {
    let machine = |keys: &str| with(&WEB.replace("[[machine.disk]]", &format!("{keys}\n[[machine.disk]]")));
    let replica = |text: String| parse(&text).expect("valid").machines.remove(0).replica;
    assert_eq!(replica(with(WEB)), Some(ReplicaConfig::default()));
    assert_eq!(replica(machine("replica = \"none\"")), None);
    let kept = replica(machine("replica_format = \"qcow2\"")).expect("kept");
    assert_eq!(kept.format.to_string(), "qcow2");
    let on_device = format!("{WEB}replica_device = \"/dev/vdb\"\n");
    let kept = replica(with(&on_device)).expect("kept");
    assert_eq!(kept.devices.values().collect::<Vec<_>>(), [Path::new("/dev/vdb")]);
    assert!(refusal(&machine("replica = \"hot\"")).contains("write \"warm\" or \"none\""));
    assert!(refusal(&machine("replica_format = \"vmdk\"")).contains("use raw, qcow2 or vhd"));
    let none_on_device = on_device.replace("[[machine.disk]]", "replica = \"none\"\n[[machine.disk]]");
    assert!(refusal(&with(&none_on_device)).contains("disk root: replica_device"));
    let onto_source = with(&format!("{WEB}replica_device = \"root.img\"\n"));
    assert!(refusal(&onto_source).contains("would be destroyed"));
    let twice =
        format!("{on_device}[[machine.disk]]\nname = \"data\"\nsource = \"d.img\"\nreplica_device = \"/dev/vdb\"\n");
    assert!(refusal(&with(&twice)).contains("would be destroyed"));
}

#[test]
fn relative_paths_are_relative_to_the_file() {
    let config = parse(&with(WEB)).expect("valid");
    assert_eq!(config.site.data_dir, Path::new("/etc/farshore/data"));
    assert_eq!(config.store, Stores { cache: "file:///etc/farshore/store".into(), vault: None });
    let disk = &config.machines[0].disks[0];
    assert_eq!(disk.source, Path::new("/etc/farshore/root.img"));
    assert_eq!(disk.listen, ListenAddress::Unix("/etc/farshore/data/run/nbd-web-root.sock".into()));
    let listen = format!("{WEB}listen = \"unix:run/x.sock\"\n");
    let config = parse(&with(&listen)).expect("valid");
    assert_eq!(config.machines[0].disks[0].listen, ListenAddress::Unix("/etc/farshore/run/x.sock".into()));
}

#[test]
fn store_urls_are_understood_or_refused() {
    let base = Path::new("/base");
    for (text, url) in [
        ("file:store", "file:///base/store"),
        ("file:./a/../store", "file:///base/store"),
        ("file:///abs/dir", "file:///abs/dir"),
        ("file:/abs", "file:///abs"),
        ("/abs", "file:///abs"),
        ("dir", "file:///base/dir"),
        ("az://c/p", "az://c/p"),
        ("s3://b", "s3://b"),
        ("gs://b/p", "gs://b/p"),
    ] {
        assert_eq!(store_url(text, base).as_deref(), Ok(url), "{text}");
    }
    for bad in ["", "file:", "file://host/dir", "ftp://x/y", "http://x", "az:", "s3://", "a\nb"] {
        assert!(store_url(bad, base).is_err(), "{bad:?}");
    }
}

#[test]
fn unknown_keys_are_named() {
    for (text, key) in [
        (with("[site2]\n"), "site2"),
        (with("[policy]\ncrash_evry = \"5s\"\n"), "crash_evry"),
        (with(&format!("{WEB}size = 5\n")), "size"),
    ] {
        let line = refusal(&text);
        assert!(line.contains(key) && line.contains("line "), "{line}");
    }
}

#[test]
fn names_that_are_paths_are_refused() {
    for bad in ["../web", "a/b", "/etc", "web.img", "Web", "-web", "", "web\\u0000"] {
        for text in [WEB.replace("\"web\"", &format!("{bad:?}")), WEB.replace("\"root\"", &format!("{bad:?}"))] {
            let line = refusal(&with(&text));
            assert!(line.contains("name"), "{line}");
        }
        refusal(&with("").replace("\"here\"", &format!("{bad:?}")));
    }
}

#[test]
fn duplicates_are_refused() {
    let disk = "[[machine.disk]]\nname = \"root\"\nsource = \"other.img\"\n";
    assert!(refusal(&with(&format!("{WEB}{disk}"))).contains("two disks"));
    assert!(refusal(&with(&format!("{WEB}{}", WEB.replace("root.img", "x.img")))).contains("two machines"));
    let same_source = "[[machine.disk]]\nname = \"data\"\nsource = \"./root.img\"\n";
    assert!(refusal(&with(&format!("{WEB}{same_source}"))).contains("same source"));
    let same_listen = "listen = \"tcp:127.0.0.1:10809\"\n";
    let second = format!("[[machine.disk]]\nname = \"data\"\nsource = \"d.img\"\n{same_listen}");
    assert!(refusal(&with(&format!("{WEB}{same_listen}{second}"))).contains("same address"));
    let over_tls = second.replace("tcp:", "tls:");
    assert!(refusal(&with(&format!("{WEB}{same_listen}{over_tls}"))).contains("same address"));
}

#[test]
fn a_listen_address_may_ask_for_tls() {
    let listen = format!("{WEB}listen = \"tls:nbd.example.org:10809\"\n");
    let config = parse(&with(&listen)).expect("valid");
    assert_eq!(config.machines[0].disks[0].listen, ListenAddress::Tls("nbd.example.org:10809".into()));
    for bad in ["tls:nbd.example.org", "tls:no*name:10809", "tls::10809", "ssl:nbd.example.org:10809"] {
        let line = refusal(&with(&format!("{WEB}listen = \"{bad}\"\n")));
        assert!(line.contains("machine web: disk root: listen") && line.contains("tls:HOST:PORT"), "{line}");
    }
}

#[test]
fn disks_whose_identities_collide_are_refused() {
    // Found by search: the names differ, the first 32 bits of their hashes do not.
    let (a, b) = colliding_names();
    let text = format!(
        "[[machine]]\nname = \"web\"\n[[machine.disk]]\nname = \"{a}\"\nsource = \"a\"\n\
         [[machine.disk]]\nname = \"{b}\"\nsource = \"b\"\n"
    );
    assert!(refusal(&with(&text)).contains("identity"));
}

/// Two names with one id; about 80,000 tries by the birthday bound, bounded here by two million.
fn colliding_names() -> (DiskName, DiskName) {
    let mut seen = BTreeMap::new();
    for n in 0..2_000_000u32 {
        let name: DiskName = format!("d{n}").parse().expect("valid name");
        if let Some(other) = seen.insert(name.id().0, name.clone()) {
            return (other, name);
        }
    }
    panic!("no collision among two million names");
}

#[test]
fn values_out_of_range_are_refused_with_the_range() {
    for (extra, says) in [
        ("[process_server]\nsegment_bytes = \"1B\"\n", "256KiB to 64MiB"),
        ("[process_server]\nsegment_bytes = \"8MB\"\n", "MiB"),
        ("[process_server]\nsegment_age = \"0s\"\n", "50ms to 1m"),
        ("[process_server]\nsegment_age = \"soon\"\n", "not a duration"),
        ("[process_server]\ntransport = \"tcp\"\n", "quic"),
        ("[process_server]\nlisten = \"nowhere\"\n", "host:port"),
        ("[policy]\ncrash_every = \"1ms\"\n", "1s to 1day"),
        ("[policy]\njournal_window = \"always\"\n", "policy.journal_window: \"always\" is not a duration"),
        ("[policy]\njournal_window = \"2000days\"\n", "policy.journal_window"),
        ("[policy]\nretention = \"24h:all, 7d:1x\"\n", "policy.retention: tier 2 (\"7d:1x\"): its interval is no"),
        ("[policy]\nretention = \"\"\n", "write AGE:INTERVAL"),
        ("[[machine]]\nname = \"web\"\n", "at least"),
        (
            "[[machine]]\nname = \"web\"\nqueue_bytes = \"1KiB\"\n[[machine.disk]]\nname=\"a\"\nsource=\"a\"\n",
            "1MiB to",
        ),
        ("[[machine]]\nname = \"web\"\nprocess_server = []\n", "1 to 16"),
        ("[[machine]]\nname = \"web\"\nprocess_server = \"host:0\"\n", "host:port"),
    ] {
        let line = refusal(&with(extra));
        let says = if says == "at least" { "1 to 64 disks" } else { says };
        assert!(line.contains(says), "{line:?} should say {says:?}");
    }
    for vault in ["file:store/vault", "file:.", "ftp://x"] {
        assert!(refusal(&of_two_stores(vault)).contains("store.vault"), "{vault}");
    }
    assert!(refusal("[site]\nname = \"here\"\n").contains("store"));
    assert!(refusal("not toml").contains("line 1"));
}

#[test]
fn streams_that_share_segments_need_one_store() {
    let both = of_two_stores("file:vault") + "[process_server]\nshare_entries = 1000\n";
    assert!(refusal(&both).contains("leave store.vault out"));
    assert!(parse(&both.replace("vault = \"file:vault\"\n", "")).is_ok());
}

#[test]
fn a_vault_store_is_another_store_or_none() {
    let vault = |text: &str| parse(&of_two_stores(text)).expect(text).store.vault;
    assert_eq!(vault("file:vault").as_deref(), Some("file:///etc/farshore/vault"));
    assert_eq!(vault("s3://far/away").as_deref(), Some("s3://far/away"));
    assert_eq!(vault("file:./store"), None, "repeating the cache store means one store");
    assert_eq!(vault("file:store-2").as_deref(), Some("file:///etc/farshore/store-2"), "a neighbour is not within");
}

#[test]
fn socket_paths_that_cannot_be_bound_are_refused() {
    let listen = format!("{WEB}listen = \"unix:{}\"\n", "x".repeat(200));
    assert!(refusal(&with(&listen)).contains("107"));
}
