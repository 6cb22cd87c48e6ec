//! What a command's failure means to the shell: 1 failed, 2 usage or configuration, 3 damage found.
//!
//! Everything in this crate fails with `anyhow::Error`; one function looks through the chain of causes and decides the
//! exit code, so that no command can forget it. Errors of the libraries that mean "fix the configuration" or "the store
//! is damaged" are recognised by type, never by text.

use std::process::ExitCode;

/// The command line or the configuration must be changed: exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct UsageError(pub String);

/// Data in the store is damaged, missing or altered: exit code 3.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct DamageFound(pub String);

/// A [`UsageError`] as `anyhow::Error`.
pub fn usage(text: impl Into<String>) -> anyhow::Error {
    anyhow::Error::new(UsageError(text.into()))
}

/// How a command ended, as the shell sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Done.
    Done = 0,
    /// Failed.
    Failed = 1,
    /// Usage or configuration.
    Usage = 2,
    /// Damage found.
    Damage = 3,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit as u8)
    }
}

/// The exit code of an error: the first cause that has an opinion decides.
pub fn exit_of(error: &anyhow::Error) -> Exit {
    error.chain().find_map(opinion).unwrap_or(Exit::Failed)
}

fn opinion(cause: &(dyn std::error::Error + 'static)) -> Option<Exit> {
    use store::StoreError;
    if cause.is::<UsageError>() || cause.is::<crate::config::ConfigError>() {
        return Some(Exit::Usage);
    }
    if cause.is::<DamageFound>() {
        return Some(Exit::Damage);
    }
    if let Some(error) = cause.downcast_ref::<applier::recover::RecoverError>() {
        return of_code(error.exit_code());
    }
    if let Some(error) = cause.downcast_ref::<applier::ApplierError>() {
        return of_code(error.exit_code());
    }
    match cause.downcast_ref::<StoreError>() {
        Some(StoreError::Url { .. } | StoreError::WrongKey { .. } | StoreError::Unfit { .. }) => {
            return Some(Exit::Usage);
        }
        Some(StoreError::Damaged { .. } | StoreError::Missing { .. } | StoreError::CacheLost { .. }) => {
            return Some(Exit::Damage);
        }
        _ => {}
    }
    matches!(cause.downcast_ref::<transport::TransportError>(), Some(transport::TransportError::Credentials { .. }))
        .then_some(Exit::Usage)
}

/// A library's own opinion; that it merely failed leaves the word to its causes.
fn of_code(code: u8) -> Option<Exit> {
    match code {
        2 => Some(Exit::Usage),
        3 => Some(Exit::Damage),
        _ => None,
    }
}

/// The error and its causes on one line, without a cause that only repeats the line before it.
pub fn one_line(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain() {
        let text = cause.to_string().replace('\n', " ");
        if line.ends_with(&text) {
            continue;
        }
        if !line.is_empty() {
            line.push_str(": ");
        }
        line.push_str(&text);
    }
    line
}

/// What is wrong with a command line, on one line with the way to its help. The parser's own text takes several, repeats
/// what was typed without a bound, and would let a line break in an argument through.
pub fn usage_line(error: &clap::Error) -> String {
    use clap::error::{ContextKind, ContextValue, ErrorKind};
    use std::error::Error;
    let help = "; see `farshore --help`";
    // Our own parsers quote the value themselves, cut to a length that can be read.
    if error.kind() == ErrorKind::ValueValidation
        && let (Some(why), Some(ContextValue::String(argument))) = (error.source(), error.get(ContextKind::InvalidArg))
    {
        return format!("{argument}: {}{help}", printable(&why.to_string()));
    }
    let text = error.render().to_string();
    let said = text.strip_prefix("error: ").unwrap_or(&text);
    let lines = said.lines().map(str::trim).take_while(|l| !l.starts_with("Usage:") && !l.starts_with("For more info"));
    let line = lines.filter(|l| !l.is_empty()).collect::<Vec<_>>().join(" ");
    format!("{}{help}", printable(&line))
}

/// Longest text of a usage error in characters.
const USAGE_CHARS_MAX: usize = 400;

/// Cut to a length that can be read, without control characters.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(USAGE_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn the_cause_decides_the_exit_code_through_any_context() {
        let wrapped = |e: anyhow::Error| Err::<(), _>(e).context("while restoring").expect_err("is an error");
        assert_eq!(exit_of(&wrapped(usage("no such flag"))), Exit::Usage);
        assert_eq!(exit_of(&wrapped(DamageFound("segment 3".into()).into())), Exit::Damage);
        assert_eq!(exit_of(&wrapped(anyhow::anyhow!("disk full"))), Exit::Failed);
        let wrong_key = store::StoreError::WrongKey { store: "a".into(), key: "b".into() };
        assert_eq!(exit_of(&wrapped(wrong_key.into())), Exit::Usage);
        let unfit = store::StoreError::Unfit { store: "s3://b/p".into(), promise: store::BrokenPromise::CreateIgnored };
        assert_eq!(exit_of(&wrapped(unfit.into())), Exit::Usage);
        let missing = store::StoreError::Missing { path: "p".into(), because: "q".into() };
        assert_eq!(exit_of(&wrapped(missing.into())), Exit::Damage);
    }

    #[test]
    fn a_usage_error_is_one_line_however_long_the_argument() {
        use clap::Parser;
        let long = "x".repeat(100_000);
        for args in [
            &["restore", "web"][..],
            &["frobnicate"],
            &["points", "a\nb"],
            &["restore", "web", "--at", &long, "--to", "x", "--format", "raw"],
            &["restore", "web", "--at", "latest", "--to", "x", "--format", &long],
            &["points", "web", "--no-such\nflag"],
            &["points", &long],
        ] {
            let line = crate::cli::Cli::try_parse_from([&["farshore"], args].concat()).map(|_| ()).expect_err("wrong");
            let line = usage_line(&line);
            assert!(!line.chars().any(char::is_control) && line.len() < 600, "{line}");
            assert!(line.ends_with("see `farshore --help`") && !line.starts_with("error"), "{line}");
        }
        let told = crate::cli::Cli::try_parse_from(["farshore", "points", "../x"]).map(|_| ()).expect_err("wrong");
        assert!(usage_line(&told).starts_with("<MACHINE>: \"../x\" is not a valid name"), "{}", usage_line(&told));
    }

    #[test]
    fn an_error_is_one_line() {
        let error = anyhow::anyhow!("no space\nleft").context("cannot write x");
        assert_eq!(one_line(&error), "cannot write x: no space left");
    }
}
