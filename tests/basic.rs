//! The whole path with nothing going wrong: real clients write, the store can give it back in every format.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::harness::site::{assert_same, difference};
use crate::harness::tools::{run, try_run};
use crate::harness::{PATIENCE, Seed, Site, SiteOptions, eventually};

/// Writes with three real clients at once: patterns with FUA and holes, verified random I/O, and a bulk copy.
fn write_with_real_clients(site: &Site) {
    let (root, data) = (site.nbd_uri("db", "root"), site.nbd_uri("db", "data"));
    let io = |uri: &str, commands: &[&str]| {
        let mut args = vec!["-t", "none", "-f", "raw"];
        commands.iter().for_each(|c| args.extend(["-c", c]));
        args.push(uri);
        run("qemu-io", &args)
    };
    io(&root, &["write -P 0xa1 0 1M", "write -f -P 0xa2 4k 64k", "write -z 128k 64k", "discard 256k 128k", "flush"]);
    io(&data, &["aio_write -P 0xb1 0 2M", "aio_write -P 0xb2 8M 1M", "aio_flush", "write -P 0xb3 1536k 512"]);
    let job = format!(
        "fio --name=mixed --ioengine=nbd --uri={root} --rw=randrw --bs=4k --iodepth=16 --size=8M --offset=16M \
         --verify=crc32c --verify_fatal=1 --verify_state_save=0 --randseed=7 --output-format=terse"
    );
    let words: Vec<&str> = job.split_whitespace().collect();
    run(words[0], &words[1..]);
}

#[test]
fn what_real_clients_wrote_comes_back_in_every_format() {
    let site = Site::new(SiteOptions::default());
    let _server = site.start(&["process-server"]);
    let _applier = site.start(&["applier"]);
    let _agent = site.start_agent("db");
    write_with_real_clients(&site);
    let seq = site.wait_stored("db");

    let restored = site.restore("db", "latest", "raw");
    site.assert_equals_source("db", &restored);
    for (format, extension, qemu) in [("qcow2", "qcow2", "qcow2"), ("vhd", "vhd", "vpc")] {
        let to = site.path(format);
        let ran = site.run(&[
            "restore",
            "db",
            "--at",
            &format!("seq:{seq}"),
            "--to",
            &to.to_string_lossy(),
            "--format",
            format,
        ]);
        assert_eq!(ran.code, 0, "restore to {format} works: {ran:?}");
        for disk in ["root", "data"] {
            let image = to.join(format!("db-{disk}.{extension}"));
            let source = site.source("db", disk);
            run("qemu-img", &["compare", "-f", "raw", "-F", qemu, &source.to_string_lossy(), &image.to_string_lossy()]);
        }
    }
    assert_sparse(&restored[0].1);

    let verified = site.run(&["verify", "db"]);
    assert_eq!(verified.code, 0, "an undamaged store verifies: {verified:?}");
    eventually("the replica equals the source", || {
        let replica = site.data_dir().join("replica/db/root.raw");
        if !replica.exists() {
            return Err("no replica yet".into());
        }
        difference(&site.source("db", "root"), &replica).map_or(Ok(()), Err)
    });
}

/// A restored disk takes the space of its data, not of its size.
fn assert_sparse(path: &std::path::Path) {
    use std::os::unix::fs::MetadataExt;
    let meta = std::fs::metadata(path).expect("restored file has metadata");
    assert!(
        meta.blocks() * 512 < meta.len() / 2,
        "{} is sparse: {} of {}",
        path.display(),
        meta.blocks() * 512,
        meta.len()
    );
}

