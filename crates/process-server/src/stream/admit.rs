//! Whether an agent may go on with a stream: the rules of HELLO and WELCOME, as one pure function.
//!
//! What must hold: no record is numbered twice with different content, and no record follows a past it does not
//! belong to. So everything in HELLO that says "my past is not the log's past" is refused by name, and only a compare,
//! made against exactly the log's head, overrules it (ARCHITECTURE.md, records and agent rules).
//!
//! The head given is final: every job of the former session is stored or was dropped before it got a slot. That an
//! agent's digest at the head agrees with the log's is for the agent to check against WELCOME; here only the digest
//! at the position it names itself can be compared.
//!
//! A second live agent and the state of the store are not decided here: they are no matter of what HELLO says.

use format::wire::{Hello, PROTOCOL_VERSION, Refusal, Refused, Start};
use model::{DrainCause, Incarnation, LogHead};
use probe::{Rule, Rules};

/// An agent may go on: what its first record must continue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Admitted {
    /// Version both sides speak.
    pub protocol: u16,
    /// The log's head.
    pub head: LogHead,
    /// The life whose records follow.
    pub incarnation: Incarnation,
    /// No record may carry a lower map version. Zero after a compare: a reverted map counts anew from where it was.
    pub map_version_min: u64,
    /// Whether a drain is open at the head, as far as this server has seen: it decides what is shared, and nothing else.
    pub draining: bool,
}

/// Decides on HELLO for a log whose accepted end is `log`.
pub fn admit(log: &LogHead, hello: &Hello) -> Result<Admitted, Refused> {
    admit_with(log, hello, Rules::ALL)
}

/// The same under these safety rules.
#[doc(hidden)]
pub fn admit_with(log: &LogHead, hello: &Hello, rules: Rules) -> Result<Admitted, Refused> {
    if hello.protocol == 0 {
        return refuse(Refusal::Protocol, format!("protocol 0 is not spoken; newest known is {PROTOCOL_VERSION}"));
    }
    if hello.incarnation == Incarnation::default() {
        return refuse(Refusal::Protocol, "incarnation is all zero, which names no life of an agent".to_owned());
    }
    let compared = match hello.start {
        Start::Resume => {
            resumes(log, hello, rules)?;
            false
        }
        Start::New { cause, compared_to } => opens(log, hello, cause, compared_to.map(|seq| seq.0))?,
    };
    if !compared {
        same_past(log, hello, rules)?;
    }
    Ok(Admitted {
        protocol: hello.protocol.min(PROTOCOL_VERSION),
        head: *log,
        incarnation: hello.incarnation,
        // The agent's is not below the log's, or it was refused; so the lower of the two is the log's.
        map_version_min: if compared { 0 } else { log.map_version.min(hello.map_version) },
        draining: false,
    })
}

/// An unbroken life goes on: its next number lies behind the log's head, and the head belongs to that life. Or the log
/// has none of its records yet: then the life must have begun at exactly this head.
fn resumes(log: &LogHead, hello: &Hello, rules: Rules) -> Result<(), Refused> {
    let (next, head) = (hello.next_seq, log.position.seq);
    if next <= head {
        reverted_memory(
            rules,
            format!("the agent would give seq {next} next, but the log holds records up to {head}"),
        )?;
    }
    let life_begins_here = hello.stored.position == log.position && hello.stored.digest == log.digest;
    if hello.incarnation != log.position.incarnation && !life_begins_here && hello.stored.position.seq <= head {
        let text = format!(
            "the log's head {head} is of incarnation {}, the agent goes on with {} and does not know that head",
            log.position.incarnation, hello.incarnation
        );
        return refuse(Refusal::RevertedMemory, text);
    }
    Ok(())
}

