//! Which recovery points a policy keeps, written in one line: `24h:all, 7d:1h, 30d:1d, 1y:1w`.
//!
//! Each tier says up to which age how many points stay: every point for 24 hours, then one an hour until 7 days, and so on.
//! Ages and intervals ascend, so that points are only ever thinned further as they grow old. A line is remembered as it
//! was written, so it can be shown to whoever wrote it. What follows from it for the points of a machine is decided in
//! [`Retention::plan`].

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

mod plan;
#[cfg(test)]
mod tests;

pub use plan::{Candidate, Kept, Plan, Reason};

/// Tiers of one line.
pub const TIERS_MAX: usize = 16;

/// Longest age or interval, 100 years.
pub const SPAN_MAX: Duration = Duration::from_secs(100 * 365 * 86400);

/// What a span may be counted in, and its seconds. A year has 365 days; weeks begin on Thursdays at 00:00 UTC, as 1970 did.
const UNITS: [(char, u64); 6] = [('s', 1), ('m', 60), ('h', 3600), ('d', 86400), ('w', 7 * 86400), ('y', 365 * 86400)];

/// Characters of a line that an error shows.
const SHOWN_CHARS: usize = 40;

/// A length of time as it was written: `7d` and `1w` are the same length and not the same text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Span {
    count: u64,
    unit: (char, u64),
}

impl Span {
    fn duration(self) -> Duration {
        Duration::from_secs(self.count * self.unit.1)
    }

    /// Reads `7d`: a whole number above zero and a unit, no longer than [`SPAN_MAX`].
    fn parse(text: &str) -> Option<Self> {
        let unit = UNITS.into_iter().find(|(letter, _)| text.ends_with(*letter))?;
        let digits = &text[..text.len() - 1];
        if !digits.bytes().all(|b| b.is_ascii_digit()) || digits.starts_with('0') {
            return None;
        }
        let count: u64 = digits.parse().ok()?;
        let seconds = count.checked_mul(unit.1)?;
        (seconds <= SPAN_MAX.as_secs()).then_some(Self { count, unit })
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.count, self.unit.0)
    }
}

/// Up to this age, one point for each interval; without an interval, all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Tier {
    age: Span,
    every: Option<Span>,
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.every {
            Some(every) => write!(f, "{}:{every}", self.age),
            None => write!(f, "{}:all", self.age),
        }
    }
}

/// 1 to [`TIERS_MAX`] tiers, ages and intervals ascending. Equal when written alike, but for spaces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retention {
    tiers: Vec<Tier>,
}

/// A line of tiers is refused; the text names the tier and says what to write.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RetentionError {
    /// There are more than [`TIERS_MAX`].
    #[error("{0} tiers; write at most {TIERS_MAX}, separated by commas")]
    TooMany(usize),
    /// One of them is wrong.
    #[error("tier {number} ({text:?}): {fault}")]
    Tier {
        /// Which, counted from 1.
        number: usize,
        /// As written, cut to a printable length.
        text: String,
        /// What is wrong with it.
        fault: TierFault,
    },
}

/// What is wrong with one tier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TierFault {
    /// It has no colon.
    #[error("write AGE:INTERVAL, such as \"24h:all\" or \"7d:1h\"")]
    Shape,
    /// Age or interval is no length of time.
    #[error(
        "its {0} is no length of time: write a whole number above 0 with s, m, h, d, w or y, such as \"7d\"; at most 100y"
    )]
    Span(&'static str),
    /// Only the youngest points can all be kept.
    #[error("only the first tier may keep all: write an interval, such as \"1h\"")]
    AllTooLate,
    /// Ages do not ascend.
    #[error("its age is not above {0}, the age of the tier before: order the tiers from young to old")]
    Age(String),
    /// Intervals do not ascend.
    #[error("its interval is not above {0}, the interval of the tier before: what was thinned cannot come back")]
    Interval(String),
    /// An interval that is longer than the age has nothing to choose from.
    #[error("its interval is longer than its age: write a shorter interval or a greater age")]
    IntervalAboveAge,
}

impl Tier {
    /// Reads one tier that follows `before`.
    fn parse(text: &str, before: Option<&Tier>) -> Result<Self, TierFault> {
        let (age, every) = text.split_once(':').ok_or(TierFault::Shape)?;
        let age = Span::parse(age.trim()).ok_or(TierFault::Span("age"))?;
        let every = match every.trim() {
            "all" => None,
            span => Some(Span::parse(span).ok_or(TierFault::Span("interval"))?),
        };
        if every.is_some_and(|every| every.duration() > age.duration()) {
            return Err(TierFault::IntervalAboveAge);
        }
        if let Some(before) = before {
            let interval = every.ok_or(TierFault::AllTooLate)?;
            if age.duration() <= before.age.duration() {
                return Err(TierFault::Age(before.age.to_string()));
            }
            if let Some(finer) = before.every.filter(|finer| interval.duration() <= finer.duration()) {
                return Err(TierFault::Interval(finer.to_string()));
            }
        }
        Ok(Self { age, every })
    }
}

impl FromStr for Retention {
    type Err = RetentionError;

    /// Reads `AGE:INTERVAL, …`. Errors: every [`RetentionError`], for the first tier that is wrong.
    fn from_str(text: &str) -> Result<Self, RetentionError> {
        let count = text.split(',').count();
        if count > TIERS_MAX {
            return Err(RetentionError::TooMany(count));
        }
        let mut tiers: Vec<Tier> = Vec::with_capacity(count);
        for (i, text) in text.split(',').map(str::trim).enumerate() {
            let refuse = |fault| {
                let text = text.chars().take(SHOWN_CHARS).collect();
                RetentionError::Tier { number: i + 1, text, fault }
            };
            tiers.push(Tier::parse(text, tiers.last()).map_err(refuse)?);
        }
        Ok(Self { tiers })
    }
}

impl fmt::Display for Retention {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, tier) in self.tiers.iter().enumerate() {
            write!(f, "{}{tier}", if i == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}
