//! Garbage collection with real roles: what the policy keeps comes back, what it does not keep is refused and leaves the store.

use std::path::PathBuf;

use crate::clones::share;
use crate::harness::site::{assert_same, difference};
use crate::harness::tools::run;
use crate::harness::{PATIENCE, Proc, Site, SiteOptions, eventually};

/// A mark: its id, its position, and the source as it was.
struct Marked {
    id: String,
    seq: u64,
    copy: PathBuf,
}

/// Writes all over the first 4 MiB, marks, and keeps a copy of the source.
fn write_and_mark(site: &Site, round: usize) -> Marked {
    let uri = site.nbd_uri("db", "root");
    run("qemu-io", &["-f", "raw", "-c", &format!("write -P 0x{:x} 0 4M", 0x11 + round), "-c", "flush", &uri]);
    site.wait_stored("db");
    let mark = site.json(&["mark", "db", "--label", &format!("round-{round}")]);
    let copy = site.path(&format!("kept-{round}"));
    std::fs::copy(site.source("db", "root"), &copy).expect("source is copied");
    let id = format!("id:{}", mark["id"].as_str().expect("a mark has an id"));
    Marked { id, seq: mark["seq"].as_u64().expect("a mark has a seq"), copy }
}

fn configure(site: &Site) {
    let text = std::fs::read_to_string(site.config()).expect("config");
    let policy = "[policy]\njournal_window = \"2s\"\nretention = \"2s:all\"\n";
    std::fs::write(site.config(), text.replacen("[policy]\n", policy, 1)).expect("config is written");
}

fn ranges_begin(site: &Site) -> u64 {
    site.json(&["points", "db"])["ranges"][0]["from_seq"].as_u64().unwrap_or(0)
}

fn segments(site: &Site) -> usize {
    let folder = site.store_url().trim_start_matches("file://").to_owned() + "/machine/db/stream/seg";
    let epochs = std::fs::read_dir(folder).expect("the stream's folder").map(|epoch| epoch.expect("entry").path());
    let slots = epochs.flat_map(|epoch| std::fs::read_dir(epoch).expect("an epoch's folder"));
    slots.filter(|slot| slot.as_ref().is_ok_and(|slot| !slot.file_name().to_string_lossy().ends_with("0000"))).count()
}

/// An applier looks at once when it has caught up, and then once a minute: so it is started anew until something is true.
fn appliers_until<T>(site: &Site, what: &str, mut condition: impl FnMut() -> Result<T, String>) -> T {
    eventually(what, || {
        let applier: Proc = site.start(&["applier"]);
        eventually("the applier has caught up", || {
            let status = site.control("applier", "GET", "/status", "")?;
            let epoch = status["machines"][0]["manifest_epoch"].as_u64().unwrap_or(0);
            let lag = status["machines"][0]["lag_seconds"].as_f64().unwrap_or(1.0);
            if epoch > 0 && lag == 0.0 { Ok(()) } else { Err(status.to_string()) }
        });
        let found = condition();
        applier.stop(PATIENCE);
        found
    })
}

/// A position that is served stays while policy lets its neighbours go, also when nobody holds it with a command of ours, and goes when
/// the serving ends.
#[test]
fn a_served_position_is_held_and_let_go() {
    let site = Site::new(SiteOptions::default());
    configure(&site);
    let _agent = site.start_agent("db");
    let mut marked = Vec::new();
    for round in 0..3 {
        let server = site.start(&["process-server"]);
        marked.push(write_and_mark(&site, round));
        server.stop(PATIENCE);
    }
    let served = &marked[1];
    // One record before a mark is a position, and no point.
    let seq = served.seq - 1;
    let socket = site.path("served.sock");
    let listen = format!("unix:{}", socket.display());
    let serving = site.start(&["serve", "db", "--disk", "root", "--at", &format!("seq:{seq}"), "--listen", &listen]);
    eventually("the disk is served", || socket.exists().then_some(()).ok_or_else(|| "no socket".into()));
    let asked = PathBuf::from(site.store_url().trim_start_matches("file://")).join("machine/db/hold");
    let requests = || std::fs::read_dir(&asked).map_or(0, Iterator::count);
    eventually("the position is asked for", || if requests() > 0 { Ok(()) } else { Err("no request".into()) });
    for round in 3..6 {
        let server = site.start(&["process-server"]);
        write_and_mark(&site, round);
        server.stop(PATIENCE);
    }
    let opens = |seq: u64| {
        let to = site.path(&format!("opened-{seq}")).to_string_lossy().into_owned();
        let ran = site.run(&["ls", "db", "--at", &format!("seq:{seq}")]);
        assert!(ran.code == 0 || ran.stderr.contains("lies before"), "{to}: {ran:?}");
        ran.code == 0
    };
    // Two positions before the horizon follows: those of the epoch before the served one go.
    appliers_until(&site, "the first epoch goes", || {
        if opens(marked[0].seq - 1) { Err("it opens".into()) } else { Ok(()) }
    });
    assert!(opens(seq), "the served position is held");
    let copied = site.path("served.raw");
    run(
        "qemu-img",
        &["convert", "-O", "raw", &format!("nbd+unix:///root?socket={}", socket.display()), &copied.to_string_lossy()],
    );
    assert_same(&served.copy, &copied);
    serving.stop(PATIENCE);
    appliers_until(&site, "the position goes when nobody reads it", || {
        if opens(seq) { Err("it opens".into()) } else { Ok(()) }
    });
}

