//! The command line as a user meets it: every mistake is one clear line, the right exit code, and nothing changed.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

struct Run {
    code: i32,
    out: String,
    err: String,
}

fn finish(output: Output) -> Run {
    Run {
        code: output.status.code().expect("not killed"),
        out: String::from_utf8(output.stdout).expect("UTF-8"),
        err: String::from_utf8(output.stderr).expect("UTF-8"),
    }
}

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_farshore"));
    command.args(args).env_remove("FARSHORE_CONFIG").env_remove("FARSHORE_LOG").stdin(Stdio::null());
    command
}

fn farshore(args: &[&str]) -> Run {
    finish(command(args).output().expect("farshore starts"))
}

fn with_stdin(args: &[&str], input: &str) -> Run {
    let mut command = command(args);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("farshore starts");
    child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("takes input");
    finish(child.wait_with_output().expect("ends"))
}

/// A refusal: this code, one line on stderr that says `says`, nothing on stdout.
#[track_caller]
fn refused(run: &Run, code: i32, says: &str) {
    assert_eq!(run.code, code, "stderr: {}", run.err);
    assert!(run.err.contains(says), "{:?} does not say {says:?}", run.err);
    assert_eq!(run.err.trim_end().lines().count(), 1, "more than one line: {}", run.err);
    assert!(run.out.is_empty(), "{}", run.out);
}

struct Site {
    dir: tempfile::TempDir,
    recovery_key: String,
}

impl Site {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("temporary directory");
        let run = farshore(&["init", dir.path().join("site").to_str().expect("UTF-8"), "--json"]);
        assert_eq!(run.code, 0, "{}", run.err);
        let made: serde_json::Value = serde_json::from_str(&run.out).expect("one JSON object");
        Site { recovery_key: made["recovery_key"].as_str().expect("a key").to_owned(), dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("site").join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().expect("UTF-8").to_owned()
    }

    fn run(&self, args: &[&str]) -> Run {
        let config = self.text("farshore.toml");
        farshore(&[&["--config", &config], args].concat())
    }

    fn add(&self, toml: &str) {
        let mut file = fs::OpenOptions::new().append(true).open(self.path("farshore.toml")).expect("opens");
        file.write_all(toml.as_bytes()).expect("writes");
    }
}

fn write_private(path: &Path, text: &str) {
    use std::os::unix::fs::PermissionsExt;
    fs::write(path, text).expect("writes");
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).expect("protects");
}

/// Every file below a directory with its contents.
fn contents(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).expect("reads") {
        let path = entry.expect("entry").path();
        if path.is_dir() {
            found.extend(contents(&path));
        } else {
            let bytes = fs::read(&path).expect("reads");
            found.push((path, bytes));
        }
    }
    found.sort();
    found
}

#[test]
fn every_command_has_help() {
    let commands = [
        "demo",
        "init",
        "key",
        "up",
        "agent",
        "process-server",
        "applier",
        "status",
        "points",
        "mark",
        "unprotect",
        "restore",
        "serve",
        "verify",
        "compare",
        "dump",
    ];
    let overview = farshore(&["--help"]);
    assert_eq!(overview.code, 0);
    for name in commands {
        assert!(overview.out.contains(&format!("  {name}")), "{name} is missing in the overview");
        let help = farshore(&[name, "--help"]);
        assert_eq!(help.code, 0, "{name}");
        assert!(help.out.contains("Usage: farshore") && help.out.contains("--json"), "{name}: {}", help.out);
    }
    assert_eq!(farshore(&["key", "check", "--help"]).code, 0);
}

#[test]
fn wrong_usage_is_exit_2() {
    for args in [
        &["frobnicate"][..],
        &["restore", "web"],
        &["points", "../../etc/passwd"],
        &["points", "a/b"],
        &["mark", "web"],
        &["serve", "web", "--disk", "x/../y", "--at", "latest", "--listen", "unix:/tmp/x"],
        &["serve", "web", "--disk", "x", "--at", "latest", "--listen", "/tmp/x"],
        &["restore", "web", "--at", "yesterday", "--to", "x", "--format", "raw"],
        &["restore", "web", "--at", "latest", "--to", "x", "--format", "zip"],
        &["verify", "web", "--head", "-1"],
    ] {
        let run = farshore(args);
        assert_eq!(run.code, 2, "{args:?}: {}", run.err);
        assert!(run.out.is_empty());
    }
}

#[test]
fn init_makes_a_private_site_and_refuses_to_make_it_twice() {
    use std::os::unix::fs::PermissionsExt;
    let site = Site::new();
    let mode = |name: &str| fs::metadata(site.path(name)).expect(name).permissions().mode() & 0o777;
    assert_eq!(mode("vault.key"), 0o600);
    assert_eq!(mode("pki/ca.key"), 0o600);
    assert_eq!(mode(""), 0o700);
    let before = contents(&site.path(""));
    refused(&farshore(&["init", &site.text("")]), 2, "not empty");
    assert_eq!(contents(&site.path("")), before, "nothing was changed");
    refused(&farshore(&["init", &site.text("vault.key")]), 2, "cannot use");
}

