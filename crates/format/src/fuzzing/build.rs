//! Values built from the fuzzer's bytes, so that it searches among values as well as among encodings. Each is one that
//! the program itself could write.

use arbitrary::{Result, Unstructured};
use bytes::Bytes;
use model::{
    DiskChange, DiskName, DrainCause, Extent, Incarnation, LogHead, MachineName, Mark, MarkKind, PointId, Position,
    Record, RecordBody, RecordDigest, Seq, Timestamp,
};

use crate::check::LABEL_BYTES_MAX;
use crate::consumers::{Consumer, ConsumerId, Consumers};
use crate::hold::{HoldId, HoldRequest, LASTS_SECONDS_MAX};
use crate::manifest::{
    DiskState, Drain, DrainStep, EpochEnd, Hold, Made, Manifest, ManifestCommit, Point, PointKind, PointStates,
    Promoted, SharedRun,
};
use crate::map::{MapName, MapRun, MapSource, Node, Owner, SegmentName};
use crate::object::{LogKind, ObjectHash, ObjectId, ObjectKind, Opening, Place};
use crate::pack::{PackName, PackRef};
use crate::segment::{CHUNK_BYTES_MAX, ChunkAt, Piece, SegmentRef};
use crate::wire::{Frame, Hello, Refusal, Refused, Start, Stored, Welcome};

/// Most records in one value.
const RECORDS_MAX: usize = 12;

/// Most elements of any other list.
const LIST_MAX: usize = 6;

/// Longest range in sectors where it carries no bytes: longer than a chunk.
pub(super) const RANGE_SECTORS_MAX: u64 = 160;

/// Longest range in sectors where it carries its bytes.
const PAYLOAD_SECTORS_MAX: u64 = 16;

const ALPHABET: &[u8; 37] = b"abcdefghijklmnopqrstuvwxyz0123456789-";

type Source<'a, 'b> = &'a mut Unstructured<'b>;

pub(super) fn list<T>(u: Source, max: usize, mut one: impl FnMut(Source) -> Result<T>) -> Result<Vec<T>> {
    let len = u.int_in_range(0..=max)?;
    (0..len).map(|_| one(u)).collect()
}

fn name<T: std::str::FromStr<Err: std::fmt::Debug>>(u: Source) -> Result<T> {
    let len = u.int_in_range(1..=63)?;
    let mut text = String::new();
    for at in 0..len {
        let letters = if at == 0 { &ALPHABET[..36] } else { &ALPHABET[..] };
        text.push(char::from(*u.choose(letters)?));
    }
    Ok(text.parse().expect("made of the letters of names"))
}

fn text(u: Source, bytes_max: usize) -> Result<String> {
    let text = u.arbitrary::<&str>()?;
    Ok(text[..text.floor_char_boundary(bytes_max)].to_owned())
}

fn extent(u: Source, sectors_max: u64) -> Result<Extent> {
    let (offset, len) = (u.int_in_range(0..=1u64 << 50)?, u.int_in_range(1..=sectors_max)?);
    Ok(Extent::new(offset * 512, len * 512).expect("aligned and far from the end"))
}

fn mark(u: Source) -> Result<Mark> {
    let kind = *u.choose(&[MarkKind::Crash, MarkKind::Application])?;
    Ok(Mark { kind, id: u.arbitrary()?, label: text(u, LABEL_BYTES_MAX)? })
}

fn head(u: Source) -> Result<LogHead> {
    Ok(LogHead {
        position: Position { incarnation: Incarnation(u.arbitrary()?), seq: Seq(u.int_in_range(0..=u64::MAX - 1)?) },
        digest: RecordDigest(u.arbitrary()?),
        map_version: u.arbitrary()?,
        time: Timestamp(u.arbitrary()?),
    })
}

fn cause(u: Source) -> Result<DrainCause> {
    use DrainCause::{AgentState, Compare, DiskChange, Initial, Overflow, SourceError, UncleanStop};
    u.choose(&[Initial, UncleanStop, Overflow, SourceError, DiskChange, Compare, AgentState]).copied()
}

