//! Fixed objects and frames for tests: the same bytes in every run.

use bytes::Bytes;
use model::{
    DiskChange, DiskName, DrainCause, Extent, Incarnation, LogHead, MachineName, Mark, MarkKind, PointId, Position,
    Record, RecordBody, RecordDigest, Seq, Timestamp,
};

use crate::Codec;
use crate::consumers::{Consumer, ConsumerId, Consumers};
use crate::hold::{HoldId, HoldRequest};
use crate::keys::Keys;
use crate::manifest::{
    DiskState, Drain, DrainStep, EpochEnd, Hold, Made, Manifest, ManifestCommit, Point, PointKind, PointStates,
    Promoted, SharedRun,
};
use crate::map::{MapDisk, MapFacts, MapName, MapRun, MapSource, MapWriter, Node, Owner, SealedMap, SegmentName};
use crate::object::{
    CondemnList, LogKind, ObjectHash, ObjectId, ObjectKind, Opening, Place, RegistryEntry, SmallObject, StreamEpoch,
    seal_small_with,
};
use crate::pack::{PackName, PackRef, PackWriter, SealedPack};
use crate::seal::Packing;
use crate::segment::{
    ChunkAt, Commit, FrameSealer, Piece, SealedSegment, SegmentRef, Table, assemble_with, open_segment,
    recompute_digest,
};
use crate::wire::{Frame, Hello, Refusal, Refused, Start, Stored, Welcome};

pub(crate) const KIB: u64 = 1 << 10;

pub(crate) fn keys() -> Keys {
    crate::fuzzing::keys()
}

pub(crate) fn other_keys() -> Keys {
    Keys::new(&crate::keys::VaultKey::from_bytes(zeroize::Zeroizing::new([8; 32])))
}

pub(crate) fn machine() -> MachineName {
    "db-01".parse().expect("valid name")
}

pub(crate) fn other_machine() -> MachineName {
    "db-02".parse().expect("valid name")
}

pub(crate) fn disk() -> DiskName {
    "root".parse().expect("valid name")
}

pub(crate) fn place(log: LogKind, epoch: u64, slot: u64) -> Place {
    Place { machine: Some(machine()), log: Some(log), epoch, slot }
}

pub(crate) fn extent(offset: u64, len: u64) -> Extent {
    Extent::new(offset, len).expect("valid extent")
}

pub(crate) fn mark(label: &str) -> Mark {
    Mark { kind: MarkKind::Application, id: [0xa5; 16], label: label.to_owned() }
}

/// One record of each kind, from number 41 on.
pub(crate) fn bodies<D>(data: D) -> Vec<Record<D>> {
    let id = disk().id();
    let bodies = [
        RecordBody::Disk { disk: id, name: disk(), size: 1 << 30, change: DiskChange::Added },
        RecordBody::DrainBegin { cause: DrainCause::Initial, incarnation: Incarnation([3; 16]), lost_after: Seq(40) },
        RecordBody::Write { disk: id, extent: extent(56 * KIB, 48 * KIB), data },
        RecordBody::Zero { disk: id, extent: extent(1 << 20, 1 << 20) },
        RecordBody::DrainEnd(mark("")),
        RecordBody::Mark(mark("before upgrade")),
    ];
    let record = |(n, body): (u64, _)| Record {
        seq: Seq(41 + n),
        time: Timestamp(1_800_000_000_000_000 + n),
        map_version: 5,
        body,
    };
    (0..).zip(bodies).map(record).collect()
}

/// Plain bytes of the sample frames.
pub(crate) fn frame_plain(number: u32) -> Vec<u8> {
    (0..12 * KIB).map(|at| (at / 64) as u8 ^ number as u8).collect()
}

fn pieces() -> Vec<Piece> {
    vec![
        Piece { len: 8 * KIB, at: ChunkAt::Here { frame: 7, offset: 4096 } },
        Piece { len: 4 * KIB, at: ChunkAt::Other { reference: 0, frame: 3, offset: 512 } },
        Piece { len: 32 * KIB, at: ChunkAt::Zero },
        Piece { len: 4 * KIB, at: ChunkAt::Here { frame: 2, offset: 0 } },
    ]
}

