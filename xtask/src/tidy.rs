//! What the compiler does not check: dependencies point down the tiers, every file says why it exists, nothing is left
//! as a hole, no path of anyone's machine is named, and the documents are in step.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::command::output;
use crate::failpoints;

/// The tiers, lowest first. A crate may depend only on crates of lower tiers, or on those before it in `io`.
const TIERS: [(&str, &[&str]); 6] = [
    ("base", &["model", "probe", "schedules", "waiting"]),
    ("format", &["format"]),
    ("io", &["store", "transport", "disk", "nbd", "filesystem"]),
    ("service", &["agent", "process-server", "applier"]),
    ("bin", &["farshore", "xtask"]),
    ("proof", &["benches", "simulation"]),
];

/// Non-test lines over which a file is reported.
const LARGE_FILE_LINES: usize = 500;

/// Non-test lines over which a file fails: by then it holds more than one idea.
const FILE_LINES_MAX: usize = 800;

/// First components an absolute path may have: the system's own.
const SYSTEM_ROOTS: [&str; 14] =
    ["bin", "boot", "dev", "etc", "lib", "nonexistent", "opt", "proc", "run", "sbin", "srv", "sys", "tmp", "usr"];

/// Runs every check and reports all that is wrong at once.
pub fn run() -> Result<()> {
    let files = tracked_files()?;
    let mut wrong = Vec::new();
    wrong.extend(tiers()?);
    wrong.extend(dependencies_documented()?);
    wrong.extend(failpoints::differences(&files));
    for path in &files {
        let Ok(text) = std::fs::read_to_string(path) else { continue };
        wrong.extend(machine_paths(path, &text));
        if path.extension().is_some_and(|e| e == "rs") {
            wrong.extend(rust_file(path, &text));
        }
    }
    for required in
        ["README.md", "ARCHITECTURE.md", "LICENSE", "docs/glossary.md", "docs/config.md", "docs/roadmap.md", ".ci/run"]
    {
        if !Path::new(required).exists() {
            wrong.push(format!("{required} is missing"));
        }
    }
    if !wrong.is_empty() {
        bail!("tidy found {} things:\n  {}", wrong.len(), wrong.join("\n  "));
    }
    println!("tidy: {} files in order", files.len());
    Ok(())
}

/// Files git knows or would add.
fn tracked_files() -> Result<Vec<PathBuf>> {
    let list = output("git", &["ls-files", "--cached", "--others", "--exclude-standard"])?;
    Ok(list.lines().map(PathBuf::from).filter(|p| p.is_file()).collect())
}

fn manifest(path: &Path) -> Result<toml::Table> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    text.parse().with_context(|| format!("cannot parse {}", path.display()))
}

/// Crates and what they depend on within the workspace (development dependencies too: tests keep to the tiers).
fn tiers() -> Result<Vec<String>> {
    let tier_of: BTreeMap<&str, usize> =
        TIERS.iter().enumerate().flat_map(|(i, (_, names))| names.iter().map(move |n| (*n, i))).collect();
    let mut wrong = Vec::new();
    let mut folders: Vec<PathBuf> =
        std::fs::read_dir("crates")?.map(|e| e.map(|e| e.path())).collect::<Result<_, _>>()?;
    folders.extend(["xtask", "benches"].map(PathBuf::from));
    for folder in folders.iter().filter(|f| f.join("Cargo.toml").exists()) {
        let manifest = manifest(&folder.join("Cargo.toml"))?;
        let name = manifest["package"]["name"].as_str().unwrap_or_default().to_owned();
        let Some(&tier) = tier_of.get(name.as_str()) else {
            wrong.push(format!(
                "{}: crate {name} has no tier: add it to xtask/src/tidy.rs and ARCHITECTURE.md",
                folder.display()
            ));
            continue;
        };
        for section in ["dependencies", "dev-dependencies", "build-dependencies"] {
            let names = manifest.get(section).and_then(|d| d.as_table()).into_iter().flat_map(|t| t.keys());
            for dependency in names {
                if tier_of.get(dependency.as_str()).is_some_and(|&other| other >= tier) {
                    wrong.push(format!("{name} depends on {dependency}: dependencies point down the tiers only"));
                }
            }
        }
    }
    Ok(wrong)
}