fn body<D>(u: Source, sectors_max: u64, data: &mut impl FnMut(Source, Extent) -> Result<D>) -> Result<RecordBody<D>> {
    let disk = u.arbitrary::<u32>().map(model::DiskId)?;
    Ok(match u.int_in_range(0..=7)? {
        0 => RecordBody::Zero { disk, extent: extent(u, sectors_max)? },
        1 => RecordBody::Mark(mark(u)?),
        2 => RecordBody::DrainBegin {
            cause: cause(u)?,
            incarnation: Incarnation(u.arbitrary()?),
            lost_after: Seq(u.arbitrary()?),
        },
        3 => RecordBody::DrainEnd(mark(u)?),
        4 => {
            let change = *u.choose(&[DiskChange::Added, DiskChange::Resized, DiskChange::Removed])?;
            RecordBody::Disk { disk, name: name(u)?, size: u.arbitrary()?, change }
        }
        _ => {
            let extent = extent(u, sectors_max)?;
            RecordBody::Write { disk, extent, data: data(u, extent)? }
        }
    })
}

/// At least one record, numbered without a gap, in time.
pub(super) fn records<D>(
    u: Source,
    sectors_max: u64,
    mut data: impl FnMut(Source, Extent) -> Result<D>,
) -> Result<Vec<Record<D>>> {
    let mut seq = Seq(u.int_in_range(1..=u64::MAX - 1 - RECORDS_MAX as u64)?);
    let mut time = Timestamp(u64::from(u.arbitrary::<u32>()?));
    let mut records = Vec::new();
    for _ in 0..u.int_in_range(1..=RECORDS_MAX)? {
        records.push(Record { seq, time, map_version: u.arbitrary()?, body: body(u, sectors_max, &mut data)? });
        seq = seq.next();
        time.0 += u64::from(u.arbitrary::<u16>()?);
    }
    Ok(records)
}

fn payload(u: Source, extent: Extent) -> Result<Bytes> {
    let byte = u.arbitrary::<u8>()?;
    Ok((0..extent.len()).map(|at| byte.wrapping_add((at / 512) as u8)).collect())
}

pub(super) fn frame(u: Source) -> Result<Frame> {
    Ok(match u.int_in_range(0..=10)? {
        0 => Frame::Hello(hello(u)?),
        1 => Frame::Welcome(Welcome { protocol: u.arbitrary()?, head: head(u)?, credit: u.arbitrary()? }),
        2 => Frame::Refused(Refused { reason: refusal(u)?, text: text(u, 4 << 10)? }),
        3 => Frame::Stored(Stored { seq: Seq(u.arbitrary()?), digest: RecordDigest(u.arbitrary()?) }),
        4 => Frame::Credit(u.arbitrary()?),
        5 => Frame::Ping(u.arbitrary()?),
        6 => Frame::Pong(u.arbitrary()?),
        7 => Frame::Bye,
        _ => Frame::Data(records(u, PAYLOAD_SECTORS_MAX, payload)?),
    })
}

fn hello(u: Source) -> Result<Hello> {
    let start = match u.arbitrary()? {
        true => Start::Resume,
        false => Start::New { cause: cause(u)?, compared_to: u.arbitrary::<Option<u64>>()?.map(Seq) },
    };
    Ok(Hello {
        protocol: u.int_in_range(1..=u16::MAX)?,
        instance: u.arbitrary()?,
        incarnation: Incarnation(u.arbitrary()?),
        start,
        next_seq: Seq(u.arbitrary()?),
        map_version: u.arbitrary()?,
        stored: head(u)?,
        disks: list(u, LIST_MAX, |u| Ok((name::<DiskName>(u)?, u.arbitrary()?)))?,
    })
}

fn refusal(u: Source) -> Result<Refusal> {
    use Refusal::{
        Busy, Protocol, RevertedDisk, RevertedMemory, SecondAgent, StaleCompare, StoreLost, StoreUnavailable,
        UnknownMachine,
    };
    let all = [
        Protocol,
        UnknownMachine,
        SecondAgent,
        RevertedDisk,
        RevertedMemory,
        StoreLost,
        StaleCompare,
        StoreUnavailable,
        Busy,
    ];
    u.choose(&all).copied()
}

/// Frames of a segment: number and plain bytes.
pub(super) fn frames(u: Source) -> Result<Vec<(u32, Vec<u8>)>> {
    let mut number = 0u32;
    list(u, LIST_MAX, |u| {
        number += 1 + u32::from(u.arbitrary::<u16>()?);
        let (sectors, byte) = (u.int_in_range(1..=16usize)?, u.arbitrary::<u8>()?);
        Ok((number, (0..sectors * 512).map(|at| byte ^ (at / 100) as u8).collect()))
    })
}