pub(crate) fn table_records() -> Vec<Record<Vec<Piece>>> {
    bodies(pieces())
}

pub(crate) fn references() -> Vec<SegmentRef> {
    vec![SegmentRef { id: ObjectId([0x11; 32]), machine: machine(), epoch: 2, slot: 9 }]
}

pub(crate) fn commit() -> Commit {
    let records = table_records();
    let last = records.last().expect("not empty");
    let table = Table { records: records.clone(), ..Table::default() };
    Commit {
        place: place(LogKind::Stream, 3, 4),
        prev_hash: ObjectHash([0x22; 32]),
        head: LogHead {
            position: Position { incarnation: Incarnation([3; 16]), seq: last.seq },
            digest: recompute_digest(RecordDigest([0x33; 32]), &table),
            map_version: 6,
            time: last.time,
        },
        gc_seen: 7,
        shared: true,
    }
}

pub(crate) fn segment(packing: Packing) -> SealedSegment {
    let keys = keys();
    let sealer = FrameSealer::new(&keys, ObjectId([if packing == Packing::Raw { 0x44 } else { 0x45 }; 32]));
    let seal = |number| {
        let plain = frame_plain(number);
        let (codec, packed) = match packing {
            Packing::Raw => (Codec::Raw, plain.clone()),
            Packing::WhenItPays => crate::Compressor::new().compress(crate::Level::Normal, &plain),
        };
        sealer.seal(number, codec, plain.len() as u32, packed)
    };
    let frames = vec![seal(7), seal(2)];
    assemble_with(&keys, &sealer, commit(), frames, references(), table_records(), packing)
}

pub(crate) fn promoted(slot: u64) -> Promoted {
    let head = commit().head;
    let (id, hash) = (ObjectId([slot as u8; 32]), ObjectHash([0x55; 32]));
    Promoted { id, epoch: 3, slot, hash, head, bytes: 8 << 20, shared: slot == 3 }
}

pub(crate) fn point() -> Point {
    let head = commit().head;
    let (position, time, digest) = (head.position, head.time, head.digest);
    let made = Some(Made { at: Timestamp(time.0 + 900_000), chain: promoted(3).hash });
    Point {
        id: PointId([0xa5; 16]),
        position,
        time,
        kind: PointKind::Marked,
        mark: Some(mark("nightly")),
        digest,
        made,
        states: states(),
    }
}

pub(crate) fn states() -> Vec<DiskState> {
    vec![DiskState { disk: "root".parse().expect("a name"), sum: [0x77; 32].into() }]
}

pub(crate) fn node(level: u8, slot: u64) -> Node {
    let map = MapName { epoch: 2, number: slot };
    Node { level, map, index_bytes: 300, bytes: 9000, end: promoted(slot) }
}

fn held() -> (HoldId, Hold) {
    let point = point();
    (HoldId([0x5c; 16]), Hold { seq: point.position.seq, until: Timestamp(point.time.0 + 7_200_000_000) })
}

pub(crate) fn hold_request() -> HoldRequest {
    HoldRequest { id: HoldId([0x5c; 16]), seq: point().position.seq, lasts_seconds: 7200 }
}

pub(crate) fn consumers() -> Consumers {
    let point = point();
    let (seq, stated) = (point.position.seq, Timestamp(point.time.0 + 1_000_000));
    let consumer = Consumer { epoch: 3, slot: 8, seq, stated, vault: "s3://vault".to_owned() };
    Consumers { trimmed: 2, consumers: [(ConsumerId([0x5d; 8]), consumer)].into() }
}