/// Every third-party crate of the workspace has its line in docs/dependencies.md.
fn dependencies_documented() -> Result<Vec<String>> {
    let document = std::fs::read_to_string("docs/dependencies.md").unwrap_or_default();
    let root = manifest(Path::new("Cargo.toml"))?;
    let table = root["workspace"]["dependencies"].as_table().context("workspace has no dependencies")?;
    let missing =
        table.iter().filter(|(name, value)| value.get("path").is_none() && !document.contains(&format!("| {name} |")));
    Ok(missing.map(|(name, _)| format!("docs/dependencies.md has no line for {name}")).collect())
}

/// Whether a whole file is test code.
fn is_test(path: &Path) -> bool {
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    name.ends_with("tests.rs")
        || path.components().any(|c| ["tests", "scheduled"].iter().any(|dir| c.as_os_str() == *dir))
}

/// Checks of one source file.
fn rust_file(path: &Path, text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    let shown = path.display();
    if !text.lines().take(5).any(|l| l.starts_with("//!")) {
        wrong.push(format!("{shown}: no //! header that says why the file exists"));
    }
    if !is_test(path) {
        let lines = text.lines().take_while(|l| !l.starts_with("#[cfg(test)]")).count();
        if lines > FILE_LINES_MAX {
            wrong.push(format!("{shown}: {lines} lines: find the seam and split it"));
        } else if lines > LARGE_FILE_LINES {
            println!("large file: {shown}: {lines} lines of non-test code");
        }
    }
    if !is_test(path) {
        wrong.extend(orderings_without_partner(path, text));
    }
    wrong.extend(sleeps_in_tests(path, text));
    // Spelled in two halves, so that this file does not find itself.
    let holes = [concat!("todo", "!("), concat!("unimplemented", "!("), concat!("#[ig", "nore"), concat!("FIX", "ME")];
    for (number, line) in text.lines().enumerate() {
        for hole in holes.iter().filter(|h| line.contains(**h)) {
            wrong.push(format!("{shown}:{}: {hole} is a hole", number + 1));
        }
    }
    wrong
}

/// Test code that sleeps: it lets virtual time pass or looks until a deadline, by crate `waiting` or the end-to-end harness.
fn sleeps_in_tests(path: &Path, text: &str) -> Vec<String> {
    if path.starts_with("tests/harness") {
        return Vec::new();
    }
    let first = if is_test(path) { 0 } else { text.lines().take_while(|l| !l.starts_with("#[cfg(test)]")).count() };
    let sleeps = |line: &str| {
        let code = line.split("//").next().unwrap_or_default();
        ["sleep(", "sleep_until(", "sleep_ms(", "park_timeout("].iter().any(|call| code.contains(call))
    };
    let found = text.lines().enumerate().skip(first).filter(|(_, line)| sleeps(line));
    let wrong = |(number, _): (usize, &str)| {
        format!("{}:{}: a test does not sleep: see crate waiting, or harness::eventually", path.display(), number + 1)
    };
    found.map(wrong).collect()
}

/// Orderings of atomics, as they are spelled where they are used.
const ORDERINGS: [&str; 5] = ["Relaxed", "Acquire", "Release", "AcqRel", "SeqCst"];

/// How far above an ordering its comment may begin.
const ORDERING_COMMENT_LINES: usize = 3;

/// Each ordering of an atomic has a comment that names it and says who its partner is, or why relaxed is enough: on its
/// line or shortly above, one for several in a row.
fn orderings_without_partner(path: &Path, text: &str) -> Vec<String> {
    let lines: Vec<&str> = text.lines().take_while(|line| *line != "mod tests {").collect();
    let used = |line: &str| {
        let code = line.split("//").next().unwrap_or_default();
        ORDERINGS.into_iter().find(|name| code.contains(&format!("Ordering::{name}")))
    };
    let comment_names = |line: &str, name: &str| {
        line.split_once("//").is_some_and(|(_, comment)| comment.to_lowercase().contains(&name.to_lowercase()))
    };
    let mut wrong = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        let Some(name) = used(line) else { continue };
        let near = &lines[at.saturating_sub(ORDERING_COMMENT_LINES)..=at];
        if !near.iter().any(|line| comment_names(line, name)) {
            let shown = path.display();
            wrong.push(format!("{shown}:{}: Ordering::{name} names no partner: say it in a comment above", at + 1));
        }
    }
    wrong
}

