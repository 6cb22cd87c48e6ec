//! Goal: whatever a crash or a stray byte does to a journal, it says nothing that was not written to it. Method: journals
//! of random news, cut, flipped and lengthened at every place, read again.

use super::*;
use proptest::prelude::*;

fn goal() -> Goal {
    let disk = |name: &str, size| GoalDisk { name: name.parse().expect("valid"), size, data: [size as u8; 32] };
    Goal {
        machine: "db".parse().expect("valid"),
        position: Position::default(),
        digest: RecordDigest::default(),
        format: "raw".into(),
        disks: vec![disk("root", 4096), disk("data", 512)],
    }
}

fn news() -> impl Strategy<Value = Vec<News>> {
    let written = (0..2usize, 0..40u64, any::<u8>()).prop_map(|(disk, piece, b)| Written { disk, piece, sum: [b; 32] });
    let one = prop_oneof![
        8 => prop::collection::vec(written, 1..5).prop_map(News::Durable),
        1 => (0..2usize).prop_map(News::Forgotten),
    ];
    prop::collection::vec(one, 0..8)
}

/// The bytes of a journal with these news, what was durable after each block, and where each ends.
fn written(all: Vec<News>) -> (Vec<u8>, Vec<(usize, Vec<Sums>)>) {
    let mut bytes = start().to_vec();
    let (first, mut sum) = block(&blake3::hash(&bytes), &encode(&goal()).expect("encodes"));
    bytes.extend(first);
    let mut durable = vec![Sums::new(); 2];
    let mut states = vec![(bytes.len(), durable.clone())];
    for news in all {
        let (next, own) = block(&sum, &encode(&news).expect("encodes"));
        bytes.extend(next);
        sum = own;
        tell(&mut durable, news);
        states.push((bytes.len(), durable.clone()));
    }
    (bytes, states)
}

fn read_all(bytes: &[u8]) -> Option<Found> {
    read(&mut &bytes[..]).expect("memory can be read")
}

/// The state of the last block that ends at or before `whole`; nothing, when the goal does not.
fn expected(states: &[(usize, Vec<Sums>)], whole: usize) -> Option<&(usize, Vec<Sums>)> {
    states.iter().rev().find(|(end, _)| *end <= whole)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_journal_cut_or_flipped_anywhere_says_what_was_written_before_that_place(all in news(), bit in 0..8u8) {
        let (bytes, states) = written(all);
        for at in 0..=bytes.len() {
            let damaged = match at < bytes.len() {
                true => {
                    let mut damaged = bytes.clone();
                    damaged[at] ^= 1 << bit;
                    damaged
                }
                false => [&bytes[..], &[0; 4096]].concat(),
            };
            for journal in [&bytes[..at], &damaged] {
                let found = read_all(journal).map(|found| (found.len as usize, found.durable));
                prop_assert_eq!(found.as_ref(), expected(&states, at), "at {}", at);
            }
        }
    }

    #[test]
    fn bytes_that_are_no_journal_are_read_without_panic_and_without_trust(mut bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        prop_assert!(read_all(&bytes).is_none());
        bytes.splice(0..START_BYTES.min(bytes.len()), start());
        prop_assert!(read_all(&bytes).is_none());
    }
}

#[test]
fn a_block_with_a_sound_sum_about_a_disk_that_is_not_there_ends_the_journal() {
    for wrong in [News::Forgotten(2), News::Durable(vec![Written { disk: 2, piece: 0, sum: [0; 32] }])] {
        let (mut bytes, states) = written(vec![News::Durable(vec![Written { disk: 1, piece: 7, sum: [9; 32] }])]);
        let sum = read_all(&bytes).expect("whole").sum;
        bytes.extend(block(&sum, &encode(&wrong).expect("encodes")).0);
        assert_eq!(read_all(&bytes).expect("its start is whole").durable, states[1].1);
    }
}

#[test]
fn goals_differ_by_everything_but_where_data_lies() {
    let same = goal();
    let mut other = goal();
    other.disks[0].data = [1; 32];
    assert!(other != same && other.is_of_the_same(&same));
    let differ: [fn(&mut Goal); 5] = [
        |g| g.machine = "web".parse().expect("valid"),
        |g| g.position.seq.0 += 1,
        |g| g.format = "vhd".into(),
        |g| g.disks[1].size += 512,
        |g| g.disks.truncate(1),
    ];
    for change in differ {
        let mut other = goal();
        change(&mut other);
        assert!(!other.is_of_the_same(&same), "{other:?}");
    }
}
