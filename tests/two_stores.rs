//! A cache store and vault stores of their own: two appliers follow one stream at once, each into its own; then the cache store
//! is gone for good, and each vault store alone gives everything back. Or one of the appliers is away: the cache store keeps what it needs.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use crate::harness::judge::{Kept, keep_point};
use crate::harness::load::{Load, Writer};
use crate::harness::site::{Ran, assert_same, difference};
use crate::harness::tools::try_run;
use crate::harness::{PATIENCE, Proc, Seed, Site, SiteOptions, eventually};

fn options(vault: &'static str) -> SiteOptions {
    let machines = vec![("db", vec![("root", 24 << 20), ("data", 16 << 20)])];
    SiteOptions { machines, vault: Some(vault), ..SiteOptions::default() }
}

fn load(site: &Site, seed: u64) -> Writer {
    let pace = Some(Duration::from_millis(5));
    let load = Load { in_flight: 8, start: 0, bytes: 8 << 20, blocks_max: 16, pace };
    Writer::start(site, load, Seed::from_environment(seed))
}

/// Waits for more writes and until the log has some of them, under load: then every role is up.
fn wait_stored(site: &Site, writer: &Writer) {
    let stored = || site.agent_status("db").map(|status| status["stored"]["seq"].as_u64().unwrap_or(0));
    let before = stored().expect("the agent answers");
    wait_written(writer, 200);
    eventually("the log grows", || match stored()? {
        seq if seq > before + 200 => Ok(()),
        seq => Err(format!("seq {seq}")),
    });
}

fn wait_written(writer: &Writer, more: u64) {
    let before = writer.written();
    eventually("the client writes", || match writer.written() {
        written if written > before + more => Ok(()),
        written => Err(format!("{written} operations")),
    });
}

/// Waits until an applier has promoted everything up to `head` and its replica stands there, equal to the source.
fn wait_processed(site: &Site, source: &Site, head: u64) {
    eventually("the applier stands at the end", || {
        let status = site.control("applier", "GET", "/status", "")?;
        let machine = &status["machines"][0];
        let done = machine["processed_seq"] == head && machine["replica"]["seq"] == head;
        if done { Ok(()) } else { Err(format!("{status:#}")) }
    });
    for disk in ["root", "data"] {
        assert_same(&source.source("db", disk), &site.data_dir().join(format!("replica/db/{disk}.raw")));
    }
}

/// A vault store alone, and the key on paper.
struct Alone<'a> {
    site: &'a Site,
    store: String,
    key: String,
    out: PathBuf,
}

impl<'a> Alone<'a> {
    fn new(site: &'a Site, vault: &str) -> Self {
        let key = site.path(&format!("{vault}.txt"));
        std::fs::write(&key, &site.recovery_key).expect("key is written");
        let store = format!("file://{}", site.path(vault).to_string_lossy());
        Self { site, store, key: key.to_string_lossy().into_owned(), out: site.path(&format!("{vault}-out")) }
    }

    fn run(&self, args: &[&str]) -> Ran {
        self.site.run_bare(&[&["--store", &self.store, "--key", &self.key], args].concat())
    }

    fn works(&self, args: &[&str]) -> Ran {
        let ran = self.run(args);
        assert_eq!(ran.code, 0, "{args:?} works with {}: {ran:?}", self.store);
        ran
    }

    fn restore(&self, at: &str) -> [PathBuf; 2] {
        let to = self.out.join(at.replace(':', "-"));
        self.works(&["restore", "db", "--at", at, "--to", &to.to_string_lossy(), "--format", "raw"]);
        ["root", "data"].map(|disk| to.join(format!("db-{disk}.raw")))
    }