pub(super) fn references(u: Source) -> Result<Vec<SegmentRef>> {
    list(u, LIST_MAX, |u| {
        Ok(SegmentRef {
            id: ObjectId(u.arbitrary()?),
            machine: name::<MachineName>(u)?,
            epoch: u.arbitrary()?,
            slot: u.arbitrary()?,
        })
    })
}

/// Pieces that cover the extent, of frames and references that exist.
pub(super) fn pieces(u: Source, extent: Extent, frames: &[(u32, Vec<u8>)], references: usize) -> Result<Vec<Piece>> {
    let (mut at, mut pieces) = (extent.offset(), Vec::new());
    while at < extent.end() {
        let left = (extent.end() - at).min(CHUNK_BYTES_MAX - at % CHUNK_BYTES_MAX);
        let len = 512 * u.int_in_range(1..=left / 512)?;
        let piece = match u.int_in_range(0..=2)? {
            1 if !frames.is_empty() => {
                let (frame, plain) = u.choose(frames)?;
                let len = len.min(plain.len() as u64);
                let offset = u.int_in_range(0..=(plain.len() as u64 - len) as u32)?;
                Piece { len, at: ChunkAt::Here { frame: *frame, offset } }
            }
            2 if references > 0 => {
                let reference = u.int_in_range(0..=references as u32 - 1)?;
                Piece {
                    len,
                    at: ChunkAt::Other {
                        reference,
                        frame: u.arbitrary::<u16>()?.into(),
                        offset: u.arbitrary::<u16>()?.into(),
                    },
                }
            }
            _ => Piece { len: extent.end() - at, at: ChunkAt::Zero },
        };
        at += piece.len;
        pieces.push(piece);
    }
    Ok(pieces)
}

fn promoted(u: Source) -> Result<Vec<Promoted>> {
    let (mut epoch, mut slot) = (0u64, 0u64);
    list(u, LIST_MAX, |u| {
        if u.arbitrary()? {
            (epoch, slot) = (epoch + 1 + u64::from(u.arbitrary::<u16>()?), 0);
        }
        slot += 1 + u64::from(u.arbitrary::<u16>()?);
        let (id, hash) = (ObjectId(u.arbitrary()?), ObjectHash(u.arbitrary()?));
        Ok(Promoted { id, epoch, slot, hash, head: head(u)?, bytes: u.arbitrary()?, shared: u.arbitrary()? })
    })
}

fn points(u: Source) -> Result<Vec<Point>> {
    list(u, LIST_MAX, |u| {
        let LogHead { position, digest, time, .. } = head(u)?;
        let kind = *u.choose(&[PointKind::Crash, PointKind::Marked, PointKind::DrainEnd])?;
        let mark = if u.arbitrary()? { Some(mark(u)?) } else { None };
        let made = match u.arbitrary()? {
            true => Some(Made { at: Timestamp(u.arbitrary()?), chain: ObjectHash(u.arbitrary()?) }),
            false => None,
        };
        Ok(Point { id: PointId(u.arbitrary()?), position, time, kind, mark, digest, made, states: states(u)? })
    })
}

fn states(u: Source) -> Result<Vec<DiskState>> {
    list(u, LIST_MAX, |u| Ok(DiskState { disk: name::<DiskName>(u)?, sum: u.arbitrary::<[u8; 32]>()?.into() }))
}

fn ids(u: Source) -> Result<Vec<PointId>> {
    list(u, LIST_MAX, |u| Ok(PointId(u.arbitrary()?)))
}

fn drains(u: Source) -> Result<Vec<Drain>> {
    let mut seq = 0u64;
    list(u, LIST_MAX, |u| {
        seq += 1 + u64::from(u.arbitrary::<u16>()?);
        let step = if u.arbitrary()? { DrainStep::End } else { DrainStep::Begin { lost_after: Seq(u.arbitrary()?) } };
        Ok(Drain { seq: Seq(seq), step })
    })
}

