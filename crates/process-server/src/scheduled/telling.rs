//! The outbox: what is said is heard, merged or not, and the end comes after everything said before it.

use std::sync::Arc;

use format::wire::{Frame, Stored};
use model::{RecordDigest, Seq};
use shuttle::future::{block_on, spawn, yield_now};
use tokio::sync::Notify;

use super::outbox::Outbox;
use super::sync::Mutex;
use schedules::{caught, explore};

const SAID: u64 = 4;
const CREDIT: u64 = 10;

#[test]
fn nothing_said_is_left_unheard() {
    explore(|| {
        let outbox = Arc::new(Outbox::default());
        let (actor, echo) = (outbox.clone(), outbox.clone());
        let actor = spawn(async move {
            for n in 1..=SAID {
                actor.stored(Stored { seq: Seq(n), digest: RecordDigest::default() }, CREDIT);
            }
        });
        let echo = spawn(async move {
            for n in 1..=SAID {
                echo.pong(n);
                echo.credit(1);
            }
        });
        let listener = outbox.clone();
        let listener = spawn(async move {
            let (mut stored, mut credit, mut pongs) = (0, 0, 0);
            while let Some(frames) = listener.next().await {
                for frame in frames {
                    match frame {
                        Frame::Stored(now) => {
                            assert!(now.seq.0 > stored, "`stored` went back");
                            stored = now.seq.0;
                        }
                        Frame::Credit(more) => credit += more,
                        Frame::Pong(n) => {
                            assert_eq!(n, pongs + 1, "echoes come in order");
                            pongs = n;
                        }
                        other => panic!("{other:?} was never said"),
                    }
                }
            }
            assert_eq!((stored, credit, pongs), (SAID, SAID * (CREDIT + 1), SAID), "something said was not heard");
        });
        block_on(async {
            actor.await.expect("actor");
            echo.await.expect("echo");
            outbox.close();
            listener.await.expect("listener");
        });
    });
}

/// Forgets to leave its bell rung: it wakes only who is waiting already.
#[test]
fn control_a_bell_that_is_not_remembered_is_caught() {
    let why = caught(|| {
        let said = Arc::new((Mutex::new(false), Notify::new()));
        let listener = said.clone();
        let listener = spawn(async move {
            while !*listener.0.lock().expect("said") {
                yield_now().await;
                listener.1.notified().await;
            }
        });
        block_on(async {
            *said.0.lock().expect("said") = true;
            said.1.notify_waiters();
            listener.await.expect("listener");
        });
    });
    assert!(why.contains("deadlock"), "{why}");
}