pub(crate) fn manifest() -> Manifest {
    Manifest {
        nodes: Vec::new(),
        segments: vec![promoted(1), promoted(2)],
        horizon: Some(Promoted { epoch: 2, ..promoted(9) }),
        ends: vec![EpochEnd { epoch: 3, slot: 2 }],
        drains: vec![Drain { seq: Seq(42), step: DrainStep::Begin { lost_after: Seq(40) } }],
        points: vec![point()],
        pins: [point().id].into(),
        point_maps: [(point().id, node(0, 9))].into(),
        holds: [held()].into(),
        holds_read: 7,
        packs: vec![pack_ref(1, (1, 1), (1, 7)), pack_ref(2, (1, 9), (2, 3))],
        shared: vec![SharedRun { epoch: 1, first: 2, last: 9 }],
    }
}

pub(crate) fn manifest_commit() -> ManifestCommit {
    ManifestCommit {
        segments: vec![promoted(3)],
        drains: vec![Drain { seq: Seq(45), step: DrainStep::End }],
        points: vec![point()],
        dropped: vec![PointId([0x5a; 16])],
        pinned: vec![point().id],
        unpinned: vec![PointId([0x5b; 16])],
        nodes: vec![node(0, 2)],
        horizon: Some(promoted(2)),
        point_maps: vec![(point().id, node(0, 1))],
        states: vec![PointStates { point: point().id, disks: states() }],
        held: vec![held()],
        released: vec![HoldId([0x5d; 16])],
        holds_read: 8,
        packs: vec![pack_ref(3, (1, 2), (1, 7))],
        unpacked: vec![pack_ref(1, (1, 1), (1, 7)).name],
    }
}

/// Runs of a sample map.
pub(crate) fn map_runs() -> Vec<MapRun> {
    let segment = SegmentName { owner: Owner::SELF, epoch: 3, slot: 1, tag: [0x44; 8] };
    let foreign = SegmentName { owner: Owner::of(&other_machine()), epoch: 2, slot: 8, tag: [0x45; 8] };
    let data = |frame, offset| MapSource::Data { segment, frame, offset };
    vec![
        MapRun { extent: extent(0, 4 * KIB), source: data(7, 512) },
        MapRun { extent: extent(4 * KIB, 1 << 30), source: MapSource::Zero },
        MapRun { extent: extent(2 << 30, 64 * KIB), source: data(2, 0) },
        MapRun { extent: extent(3 << 30, KIB), source: MapSource::Data { segment: foreign, frame: 1, offset: 0 } },
    ]
}

pub(crate) fn map_facts() -> MapFacts {
    let (first, name) = (table_records()[0].clone(), disk());
    MapFacts {
        place: place(LogKind::Manifest, 2, 5),
        first_seq: first.seq,
        first_time: first.time,
        head: commit().head,
        disks: vec![MapDisk { id: name.id(), name, size: 4 << 30 }],
        children: Vec::new(),
        segments: vec![promoted(1), promoted(2)],
        machines: vec![other_machine()],
    }
}

pub(crate) fn map(packing: Packing) -> SealedMap {
    let mut writer = MapWriter::with(&keys(), ObjectId([0x46; 32]), packing);
    map_runs().into_iter().for_each(|run| writer.push(disk().id(), run).expect("small"));
    writer.finish(&keys(), map_facts()).expect("small")
}

pub(crate) fn pack_ref(number: u64, first: (u64, u64), last: (u64, u64)) -> PackRef {
    PackRef { name: PackName { epoch: 2, number }, first, last, index_bytes: 200, bytes: 70_000 }
}

pub(crate) fn pack_place() -> Place {
    place(LogKind::Manifest, 2, 6)
}

/// A pack of the sample segment's frames.
pub(crate) fn pack(packing: Packing) -> SealedPack {
    let object = segment(packing).parts.concat();
    let reader = open_segment(&keys(), &commit().place, &object).expect("own segment");
    let frame = |number| {
        let range = reader.frame_range(number).expect("there");
        (
            *reader.frame(number).expect("there"),
            Bytes::copy_from_slice(&object[range.start as usize..range.end as usize]),
        )
    };
    let mut writer = PackWriter::with(ObjectId([0x47; 32]), packing);
    writer.add(3, 4, reader.header().id, vec![frame(2), frame(7)]);
    writer.finish(&keys(), pack_place()).expect("small")
}

