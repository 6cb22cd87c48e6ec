//! Packs: what points need is kept and little more, whatever dies or is damaged in between. The rules are shown to matter by taking them away.

use model::{DiskChange, DiskName, Extent, RecordBody, Seq, Timestamp};
use probe::{Rule, Rules};
use store::{Needed, Why};

use super::horizon::{
    Beside, at_rest, die, die_when, everything_is_right, long, play, settings, start, take, tidy, tidy_with, verified,
};
use super::{contents, load};
use crate::recover::{RecoverError, VerifyOptions, VerifyReport, verify};
use crate::testing::{TestLog, name, vault};
use crate::{ApplierConfig, ApplierRules, manifest, needed, preview_collection};

/// Paths and sizes of all packs.
async fn packs(log: &TestLog) -> Vec<(String, u64)> {
    log.store.list("machine/db/pack").await.expect("listed")
}

async fn stored(log: &TestLog, kind: &str) -> u64 {
    let listed = log.store.list(&format!("machine/db/{kind}")).await.expect("listed");
    listed.into_iter().map(|(_, bytes)| bytes).sum()
}

async fn report(log: &TestLog) -> VerifyReport {
    verify(&log.store, log.keys.clone(), &log.machine, VerifyOptions::default()).await.expect("report")
}

/// Points that do not read as the model says.
async fn wrong_points(log: &TestLog) -> Vec<Seq> {
    let history = load(log).await;
    let mut wrong = Vec::new();
    for point in history.recorded_points() {
        let seq = point.position.seq;
        let read = async {
            let at = history.resolve(&model::Selector::Seq(seq), None).await?;
            let reader = history.open(&at).await?;
            let mut right = true;
            for info in reader.disks() {
                let whole = Extent::new(0, info.size).expect("not empty");
                let bytes = reader.disk(&info.name)?.read(whole).await?;
                right &= log.model.at[seq.0 as usize][&info.name][..] == bytes[..];
            }
            Ok::<_, RecoverError>(right)
        };
        if !matches!(read.await, Ok(true)) {
            wrong.push(seq);
        }
    }
    wrong
}

fn without(rule: Rule) -> ApplierRules {
    ApplierRules { applier: Rules::without(rule), ..ApplierRules::ALL }
}

/// The newest manifest, and what it needs.
async fn marked(log: &TestLog) -> (format::manifest::Manifest, needed::Marks) {
    let maps = std::sync::Arc::new(crate::maps::Maps::new(log.store.clone(), log.keys.clone(), log.machine.clone()));
    let read = manifest::read(&manifest::log(&log.store, &log.keys, &log.machine), store::LogRules::ALL).await;
    let read = read.expect("read");
    let marks = needed::needed(&maps, 1, &read, Rules::ALL).await.expect("marked").expect("a horizon");
    (read, marks)
}

async fn lived(rounds: u32) -> TestLog {
    let (store, keys) = vault().await;
    let (mut log, mut beside) = (TestLog::begin(&store, &keys, "db", 21).await, Beside::default());
    for _ in 0..rounds {
        for step in long() {
            take(&step, &mut log, &mut beside).await;
        }
    }
    log
}

const BLOCK: u64 = 4096;
const SEGMENT: u64 = 8 << 20;

/// The settings for the log of [`one_block_of_each_stays`].
fn short(pack_bytes: u64) -> ApplierConfig {
    ApplierConfig { retention: "40s:all".parse().expect("a retention"), pack_bytes, ..settings() }
}

/// One block of each of many segments stays needed, everything else is written over.
async fn one_block_of_each_stays(segments: u64, block: u64, segment_bytes: u64, pack_bytes: u64) -> (TestLog, u64) {
    let (store, keys) = vault().await;
    let mut log = TestLog::new(store, keys, "db", 3).await;
    log.model.blind = true;
    log.disk("data", segment_bytes + segments * block, DiskChange::Added);
    log.drain_begin(Seq(0));
    log.drain_end();
    log.commit().await;
    for segment in 0..segments {
        let mut noise = |bytes: u64| (0..bytes / 8).flat_map(|_| log.rng.next().to_le_bytes()).collect::<Vec<u8>>();
        let (kept, rest) = (noise(block), noise(segment_bytes - block));
        log.write("data", segment_bytes + segment * block, kept);
        log.write("data", 0, rest);
        log.commit().await;
        if segment % 4 == 3 {
            log.reattach().await;
        }
    }
    let disk = name::<DiskName>("data").id();
    log.push(RecordBody::Zero { disk, extent: Extent::new(0, segment_bytes).expect("aligned") });
    log.commit().await;
    // The window leaves all of it.
    log.reattach().await;
    let late = Timestamp(log.model.times.last().expect("some").0 + 3_600_000_000);
    for second in 0..50 {
        let extent = Extent::new(0, 512).expect("a sector");
        let data = vec![second as u8 + 1; 512].into();
        log.push_at(Timestamp(late.0 + second * 1_000_000), RecordBody::Write { disk, extent, data });
        log.commit().await;
    }
    tidy_with(short(pack_bytes), &log, ApplierRules::ALL).await;
    (log, segments * block)
}

