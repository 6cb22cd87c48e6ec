//! Golden files: bytes of every released version, read by every later program and rewritten byte for byte by the one
//! that writes that version.
//!
//! `FARSHORE_WRITE_GOLDENS=1 cargo test -p format goldens` writes those that are missing, and the fuzz corpus with
//! them; it never changes one that exists. What zstd makes may change with its version, so goldens are raw, but for one
//! that is only read.

use std::path::PathBuf;

use crate::object::{ObjectHeader, ObjectKind, open_small};
use crate::samples;
use crate::seal::Packing;
use crate::segment::{SegmentReader, open_segment};
use crate::wire::{Frame, FrameHeader};

/// Directory of a fuzz target's corpus, and the golden's name and bytes.
type Golden = (&'static str, String, Vec<u8>);

fn crate_dir() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// What an object's golden is called by: opening and manifest carry manifests of version 2.
fn version(kind: ObjectKind) -> &'static str {
    match kind {
        ObjectKind::Opening | ObjectKind::Manifest => "-v2",
        _ => "-v1",
    }
}

/// Everything this version writes.
fn written_now() -> Vec<Golden> {
    let mut all: Vec<Golden> = vec![
        ("segment", "segment-v1-raw".into(), samples::segment(Packing::Raw).parts.concat()),
        ("map", "map-v1-raw".into(), samples::map(Packing::Raw).parts.concat()),
        ("map", "map-page-v1".into(), crate::map::encode_page(&samples::map_runs())),
        ("map", "pack-v1-raw".into(), samples::pack(Packing::Raw).parts.concat()),
    ];
    for (name, kind, place, body) in samples::smalls() {
        all.push((
            "object",
            format!("{name}{}", version(kind)),
            samples::seal(kind, place, &body, Packing::Raw).to_vec(),
        ));
    }
    all.push(("manifest", "manifest-body-v2".into(), samples::manifest().encode()));
    all.push(("manifest", "manifest-commit-body-v2".into(), samples::manifest_commit().encode()));
    all.push(("manifest", "opening-body-v2".into(), samples::opening().encode()));
    all.push(("manifest", "hold-request-v1".into(), samples::hold_request().encode()));
    all.push(("manifest", "consumers-v1".into(), samples::consumers().encode()));
    all.push(("trace", "read-trace-v1".into(), samples::trace().encode()));
    for (name, frame) in samples::frames() {
        all.push(("wire", format!("wire-v1-{name}"), frame.encode().concat()));
    }
    all
}

