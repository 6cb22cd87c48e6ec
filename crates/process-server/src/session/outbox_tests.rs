//! The outbox as plain data: what waits is merged and bounded.

use format::wire::{Frame, Stored};
use model::{RecordDigest, Seq};

use super::outbox::{Outbox, PONGS_MAX};

#[tokio::test]
async fn what_waits_is_merged_and_bounded() {
    let outbox = Outbox::default();
    for n in 0..1000 {
        outbox.pong(n);
        outbox.stored(Stored { seq: Seq(n), digest: RecordDigest::default() }, 10);
    }
    outbox.close();
    let frames = outbox.next().await.expect("frames");
    assert_eq!(frames.len(), PONGS_MAX + 2);
    assert_eq!(frames[PONGS_MAX - 1], Frame::Pong(999));
    assert!(matches!(frames[PONGS_MAX], Frame::Stored(Stored { seq: Seq(999), .. })));
    assert_eq!(frames[PONGS_MAX + 1], Frame::Credit(10_000));
    assert_eq!(outbox.next().await, None, "closed and empty");
}
