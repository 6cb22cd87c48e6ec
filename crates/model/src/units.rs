//! Sizes and durations as people write them: `64MiB`, `5s`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A size or duration could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// Not a size.
    #[error("{0:?} is not a size: write a whole number with B, KiB, MiB, GiB or TiB, such as \"64MiB\"")]
    Size(String),
    /// Not a duration.
    #[error("{0:?} is not a duration: write a number with ms, s, m or h, such as \"5s\"")]
    Duration(String),
}

const SUFFIXES: [(&str, u64); 5] = [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

/// Reads `"64MiB"` into bytes. Powers of two only, so that one spelling has one meaning.
pub fn parse_size(text: &str) -> Result<u64, UnitError> {
    let bad = || UnitError::Size(text.to_owned());
    let trimmed = text.trim();
    let (digits, unit) = SUFFIXES
        .iter()
        .find_map(|(suffix, unit)| trimmed.strip_suffix(suffix).map(|rest| (rest.trim(), *unit)))
        .ok_or_else(bad)?;
    digits.parse::<u64>().ok().and_then(|n| n.checked_mul(unit)).ok_or_else(bad)
}

/// Reads `"5s"`, `"100ms"`, `"1h 30m"`.
pub fn parse_duration(text: &str) -> Result<Duration, UnitError> {
    humantime::parse_duration(text.trim()).map_err(|_| UnitError::Duration(text.to_owned()))
}

/// A number of bytes, written in configuration as `"64MiB"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ByteSize(pub u64);

impl FromStr for ByteSize {
    type Err = UnitError;
    fn from_str(text: &str) -> Result<Self, UnitError> {
        parse_size(text).map(ByteSize)
    }
}

impl TryFrom<String> for ByteSize {
    type Error = UnitError;
    fn try_from(text: String) -> Result<Self, UnitError> {
        text.parse()
    }
}

impl From<ByteSize> for String {
    fn from(size: ByteSize) -> String {
        size.to_string()
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let exact = SUFFIXES.iter().find(|(_, unit)| self.0 >= *unit && self.0.is_multiple_of(*unit));
        let (suffix, unit) = exact.copied().unwrap_or(("B", 1));
        write!(f, "{}{suffix}", self.0 / unit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_and_print_alike() {
        for (text, bytes) in [("0B", 0), ("512B", 512), ("64MiB", 64 << 20), ("3TiB", 3 << 40)] {
            assert_eq!(parse_size(text), Ok(bytes));
            assert_eq!(ByteSize(bytes).to_string(), text);
        }
        for bad in ["", "64", "64MB", "-1B", "1.5GiB", "99999999TiB", "MiB"] {
            assert!(parse_size(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn durations_need_a_unit() {
        assert_eq!(parse_duration("5s"), Ok(Duration::from_secs(5)));
        assert_eq!(parse_duration("100ms"), Ok(Duration::from_millis(100)));
        assert!(parse_duration("5").is_err());
    }
}