pub(crate) fn opening() -> Opening {
    Opening { prev_epoch: 2, prev_end: 17, state: manifest().encode() }
}

/// Place of an object of a list.
fn list(number: u64) -> Place {
    Place { machine: None, log: None, epoch: number, slot: 0 }
}

pub(crate) fn condemn_list() -> CondemnList {
    let epoch = |machine, epoch| StreamEpoch { machine, epoch };
    CondemnList { epochs: vec![epoch(machine(), 2), epoch(machine(), 3), epoch(other_machine(), 1)] }
}

/// A small object of each kind with its place and body.
pub(crate) fn smalls() -> Vec<(&'static str, ObjectKind, Place, Vec<u8>)> {
    let root = Place { machine: None, log: None, epoch: 0, slot: 0 };
    let log = LogKind::Manifest;
    vec![
        ("vault", ObjectKind::Vault, root, b"any body".to_vec()),
        ("epoch", ObjectKind::Epoch, place(LogKind::Stream, 3, 0), vec![9; 16]),
        ("opening", ObjectKind::Opening, place(log, 3, 0), opening().encode()),
        ("hold", ObjectKind::Hold, Place { log: None, ..place(log, 0, 8) }, hold_request().encode()),
        ("consumer", ObjectKind::Consumer, Place { log: None, ..place(log, 0, 5) }, consumers().encode()),
        ("manifest", ObjectKind::Manifest, place(log, 3, 1), manifest_commit().encode()),
        ("condemn", ObjectKind::Condemn, list(2), condemn_list().encode()),
        ("registry", ObjectKind::Registry, list(4), RegistryEntry { machine: machine() }.encode()),
    ]
}

pub(crate) fn seal(kind: ObjectKind, place: Place, body: &[u8], packing: Packing) -> Bytes {
    let head = if kind == ObjectKind::Opening { commit().head } else { LogHead::default() };
    let object = SmallObject { kind, place, prev_hash: ObjectHash([0x66; 32]), head, gc_seen: 0, body };
    seal_small_with(&keys(), ObjectId([0x70 + kind as u8; 32]), packing, &object)
}

/// A frame of each kind.
pub(crate) fn frames() -> Vec<(&'static str, Frame)> {
    let head = commit().head;
    let hello = Hello {
        protocol: 1,
        instance: [1; 16],
        incarnation: Incarnation([3; 16]),
        start: Start::New { cause: DrainCause::UncleanStop, compared_to: Some(Seq(7)) },
        next_seq: Seq(0),
        map_version: 300,
        stored: head,
        disks: vec![(disk(), 1 << 30)],
    };
    let data = bodies(Bytes::from(vec![0x5a; 48 * KIB as usize]));
    let refused = Refused { reason: Refusal::RevertedDisk, text: "map version 3 is below 5".to_owned() };
    vec![
        ("hello", Frame::Hello(hello)),
        ("welcome", Frame::Welcome(Welcome { protocol: 1, head, credit: 8 << 20 })),
        ("refused", Frame::Refused(refused)),
        ("data", Frame::Data(data)),
        ("stored", Frame::Stored(Stored { seq: Seq(46), digest: head.digest })),
        ("credit", Frame::Credit(1 << 20)),
        ("ping", Frame::Ping(1)),
        ("pong", Frame::Pong(u64::MAX)),
        ("bye", Frame::Bye),
    ]
}

/// A read trace, two of whose ranges came in parts.
pub fn trace() -> crate::trace::ReadTrace {
    let mut trace = crate::trace::ReadTrace::default();
    for (offset, len) in [(1 << 40, 4096), (0, 512), (512, 1024), (8192, 65536), (4096, 8192)] {
        assert!(trace.read(Extent::new(offset, len).expect("sectors")));
    }
    trace
}