#[test]
fn earlier_positions_come_back_as_they_were() {
    let site = Site::new(SiteOptions::default());
    let _server = site.start(&["process-server"]);
    let _applier = site.start(&["applier"]);
    let _agent = site.start_agent("db");
    let uri = site.nbd_uri("db", "root");
    let mut kept = Vec::new();
    for (round, pattern) in ["0x11", "0x22", "0x33"].into_iter().enumerate() {
        run("qemu-io", &["-f", "raw", "-c", &format!("write -P {pattern} {}k 512k", 256 * round), "-c", "flush", &uri]);
        site.wait_stored("db");
        let mark = site.json(&["mark", "db", "--label", &format!("round-{round}")]);
        let copy = site.path(&format!("kept-{round}"));
        std::fs::copy(site.source("db", "root"), &copy).expect("source is copied");
        kept.push((mark, copy));
    }
    for (round, (mark, copy)) in kept.iter().enumerate() {
        let id = mark["id"].as_str().expect("a mark has an id").to_owned();
        let restored = site.restore("db", &format!("id:{id}"), &format!("by-id-{round}"));
        assert_same(copy, &restored[0].1);
        let seq = mark["seq"].as_u64().expect("a mark has a seq");
        let served = site.path(&format!("served-{round}.sock"));
        let listen = format!("unix:{}", served.to_string_lossy());
        let _serve = site.start(&["serve", "db", "--disk", "root", "--at", &format!("seq:{seq}"), "--listen", &listen]);
        eventually("the position is served", || {
            let target = format!("nbd+unix:///root?socket={}", served.to_string_lossy());
            let out = try_run("qemu-img", &["compare", "-f", "raw", "-F", "raw", &copy.to_string_lossy(), &target]);
            if out.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&out.stderr).into_owned()) }
        });
    }
    let first = kept[0].0["id"].as_str().expect("a mark has an id");
    eventually("the applier knows the point", || {
        let out = site.run(&["pin", "db", &format!("id:{first}")]);
        if out.code == 0 { Ok(()) } else { Err(out.stderr) }
    });
    assert!(is_pinned(&site, first));
    site.json(&["unpin", "db", first]);
    assert!(!is_pinned(&site, first));
    let unknown = site.run(&["pin", "db", &"0".repeat(32)]);
    assert!(unknown.code == 1 && unknown.stderr.contains(&"0".repeat(32)), "{unknown:?}");
    // The check above can fail: an earlier position is not the later one.
    assert!(difference(&kept[0].1, &kept[2].1).is_some());
    let points = site.json(&["points", "db"]);
    let labels = points.to_string();
    assert!((0..3).all(|r| labels.contains(&format!("round-{r}"))), "points lists every mark: {labels}");
}

#[test]
fn quic_carries_the_same_stream() {
    let site = Site::new(SiteOptions { transport: "quic", ..SiteOptions::default() });
    let _server = site.start(&["process-server"]);
    let _agent = site.start_agent("db");
    write_with_real_clients(&site);
    site.wait_stored("db");
    let restored = site.restore("db", "latest", "raw");
    site.assert_equals_source("db", &restored);
}

#[test]
fn up_runs_every_role_and_restarts_where_it_stopped() {
    let site = Site::new(SiteOptions::default());
    let mut before = 0;
    for round in 0..2 {
        let up = site.start(&["up"]);
        eventually("the agent answers", || site.agent_status("db").map(|_| ()));
        let uri = site.nbd_uri("db", "data");
        eventually("the disk is served", || {
            let out = try_run("qemu-io", &["-f", "raw", "-c", &format!("write -P 0x5{round} {round}M 1M"), &uri]);
            if out.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&out.stderr).into_owned()) }
        });
        let seq = site.wait_stored("db");
        assert!(seq > before, "the sequence goes on after a restart: {before} then {seq}");
        before = seq;
        if round == 1 {
            let incarnations = site.agent_status("db").expect("agent answers")["counters"]["incarnations"].clone();
            assert_eq!(incarnations, 0, "a clean stop needs no new incarnation and no drain");
        }
        assert!(up.stop(PATIENCE).success(), "a stop by signal is clean");
    }
    let restored = site.restore("db", "latest", "raw");
    site.assert_equals_source("db", &restored);
}

fn is_pinned(site: &Site, id: &str) -> bool {
    let view = site.json(&["points", "db"]);
    let point = view["points"].as_array().expect("a list").iter().find(|point| point["id"] == id).expect("listed");
    point["pinned"].as_bool().expect("said")
}

#[test]
fn the_stages_of_running_roles_say_what_they_move() {
    let site = Site::new(SiteOptions::default());
    let _server = site.start(&["process-server"]);
    let _agent = site.start_agent("db");
    site.wait_stored("db");
    let uri = site.nbd_uri("db", "root");
    let shown = std::thread::scope(|scope| {
        let looking = scope.spawn(|| site.json(&["status", "--stages", "--for", "3s"]));
        // Other bytes each time, until the look is over.
        let mut round = 0;
        while !looking.is_finished() {
            run("qemu-io", &["-f", "raw", "-c", &format!("write -P {} 0 4M", round % 251 + 1), "-c", "flush", &uri]);
            round += 1;
        }
        looking.join().expect("it does not panic")
    });
    let stages = shown["process_server"].as_array().expect("stages");
    let names: Vec<_> = stages.iter().map(|stage| stage["stage"].as_str().unwrap_or_default()).collect();
    assert_eq!(names, ["ingest", "pipeline", "upload"]);
    for stage in stages {
        assert!(stage["bytes_per_second"].as_u64() > Some(0), "{shown}");
        assert!(stage["busy_percent"].as_f64().is_some_and(|busy| (0.0..=100.0).contains(&busy)), "{shown}");
    }
    let captured = &shown["agents"][0]["stages"][0];
    assert!(captured["stage"] == "capture" && captured["bytes_per_second"].as_u64() > Some(1 << 20), "{shown}");
    let words = site.run(&["status", "--stages", "--for", "200ms"]);
    assert!(words.code == 0 && words.stdout.contains("process-server pipeline"), "{words:?}");
}

