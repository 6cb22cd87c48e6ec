//! What a verify reads whole: everything, or a share that is drawn.
//!
//! Segments, packs and maps hold nearly all bytes of a store, and only they are drawn. Of one that is not drawn, header and table
//! (of a map or a pack: its index) are read all the same, so that chain, records and references are checked over the whole log
//! whatever the share. All else is small and always read whole.
//!
//! The draw is a hash of the path under a seed made up anew for each verify: nobody who can write the store knows beforehand
//! what will be looked into.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use model::MachineName;
use serde::{Deserialize, Serialize};

use super::LOOK_BYTES;
use super::state::Seen;
use crate::segments;

/// Of all.
const MILLION: u32 = 1_000_000;

/// How much is read whole, from a millionth to all of it; as text a percentage, `1%` or `0.25%`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    millionths: u32,
}

impl FromStr for Share {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || "write a percentage from 0.0001% to 100%, such as 1%".to_owned();
        let (whole, part) = match text.strip_suffix('%').ok_or_else(bad)?.split_once('.') {
            None => (text.strip_suffix('%').unwrap_or(text), ""),
            Some((whole, part)) => (whole, part),
        };
        let digits = |text: &str, max: usize| text.len() <= max && text.bytes().all(|byte| byte.is_ascii_digit());
        if whole.is_empty() || !digits(whole, 3) || !digits(part, 4) || (part.is_empty() && text.contains('.')) {
            return Err(bad());
        }
        let millionths = format!("{whole}{part:0<4}").parse().map_err(|_| bad())?;
        if (1..=MILLION).contains(&millionths) { Ok(Self { millionths }) } else { Err(bad()) }
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, part) = (self.millionths / 10_000, self.millionths % 10_000);
        match part {
            0 => write!(f, "{whole}%"),
            _ => write!(f, "{whole}.{}%", format!("{part:04}").trim_end_matches('0')),
        }
    }
}

/// A share and what decides which objects are in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Draw {
    pub share: Share,
    pub seed: u32,
}

impl Draw {
    /// Where in the draw a path lies, below 2^64.
    fn rank(&self, path: &str) -> u64 {
        let mut hasher = blake3::Hasher::new_derive_key("farshore 2026 verify sample");
        hasher.update(&self.seed.to_le_bytes()).update(path.as_bytes());
        let mut rank = [0; 8];
        hasher.finalize_xof().fill(&mut rank);
        u64::from_le_bytes(rank)
    }

    fn takes(&self, path: &str) -> bool {
        u128::from(self.rank(path)) < (u128::from(self.share.millionths) << 64) / u128::from(MILLION)
    }
}

/// What lies in the store of a machine, and what of it is to be read whole.
#[derive(Default)]
pub(super) struct Plan {
    draw: Option<Draw>,
    sizes: BTreeMap<String, u64>,
    /// The one object that is read where the draw took none.
    least: Option<String>,
}

impl Plan {
    /// From a listing of everything of the machine.
    pub fn of(machine: &MachineName, listed: Vec<(String, u64)>, draw: Option<Draw>) -> Self {
        let sizes: BTreeMap<_, _> = listed.into_iter().filter(|(path, _)| is_bulk(machine, path)).collect();
        let least = draw.filter(|draw| !sizes.keys().any(|path| draw.takes(path)));
        let least = least.and_then(|draw| sizes.keys().min_by_key(|path| draw.rank(path)).cloned());
        Self { draw, sizes, least }
    }

    /// Whether the object is to be read whole.
    pub fn draws(&self, path: &str) -> bool {
        self.draw.is_none_or(|draw| draw.takes(path) || self.least.as_deref() == Some(path))
    }

    /// Whether everything is to be read whole.
    pub fn is_all(&self) -> bool {
        self.draw.is_none_or(|draw| draw.share.millionths == MILLION)
    }

    /// Whether the states of a point are to be reckoned again.
    pub fn draws_point(&self, id: &str) -> bool {
        self.draw.is_none_or(|draw| draw.takes(&format!("point/{id}")))
    }

    /// Its size in bytes as listed.
    pub fn size(&self, path: &str) -> Option<u64> {
        self.sizes.get(path).copied()
    }

    /// About how many bytes are to be read, given what was read before.
    pub fn bytes(&self, seen: &Seen) -> u64 {
        let cost = |(path, size): (&String, &u64)| match self.draws(path) && !seen.holds(path) {
            true => *size,
            false => (*size).min(LOOK_BYTES),
        };
        self.sizes.iter().map(cost).sum()
    }
}

/// Whether a path is that of a segment, of a pack or of a map.
fn is_bulk(machine: &MachineName, path: &str) -> bool {
    let own = path.strip_prefix(&segments::machine_prefix(machine)).and_then(|own| own.strip_prefix('/'));
    match own.unwrap_or_default().split('/').collect::<Vec<_>>()[..] {
        ["stream", "seg", _, slot] => slot != "0000000000000000",
        ["map" | "pack", _, _] => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_a_percentage() {
        let reads = [("1%", "1%"), ("100%", "100%"), ("0.25%", "0.25%"), ("0.0001%", "0.0001%"), ("007.50%", "7.5%")];
        for (text, shown) in reads {
            assert_eq!(text.parse::<Share>().map(|share| share.to_string()), Ok(shown.to_owned()), "{text}");
        }
        for bad in ["", "1", "%", "0%", "0.00001%", "100.0001%", "1.%", ".5%", "-1%", "1e2%", "101%", "1 %", "9999%"] {
            assert!(bad.parse::<Share>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_draw_takes_about_its_share_and_another_seed_takes_others() {
        let paths: Vec<_> = (1..=20_000).map(|slot| format!("machine/db/stream/seg/1/{slot:016x}")).collect();
        let share = "5%".parse().expect("a share");
        let taken = |seed| paths.iter().filter(|path| Draw { share, seed }.takes(path)).collect::<Vec<_>>();
        let (one, two) = (taken(1), taken(2));
        assert!((800..1200).contains(&one.len()), "{}", one.len());
        assert!(one == taken(1) && one != two);
        let all = Draw { share: "100%".parse().expect("a share"), seed: 7 };
        assert!(paths.iter().all(|path| all.takes(path)));
    }

    #[test]
    fn one_object_is_read_where_the_draw_took_none() {
        let machine: MachineName = "db".parse().expect("valid");
        let listed =
            |slots: u64| (0..=slots).map(|slot| (format!("machine/db/stream/seg/1/{slot:016x}"), 100)).collect();
        let draw = Draw { share: "0.0001%".parse().expect("a share"), seed: 3 };
        let plan = Plan::of(&machine, listed(50), Some(draw));
        let drawn = (1..=50).filter(|slot| plan.draws(&format!("machine/db/stream/seg/1/{slot:016x}"))).count();
        assert_eq!((drawn, plan.sizes.len()), (1, 50), "openings are not drawn");
    }
}
