//! Maps: what is written is read, by page; and what must be refused.

use model::{Extent, Seq};

use super::*;
use crate::FormatError;
use crate::object::{HEADER_BYTES, LogKind};
use crate::samples;
use crate::seal::Packing;

fn whole(map: &SealedMap) -> Vec<u8> {
    map.parts.concat()
}

fn runs_of(object: &[u8]) -> Vec<(DiskId, MapRun)> {
    let (header, index) = index_of(&samples::keys(), &samples::map_facts().place, object).expect("own map");
    let mut runs = Vec::new();
    for page in &index.pages {
        let range = page_range(&header, page);
        let sealed = &object[range.start as usize..range.end as usize];
        let read = open_page(&samples::keys(), header.id, page, sealed).expect("own page");
        runs.extend(read.into_iter().map(|run| (page.disk, run)));
    }
    runs
}

#[test]
fn what_is_written_is_read_page_by_page() {
    let keys = samples::keys();
    let mut writer = MapWriter::new(&keys);
    let segment =
        |n: u64| SegmentName { owner: Owner(n % 2 * n), epoch: 1 + n % 3, slot: n % 50 + 1, tag: [n as u8; 8] };
    let runs: Vec<_> = (0..3 * PAGE_RUNS_MAX as u64)
        .map(|n| {
            let extent = Extent::new(n * 8192 + n % 7 * 512, 4096).expect("in range");
            let source = match n % 5 {
                0 => MapSource::Zero,
                _ => MapSource::Data { segment: segment(n), frame: n as u32, offset: (n % 16 * 4096) as u32 },
            };
            (DiskId((n / 5000) as u32), MapRun { extent, source })
        })
        .collect();
    runs.iter().for_each(|(disk, run)| writer.push(*disk, *run).expect("small"));
    let map = writer.finish(&keys, samples::map_facts()).expect("small");
    let object = whole(&map);
    map.header.check_body(&object).expect("own digest");
    assert_eq!(runs_of(&object), runs);
    assert!(object.len() < runs.len() * 16, "{} bytes for {} runs", object.len(), runs.len());
}

#[test]
fn header_and_index_are_one_read() {
    let map = samples::map(Packing::WhenItPays);
    let object = whole(&map);
    let end = HEADER_BYTES + map.header.table_sealed_bytes as usize;
    let place = samples::map_facts().place;
    let (_, index) = index_of(&samples::keys(), &place, &object[..end]).expect("own index");
    assert_eq!(index.segments, samples::map_facts().segments);
    let short = index_of(&samples::keys(), &place, &object[..end - 1]);
    assert!(matches!(short, Err(FormatError::Truncated { .. })), "{short:?}");
    let elsewhere = index_of(&samples::keys(), &samples::place(LogKind::Manifest, 2, 6), &object);
    assert!(matches!(elsewhere, Err(FormatError::Misplaced { .. })), "{elsewhere:?}");
}

#[test]
fn a_map_that_does_not_hold_together_is_refused() {
    let refused = |change: fn(&mut MapFacts)| {
        let mut facts = samples::map_facts();
        change(&mut facts);
        let map = MapWriter::new(&samples::keys()).finish(&samples::keys(), facts.clone()).expect("small");
        assert!(index_of(&samples::keys(), &facts.place, &whole(&map)).is_err(), "{facts:?}");
    };
    refused(|facts| facts.segments.reverse());
    refused(|facts| facts.segments.clear());
    refused(|facts| facts.children = vec![samples::node(0, 2)]);
    refused(|facts| (facts.segments, facts.children) = (Vec::new(), vec![samples::node(0, 2)]));
    refused(|facts| facts.head.position.seq = Seq(47));
    refused(|facts| facts.disks.push(facts.disks[0].clone()));
    refused(|facts| facts.machines.push(facts.machines[0].clone()));
}

#[test]
fn a_page_out_of_range_is_refused() {
    let good = encode_page(&samples::map_runs());
    assert_eq!(decode_page(&good), Ok(samples::map_runs()));
    let mut far = samples::map_runs();
    far[0].source = MapSource::Data {
        segment: SegmentName { owner: Owner::SELF, epoch: 1, slot: 1, tag: [0; 8] },
        frame: 0,
        offset: crate::object::FRAME_PLAIN_BYTES_MAX as u32,
    };
    assert!(matches!(decode_page(&encode_page(&far)), Err(FormatError::Invalid { .. })));
    let many: Vec<_> = (0..=PAGE_RUNS_MAX as u64)
        .map(|n| MapRun { extent: Extent::new(n * 1024, 512).expect("in range"), source: MapSource::Zero })
        .collect();
    assert!(matches!(decode_page(&encode_page(&many)), Err(FormatError::Invalid { .. })));
}