#[test]
fn a_recovery_key_is_proven_or_refused() {
    let site = Site::new();
    let good = with_stdin(&["--config", &site.text("farshore.toml"), "key", "check"], &site.recovery_key);
    assert_eq!(good.code, 0, "{}", good.err);
    assert!(good.out.contains("equals the vault key"));

    let messy = format!("  {}\n\n", site.recovery_key.to_lowercase());
    assert_eq!(with_stdin(&["--config", &site.text("farshore.toml"), "key", "check"], &messy).code, 0);

    let mut mistyped = site.recovery_key.clone().into_bytes();
    let last = mistyped.len() - 1;
    mistyped[last] = if mistyped[last] == b'A' { b'B' } else { b'A' };
    let mistyped = String::from_utf8(mistyped).expect("ASCII");
    let run = with_stdin(&["--config", &site.text("farshore.toml"), "key", "check"], &mistyped);
    refused(&run, 1, "not good");
    assert!(!run.err.contains(&mistyped), "a key is never repeated");

    let other = Site::new();
    write_private(&site.path("copy.txt"), &other.recovery_key);
    refused(&site.run(&["key", "check", "--file", &site.text("copy.txt")]), 1, "of another vault");
    refused(&site.run(&["key", "check"]), 1, "not good");

    // On a bare machine: no configuration, no vault key file, only the store.
    let store = site.text("store");
    let bare = with_stdin(&["--store", &store, "key", "check", "--json"], &site.recovery_key);
    assert_eq!(bare.code, 0, "{}", bare.err);
    assert!(bare.out.contains("\"good\":true"));
    refused(&with_stdin(&["--store", &store, "key", "check"], &other.recovery_key), 1, "of another vault");
}

#[test]
fn a_configuration_mistake_is_one_line_and_exit_2() {
    let site = Site::new();
    refused(&farshore(&["--config", "/nonexistent/farshore.toml", "status"]), 2, "farshore init");
    site.add("\n[polcy]\ncrash_every = \"5s\"\n");
    for args in [&["up"][..], &["status"], &["points", "web"], &["process-server"], &["applier"], &["agent"]] {
        refused(&site.run(args), 2, "polcy");
    }
}

#[test]
fn a_missing_or_wrong_vault_key_is_one_line_and_exit_2() {
    let site = Site::new();
    let other = Site::new();
    fs::copy(other.path("vault.key"), site.path("other.key")).expect("copies");
    let before = contents(&site.path("store"));
    refused(&site.run(&["--key", &site.text("other.key"), "points", "web"]), 2, "does not open the store");
    refused(&site.run(&["--key", &site.text("farshore.toml"), "points", "web"]), 2, "vault key");
    fs::remove_file(site.path("vault.key")).expect("removes");
    refused(&site.run(&["points", "web"]), 2, "vault.key");
    refused(&site.run(&["process-server"]), 2, "vault.key");
    assert_eq!(contents(&site.path("store")), before, "nothing was changed");
}

#[test]
fn machines_and_stores_that_are_not_there_are_named() {
    let site = Site::new();
    refused(&site.run(&["points", "web"]), 2, "web");
    refused(&site.run(&["verify", "web"]), 2, "web");
    refused(&site.run(&["mark", "web", "--label", "x"]), 2, "no machine web");
    refused(&site.run(&["agent", "web"]), 2, "no machine web");
    refused(&site.run(&["agent"]), 2, "no [[machine]]");
    let to = site.text("out");
    refused(&site.run(&["restore", "web", "--at", "latest", "--to", &to, "--format", "raw"]), 2, "web");
    assert!(!site.path("out").exists(), "nothing was made");
    let gone = site.text("no-store");
    refused(&site.run(&["--store", &gone, "points", "web"]), 2, "not there");
    assert!(!site.path("no-store").exists(), "nothing was made");
    refused(&site.run(&["--store", "ftp://x/y", "points", "web"]), 2, "ftp");
}

#[test]
fn a_source_that_is_not_there_stops_the_agent_before_anything_is_made() {
    let site = Site::new();
    site.add("\n[[machine]]\nname = \"web\"\n[[machine.disk]]\nname = \"root\"\nsource = \"missing.img\"\n");
    refused(&site.run(&["agent"]), 2, "missing.img");
    assert!(!site.path("missing.img").exists());
    refused(&site.run(&["mark", "web", "--label", "x"]), 1, "does not run");
}

#[test]
fn status_speaks_when_nothing_runs() {
    let site = Site::new();
    site.add("\n[[machine]]\nname = \"web\"\n[[machine.disk]]\nname = \"root\"\nsource = \"missing.img\"\n");
    let run = site.run(&["status", "--json"]);
    assert_eq!(run.code, 0, "{}", run.err);
    let status: serde_json::Value = serde_json::from_str(&run.out).expect("one JSON object");
    assert!(status["roles"]["process-server"].is_null());
    assert_eq!(status["machines"][0]["machine"], "web");
    assert!(status["machines"][0]["store"]["error"].as_str().is_some_and(|e| e.contains("web")));
    assert!(site.run(&["status"]).out.contains("not running"));
}

#[test]
fn dump_tells_objects_from_other_files() {
    let site = Site::new();
    let vault = site.text("store/vault");
    let shown = site.run(&["dump", &vault]);
    assert_eq!(shown.code, 0, "{}", shown.err);
    let object: serde_json::Value =
        serde_json::from_str(&site.run(&["dump", &vault, "--json"]).out).expect("one JSON object");
    assert_eq!(object["authenticated"], true);
    refused(&site.run(&["dump", &site.text("farshore.toml")]), 3, "no readable Farshore object");
    refused(&site.run(&["dump", &site.text("nothing")]), 2, "nothing");
    let mut bytes = fs::read(site.path("store/vault")).expect("reads");
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(site.path("altered"), bytes).expect("writes");
    assert_eq!(site.run(&["dump", &site.text("altered")]).code, 3);
}

#[test]
fn demo_refuses_a_directory_that_is_not_empty() {
    let site = Site::new();
    refused(&farshore(&["demo", "--dir", &site.text("")]), 2, "not empty");
}
