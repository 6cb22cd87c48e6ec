//! Outages: source writes go on, modes are events, and everything catches up by itself.

use crate::harness::mounted::Mounted;
use crate::harness::tools::run;
use crate::harness::{Seed, Site, SiteOptions, eventually};

/// Writes `count` random blocks of 64 KiB that do not compress; each must succeed.
fn write_noise(site: &Site, disk: &str, seed: &mut Seed, count: u64, blocks: u64) {
    let runtime = tokio::runtime::Runtime::new().expect("runtime starts");
    runtime.block_on(async {
        let client = nbd::Client::connect(&site.nbd("db", disk), disk).await.expect("client connects");
        for _ in 0..count {
            let block: Vec<u8> = (0..8192).flat_map(|_| seed.next().to_le_bytes()).collect();
            client.write(seed.below(blocks) * 65536, block.into(), false).await.expect("a source write never fails");
        }
        client.flush().await.expect("a source flush never fails");
    });
}

fn mode(site: &Site) -> Result<String, String> {
    Ok(site.agent_status("db")?["mode"].as_str().unwrap_or_default().to_owned())
}

fn wait_mode(site: &Site, wanted: &str) {
    eventually(&format!("mode {wanted}"), || match mode(site)? {
        mode if mode == wanted => Ok(()),
        mode => Err(mode),
    });
}

fn event_kinds(site: &Site) -> Vec<String> {
    let status = site.agent_status("db").expect("agent answers");
    let events = status["events"].as_array().cloned().unwrap_or_default();
    events.iter().filter_map(|e| e["kind"].as_str().map(str::to_owned)).collect()
}

fn small_queues() -> SiteOptions {
    SiteOptions { queue_bytes: "2MiB", spool_bytes: "4MiB", ..SiteOptions::default() }
}

#[test]
fn without_a_gateway_the_spool_fills_then_bitmap_mode_then_it_catches_up() {
    let mut seed = Seed::from_environment(11);
    let site = Site::new(small_queues());
    let server = site.start(&["process-server"]);
    let _agent = site.start_agent("db");
    run("qemu-io", &["-f", "raw", "-c", "write -P 0x3c 48M 1M", "-c", "flush", &site.nbd_uri("db", "root")]);
    write_noise(&site, "root", &mut seed, 8, 512);
    let before = site.wait_stored("db");
    server.kill();
    write_noise(&site, "root", &mut seed, 60, 512);
    eventually("the spool is used", || {
        let status = site.agent_status("db")?;
        if status["spool_bytes_used"].as_u64() > Some(0) || status["mode"] == "bitmap" {
            Ok(())
        } else {
            Err(status.to_string())
        }
    });
    write_noise(&site, "root", &mut seed, 200, 512);
    wait_mode(&site, "bitmap");
    // A hole made while only bits are kept, over bytes that the log has.
    run("qemu-io", &["-f", "raw", "-c", "discard 48M 1M", &site.nbd_uri("db", "root")]);
    let _server = site.start(&["process-server"]);
    let after = site.wait_stored("db");
    assert!(after > before);
    assert!(event_kinds(&site).iter().any(|k| k == "mode-changed"), "modes are events");
    let restored = site.restore("db", "latest", "out");
    site.assert_equals_source("db", &restored);
    // What came before the outage is still a position.
    site.restore("db", &format!("seq:{before}"), "earlier");
}

#[test]
fn a_store_that_fails_stops_acknowledgement_and_nothing_else() {
    let mut seed = Seed::from_environment(12);
    let site = Site::new(small_queues());
    let _server = site.start(&["process-server"]);
    let _agent = site.start_agent("db");
    write_noise(&site, "root", &mut seed, 8, 512);
    site.wait_stored("db");
    // The machine's folder turns into a file: no object can be created below it.
    let (folder, away) = (site.path("site/store/machine"), site.path("site/store/away"));
    std::fs::rename(&folder, &away).expect("store is taken away");
    std::fs::write(&folder, b"in the way").expect("store is blocked");
    write_noise(&site, "root", &mut seed, 260, 512);
    wait_mode(&site, "bitmap");
    std::fs::remove_file(&folder).expect("store is unblocked");
    std::fs::rename(&away, &folder).expect("store comes back");
    site.wait_stored("db");
    let restored = site.restore("db", "latest", "out");
    site.assert_equals_source("db", &restored);
    assert_eq!(site.run(&["verify", "db"]).code, 0, "the log is whole after the outage");
}

#[test]
fn a_full_disk_under_the_agent_does_not_stop_the_source() {
    let mut seed = Seed::from_environment(13);
    let place = tempfile::tempdir().expect("temporary directory");
    let small = Mounted::small(place.path(), 64 << 20);
    let data_dir = Some(small.dir.join("data"));
    let site =
        Site::new(SiteOptions { data_dir, spool_bytes: "256MiB", queue_bytes: "2MiB", ..SiteOptions::default() });
    let server = site.start(&["process-server"]);
    let _agent = site.start_agent("db");
    write_noise(&site, "root", &mut seed, 8, 512);
    site.wait_stored("db");
    server.kill();
    let ballast = small.fill();
    // The spool cannot grow: the agent goes to bitmap mode, and every write succeeds.
    write_noise(&site, "root", &mut seed, 200, 512);
    wait_mode(&site, "bitmap");
    std::fs::remove_file(ballast).expect("space is made");
    let _server = site.start(&["process-server"]);
    site.wait_stored("db");
    let restored = site.restore("db", "latest", "out");
    site.assert_equals_source("db", &restored);
}

#[test]
fn a_full_store_catches_up_when_space_is_made() {
    let mut seed = Seed::from_environment(14);
    let place = tempfile::tempdir().expect("temporary directory");
    let small = Mounted::small(place.path(), 64 << 20);
    let store = format!("file://{}", small.dir.join("store").to_string_lossy());
    let site = Site::new(SiteOptions { store: Some(store), ..small_queues() });
    let _server = site.start(&["process-server"]);
    let _agent = site.start_agent("db");
    write_noise(&site, "root", &mut seed, 8, 512);
    let before = site.wait_stored("db");
    let ballast = small.fill();
    write_noise(&site, "root", &mut seed, 100, 512);
    let stored = site.agent_status("db").expect("agent answers")["stored"]["seq"].as_u64().unwrap_or(0);
    assert!(stored >= before, "the watermark never falls");
    std::fs::remove_file(ballast).expect("space is made");
    site.wait_stored("db");
    let restored = site.restore("db", "latest", "out");
    site.assert_equals_source("db", &restored);
    assert_eq!(site.run(&["verify", "db"]).code, 0, "no torn object is left in the log");
}
