//! Positions that are held while they are read: not let go before they are released or expire, and then let go.

use std::time::Duration;

use model::{Selector, Seq};

use super::horizon::{Beside, Step, long, take, tidy};
use super::{contents, load, open};
use crate::recover::{HoldAnswer, PositionHold, RecoverError};
use crate::testing::{TestLog, vault};

const WEEK: Duration = Duration::from_secs(7 * 24 * 3600);

/// Lives on for several windows, tidied up after each.
async fn live_on(log: &mut TestLog, beside: &mut Beside) {
    for step in [long(), vec![Step::Tidy], long(), vec![Step::Tidy]].concat() {
        take(&step, log, beside).await;
    }
}

/// A log with a horizon, what is beside it, and a valid position of its window that is no point.
async fn begun(seed: u64) -> (TestLog, Beside, Seq) {
    let (store, keys) = vault().await;
    let (mut log, mut beside) = (TestLog::begin(&store, &keys, "db", seed).await, Beside::default());
    live_on(&mut log, &mut beside).await;
    let history = load(&log).await;
    assert!(history.horizon_seq() > Seq::ZERO);
    let is_point = |seq: Seq| history.recorded_points().iter().any(|point| point.position.seq == seq);
    let position = (history.horizon_seq().0 + 1..log.last().0).map(Seq).find(|seq| !is_point(*seq));
    (log, beside, position.expect("positions are more than points"))
}

async fn opens(log: &TestLog, seq: Seq) -> bool {
    match load(log).await.resolve(&Selector::Seq(seq), None).await {
        Ok(_) => true,
        Err(RecoverError::BeforeHorizon { .. }) => false,
        Err(other) => panic!("{other}"),
    }
}

#[tokio::test]
async fn a_held_position_stays_and_goes_when_it_is_released() {
    let (mut log, mut beside, position) = begun(41).await;
    let reader = open(&*load(&log).await, position).await;
    let mut hold = PositionHold::of(&reader);
    assert!(hold.matters_at_once());
    hold.ask(WEEK).await.expect("asked");
    assert_eq!(hold.answer().await.expect("answered"), HoldAnswer::Waiting, "no applier runs");
    live_on(&mut log, &mut beside).await;
    assert!(matches!(hold.answer().await.expect("answered"), HoldAnswer::Held { .. }));
    assert!(opens(&log, position).await);
    assert!(contents(&reader).await == log.model.at[position.0 as usize], "and reads as it did");
    hold.release().await.expect("released");
    live_on(&mut log, &mut beside).await;
    // The control: nothing else held it.
    assert!(!opens(&log, position).await);
}

#[tokio::test]
async fn a_hold_whose_reader_died_expires() {
    let (mut log, mut beside, position) = begun(42).await;
    let reader = open(&*load(&log).await, position).await;
    let mut hold = PositionHold::of(&reader);
    // Records are a second apart, and so is the applier's clock: longer than the window, shorter than what follows.
    hold.ask(Duration::from_secs(100)).await.expect("asked");
    tidy(&log).await;
    assert!(matches!(hold.answer().await.expect("answered"), HoldAnswer::Held { .. }));
    drop(hold);
    assert!(opens(&log, position).await);
    live_on(&mut log, &mut beside).await;
    assert!(!opens(&log, position).await);
}

#[tokio::test]
async fn a_held_point_is_kept_and_the_horizon_passes_it() {
    let (mut log, mut beside, _) = begun(43).await;
    let history = load(&log).await;
    let behind = |seq: &Seq| *seq > history.horizon_seq();
    let point = history.recorded_points().iter().map(|point| point.position.seq).find(behind).expect("one");
    let mut hold = PositionHold::of(&open(&history, point).await);
    hold.ask(WEEK).await.expect("asked");
    for _ in 0..3 {
        live_on(&mut log, &mut beside).await;
    }
    let later = load(&log).await;
    assert!(later.horizon_seq() > point, "a point of its own needs nothing but its map");
    assert!(opens(&log, point).await);
    hold.release().await.expect("released");
    live_on(&mut log, &mut beside).await;
    assert!(!opens(&log, point).await, "retention keeps it four minutes");
}

#[tokio::test]
async fn what_is_gone_is_not_held_and_a_damaged_request_holds_nobody_up() {
    let (mut log, mut beside, position) = begun(44).await;
    let reader = open(&*load(&log).await, position).await;
    live_on(&mut log, &mut beside).await;
    assert!(!opens(&log, position).await, "it was not held");
    let junk = vec![bytes::Bytes::from_static(b"no request")];
    let next = load(&log).await.origin().newest().await.expect("read").holds_read + 1;
    log.store.create(&format!("machine/db/hold/{next:016x}"), junk).await.expect("created");
    let mut hold = PositionHold::of(&reader);
    hold.ask(WEEK).await.expect("asked");
    tidy(&log).await;
    assert_eq!(hold.answer().await.expect("answered"), HoldAnswer::Refused);
    let history = load(&log).await;
    let mut other = PositionHold::of(&open(&history, log.last_valid()).await);
    other.ask(WEEK).await.expect("asked");
    tidy(&log).await;
    assert!(matches!(other.answer().await.expect("answered"), HoldAnswer::Held { .. }), "the next is heard");
}
