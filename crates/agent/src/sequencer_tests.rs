//! Numbers, time and modes against the rules in the module's head.

use super::*;
use proptest::prelude::*;

const LIFE: Incarnation = Incarnation([1; 16]);

fn mark() -> Mark {
    Mark { kind: model::MarkKind::Crash, id: [0; 16], label: String::new() }
}

fn zero() -> RecordBody<()> {
    let extent = model::Extent::new(0, 512).expect("aligned");
    RecordBody::Zero { disk: model::DiskId(1), extent }
}

proptest! {
    /// Whatever the clock and the modes do: numbers have no gap, time never goes back, the digest is the log's, and
    /// DrainBegin names the last position that was a point.
    #[test]
    fn numbers_have_no_gaps_and_time_never_goes_back(
        start in 0u64..1000,
        steps in proptest::collection::vec((0u8..6, 0u64..2000), 1..100),
    ) {
        let head = LogHead { position: Position { incarnation: LIFE, seq: Seq(start) }, time: Timestamp(500), ..LogHead::default() };
        let mut sequencer = Sequencer::new(LIFE, DrainCause::UncleanStop, Timestamp(0));
        sequencer.adopt(head);
        let mut log: Vec<Record<()>> = Vec::new();
        let mut digester = RecordDigester::resume(head.digest);
        let mut last_point = head.position.seq;
        for (step, clock) in steps {
            let body = match (step, sequencer.mode()) {
                (0, Mode::Drain) => sequencer.end_drain(mark()),
                (0 | 1, Mode::Bitmap) | (1, Mode::Data) => {
                    let body = sequencer.begin_drain(DrainCause::Overflow);
                    let named = matches!(body, RecordBody::DrainBegin { lost_after, .. } if lost_after == last_point);
                    prop_assert!(named, "lost_after is the last point");
                    body
                }
                (2, Mode::Data | Mode::Drain) => { prop_assert!(sequencer.enter_bitmap(DrainCause::Overflow)); continue }
                (_, Mode::Bitmap) => { prop_assert!(!sequencer.enter_bitmap(DrainCause::AgentState)); continue }
                _ => zero(),
            };
            let (record, digest) = sequencer.number(Timestamp(clock), 7, body);
            prop_assert_eq!(digest, digester.push(&record));
            prop_assert_eq!(record.seq.0, start + log.len() as u64 + 1);
            prop_assert!(record.time >= log.last().map_or(head.time, |r| r.time));
            if sequencer.mode() == Mode::Data { last_point = record.seq; }
            log.push(record);
        }
    }
}

#[test]
fn a_new_incarnation_does_not_go_behind_the_time_of_the_old_one() {
    let mut sequencer = Sequencer::new(LIFE, DrainCause::AgentState, Timestamp(900));
    sequencer.adopt(LogHead { time: Timestamp(100), ..LogHead::default() });
    let body = sequencer.begin_drain::<()>(DrainCause::AgentState);
    assert_eq!(sequencer.number(Timestamp(5), 1, body).0.time, Timestamp(900));
}

#[test]
fn a_resumed_incarnation_goes_on_in_data_mode() {
    let head = LogHead { position: Position { incarnation: LIFE, seq: Seq(9) }, ..LogHead::default() };
    let mut sequencer = Sequencer::resume(LIFE, head);
    assert_eq!(sequencer.mode(), Mode::Data);
    assert_eq!(sequencer.number(Timestamp(1), 1, zero()).0.seq, Seq(10));
}
