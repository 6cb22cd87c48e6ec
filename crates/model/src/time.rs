//! Points in time: microseconds since 1970 on the agent's clock, which records never see go back.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// Microseconds since 1970-01-01T00:00:00Z.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// Reads RFC 3339 with a time zone `Z`, seconds or fractions: `2026-11-21T03:00:00.5Z`.
    pub fn parse_rfc3339(text: &str) -> Option<Self> {
        let time = humantime::parse_rfc3339(text).ok()?;
        Some(Self::from(time))
    }

    /// Time since `earlier`; zero when `earlier` is later.
    pub fn since(self, earlier: Timestamp) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }

    /// This time moved forward; stops at the end of time.
    pub fn plus(self, duration: Duration) -> Timestamp {
        Timestamp(self.0.saturating_add(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)))
    }
}

impl From<SystemTime> for Timestamp {
    fn from(time: SystemTime) -> Self {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        Timestamp(u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
    }
}

/// Last microsecond that RFC 3339 can spell: 9999-12-31T23:59:59.999999Z.
const RFC3339_MICROS_MAX: u64 = 253_402_300_799_999_999;

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = UNIX_EPOCH + Duration::from_micros(self.0.min(RFC3339_MICROS_MAX));
        write!(f, "{}", humantime::format_rfc3339_micros(time))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rfc3339_round_trips() {
        let text = "2026-11-21T03:00:00.250000Z";
        assert_eq!(Timestamp::parse_rfc3339(text).map(|t| t.to_string()).as_deref(), Some(text));
        assert_eq!(Timestamp::parse_rfc3339("yesterday"), None);
        let _does_not_panic = Timestamp(u64::MAX).to_string();
    }
}