/// Absolute paths other than the system's own: somebody's machine.
fn machine_paths(path: &Path, text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut test_code = is_test(path);
    for (number, line) in text.lines().enumerate() {
        test_code |= line.starts_with("#[cfg(test)]");
        for home in ["/home/", "/root/", "/Users/", concat!("/wo", "rk/")] {
            if line.contains(home) && path != Path::new("xtask/src/tidy.rs") {
                wrong.push(format!("{}:{}: {home} is a path of a machine", path.display(), number + 1));
            }
        }
        // Tests may make paths up: they are never opened.
        if !test_code && path.extension().is_some_and(|e| e == "rs") {
            for literal in line.split('"').skip(1).step_by(2).filter(|l| absolute(l)) {
                wrong.push(format!("{}:{}: {literal:?} is not a system path", path.display(), number + 1));
            }
        }
    }
    wrong
}

/// Whether a string literal is an absolute path of at least two components outside the system's roots.
fn absolute(literal: &str) -> bool {
    let Some(rest) = literal.strip_prefix('/') else { return false };
    let mut parts = rest.split('/');
    let (Some(first), Some(second)) = (parts.next(), parts.next()) else { return false };
    let plain = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
    plain(first) && plain(second) && !SYSTEM_ROOTS.contains(&first) && first != "var"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_machines_are_told_from_system_paths() {
        for bad in ["/data/disks/x.raw", "/mnt2/x"] {
            assert!(absolute(bad), "{bad}");
        }
        for good in ["/dev/sda", "/var/lib/farshore", "/status", "a/b", "//", "/{}/x", "/usr/share/x"] {
            assert!(!absolute(good), "{good}");
        }
    }

    #[test]
    fn an_ordering_names_its_partner_in_a_comment() {
        let file = |lines: &[&str]| orderings_without_partner(Path::new("crates/x/src/a.rs"), &lines.join("\n")).len();
        let (load, comment) =
            ("    flag.load(Ordering::Acquire);", "    // Acquire: its partner is the store in `stop`.");
        assert_eq!(file(&[load]), 1);
        assert_eq!(file(&["    // Stops the writers.", load]), 1, "a comment that does not name the ordering");
        assert_eq!(file(&[comment, "", "", "", load]), 1, "a comment far away");
        assert_eq!(file(&["// Relaxed: a count.", load]), 1, "a comment on another ordering");
        assert_eq!(file(&[comment, load]), 0);
        assert_eq!(file(&["    flag.load(Ordering::Acquire); // acquire: pairs with `stop`"]), 0);
        assert_eq!(
            file(&["// Relaxed, all three: gauges.", "a.fetch_add(1, std::sync::atomic::Ordering::Relaxed);"]),
            0
        );
        assert_eq!(file(&["std::cmp::Ordering::Less", "use std::sync::atomic::Ordering;", "// Ordering::Relaxed"]), 0);
        assert_eq!(file(&["#[cfg(test)]", "mod tests {", load]), 0);
    }

    #[test]
    fn a_test_that_sleeps_is_found() {
        let sleep = concat!("    tokio::time::sle", "ep(time).await;");
        let found = |path: &str, text: String| sleeps_in_tests(Path::new(path), &text).len();
        assert_eq!(found("crates/x/src/tests/a.rs", sleep.to_owned()), 1);
        assert_eq!(found("tests/a.rs", sleep.to_owned()), 1);
        assert_eq!(found("crates/x/src/a.rs", format!("{sleep}\n#[cfg(test)]\nmod tests {{\n{sleep}\n}}")), 1);
        assert_eq!(found("crates/x/src/a.rs", sleep.to_owned()), 0, "it is no test");
        assert_eq!(found("crates/x/src/tests/a.rs", "// sleep(1)\nwaiting::pass(time).await;".to_owned()), 0);
    }

    #[test]
    fn a_file_without_a_header_or_with_a_hole_is_wrong() {
        let hole = concat!("//! why\nfn f() { todo", "!() }\n");
        assert_eq!(rust_file(Path::new("crates/x/src/a.rs"), hole).len(), 1);
        assert_eq!(rust_file(Path::new("crates/x/src/a.rs"), "fn f() {}\n").len(), 1);
        assert!(rust_file(Path::new("crates/x/src/a.rs"), "//! why\n").is_empty());
        let long = format!("//! why\n{}", "x\n".repeat(FILE_LINES_MAX));
        assert_eq!(rust_file(Path::new("crates/x/src/a.rs"), &long).len(), 1);
    }
}