/// A new life: returns whether it rests on a compare against exactly this head.
fn opens(log: &LogHead, hello: &Hello, cause: DrainCause, compared_to: Option<u64>) -> Result<bool, Refused> {
    let head = log.position.seq;
    if hello.incarnation == log.position.incarnation {
        let text = format!("incarnation {} is not new: the log's head {head} is of it", hello.incarnation);
        return refuse(Refusal::RevertedMemory, text);
    }
    match compared_to {
        Some(seq) if seq != head.0 => {
            let text = format!("the disks were compared to seq {seq}, the log's head is {head}: compare again");
            refuse(Refusal::StaleCompare, text)
        }
        compared => Ok(compared.is_some() && cause == DrainCause::Compare),
    }
}

/// What the agent knows of the log is what the log knows of itself.
fn same_past(log: &LogHead, hello: &Hello, rules: Rules) -> Result<(), Refused> {
    let (known, head) = (&hello.stored, log.position.seq);
    if known.position.seq > head {
        let text = format!("the agent saw seq {} stored, the log ends at {head}", known.position.seq);
        return refuse(Refusal::StoreLost, text);
    }
    if hello.map_version < log.map_version && rules.hold(Rule::RevertedMapRefused) {
        let text = format!(
            "the agent's dirty map has version {}, the log has seen {}: its disk was reverted",
            hello.map_version, log.map_version
        );
        return refuse(Refusal::RevertedDisk, text);
    }
    if known.position.seq == head && (known.digest != log.digest || known.position != log.position) {
        let text = format!(
            "at seq {head} the agent has digest {}, the log has {}: they are not of one past",
            known.digest, log.digest
        );
        reverted_memory(rules, text)?;
    }
    Ok(())
}

/// What the agent remembers of its own numbers is older than the log.
fn reverted_memory(rules: Rules, text: String) -> Result<(), Refused> {
    if rules.hold(Rule::RevertedMemoryRefused) { refuse(Refusal::RevertedMemory, text) } else { Ok(()) }
}

