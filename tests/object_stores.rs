//! The whole path over the protocols of cloud stores: Azure Blob on Azurite, S3 on moto. They prove the shape of the
//! requests, not the consistency of the real services.

use std::net::{TcpListener, TcpStream};
use std::process::Command;

use crate::harness::tools::run;
use crate::harness::{Proc, Site, SiteOptions, eventually};

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port").port()
}

fn tool(variable: &str) -> String {
    std::env::var(variable)
        .unwrap_or_else(|_| panic!("{variable} must name the emulator: `cargo xtask test` installs it and sets it"))
}

fn wait_port(port: u16, proc: &mut Proc) {
    eventually("the emulator listens", || {
        proc.running()?;
        TcpStream::connect(("127.0.0.1", port)).map(|_| ()).map_err(|e| e.to_string())
    });
}

/// Replicates through `store`, kills the process server half-way, and proves restore and verify.
fn whole_path(store: &str, environment: Vec<(String, String)>) {
    let site = Site::new(SiteOptions { store: Some(store.to_owned()), environment, ..SiteOptions::default() });
    let server = site.start(&["process-server"]);
    let applier = site.start(&["applier"]);
    let agent = site.start_agent("db");
    let uri = site.nbd_uri("db", "root");
    run("qemu-io", &["-f", "raw", "-c", "write -P 0x41 0 6M", "-c", "flush", &uri]);
    site.wait_stored("db");
    server.kill();
    run("qemu-io", &["-f", "raw", "-c", "write -P 0x42 4M 4M", "-c", "flush", &uri]);
    let server = site.start(&["process-server"]);
    site.wait_stored("db");
    let restored = site.restore("db", "latest", "out");
    site.assert_equals_source("db", &restored);
    assert_eq!(site.run(&["verify", "db"]).code, 0, "verify works over this store");
    [agent, server, applier].into_iter().for_each(Proc::kill);
    let key = site.path("site/vault.key");
    let purged = site.run_bare(&["--store", store, "--key", &key.to_string_lossy(), "unprotect", "db", "--purge"]);
    assert_eq!(purged.code, 0, "purge works over this store: {purged:?}");
    assert_ne!(site.run(&["points", "db"]).code, 0, "nothing is left to list");
}

fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
    list.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

/// The account and key that every Azurite has (learn.microsoft.com, "Use the Azurite emulator").
const AZURITE_ACCOUNT: &str = "devstoreaccount1";
const AZURITE_KEY: &str = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

/// Creates a container with a signed request (REST "Create Container", "Authorize with Shared Key").
const CREATE_CONTAINER: &str = r#"
import base64, hashlib, hmac, sys, urllib.request, email.utils
port, account, key, name = sys.argv[1:]
date = email.utils.formatdate(usegmt=True)
path = f"/{account}/{name}"
text = "PUT\n\n\n\n\n\n\n\n\n\n\n\n" + f"x-ms-date:{date}\nx-ms-version:2021-08-06\n" + f"/{account}{path}\nrestype:container"
mac = base64.b64encode(hmac.new(base64.b64decode(key), text.encode(), hashlib.sha256).digest()).decode()
request = urllib.request.Request(f"http://127.0.0.1:{port}{path}?restype=container", method="PUT")
for k, v in {"x-ms-date": date, "x-ms-version": "2021-08-06", "Authorization": f"SharedKey {account}:{mac}"}.items():
    request.add_header(k, v)
print(urllib.request.urlopen(request).status)
"#;

#[test]
fn azure_blob_carries_the_whole_path() {
    let port = free_port();
    let dir = tempfile::tempdir().expect("temporary directory");
    let mut command = Command::new(tool("FARSHORE_AZURITE"));
    command.args([
        "--blobHost",
        "127.0.0.1",
        "--blobPort",
        &port.to_string(),
        "--silent",
        "--skipApiVersionCheck",
        "--location",
    ]);
    command.arg(dir.path());
    let mut azurite = Proc::start("azurite", command, &dir.path().join("log"));
    wait_port(port, &mut azurite);
    run("python3", &["-c", CREATE_CONTAINER, &port.to_string(), AZURITE_ACCOUNT, AZURITE_KEY, "farshore"]);
    let endpoint = format!("http://127.0.0.1:{port}");
    whole_path(
        "az://farshore/site",
        pairs(&[
            ("AZURE_STORAGE_USE_EMULATOR", "true"),
            ("AZURITE_BLOB_STORAGE_URL", &endpoint),
            ("AZURE_STORAGE_ACCOUNT_NAME", AZURITE_ACCOUNT),
            ("AZURE_STORAGE_ACCOUNT_KEY", AZURITE_KEY),
        ]),
    );
}

/// Creates a bucket; moto takes unsigned requests.
const CREATE_BUCKET: &str = r#"
import sys, urllib.request
print(urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{sys.argv[1]}/farshore", method="PUT")).status)
"#;

#[test]
fn s3_carries_the_whole_path() {
    let port = free_port();
    let dir = tempfile::tempdir().expect("temporary directory");
    let mut command = Command::new(tool("FARSHORE_MOTO"));
    command.args(["-H", "127.0.0.1", "-p", &port.to_string()]);
    let mut moto = Proc::start("moto", command, &dir.path().join("log"));
    wait_port(port, &mut moto);
    run("python3", &["-c", CREATE_BUCKET, &port.to_string()]);
    let endpoint = format!("http://127.0.0.1:{port}");
    whole_path(
        "s3://farshore/site",
        pairs(&[
            ("AWS_ENDPOINT", &endpoint),
            ("AWS_ALLOW_HTTP", "true"),
            ("AWS_ACCESS_KEY_ID", "test"),
            ("AWS_SECRET_ACCESS_KEY", "test"),
            ("AWS_REGION", "us-east-1"),
        ]),
    );
}