    fn serve(&self, disk: &str) -> Proc {
        let socket = self.out.join(format!("{disk}.sock"));
        let listen = format!("unix:{}", socket.to_string_lossy());
        let mut serve = self.site.command();
        serve.args(["--store", &self.store, "--key", &self.key, "serve", "db", "--disk", disk, "--at", "latest"]);
        serve.args(["--listen", &listen]);
        let served = Proc::start("serve", serve, &self.out.join("serve.log"));
        eventually("what is served equals the source", || {
            let target = format!("nbd+unix:///{disk}?socket={}", socket.to_string_lossy());
            let source = self.site.source("db", disk).to_string_lossy().into_owned();
            let out = try_run("qemu-img", &["compare", "-f", "raw", &source, &target]);
            if out.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&out.stderr).into_owned()) }
        });
        served
    }
}

/// What a vault store alone must give: the newest content, a point of before, a whole log, a served disk.
fn judge(site: &Site, vault: &str, kept: &Kept) {
    let alone = Alone::new(site, vault);
    let listed: serde_json::Value =
        serde_json::from_str(&alone.works(&["--json", "points", "db"]).stdout).expect("one object");
    let point = listed["points"].as_array().expect("points").iter().find(|point| point["id"] == kept.id());
    let seq = point.expect("the kept point is there")["seq"].as_u64().expect("a number");
    let latest = alone.restore("latest");
    for (disk, restored) in ["root", "data"].iter().zip(&latest) {
        assert_same(&site.source("db", disk), restored);
    }
    for ((_, before), restored) in kept.files.iter().zip(&alone.restore(&format!("seq:{seq}"))) {
        assert_same(before, restored);
        assert!(
            latest.iter().all(|latest| difference(latest, before).is_some()),
            "the control: they are not all alike"
        );
    }
    alone.works(&["verify", "db"]);
    alone.serve("root").kill();
}

#[test]
fn each_of_two_vault_stores_is_enough_when_the_cache_store_is_gone() {
    let site = Site::new(options("vault-a"));
    let other = site.sibling("other", SiteOptions { store: Some(site.store_url()), ..options("vault-b") });
    let server = site.start(&["process-server"]);
    let agent = site.start_agent("db");
    let (first, second) = (site.start(&["applier"]), other.start(&["applier"]));
    let writer = load(&site, 501);
    wait_stored(&site, &writer);
    eventually("both are consumers", || {
        let listed = site.json(&["consumers", "db"]);
        if listed["consumers"].as_array().is_some_and(|all| all.len() == 2) {
            Ok(())
        } else {
            Err(format!("{listed:#}"))
        }
    });
    // The stream goes on in another epoch, and one of the appliers dies under load and comes back.
    assert!(server.stop(crate::harness::PATIENCE).success());
    let server = site.start(&["process-server"]);
    second.kill();
    wait_stored(&site, &writer);
    let second = other.start(&["applier"]);
    let kept = keep_point(&site, "kept");
    wait_written(&writer, 200);
    writer.finish();
    let head = site.wait_stored("db");
    wait_processed(&site, &site, head);
    wait_processed(&other, &site, head);
    for of in [&site, &other] {
        let status = of.control("applier", "GET", "/status", "").expect("status");
        assert!(status["machines"][0]["last_error"].is_null(), "neither fences the other: {status:#}");
        assert_eq!(of.run(&["verify", "db"]).code, 0);
    }
    agent.kill();
    server.kill();
    std::fs::rename(site.path("site/store"), site.path("gone")).expect("the cache store disappears");
    eventually("the applier says that the cache store is lost", || {
        let status = site.control("applier", "GET", "/status", "")?;
        let said = status["machines"][0]["last_error"].as_str().unwrap_or_default().to_owned();
        let names = said.contains("lost, emptied or replaced") && said.contains(&site.vault_url());
        if names { Ok(()) } else { Err(format!("{status:#}")) }
    });
    first.kill();
    second.kill();
    let told = site.run(&["points", "db"]);
    assert_eq!(told.code, 2, "{told:?}");
    assert!(told.stderr.contains(&format!("--store {}", site.vault_url())), "it says how to go on: {told:?}");
    judge(&site, "vault-a", &kept);
    judge(&site, "vault-b", &kept);
    // The judge's control: a vault store that lacks one segment is not enough.
    let segment = newest_segment(&site.path("vault-b/machine/db/stream/seg"));
    std::fs::remove_file(&segment).expect("a segment is removed");
    assert_eq!(Alone::new(&site, "vault-b").run(&["verify", "db"]).code, 3, "{} is missing", segment.display());
}

