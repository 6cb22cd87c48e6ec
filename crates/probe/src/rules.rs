//! The safety rules of agent, process server and applier that can be taken away, one at a time.
//!
//! The rules of the epoch log are in `store::LogRules`. A rule stands here if ARCHITECTURE.md states it and code keeps
//! it at one place: there the code asks [`Rules::hold`], and when the answer is no it does what a hurried author would
//! have written, without a panic and without waiting for ever: an oracle must notice, not an assertion. One rule is kept
//! by agent and process server alike, and both ask for it.

/// A rule that can be taken away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    /// A region's bit is durable before the first write in it is submitted to the source.
    BitBeforeWrite,
    /// A bit is cleared only when every write it covers is stored.
    StoredBeforeClear,
    /// A bit is cleared only after a flush of the source issued after those writes completed.
    FlushBeforeClear,
    /// A drain read holds its region as a write does: the bit stays until what was read is stored.
    DrainHoldsRegion,
    /// A drain read holds its extent from before the read until its seq is given.
    DrainReadLocked,
    /// Overlapping writes in flight are serialised.
    OverlapsSerialised,
    /// Seq is given before the writer is told.
    SeqBeforeAnswer,
    /// A failed write leaves its range to-drain.
    FailedWriteDrained,
    /// A failed flush makes every region written since the last good one to-drain.
    FailedFlushDrained,
    /// A drain after a failed flush reads past the page cache.
    DrainPastCache,
    /// Every start that may have lost unsent records opens a new incarnation, which drains.
    FreshIncarnation,
    /// The clean-stop marker is durable only after the sources were flushed.
    FlushBeforeMarker,
    /// The clean-stop marker is durably removed before the first write.
    MarkerRemovedFirst,
    /// Payload is kept until it is stored.
    KeptUntilStored,
    /// The agent frees nothing until its own digest at the log's head agrees.
    DigestBeforeFree,
    /// Drain end is sequenced only when no to-drain bit is left on any disk.
    DrainEndWhenEmpty,
    /// A map version below the log's highest is refused.
    RevertedMapRefused,
    /// A next seq that is not above the log's head, or a digest that differs there, is refused: by the process server at
    /// HELLO, and by the agent when WELCOME names a head it never numbered.
    RevertedMemoryRefused,
    /// A second live agent is refused while the first lives.
    SecondAgentRefused,
    /// WELCOME comes only when the former session's jobs are stored or dropped.
    WelcomeAfterDrain,
    /// A slot given is filled with those bytes or the epoch ends.
    SlotFilled,
    /// `stored` follows the contiguous prefix.
    StoredInOrder,
    /// Positions from drain begin to drain end are not points.
    DrainIsNoPoint,
    /// A map says which ranges became zeros: they cover what lies below.
    MapSaysZeros,
    /// In a merge of maps the newest lies on top.
    MergeNewestOnTop,
    /// A range is read from the newest map that has it.
    NewestMapFirst,
    /// The horizon stays behind the journal window.
    HorizonBehindWindow,
    /// What points before the horizon read from is not deleted.
    PointsHoldSegments,
    /// What positions behind the horizon read from before it is not deleted.
    HorizonHoldsSegments,
    /// A pack holds every frame that some promised position needs of the segments for which it stands.
    PackHoldsNeeded,
    /// A segment is deleted only when an acknowledged manifest names the pack that stands for it.
    PackNamedFirst,
    /// Other epochs learn of a chunk only when it is stored.
    SharedWhenStored,
    /// The condemn lists are read after the epoch was created.
    ListsAfterEpoch,
    /// A shared segment is deleted only when every stream's head answers for the list that condemns it.
    HeadsAwaited,
    /// What is condemned is deleted only when marking, done after the wait, does not find it.
    MarkedAgain,
    /// Collection within a stream leaves shared segments alone.
    SharedKept,
    /// A cache store is trimmed no further than to right before the lowest cursor.
    ConsumersHoldSegments,
    /// The list of consumers says that an epoch is trimmed before anything of it is deleted.
    TrimmedBeforeDeleted,
}

impl Rule {
    /// Every rule.
    pub const ALL: &[Rule] = &[
        Rule::BitBeforeWrite,
        Rule::StoredBeforeClear,
        Rule::FlushBeforeClear,
        Rule::DrainHoldsRegion,
        Rule::DrainReadLocked,
        Rule::OverlapsSerialised,
        Rule::SeqBeforeAnswer,
        Rule::FailedWriteDrained,
        Rule::FailedFlushDrained,
        Rule::DrainPastCache,
        Rule::FreshIncarnation,
        Rule::FlushBeforeMarker,
        Rule::MarkerRemovedFirst,
        Rule::KeptUntilStored,
        Rule::DigestBeforeFree,
        Rule::DrainEndWhenEmpty,
        Rule::RevertedMapRefused,
        Rule::RevertedMemoryRefused,
        Rule::SecondAgentRefused,
        Rule::WelcomeAfterDrain,
        Rule::SlotFilled,
        Rule::StoredInOrder,
        Rule::DrainIsNoPoint,
        Rule::MapSaysZeros,
        Rule::MergeNewestOnTop,
        Rule::NewestMapFirst,
        Rule::HorizonBehindWindow,
        Rule::PointsHoldSegments,
        Rule::HorizonHoldsSegments,
        Rule::PackHoldsNeeded,
        Rule::PackNamedFirst,
        Rule::SharedWhenStored,
        Rule::ListsAfterEpoch,
        Rule::HeadsAwaited,
        Rule::MarkedAgain,
        Rule::SharedKept,
        Rule::ConsumersHoldSegments,
        Rule::TrimmedBeforeDeleted,
    ];

    /// The rule's name on the command line and in tables.
    pub fn name(self) -> String {
        let mut name = String::new();
        for (i, c) in format!("{self:?}").chars().enumerate() {
            if c.is_ascii_uppercase() && i > 0 {
                name.push('-');
            }
            name.push(c.to_ascii_lowercase());
        }
        name
    }
}

/// The rules in force: all of them, but for one that a test took away.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rules {
    #[cfg(feature = "armed")]
    removed: Option<Rule>,
}

impl Rules {
    /// Every rule holds.
    pub const ALL: Rules = Rules {
        #[cfg(feature = "armed")]
        removed: None,
    };

    /// Every rule but this one holds.
    #[cfg(feature = "armed")]
    pub fn without(rule: Rule) -> Rules {
        Rules { removed: Some(rule) }
    }

    /// Whether the rule is in force. Always, in what is shipped.
    #[cfg(feature = "armed")]
    #[inline]
    pub fn hold(self, rule: Rule) -> bool {
        self.removed != Some(rule)
    }

    /// Whether the rule is in force: always.
    #[cfg(not(feature = "armed"))]
    #[inline]
    pub fn hold(self, _rule: Rule) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_words_and_all_are_listed() {
        assert_eq!(Rule::BitBeforeWrite.name(), "bit-before-write");
        let mut all = Rule::ALL.to_vec();
        all.dedup();
        assert_eq!(all.len(), Rule::TrimmedBeforeDeleted as usize + 1);
    }
}