#[test]
fn what_the_policy_keeps_comes_back_and_the_rest_leaves_the_store() {
    let site = Site::new(SiteOptions::default());
    configure(&site);
    let _agent = site.start_agent("db");
    let mut marked = Vec::new();
    for round in 0..4 {
        // Each process server is an epoch.
        let server = site.start(&["process-server"]);
        marked.push(write_and_mark(&site, round));
        server.stop(PATIENCE);
    }
    let _server = site.start(&["process-server"]);
    let last = write_and_mark(&site, 4);
    // The pin comes before the policy: an applier of a site that keeps everything takes it.
    let text = std::fs::read_to_string(site.config()).expect("config");
    std::fs::write(site.config(), text.replacen("2s:all", "1y:all", 1).replacen("\"2s\"", "\"1d\"", 1))
        .expect("written");
    let applier = site.start(&["applier"]);
    eventually("the applier knows the point", || {
        let out = site.run(&["pin", "db", &marked[1].id]);
        if out.code == 0 { Ok(()) } else { Err(out.stderr) }
    });
    applier.stop(PATIENCE);
    let before = segments(&site);
    std::fs::write(site.config(), text).expect("config is written");

    appliers_until(&site, "the horizon has passed the first epochs", || {
        let begin = ranges_begin(&site);
        if begin > marked[2].seq { Ok(()) } else { Err(format!("every position opens from {begin} on")) }
    });
    appliers_until(&site, "segments leave the store", || {
        let left = segments(&site);
        if left < before { Ok(()) } else { Err(format!("{left} of {before} segments are left")) }
    });
    // Each applier looks once, and may have looked while the point was younger than the policy keeps it.
    appliers_until(&site, "the first point is dropped", || {
        let points = site.json(&["points", "db"])["points"].to_string();
        let id = marked[0].id.trim_start_matches("id:");
        if points.contains(id) { Err(points) } else { Ok(()) }
    });

    let listed = site.run(&["points", "db"]);
    assert!(listed.stdout.contains("these points alone open"), "{listed:?}");
    let restored = site.restore("db", &marked[1].id, "pinned");
    assert_same(&marked[1].copy, &restored[0].1);
    assert!(difference(&marked[0].copy, &restored[0].1).is_some(), "the check above can fail");
    let latest = site.restore("db", &last.id, "latest");
    assert_same(&last.copy, &latest[0].1);
    let to = site.path("refused").to_string_lossy().into_owned();
    let refused =
        site.run(&["restore", "db", "--at", &format!("seq:{}", marked[0].seq), "--to", &to, "--format", "raw"]);
    assert!(refused.code == 2 && refused.stderr.contains("lies before"), "{refused:?}");
    assert!(refused.stderr.contains(&format!("seq:{}", marked[1].seq)), "it names the nearest that opens: {refused:?}");
    let verified = site.run(&["verify", "db"]);
    assert_eq!(verified.code, 0, "{verified:?}");
    let explained = site.json(&["gc", "db", "--dry-run"]);
    assert!(explained["objects"].is_array(), "{explained}");
    assert_eq!(site.run(&["gc", "db"]).code, 2, "it only explains");
}

/// What a drain brought in stays as long as anybody reads it; then the shared collection condemns it, waits until every stream
/// has seen that, and deletes it.
#[test]
fn what_is_shared_and_read_by_nobody_leaves_the_store() {
    let site = Site::new(SiteOptions::default());
    configure(&site);
    share(&site);
    let mut source = std::fs::read(site.source("db", "root")).expect("source is read");
    source[..4 << 20].iter_mut().enumerate().for_each(|(at, byte)| *byte = (at / 4096 * 7 + at % 253) as u8);
    std::fs::write(site.source("db", "root"), source).expect("source is written");
    let _agent = site.start_agent("db");
    let mut marked = Vec::new();
    for round in 0..5 {
        let server = site.start(&["process-server"]);
        marked.push(write_and_mark(&site, round));
        server.stop(PATIENCE);
    }
    let first = PathBuf::from(site.store_url().trim_start_matches("file://"))
        .join("machine/db/stream/seg")
        .join(format!("{:016x}", 1));
    let brought_in = || std::fs::read_dir(&first).map_or(0, Iterator::count);
    appliers_until(&site, "the horizon has passed the first epochs", || {
        let begin = ranges_begin(&site);
        if begin > marked[2].seq { Ok(()) } else { Err(format!("every position opens from {begin} on")) }
    });
    let before = brought_in();
    assert!(before > 0, "what may be shared is not deleted within its stream");
    let explained = site.json(&["gc", "--shared", "--dry-run"]);
    assert_eq!(explained["condemned"][0]["epoch"], 1, "{explained}");
    let condemned = site.json(&["gc", "--shared"]);
    assert_eq!(condemned, explained, "a dry run says the same");
    let waits = site.json(&["gc", "--shared"]);
    assert_eq!((&waits["waits_for"][0], brought_in()), (&"db".into(), before), "no stream has seen the list");
    let _server = site.start(&["process-server"]);
    let last = write_and_mark(&site, 5);
    let deleted = site.json(&["gc", "--shared"]);
    assert!(deleted["deleted"].as_array().is_some_and(|deleted| !deleted.is_empty()), "{deleted}");
    assert!(brought_in() < before, "{deleted}");
    let latest = site.restore("db", &last.id, "latest");
    assert_same(&last.copy, &latest[0].1);
    let verified = site.run(&["verify", "db"]);
    assert_eq!(verified.code, 0, "{verified:?}");
}