fn newest_segment(folder: &std::path::Path) -> PathBuf {
    let newest = |folder: &std::path::Path| {
        let names = std::fs::read_dir(folder).expect("listed").map(|entry| entry.expect("entry").path());
        names.max().expect("something is there")
    };
    newest(&newest(folder))
}

/// Epochs and paths of the slots of the stream in the cache store.
fn slots(site: &Site) -> BTreeSet<(u64, PathBuf)> {
    let epochs = std::fs::read_dir(site.path("site/store/machine/db/stream/seg")).expect("the stream's folder");
    let slots = epochs.map(|epoch| epoch.expect("entry").path()).flat_map(|epoch| {
        let name = epoch.file_name().expect("a name").to_string_lossy().into_owned();
        let number = u64::from_str_radix(&name, 16).expect("epochs are numbers");
        std::fs::read_dir(epoch).expect("listed").map(move |slot| (number, slot.expect("entry").path()))
    });
    slots.collect()
}

/// An applier collects at once when it has caught up, and then once a minute: so it is started anew until something is true.
fn appliers_until(site: &Site, what: &str, mut holds: impl FnMut() -> bool) {
    eventually(what, || {
        let applier = site.start(&["applier"]);
        let mut looks = 0;
        let done = eventually("a look", || {
            looks += 1;
            if holds() {
                Ok(true)
            } else if looks > 100 {
                Ok(false)
            } else {
                Err("not yet".to_owned())
            }
        });
        // It may be so early that it cannot be told to stop yet.
        applier.stop(PATIENCE);
        if done { Ok(()) } else { Err(site.run(&["--json", "consumers", "db"]).stdout) }
    });
}