#[tokio::test]
async fn a_small_pack_is_made_once() {
    const PACK_BYTES: u64 = 8 << 10;
    // Header and index are a quarter of this pack, which is no gain that another one would bring.
    let (log, _) = one_block_of_each_stays(1, 512, 16 << 10, PACK_BYTES).await;
    let made = packs(&log).await;
    assert!(matches!(made[..], [(_, 513..1024)]), "{made:?}");
    tidy_with(short(PACK_BYTES), &log, ApplierRules::ALL).await;
    assert_eq!(packs(&log).await, made);
    assert!(report(&log).await.clean());
}

#[tokio::test]
async fn what_is_left_of_large_segments_is_about_what_is_needed_of_them() {
    let (log, needed) = one_block_of_each_stays(15, BLOCK, SEGMENT, 64 << 20).await;
    let (segments, packed) = (stored(&log, "stream/seg").await, stored(&log, "pack").await);
    println!("{needed} bytes are needed: {segments} in segments, {packed} in packs");
    assert!(packed < needed * 3 / 2, "{packed} bytes of packs for {needed}");
    assert!(segments < 64 << 10, "{segments} bytes of segments: those of the window alone");
    assert!(report(&log).await.clean());
    let history = load(&log).await;
    let disk = super::open(&history, log.last_valid()).await.disk(&name("data")).expect("there");
    let kept = disk.read(Extent::new(8 << 20, needed).expect("aligned")).await.expect("read");
    assert!(kept.chunks(4096).all(|block| block.iter().any(|byte| *byte != block[0])), "noise, not zeros");
    // The control: where no gain is worth a pack, the same is kept in whole segments.
    let (log, needed) = one_block_of_each_stays(15, BLOCK, SEGMENT, 0).await;
    let (segments, packed) = (stored(&log, "stream/seg").await, stored(&log, "pack").await);
    println!("without packs: {segments} in segments, {packed} in packs");
    assert!(segments > 1000 * needed && packed == 0, "{segments} bytes of segments for {needed}");
}

#[tokio::test]
async fn segments_that_packs_stand_for_are_explained_and_go() {
    let log = lived(2).await;
    // Nothing is deleted behind the commit that names the pack.
    die(&log, 0, "applier-collect-before", ApplierRules::ALL).await;
    let mut passed = 0;
    let plan = loop {
        let plan = preview_collection(&log.store, &log.keys, &log.machine).await.expect("no doubt");
        if plan.garbage.iter().any(|garbage| garbage.why == Why::Packed) {
            break plan;
        }
        passed += 1;
        assert!(passed < 200, "a pack is named and its segments are still there");
        die(&log, passed, "applier-collect-before", ApplierRules::ALL).await;
    };
    let packed = plan.garbage.iter().find(|garbage| garbage.why == Why::Packed).expect("just found");
    let text = plan.explain(packed);
    assert!(text.starts_with(&packed.path) && text.contains("a pack of manifest epoch"), "{text}");
    everything_is_right(&log).await;
    tidy(&log).await;
    assert_eq!(log.store.get(&packed.path).await.expect("read"), None);
    everything_is_right(&log).await;
    verified(&log).await;
}

#[tokio::test]
async fn a_death_at_any_step_of_packs_and_deletions_leaves_everything_right() {
    let mut log = lived(1).await;
    let mut beside = Beside::default();
    for passed in 0..24 {
        for step in long().into_iter().take(8) {
            take(&step, &mut log, &mut beside).await;
        }
        let prefix = if passed % 2 == 0 { "applier-pack-" } else { "applier-collect-" };
        die(&log, passed / 2, prefix, ApplierRules::ALL).await;
        assert_eq!(wrong_points(&log).await, [], "after a death behind {passed}");
    }
    assert!(!packs(&log).await.is_empty(), "packs were made");
    tidy(&log).await;
    everything_is_right(&log).await;
    verified(&log).await;
}

#[tokio::test]
async fn a_pack_that_holds_only_what_shows_at_the_horizon_loses_points() {
    let log = lived(2).await;
    tidy_with(settings(), &log, without(Rule::PackHoldsNeeded)).await;
    let wrong = wrong_points(&log).await;
    assert!(!wrong.is_empty(), "a point reads what the horizon does not");
    let report = report(&log).await;
    assert!(
        report.damages.iter().any(|damage| damage.path.contains("/pack/") && !damage.points.is_empty()),
        "{report:?}"
    );
    // The control.
    let log = lived(2).await;
    tidy(&log).await;
    assert_eq!(wrong_points(&log).await, []);
}

