//! Which requests are slow or late, and how fast lives follow each other: evenly, or so that one rule's race is likely.
//!
//! A race needs somebody to stand still between two requests (a look and what rests on it, say) while others go on. Each
//! rule has its own two requests; the party that makes them is stalled there often, and the others are hurried.

use crate::sim::{Removed, Role};

/// What happens more often than usual.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bias {
    Even,
    StalledReads,
    LatePuts,
    /// Towards the race that this rule decides.
    Race(Removed),
}

/// Chances per request or per step of fate.
#[derive(Debug, Clone, Copy)]
pub struct Rates {
    pub stall: f64,
    pub writer_births: f64,
    pub applier_births: f64,
    pub kills: f64,
}

const EVEN: Rates = Rates { stall: 0.015, writer_births: 0.015, applier_births: 0.007, kills: 0.003 };

impl Bias {
    pub fn rates(self) -> Rates {
        match self {
            Bias::StalledReads => Rates { stall: 0.05, ..EVEN },
            Bias::Race(Removed::NeverSkip | Removed::ComparesDoubt | Removed::ReaderLooksAtTop) => {
                Rates { writer_births: 0.05, ..EVEN }
            }
            Bias::Race(Removed::RecheckManifestHole | Removed::SecondLookUp | Removed::ManifestLooks) => {
                Rates { applier_births: 0.05, kills: 0.006, ..EVEN }
            }
            _ => EVEN,
        }
    }

    /// The chance that this read stalls, on its way there and back.
    pub fn stalled_read(self, role: Role, path: &str) -> f64 {
        let Bias::Race(rule) = self else { return self.rates().stall };
        let manifest = path.contains("/manifest/");
        let opening = path.ends_with("/0000000000000000");
        let slot = path.contains("/seg/");
        match (rule, role) {
            (Removed::RecheckHole, Role::Writer) if slot && !manifest => 0.2,
            (Removed::ReaderLooksAtTop, Role::Reader) if slot && opening && !manifest => 0.3,
            (Removed::ReaderLooksAtTop, Role::Writer) if slot => 0.1,
            (Removed::RecheckManifestHole, _) if slot && manifest => 0.1,
            (Removed::SecondLookUp, _) if slot && opening && manifest => 0.25,
            (Removed::ManifestLooks, Role::Applier) => 0.05,
            _ => self.rates().stall,
        }
    }

    /// The chance that this PUT lands late.
    pub fn late(self, path: &str) -> f64 {
        let epoch = path.contains("/epoch/");
        match self {
            Bias::LatePuts | Bias::Race(Removed::NeverSkip | Removed::ComparesDoubt) if epoch => 0.7,
            Bias::LatePuts | Bias::Race(Removed::AcksInOrder | Removed::ReaderLooks) if !epoch => 0.3,
            _ => 0.12,
        }
    }
}
