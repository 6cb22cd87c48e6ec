//! No object is read, made, listed or deleted outside the store's root, whatever paths are asked for and whatever links lie
//! in a local store's directory.

use std::os::unix::fs::symlink;
use std::path::Path;

use bytes::Bytes;
use store::{Created, Store};

const SLOT: &str = "machine/db/stream/seg/0000000000000001/0000000000000001";

/// Paths that are none of a Farshore object.
fn tricks() -> Vec<String> {
    let fixed = [
        "",
        "/",
        "/etc/passwd",
        "..",
        "../x",
        "machine/..",
        "machine/../../x",
        "machine/db/../../../x",
        "machine//db",
        "machine/db/",
        "machine/./db",
        "machine/%2e%2e/x",
        "machine%2fdb",
        "machine/db%2f..%2f..",
        "machine/d\0b",
        "machine/ｄb",
        "machine/d\u{202e}b",
        "machine/ä",
        "machine\\..\\x",
        "machine/DB",
        "~",
        "file:///etc/passwd",
        "machine/db\n",
    ];
    fixed.into_iter().map(str::to_owned).chain(["../".repeat(3000), format!("machine/{}", "é".repeat(5000))]).collect()
}

/// Every file below a directory, with what it holds.
fn tree(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).expect("read").map(|e| e.expect("entry")) {
        let path = entry.path();
        match path.is_dir() {
            true => found.extend(tree(&path)),
            false => found.push((path.display().to_string(), std::fs::read(&path).unwrap_or_default())),
        }
    }
    found.sort();
    found
}

fn bytes(text: &str) -> Vec<Bytes> {
    vec![Bytes::copy_from_slice(text.as_bytes())]
}

fn local(root: &Path) -> Store {
    Store::open(&format!("file://{}", root.display())).expect("a local store")
}

#[tokio::test]
async fn paths_that_are_no_objects_are_refused_by_every_operation() {
    let dir = tempfile::tempdir().expect("directory");
    std::fs::write(dir.path().join("x"), b"outside").expect("written");
    let store = local(&dir.path().join("store"));
    let before = tree(dir.path());
    for path in tricks() {
        let shown = path.chars().take(40).collect::<String>();
        let refused = |what: &str, error: store::StoreError| {
            let text = format!("{error:?}");
            assert!(text.contains("not a path of a Farshore object"), "{what} of {shown:?}: {text}");
        };
        refused("create", store.create(&path, bytes("mine")).await.expect_err(&shown));
        refused("read", store.get(&path).await.expect_err(&shown));
        refused("ranged read", store.get_range(&path, 0..4).await.expect_err(&shown));
        refused("delete", store.delete(&path).await.expect_err(&shown));
        // A folder may end in a slash.
        if path != "machine/db/" {
            refused("list", store.list(&path).await.expect_err(&shown));
        }
    }
    assert_eq!(tree(dir.path()), before, "nothing was changed");
    assert_eq!(store.create(SLOT, bytes("mine")).await.expect("the control"), Created::Ours);
    assert_ne!(tree(dir.path()), before);
}

#[tokio::test]
async fn a_link_inside_a_local_store_leads_nowhere_and_is_named() {
    // The link takes the place of the object itself, or of a folder above it.
    for linked in [SLOT, "machine/db/stream/seg/0000000000000001", "machine/db/stream", "machine/db", "machine"] {
        let dir = tempfile::tempdir().expect("directory");
        let (root, outside) = (dir.path().join("store"), dir.path().join("outside"));
        let store = local(&root);
        let rest = SLOT.strip_prefix(linked).expect("above it").trim_start_matches('/');
        let target = if rest.is_empty() { outside.clone() } else { outside.join(rest) };
        std::fs::create_dir_all(target.parent().expect("a parent")).expect("made");
        std::fs::write(&target, b"outside").expect("written");
        let link = root.join(linked);
        std::fs::create_dir_all(link.parent().expect("a parent")).expect("made");
        symlink(&outside, &link).expect("linked");
        let before = tree(dir.path());
        let refused = |what: &str, error: store::StoreError| {
            let text = format!("{error:?}");
            assert!(text.contains("symbolic link") && text.contains(linked), "{what} through {linked}: {text}");
        };
        refused("read", store.get(SLOT).await.expect_err("a link"));
        refused("ranged read", store.get_range(SLOT, 0..4).await.expect_err("a link"));
        refused("create", store.create(SLOT, bytes("mine")).await.expect_err("a link"));
        refused("delete", store.delete(SLOT).await.expect_err("a link"));
        let beside = SLOT.replace("0001/0000000000000001", "0001/0000000000000002");
        if linked != SLOT {
            refused("create beside", store.create(&beside, bytes("mine")).await.expect_err("a link"));
        }
        match store.list("machine").await {
            Err(error) => refused("list", error),
            // A listing may also leave out what leads away.
            Ok(found) => assert!(found.is_empty(), "{linked}: {found:?}"),
        }
        assert_eq!(tree(dir.path()), before, "{linked}: nothing was changed");
        std::fs::remove_file(&link).expect("taken away");
        assert_eq!(store.create(SLOT, bytes("mine")).await.expect("the control"), Created::Ours, "{linked}");
    }
}

#[tokio::test]
async fn the_root_itself_may_be_a_link() {
    let dir = tempfile::tempdir().expect("directory");
    std::fs::create_dir(dir.path().join("real")).expect("made");
    symlink(dir.path().join("real"), dir.path().join("store")).expect("linked");
    let store = local(&dir.path().join("store"));
    assert_eq!(store.create(SLOT, bytes("mine")).await.expect("created"), Created::Ours);
    assert_eq!(store.get(SLOT).await.expect("read").as_deref(), Some(&b"mine"[..]));
}
