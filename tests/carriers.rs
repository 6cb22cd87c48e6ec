//! By which carrier a real agent reaches a real process server, and that it says so.

use std::path::Path;

use serde_json::Value;

use crate::harness::{Site, SiteOptions, eventually};

const MIB: u64 = 1 << 20;

/// Writes the configuration anew with another transport; roles that start from now on follow it.
fn offer(config: &Path, before: &str, now: &str) {
    let text = std::fs::read_to_string(config).expect("config is read");
    let (before, now) = (format!("transport = \"{before}\""), format!("transport = \"{now}\""));
    assert!(text.contains(&before), "{text}");
    std::fs::write(config, text.replace(&before, &now)).expect("config is written");
}

/// What the agent says carries its connection, once it begins so.
fn carried_by(site: &Site, name: &str) -> Value {
    eventually("the agent says what carries its connection", || {
        let status = site.agent_status("db")?;
        match status["carrier"].as_str().is_some_and(|carrier| carrier.starts_with(name)) {
            true => Ok(status),
            false => Err(format!("{status:#}")),
        }
    })
}

#[test]
fn near_by_auto_is_tls_and_where_tcp_is_closed_it_is_quic() {
    let disks = vec![("root", 8 * MIB)];
    let site = Site::new(SiteOptions { transport: "auto", machines: vec![("db", disks)], ..SiteOptions::default() });
    // First, it finds TCP closed, but does not stay with the carrier that it finds open a moment later.
    let _agent = site.start_agent("db");
    let server = site.start(&["process-server"]);
    let status = carried_by(&site, "TLS");
    let event = status["events"].as_array().and_then(|events| {
        events.iter().find_map(|event| event["message"].as_str()?.split_once("; by TLS, round trip "))
    });
    assert!(event.is_some(), "the connection's event names its carrier: {status:#}");
    site.wait_stored("db");
    let text = site.run(&["status"]).stdout;
    assert!(text.contains("(TLS"), "{text}");

    // The same port, over UDP alone: the agent goes on by the other carrier, with the same stream.
    drop(server);
    offer(&site.config(), "auto", "quic");
    let _server = site.start(&["process-server"]);
    carried_by(&site, "QUIC with BBR");
    site.wait_stored("db");
    let text = site.run(&["status"]).stdout;
    assert!(text.contains("(QUIC with BBR"), "{text}");
}
