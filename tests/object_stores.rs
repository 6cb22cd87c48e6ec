//! The whole path over the protocols of cloud stores: Azure Blob on Azurite, S3 on moto. They prove the shape of the
//! requests, not the consistency of the real services. And a server that breaks a promise is refused by name.

use crate::emulators::Emulator;
use crate::harness::tools::run;
use crate::harness::{Proc, Site, SiteOptions};
use crate::mini_s3::{Manners, MiniS3};

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

const INSTALLED: &str =
    "the emulator's program is named in the environment: `cargo xtask test` installs it and sets that";

#[test]
fn azure_blob_carries_the_whole_path() {
    let azurite = Emulator::azurite().expect(INSTALLED);
    whole_path(azurite.url, azurite.environment.clone());
}

#[test]
fn s3_carries_the_whole_path() {
    let moto = Emulator::moto().expect(INSTALLED);
    whole_path(moto.url, moto.environment.clone());
}

#[test]
fn roles_refuse_a_store_that_lets_two_writers_create_one_object() {
    let runtime = tokio::runtime::Runtime::new().expect("runtime starts");
    let server = runtime.block_on(MiniS3::start(Manners::IgnoresCondition));
    let environment = [
        ("AWS_ENDPOINT", server.endpoint()),
        ("AWS_ALLOW_HTTP", "true".to_owned()),
        ("AWS_ACCESS_KEY_ID", "test".to_owned()),
        ("AWS_SECRET_ACCESS_KEY", "test".to_owned()),
        ("AWS_REGION", "us-east-1".to_owned()),
    ];
    let environment = environment.map(|(k, v)| (k.to_owned(), v)).to_vec();
    let store = Some("s3://bucket/site".to_owned());
    let site = Site::new(SiteOptions { store, environment, ..SiteOptions::default() });
    for role in ["process-server", "applier", "up"] {
        let ran = site.run(&[role]);
        assert_eq!(ran.code, 2, "{role}: {ran:?}");
        assert!(ran.stderr.contains("the store at s3://bucket/site let a second writer create an object"), "{ran:?}");
        assert!(ran.stderr.contains("If-None-Match"), "says what to look for: {ran:?}");
    }
}