#[test]
fn the_cache_store_keeps_what_an_applier_that_is_away_needs_and_shrinks_when_it_is_back() {
    let site = Site::new(options("vault-a"));
    let other = site.sibling("other", SiteOptions { store: Some(site.store_url()), ..options("vault-b") });
    // While it is alone it must not trim what the other one has yet to copy.
    let text = std::fs::read_to_string(other.config()).expect("config");
    std::fs::write(other.config(), text.replacen("[applier]\n", "[applier]\ngc = false\n", 1))
        .expect("config is written");
    let agent = site.start_agent("db");
    // The stream goes on in another epoch with each process server.
    let write = |seed: u64| {
        let server = site.start(&["process-server"]);
        let writer = load(&site, seed);
        wait_written(&writer, 60);
        writer.finish();
        (site.wait_stored("db"), server)
    };
    write(510).1.kill();
    let (head, server) = write(511);
    // It is a consumer before the other one may trim anything.
    let second = other.start(&["applier"]);
    wait_processed(&other, &site, head);
    let first = site.start(&["applier"]);
    wait_processed(&site, &site, head);
    let listed = site.json(&["consumers", "db"]);
    let consumers = listed["consumers"].as_array().expect("consumers");
    assert!(consumers.len() == 2 && listed["trimmed"].as_u64().is_some_and(|epoch| epoch < 2), "{listed:#}");
    let away = consumers.iter().find(|consumer| consumer["vault"] == other.vault_url()).expect("it is one of them");
    let (name, cursor) = (away["name"].as_str().expect("a name").to_owned(), away["epoch"].as_u64().expect("an epoch"));
    assert!(second.stop(PATIENCE).success());
    server.kill();
    let mut last = head;
    for seed in 512..515 {
        let (head, server) = write(seed);
        wait_processed(&site, &site, head);
        server.kill();
        last = head;
    }
    assert!(first.stop(PATIENCE).success());
    let before = slots(&site);
    let needed: BTreeSet<_> = before.iter().filter(|(epoch, _)| *epoch >= cursor).cloned().collect();
    assert!(needed.len() > 6 && needed.last().expect("some").0 > cursor + 1, "{needed:?}");
    appliers_until(&site, "all goes that the one that is away has", || {
        slots(&site).first().is_some_and(|(epoch, _)| *epoch >= cursor)
    });
    assert_eq!(slots(&site), needed, "nothing goes that it needs");
    // It is back, and then the other one lets everything go but the last epoch.
    let second = other.start(&["applier"]);
    wait_processed(&other, &site, last);
    assert!(second.stop(PATIENCE).success());
    let newest = needed.last().expect("some").0;
    appliers_until(&site, "what both have goes", || slots(&site).first().is_some_and(|(epoch, _)| *epoch == newest));
    assert_eq!(site.json(&["consumers", "db"])["trimmed"], newest - 1);
    for of in [&site, &other] {
        assert_eq!(of.run(&["verify", "db"]).code, 0);
    }
    // The stream goes on, and each vault store alone has all of it.
    let (head, server) = write(515);
    for of in [&site, &other] {
        let applier = of.start(&["applier"]);
        wait_processed(of, &site, head);
        assert!(applier.stop(PATIENCE).success());
    }
    agent.kill();
    server.kill();
    for vault in ["vault-a", "vault-b"] {
        let alone = Alone::new(&site, vault);
        for (disk, restored) in ["root", "data"].iter().zip(&alone.restore("latest")) {
            assert_same(&site.source("db", disk), restored);
        }
        alone.works(&["verify", "db"]);
    }
    let key = Alone::new(&site, "vault-a").key;
    for command in ["points", "verify"] {
        let told = site.run_bare(&["--store", &site.store_url(), "--key", &key, command, "db"]);
        let says = told.code == 2 && told.stderr.contains("behind epoch") && told.stderr.contains(&other.vault_url());
        assert!(says, "the cache store alone says where it is: {told:?}");
    }
    // One that is gone for good is forgotten by its name.
    assert_eq!(site.run(&["consumers", "db", "--forget", "0000000000000000"]).code, 2);
    assert_eq!(site.json(&["consumers", "db", "--forget", &name])["forgotten"], name.as_str());
    let left = site.json(&["consumers", "db"]);
    assert!(left["consumers"].as_array().is_some_and(|left| left.len() == 1 && left[0]["name"] != name.as_str()));
}

#[test]
fn purge_empties_the_cache_store_and_the_vault_store() {
    let site = Site::new(options("vault"));
    let server = site.start(&["process-server"]);
    let agent = site.start_agent("db");
    let applier = site.start(&["applier"]);
    let writer = load(&site, 502);
    wait_written(&writer, 50);
    writer.finish();
    let head = site.wait_stored("db");
    wait_processed(&site, &site, head);
    [agent, applier, server].into_iter().for_each(Proc::kill);
    let machine = |store: &str| site.path(&format!("{store}/machine/db"));
    let files = |store: &str| walk(&machine(store));
    assert!(files("site/store") > 2 && files("vault") > 4);
    let purged = site.json(&["unprotect", "db", "--purge"]);
    assert_eq!(purged["purged"], true, "{purged:#}");
    assert_eq!((files("site/store"), files("vault")), (0, 0));
    assert!(site.path("vault/vault").exists() && site.path("site/store/vault").exists(), "the vault itself stays");
}

/// Files below a folder.
fn walk(folder: &std::path::Path) -> usize {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    let entries = entries.map(|entry| entry.expect("entry").path());
    entries.map(|path| if path.is_dir() { walk(&path) } else { 1 }).sum()
}