/// Of one task of the applier on the only machine, by the name of its stage.
fn applier_stages(shown: &Value, task: &str) -> BTreeMap<String, Value> {
    let tasks = shown["tasks"].as_array().unwrap_or_else(|| panic!("tasks in {shown}"));
    let task = tasks.iter().find(|one| one["task"] == task).unwrap_or_else(|| panic!("{task} in {shown}"));
    let stages = task["stages"].as_array().expect("stages").iter();
    stages.map(|stage| (stage["stage"].as_str().expect("a name").to_owned(), stage.clone())).collect()
}

fn bytes_total(site: &Site, task: &str, stage: &str) -> u64 {
    let status = site.control("applier", "GET", "/status", "").expect("the applier answers");
    applier_stages(&status["machines"][0], task)[stage]["bytes_total"].as_u64().expect("bytes")
}

#[test]
fn the_stages_of_an_applier_say_what_was_applied_and_nothing_where_nothing_is() {
    const MIB: u64 = 1 << 20;
    let site = Site::new(SiteOptions::default());
    let _server = site.start(&["process-server"]);
    let _agent = site.start_agent("db");
    let applier = site.start(&["applier"]);
    let at_the_end = || {
        let seq = site.wait_stored("db");
        eventually("the replica stands at the end", || {
            let replica = site.control("applier", "GET", "/status", "")?["machines"][0]["replica"].clone();
            let there = replica["seq"] == seq && replica["moving_to"].is_null();
            if there { Ok(()) } else { Err(format!("{replica:#}")) }
        });
    };
    at_the_end();

    // Bytes that differ from one another and are written once: as many are opened, written and digested.
    let mut seed = Seed::from_environment(21);
    let random: Vec<u8> = (0..4 * MIB / 8).flat_map(|_| seed.next().to_le_bytes()).collect();
    std::fs::write(site.path("random"), random).expect("written");
    let count = |task, stage| bytes_total(&site, task, stage);
    let stages = [("follower", "promote"), ("replica", "fetch"), ("replica", "open"), ("replica", "write")];
    let before = stages.map(|(task, stage)| count(task, stage));
    let digested = count("digests", "digest");
    let write = format!("write -s {} 8M 4M", site.path("random").to_string_lossy());
    run("qemu-io", &["-f", "raw", "-c", &write, "-c", "write -z 16M 4M", "-c", "flush", &site.nbd_uri("db", "root")]);
    at_the_end();
    let [promoted, fetched, opened, written] = std::array::from_fn(|n| count(stages[n].0, stages[n].1) - before[n]);
    assert_eq!(written, 4 * MIB, "zeros are not counted");
    let near = 4 * MIB..5 * MIB;
    let all = [promoted, fetched, opened];
    assert!(all.iter().all(|bytes| near.contains(bytes)), "{all:?}");
    eventually("the point behind it is digested", || {
        let more = count("digests", "digest") - digested;
        if more >= 4 * MIB { Ok(()) } else { Err(format!("{more} bytes")) }
    });

    // Nothing is written: nothing is read, opened or applied.
    let idle = site.json(&["status", "--stages", "--for", "1s"]);
    let machine = &idle["applier"][0];
    for task in ["follower", "replica", "digests"] {
        for (name, stage) in applier_stages(machine, task) {
            let may_be_busy = ["promote", "map", "collect", "digest"].contains(&name.as_str());
            assert!(may_be_busy || stage["busy_percent"] == 0.0, "{idle:#}");
            assert!(may_be_busy || stage["bytes_per_second"] == 0, "{idle:#}");
        }
    }
    assert!(machine["tasks"][1]["bound_by"].is_null(), "{idle:#}");
    let words = site.run(&["status", "--stages", "--for", "200ms"]);
    assert!(words.code == 0 && words.stdout.contains("db replica takes what comes"), "{words:?}");

    assert!(applier.stop(PATIENCE).success());
    let words = site.run(&["status", "--stages", "--for", "200ms"]);
    assert!(words.code == 0 && words.stdout.contains("applier: not running here"), "{words:?}");
}
