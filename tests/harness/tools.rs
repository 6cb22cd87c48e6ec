//! Real programs. A missing one fails the test with the name of its package; a failing one with its output.

use std::path::Path;
use std::process::{Command, Output, Stdio};

/// Runs a program to its end; panics when it fails.
pub fn run(program: &str, args: &[&str]) -> String {
    let out = try_run(program, args);
    assert!(
        out.status.success(),
        "{program} {} failed: {}\n{}{}",
        args.join(" "),
        out.status,
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr)
    );
    String::from_utf8_lossy(&out.stdout).into_owned()
}

/// Runs a program to its end, whatever that is.
pub fn try_run(program: &str, args: &[&str]) -> Output {
    Command::new(program).args(args).stdin(Stdio::null()).env("PATH", path()).output().unwrap_or_else(|e| {
        panic!("cannot run {program} ({e}): `cargo xtask test` installs it, or the chore whose test this is")
    })
}

/// The path with the folders of the administrator's programs.
pub fn path() -> String {
    format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default())
}

/// A path as an argument.
pub fn text(path: &Path) -> &str {
    path.to_str().expect("test paths are text")
}