#[tokio::test]
async fn a_segment_that_goes_before_its_pack_is_named_is_missed() {
    for (rules, careless) in [(ApplierRules::ALL, false), (without(Rule::PackNamedFirst), true)] {
        let log = lived(2).await;
        // The first pack is put, and the commit that would name it never is.
        let mut put = false;
        let dies = move |name: &'static str| {
            put |= name == "applier-pack-put";
            put && name == "applier-commit-put-before"
        };
        die_when(&log, rules, dies).await;
        assert_eq!(!wrong_points(&log).await.is_empty(), careless);
        assert_eq!(!report(&log).await.clean(), careless);
    }
}

#[tokio::test]
async fn a_reader_with_an_older_manifest_goes_on_through_packs() {
    let mut log = lived(1).await;
    let applier = start(&log).await;
    at_rest(&applier, &log).await;
    let history = load(&log).await;
    let point = history.recorded_points()[0].clone();
    applier.pin(&log.machine, point.id, true).await.expect("pinned");
    applier.stop().await;
    let held = load(&log).await;
    let reader = super::open(&held, point.position.seq).await;
    let mut beside = Beside::default();
    for _ in 0..3 {
        for step in long() {
            take(&step, &mut log, &mut beside).await;
        }
        tidy(&log).await;
        assert!(contents(&reader).await == log.model.at[point.position.seq.0 as usize]);
    }
    assert!(!packs(&log).await.is_empty());
}

#[tokio::test]
async fn a_damaged_pack_is_named_with_the_points_it_hits() {
    let log = play(&[long(), long()].concat()).await;
    let named = manifest::log(&log.store, &log.keys, &log.machine);
    let named = manifest::read(&named, store::LogRules::ALL).await.expect("read").packs;
    assert!(!named.is_empty(), "packs were made");
    let path = crate::packs::pack_path(&log.machine, named[0].name);
    let whole = log.store.get(&path).await.expect("read").expect("named");
    let mut flipped = whole.to_vec();
    *flipped.last_mut().expect("not empty") ^= 1;
    let mut index = whole.to_vec();
    index[400] ^= 1;
    let mut hits = 0;
    for damaged in [Some(flipped), Some(index), None] {
        log.store.delete(&path).await.expect("deleted");
        if let Some(bytes) = damaged.clone() {
            log.store.create(&path, vec![bytes.into()]).await.expect("created");
        }
        let report = report(&log).await;
        assert_eq!(report.damages.len(), 1, "{:?}", report.damages);
        let damage = &report.damages[0];
        assert_eq!(damage.path, path);
        hits += damage.points.len();
        let wrong = wrong_points(&log).await;
        let ranges = |seq: &Seq| damage.ranges.iter().any(|range| range.from <= *seq && *seq <= range.to);
        let history = load(&log).await;
        for point in history.recorded_points() {
            let seq = point.position.seq;
            assert_eq!(wrong.contains(&seq), ranges(&seq), "point at {seq}, {:?}", damage.ranges);
        }
    }
    assert!(hits > 0, "some point reads from it");
    let doubt = preview_collection(&log.store, &log.keys, &log.machine).await.expect_err("a named pack is gone");
    assert!(doubt.to_string().contains(&path), "{doubt}");
    log.store.create(&path, vec![whole]).await.expect("put back");
    assert!(report(&log).await.clean());
}

#[tokio::test]
async fn a_damaged_segment_is_not_packed_and_what_is_sound_is() {
    let log = lived(2).await;
    tidy_with(ApplierConfig { pack_bytes: 0, ..settings() }, &log, ApplierRules::ALL).await;
    let (_, marks) = marked(&log).await;
    let (at, _) = marks.frames.first_key_value().expect("something is needed");
    let at = store::LogPosition { epoch: at.epoch, slot: at.slot };
    let first = &crate::segments::path(&log.machine, format::object::LogKind::Stream, at);
    let whole = log.store.get(first).await.expect("read").expect("listed");
    // No frame of it opens.
    let header = format::object::ObjectHeader::parse(&log.keys, &whole).expect("its header");
    let mut flipped = whole.to_vec();
    flipped[crate::segments::data_start(&header) as usize..].iter_mut().for_each(|byte| *byte ^= 1);
    log.store.delete(first).await.expect("deleted");
    log.store.create(first, vec![flipped.into()]).await.expect("created");
    tidy_with(settings(), &log, ApplierRules::ALL).await;
    assert!(!packs(&log).await.is_empty(), "the others are packed");
    assert!(log.store.get(first).await.expect("read").is_some(), "whoever has a sound copy may put it back");
    log.store.delete(first).await.expect("deleted");
    log.store.create(first, vec![whole]).await.expect("put back");
    verified(&log).await;
    everything_is_right(&log).await;
}

#[tokio::test]
async fn many_small_objects_become_few() {
    let log = play(&[long(), long(), long()].concat()).await;
    let (read, marks) = marked(&log).await;
    let Needed { segments, .. } = marks.needed;
    let left = log.store.list("machine/db/stream/seg").await.expect("listed").len();
    assert!(read.packs.len() * 4 < segments.len(), "{} packs for {} segments", read.packs.len(), segments.len());
    assert!(left < 25, "{left} segments are left: those of the window and the folded epoch");
}