fn node(u: Source, end: Promoted) -> Result<Node> {
    let map = MapName { epoch: u.int_in_range(1..=u64::MAX)?, number: u.int_in_range(1..=u64::MAX)? };
    Ok(Node { level: u.int_in_range(0..=9)?, map, index_bytes: u.arbitrary()?, bytes: u.arbitrary()?, end })
}

/// A manifest: segments in order, the first of them taken in by maps.
pub(super) fn manifest(u: Source) -> Result<Manifest> {
    let mut segments = promoted(u)?;
    let mapped: Vec<_> = segments.drain(..u.int_in_range(0..=segments.len())?).collect();
    let nodes = mapped.into_iter().map(|end| node(u, end)).collect::<Result<_>>()?;
    let horizon = promoted(u)?.into_iter().next_back().filter(|last| last.epoch < u64::MAX / 2);
    let mut epoch = horizon.as_ref().map_or(0, |horizon| horizon.epoch);
    let ends = list(u, LIST_MAX, |u| {
        epoch += 1 + u64::from(u.arbitrary::<u16>()?);
        Ok(EpochEnd { epoch, slot: u.arbitrary()? })
    })?;
    let pins = ids(u)?.into_iter().collect();
    let point_maps = point_maps(u)?.into_iter().collect();
    let (drains, points) = (drains(u)?, points(u)?);
    let passed = horizon.as_ref().map_or((0, 0), |last| (last.epoch, last.slot));
    let packs = packs(u)?.into_iter().filter(|pack| pack.last <= passed).collect();
    let (holds, holds_read) = (held(u)?.into_iter().collect(), u.arbitrary()?);
    let mut epoch = 0u64;
    let shared = list(u, LIST_MAX, |u| {
        epoch += 1 + u64::from(u.arbitrary::<u16>()?);
        let first = 1 + u64::from(u.arbitrary::<u16>()?);
        Ok(SharedRun { epoch, first, last: first + u64::from(u.arbitrary::<u16>()?) })
    })?;
    let manifest = Manifest { nodes, segments, horizon, ends, drains, points, pins, ..Manifest::default() };
    Ok(Manifest { point_maps, packs, holds, holds_read, shared, ..manifest })
}

fn held(u: Source) -> Result<Vec<(HoldId, Hold)>> {
    let hold = |u: Source| Ok(Hold { seq: Seq(u.arbitrary()?), until: Timestamp(u.arbitrary()?) });
    list(u, LIST_MAX, |u| Ok((HoldId(u.arbitrary()?), hold(u)?)))
}

pub(super) fn hold_request(u: Source) -> Result<HoldRequest> {
    let lasts_seconds = u.int_in_range(0..=LASTS_SECONDS_MAX)?;
    Ok(HoldRequest { id: HoldId(u.arbitrary()?), seq: Seq(u.arbitrary()?), lasts_seconds })
}

pub(super) fn consumers(u: Source) -> Result<Consumers> {
    let trimmed = u.arbitrary()?;
    let consumers = list(u, LIST_MAX, |u| {
        let (id, epoch, slot, seq) = (ConsumerId(u.arbitrary()?), u.arbitrary()?, u.arbitrary()?, Seq(u.arbitrary()?));
        let (stated, name) = (Timestamp(u.arbitrary()?), u.arbitrary::<u32>()?);
        Ok((id, Consumer { epoch, slot, seq, stated, vault: format!("s3://{name}") }))
    })?;
    Ok(Consumers { trimmed, consumers: consumers.into_iter().collect() })
}

/// Packs in order.
fn packs(u: Source) -> Result<Vec<PackRef>> {
    let places: Vec<_> = promoted(u)?.into_iter().map(|segment| (segment.epoch.max(1), segment.slot)).collect();
    let mut packs = Vec::new();
    for pair in places.chunks_exact(2).filter(|pair| pair[0] <= pair[1]) {
        let name = pack_name(u)?;
        let (first, last) = (pair[0], pair[1]);
        if packs.last().is_none_or(|before: &PackRef| before.last < first) {
            packs.push(PackRef { name, first, last, index_bytes: u.arbitrary()?, bytes: u.arbitrary()? });
        }
    }
    Ok(packs)
}

fn pack_name(u: Source) -> Result<PackName> {
    Ok(PackName { epoch: u.int_in_range(1..=u64::MAX)?, number: u.int_in_range(1..=u64::MAX)? })
}