fn refuse<T>(reason: Refusal, text: String) -> Result<T, Refused> {
    Err(Refused { reason, text })
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::{Position, RecordDigest, Seq, Timestamp};

    const LIFE: Incarnation = Incarnation([1; 16]);
    const OTHER: Incarnation = Incarnation([2; 16]);

    fn head(incarnation: Incarnation, seq: u64, digest: u8, map_version: u64) -> LogHead {
        LogHead {
            position: Position { incarnation, seq: Seq(seq) },
            digest: RecordDigest([digest; 32]),
            map_version,
            time: Timestamp(seq),
        }
    }

    /// A reconnect of the life that wrote the log: 10 records in the log, 15 given, 10 known as stored.
    fn reconnect() -> Hello {
        Hello {
            protocol: 1,
            instance: [7; 16],
            incarnation: LIFE,
            start: Start::Resume,
            next_seq: Seq(16),
            map_version: 5,
            stored: head(LIFE, 10, 9, 5),
            disks: Vec::new(),
        }
    }

    fn new(cause: DrainCause, compared_to: Option<u64>) -> Hello {
        let start = Start::New { cause, compared_to: compared_to.map(Seq) };
        Hello { incarnation: OTHER, start, next_seq: Seq(0), ..reconnect() }
    }

    fn check(what: &str, log: LogHead, hello: Hello, expected: Result<(), Refusal>) {
        let got = admit(&log, &hello).map(|admitted| {
            assert_eq!((admitted.head, admitted.incarnation), (log, hello.incarnation), "{what}");
        });
        assert_eq!(got.map_err(|refused| refused.reason), expected, "{what}");
    }

    #[test]
    fn every_rule_of_hello_is_decided_by_name() {
        use Refusal::*;
        let log = head(LIFE, 10, 9, 5);
        let empty = LogHead::default();
        check("reconnect with records queued", log, reconnect(), Ok(()));
        check("reconnect with all stored", log, Hello { next_seq: Seq(11), ..reconnect() }, Ok(()));
        let behind = Hello { stored: head(LIFE, 4, 3, 2), ..reconnect() };
        check("stored as known lies behind the head", log, behind, Ok(()));
        check("never heard stored", log, Hello { stored: empty, ..reconnect() }, Ok(()));
        check("newer protocol", log, Hello { protocol: 9, ..reconnect() }, Ok(()));
        check("protocol zero", log, Hello { protocol: 0, ..reconnect() }, Err(Protocol));
        check("no life", log, Hello { incarnation: Incarnation::default(), ..reconnect() }, Err(Protocol));

        check("next is the head", log, Hello { next_seq: Seq(10), ..reconnect() }, Err(RevertedMemory));
        check("next far behind", log, Hello { next_seq: Seq(1), ..reconnect() }, Err(RevertedMemory));
        let digest = Hello { stored: head(LIFE, 10, 8, 5), ..reconnect() };
        check("digest differs", log, digest, Err(RevertedMemory));
        let position = Hello { stored: head(OTHER, 10, 9, 5), ..reconnect() };
        check("life at the head differs", log, position, Err(RevertedMemory));
        let foreign = Hello { incarnation: OTHER, stored: head(LIFE, 9, 1, 1), ..reconnect() };
        check("resume of a life the log's head is not of", log, foreign, Err(RevertedMemory));
        let unstored = Hello { incarnation: OTHER, ..reconnect() };
        check("resume of a life of which nothing is stored yet", log, unstored, Ok(()));
        check("the same on an empty log", empty, Hello { stored: empty, next_seq: Seq(3), ..reconnect() }, Ok(()));

        check("map older", log, Hello { map_version: 4, ..reconnect() }, Err(RevertedDisk));
        check("stored above the log", log, Hello { stored: head(LIFE, 11, 9, 5), ..reconnect() }, Err(StoreLost));
        check("log gone", empty, reconnect(), Err(StoreLost));
        let gone = Hello { incarnation: OTHER, stored: head(LIFE, 11, 9, 5), ..reconnect() };
        check("a foreign life that saw more than the log has", log, gone, Err(StoreLost));
    }

    #[test]
    fn only_a_compare_against_the_head_overrules() {
        use DrainCause::*;
        use Refusal::*;
        let log = head(LIFE, 10, 9, 5);
        check("unclean stop", log, new(UncleanStop, None), Ok(()));
        check("initial", LogHead::default(), Hello { stored: LogHead::default(), ..new(Initial, None) }, Ok(()));
        check("unclean stop, old map", log, Hello { map_version: 4, ..new(UncleanStop, None) }, Err(RevertedDisk));
        let lost = Hello { stored: head(LIFE, 11, 9, 5), ..new(UncleanStop, None) };
        check("unclean stop, store lost", log, lost.clone(), Err(StoreLost));
        let clone = Hello { stored: head(LIFE, 10, 1, 5), ..new(UncleanStop, None) };
        check("unclean stop, digest differs", log, clone.clone(), Err(RevertedMemory));
        check("a life used before", log, Hello { incarnation: LIFE, ..new(UncleanStop, None) }, Err(RevertedMemory));

        let compare = |hello: Hello, seq| Hello { start: new(Compare, seq).start, ..hello };
        check("compared, old map", log, Hello { map_version: 0, ..new(Compare, Some(10)) }, Ok(()));
        check("compared, store lost", log, compare(lost.clone(), Some(10)), Ok(()));
        check("compared, digest differs", log, compare(clone, Some(10)), Ok(()));
        check("compared to an older head", log, new(Compare, Some(9)), Err(StaleCompare));
        check("compared to a head not there", log, new(Compare, Some(11)), Err(StaleCompare));
        check("compare not run", log, compare(lost, None), Err(StoreLost));
        check("old map, compare not run", log, Hello { map_version: 0, ..new(Compare, None) }, Err(RevertedDisk));
        let other_cause = Hello { map_version: 4, ..new(UncleanStop, Some(10)) };
        check("another cause does not overrule", log, other_cause, Err(RevertedDisk));
        assert_eq!(admit(&log, &new(Compare, Some(10))).expect("admitted").map_version_min, 0);
        assert_eq!(admit(&log, &new(UncleanStop, None)).expect("admitted").map_version_min, 5);
    }
}