fn read(name: &str) -> Vec<u8> {
    let path = crate_dir().join("goldens").join(format!("{name}.bin"));
    std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn write_missing(target: &str, name: &str, bytes: &[u8]) {
    for path in [
        crate_dir().join("goldens").join(format!("{name}.bin")),
        crate_dir().join("../../fuzz/corpus").join(target).join(format!("{name}.bin")),
    ] {
        if !path.exists() {
            std::fs::create_dir_all(path.parent().expect("has a folder")).expect("folder");
            std::fs::write(path, bytes).expect("golden");
        }
    }
}

#[test]
fn every_golden_is_rewritten_byte_for_byte() {
    if std::env::var_os("FARSHORE_WRITE_GOLDENS").is_some() {
        let zstd = samples::segment(Packing::WhenItPays).parts.concat();
        write_missing("segment", "segment-v1-zstd", &zstd);
        let (header, rest) = zstd.split_at(crate::object::HEADER_BYTES);
        let header = ObjectHeader::parse(&samples::keys(), header).expect("own header");
        let reader =
            SegmentReader::new(&samples::keys(), header, &rest[..reader_table_bytes(&zstd)]).expect("own table");
        let plain = crate::versioned::encode(1, reader.table());
        write_missing("segment", "table-plain-v1", &plain);
        for (target, name, bytes) in written_now() {
            write_missing(target, &name, &bytes);
            if target == "segment" {
                write_missing("object", &name, &bytes);
            }
        }
    }
    for (_, name, bytes) in written_now() {
        assert!(read(&name) == bytes, "{name} is no longer written as it was");
    }
}

fn reader_table_bytes(object: &[u8]) -> usize {
    ObjectHeader::parse(&samples::keys(), object).expect("own header").table_sealed_bytes as usize
}

#[test]
fn every_golden_object_is_read() {
    let keys = samples::keys();
    for (name, kind, place, body) in samples::smalls() {
        let (_, read_body) = open_small(&keys, kind, &place, &read(&format!("{name}{}", version(kind)))).expect(name);
        assert_eq!(read_body, body, "{name}");
    }
    for name in ["segment-v1-raw", "segment-v1-zstd"] {
        let object = read(name);
        let reader = open_segment(&keys, &samples::commit().place, &object).expect(name);
        assert_eq!(reader.table().records, samples::table_records());
        assert_eq!(reader.header().head, samples::commit().head);
        for number in [2, 7] {
            let range = reader.frame_range(number).expect("both frames are there");
            let plain = reader.open(number, &object[range.start as usize..range.end as usize]).expect(name);
            assert_eq!(plain, samples::frame_plain(number));
        }
    }
    assert_eq!(crate::segment::decode_table(&read("table-plain-v1")).expect("table").records, samples::table_records());
}

#[test]
fn every_golden_frame_is_read() {
    for (name, frame) in samples::frames() {
        let bytes = read(&format!("wire-v1-{name}"));
        let (header, payload) = bytes.split_first_chunk().expect("header");
        let header = FrameHeader::parse(header).expect(name);
        header.check(payload).expect(name);
        assert_eq!(Frame::decode(header.kind, payload.to_vec().into()).expect(name), frame);
    }
}

#[test]
fn every_version_in_a_ledger_stands_in_its_format_md() {
    let ledgers = [
        ("object", crate::object::VERSIONS),
        ("object", crate::object::OPENING_VERSIONS),
        ("object", crate::object::LIST_VERSIONS),
        ("segment", crate::segment::TABLE_VERSIONS),
        ("manifest", crate::manifest::VERSIONS),
        ("map", crate::map::VERSIONS),
        ("pack", crate::pack::VERSIONS),
        ("wire", crate::wire::VERSIONS),
    ];
    for (folder, ledger) in ledgers {
        let path = crate_dir().join("src").join(folder).join("FORMAT.md");
        let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        assert!(ledger.is_sorted_by(|a, b| a.0 > b.0), "newest first");
        for (version, reason) in ledger {
            assert!(text.contains(&format!("v{version}: {reason}")), "v{version} of {folder} is not in its FORMAT.md");
        }
    }
}

#[test]
fn header_offsets_stand_in_format_md() {
    use crate::object::header_offset as o;
    let text = std::fs::read_to_string(crate_dir().join("src/object/FORMAT.md")).expect("FORMAT.md");
    let offsets = [
        o::MAGIC,
        o::VERSION,
        o::KIND,
        o::HEADER_BYTES,
        o::TOTAL_BYTES,
        o::VAULT,
        o::ID,
        o::MACHINE,
        o::LOG,
        o::EPOCH,
        o::SLOT,
        o::PREV_HASH,
        o::INCARNATION,
        o::FIRST_SEQ,
        o::LAST_SEQ,
        o::MAP_VERSION,
        o::FIRST_TIME,
        o::LAST_TIME,
        o::GC_SEEN,
        o::RECORD_DIGEST,
        o::FRAME_COUNT,
        o::TABLE_SEALED_BYTES,
        o::TABLE_PLAIN_BYTES,
        o::ZERO,
        o::BODY_DIGEST,
        o::FLAGS,
        o::RESERVED,
        o::MAC,
    ];
    let pinned = [
        0, 8, 10, 12, 16, 24, 40, 72, 136, 144, 152, 160, 192, 208, 216, 224, 232, 240, 248, 256, 288, 292, 296, 300,
        304, 336, 337, 352,
    ];
    assert_eq!(offsets, pinned);
    for offset in offsets {
        assert!(text.contains(&format!("\n| {offset} |")), "offset {offset} is not in FORMAT.md");
    }
}