fn point_maps(u: Source) -> Result<Vec<(PointId, Node)>> {
    let ends = promoted(u)?.into_iter();
    ends.map(|end| Ok((PointId(u.arbitrary()?), Node { level: 0, ..node(u, end)? }))).collect()
}

pub(super) fn manifest_commit(u: Source) -> Result<ManifestCommit> {
    let nodes = promoted(u)?.into_iter().map(|end| node(u, end)).collect::<Result<_>>()?;
    let (dropped, pinned, unpinned) = (ids(u)?, ids(u)?, ids(u)?);
    let (segments, drains, points) = (promoted(u)?, drains(u)?, points(u)?);
    let (horizon, point_maps) = (promoted(u)?.into_iter().next(), point_maps(u)?);
    let states = list(u, LIST_MAX, |u| Ok(PointStates { point: PointId(u.arbitrary()?), disks: states(u)? }))?;
    let (held, released, holds_read) = (held(u)?, list(u, LIST_MAX, |u| Ok(HoldId(u.arbitrary()?)))?, u.arbitrary()?);
    let (packs, unpacked) = (packs(u)?, list(u, LIST_MAX, pack_name)?);
    let commit = ManifestCommit { segments, drains, points, dropped, pinned, unpinned, ..ManifestCommit::default() };
    let commit = ManifestCommit { nodes, horizon, point_maps, states, packs, unpacked, ..commit };
    Ok(ManifestCommit { held, released, holds_read, ..commit })
}

/// Runs of a page: ascending, none overlapping.
pub(super) fn map_runs(u: Source) -> Result<Vec<MapRun>> {
    let mut at = 0u64;
    list(u, LIST_MAX, |u| {
        let offset = at + u64::from(u.arbitrary::<u16>()?) * 512;
        let extent = Extent::new(offset, (1 + u64::from(u.arbitrary::<u8>()?)) * 512).expect("in range");
        at = extent.end();
        let source = match u.arbitrary()? {
            false => MapSource::Zero,
            true => {
                let segment = SegmentName {
                    owner: Owner(u.arbitrary()?),
                    epoch: u.arbitrary()?,
                    slot: u.arbitrary()?,
                    tag: u.arbitrary()?,
                };
                MapSource::Data { segment, frame: u.arbitrary()?, offset: u.arbitrary::<u16>()?.into() }
            }
        };
        Ok(MapRun { extent, source })
    })
}

pub(super) fn opening(u: Source) -> Result<Opening> {
    let (prev_epoch, prev_end) = (u.arbitrary()?, u.arbitrary()?);
    Ok(Opening { prev_epoch, prev_end, state: u.arbitrary()? })
}

/// Where a segment goes, and what its commit header says beside its records.
pub(super) fn segment_place(u: Source) -> Result<(Place, ObjectHash, LogHead, u64)> {
    let slot = u.int_in_range(1..=u64::MAX)?;
    let place = Place { machine: Some(name(u)?), log: Some(LogKind::Stream), epoch: u.arbitrary()?, slot };
    Ok((place, ObjectHash(u.arbitrary()?), head(u)?, u.arbitrary()?))
}

/// A small object: kind, place, hash before it, head, `gc_seen`, body.
pub(super) fn small(u: Source) -> Result<(ObjectKind, Place, ObjectHash, LogHead, u64, Vec<u8>)> {
    use ObjectKind::*;
    let kind = *u.choose(&[Vault, Epoch, Opening, Manifest, Condemn, Registry])?;
    let log = *u.choose(&[LogKind::Stream, LogKind::Manifest])?;
    let (machine, epoch) = (Some(name(u)?), u.arbitrary()?);
    let place = match kind {
        Vault => Place { machine: None, log: None, epoch: 0, slot: 0 },
        Condemn | Registry => Place { machine: None, log: None, epoch: u.int_in_range(1..=u64::MAX)?, slot: 0 },
        Manifest => Place { machine, log: Some(LogKind::Manifest), epoch, slot: u.int_in_range(1..=u64::MAX)? },
        _ => Place { machine, log: Some(log), epoch, slot: 0 },
    };
    Ok((kind, place, ObjectHash(u.arbitrary()?), head(u)?, u.arbitrary()?, u.arbitrary()?))
}
