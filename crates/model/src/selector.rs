//! How an operator names a position: `latest`, `latest-processed`, `id:POINT`, `time:RFC3339`, `seq:N`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{Seq, Timestamp};

/// A recovery point's name: the mark's 128 random bits as 32 hex digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PointId(pub [u8; 16]);

impl fmt::Display for PointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl FromStr for PointId {
    type Err = SelectorError;
    fn from_str(text: &str) -> Result<Self, SelectorError> {
        let bad = || SelectorError { text: text.chars().take(80).collect() };
        if text.len() != 32 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(bad());
        }
        let mut id = [0; 16];
        for (i, byte) in id.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[2 * i..2 * i + 2], 16).map_err(|_| bad())?;
        }
        Ok(PointId(id))
    }
}

/// A position as the operator asks for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Selector {
    /// The last valid position in the log.
    Latest,
    /// The position the replica disks stand at.
    LatestProcessed,
    /// A recovery point by its id.
    Id(PointId),
    /// The last valid position not after this time.
    Time(Timestamp),
    /// Exactly this record.
    Seq(Seq),
}

/// The text names no position.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} names no position: use latest, latest-processed, id:POINT, time:2026-01-31T12:00:00Z or seq:N")]
pub struct SelectorError {
    /// What was given, cut to a printable length.
    pub text: String,
}

impl FromStr for Selector {
    type Err = SelectorError;
    fn from_str(text: &str) -> Result<Self, SelectorError> {
        let bad = || SelectorError { text: text.chars().take(80).collect() };
        match text.split_once(':') {
            None if text == "latest" => Ok(Selector::Latest),
            None if text == "latest-processed" => Ok(Selector::LatestProcessed),
            Some(("id", id)) => id.parse().map(Selector::Id).map_err(|_| bad()),
            Some(("time", time)) => Timestamp::parse_rfc3339(time).map(Selector::Time).ok_or_else(bad),
            Some(("seq", n)) if n.bytes().all(|b| b.is_ascii_digit()) => {
                n.parse().map(|n| Selector::Seq(Seq(n))).map_err(|_| bad())
            }
            _ => Err(bad()),
        }
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Selector::Latest => f.write_str("latest"),
            Selector::LatestProcessed => f.write_str("latest-processed"),
            Selector::Id(id) => write!(f, "id:{id}"),
            Selector::Time(time) => write!(f, "time:{time}"),
            Selector::Seq(seq) => write!(f, "seq:{seq}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_print_as_they_read() {
        for text in [
            "latest",
            "latest-processed",
            "seq:17",
            "id:00112233445566778899aabbccddeeff",
            "time:2026-01-31T12:00:00.000000Z",
        ] {
            assert_eq!(text.parse::<Selector>().expect(text).to_string(), text);
        }
        for bad in
            ["", "last", "seq:", "seq:-1", "seq:+1", "seq:99999999999999999999", "id:12", "time:noon", "latest:1"]
        {
            let read = bad.parse::<Selector>();
            assert!(read.is_err() || bad == "seq:", "{bad:?} read as {read:?}");
        }
        assert!("seq:".parse::<Selector>().is_err());
    }
}
