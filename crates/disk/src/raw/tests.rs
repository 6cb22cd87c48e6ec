//! Goal: a raw disk is an array of bytes. Method: random operations on a real file, compared with a vector.

use super::*;
use proptest::prelude::*;

fn extent(offset: u64, len: u64) -> Extent {
    Extent::new(offset, len).expect("aligned by the test")
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime")
}

#[derive(Debug, Clone)]
enum Op {
    Write { sector: u64, sectors: u64, fill: u8 },
    Zero { sector: u64, sectors: u64, unmap: bool },
    Flush,
    DropCache { sector: u64, sectors: u64 },
    Read { sector: u64, sectors: u64 },
}

const SECTORS: u64 = 512;

fn op() -> impl Strategy<Value = Op> {
    let at = || (0..SECTORS, 1..64u64).prop_map(|(s, n)| (s, n.min(SECTORS - s)));
    prop_oneof![
        4 => (at(), 1..=255u8).prop_map(|((sector, sectors), fill)| Op::Write { sector, sectors, fill }),
        2 => (at(), any::<bool>()).prop_map(|((sector, sectors), unmap)| Op::Zero { sector, sectors, unmap }),
        1 => Just(Op::Flush),
        1 => at().prop_map(|(sector, sectors)| Op::DropCache { sector, sectors }),
        2 => at().prop_map(|(sector, sectors)| Op::Read { sector, sectors }),
    ]
}

async fn step(disk: &RawDisk, model: &mut [u8], op: Op) {
    let bytes = |sector: u64, sectors: u64| extent(sector * 512, sectors * 512);
    let range = |e: Extent| e.offset() as usize..e.end() as usize;
    match op {
        Op::Write { sector, sectors, fill } => {
            let e = bytes(sector, sectors);
            disk.write(e.offset(), vec![fill; e.len() as usize].into()).await.expect("write");
            model[range(e)].fill(fill);
        }
        Op::Zero { sector, sectors, unmap } => {
            let e = bytes(sector, sectors);
            disk.zero(e, unmap).await.expect("zero");
            model[range(e)].fill(0);
        }
        Op::Flush => disk.flush().await.expect("flush"),
        Op::DropCache { sector, sectors } => disk.drop_cache(bytes(sector, sectors)).await.expect("drop"),
        Op::Read { sector, sectors } => {
            let e = bytes(sector, sectors);
            assert_eq!(disk.read(e).await.expect("read"), model[range(e)]);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 48,
        rng_seed: proptest::test_runner::RngSeed::Fixed(1),
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn a_raw_disk_is_an_array_of_bytes(ops in proptest::collection::vec(op(), 1..60)) {
        let dir = tempfile::tempdir().expect("dir");
        runtime().block_on(async {
            let disk = RawDisk::create(&dir.path().join("disk"), SECTORS * 512).expect("create");
            let mut model = vec![0; (SECTORS * 512) as usize];
            for op in ops {
                step(&disk, &mut model, op).await;
            }
            let whole = extent(0, SECTORS * 512);
            assert_eq!(disk.read(whole).await.expect("read"), model);
            // What is not reported as allocated reads as zeros.
            let allocated: ExtentSet = disk.allocated(whole).await.expect("allocated").into_iter().collect();
            for sector in 0..SECTORS {
                if !allocated.overlaps(&extent(sector * 512, 512)) {
                    let at = sector as usize * 512;
                    assert!(model[at..at + 512].iter().all(|b| *b == 0), "sector {sector} was lost");
                }
            }
        });
    }
}

#[test]
fn zeros_are_written_where_the_disk_cannot_zero_by_itself() {
    let dir = tempfile::tempdir().expect("dir");
    let size = 3 * ZERO_PIECE_BYTES as u64;
    let disk = RawDisk::create(&dir.path().join("disk"), size).expect("create");
    disk.inner.file.write_all_at(&vec![7; size as usize], 0).expect("fill");
    disk.inner.write_zeros(extent(512, size - 1024)).expect("zero");
    let data = disk.inner.read(extent(0, size)).expect("read");
    assert!(data[..512].iter().chain(&data[size as usize - 512..]).all(|b| *b == 7), "edges are kept");
    assert!(data[512..size as usize - 512].iter().all(|b| *b == 0));
}

#[tokio::test]
async fn a_second_writer_is_refused_until_the_first_is_gone() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("disk");
    let first = RawDisk::create(&path, 1 << 20).expect("create");
    let error = RawDisk::open(&path, true).expect_err("held");
    assert_eq!(error.kind(), ErrorKind::ResourceBusy);
    assert!(error.to_string().contains("stop the agent"), "{error}");
    RawDisk::open(&path, false).expect("readers are free");
    drop(first);
    RawDisk::open(&path, true).expect("free again");
}

#[tokio::test]
async fn a_disk_of_broken_sectors_is_refused_with_its_size() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("disk");
    std::fs::write(&path, [0; 1000]).expect("file");
    let error = RawDisk::open(&path, true).expect_err("odd size");
    assert!(error.to_string().contains("1000 bytes"), "{error}");
    let error = RawDisk::create(&dir.path().join("new"), 100).expect_err("odd size");
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert!(!dir.path().join("new").exists());
}

#[tokio::test]
async fn create_refuses_what_exists_and_keeps_it() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("disk");
    std::fs::write(&path, b"precious").expect("file");
    assert_eq!(RawDisk::create(&path, 4096).expect_err("exists").kind(), ErrorKind::AlreadyExists);
    assert_eq!(std::fs::read(&path).expect("kept"), b"precious");
}

#[tokio::test]
async fn requests_past_the_end_and_writes_to_a_read_only_disk_are_refused() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("disk");
    drop(RawDisk::create(&path, 4096).expect("create"));
    let disk = RawDisk::open(&path, false).expect("open");
    assert_eq!(disk.read(extent(3584, 1024)).await.expect_err("past the end").kind(), ErrorKind::InvalidInput);
    let error = disk.write(0, Bytes::from_static(&[1; 512])).await.expect_err("read-only");
    assert_eq!(error.kind(), ErrorKind::PermissionDenied);
    drop(disk);
    let disk = RawDisk::open(&path, true).expect("open");
    assert!(disk.write(4096, Bytes::from_static(&[1; 512])).await.is_err(), "would grow the file");
    assert!(disk.write(1, Bytes::from_static(&[1; 512])).await.is_err(), "unaligned");
    assert!(disk.zero(extent(0, 8192), true).await.is_err());
}

#[tokio::test]
async fn allocation_names_what_was_written_and_no_more() {
    let dir = tempfile::tempdir().expect("dir");
    let disk = RawDisk::create(&dir.path().join("disk"), 1 << 30).expect("create");
    let whole = extent(0, 1 << 30);
    assert_eq!(disk.allocated(whole).await.expect("empty"), vec![]);
    disk.write(512 << 20, vec![1; 1 << 20].into()).await.expect("write");
    disk.flush().await.expect("flush");
    let parts = disk.allocated(whole).await.expect("allocated");
    assert_eq!(parts, vec![extent(512 << 20, 1 << 20)]);
    let inside = extent((512 << 20) + 512, 1024);
    assert_eq!(disk.allocated(inside).await.expect("inside"), vec![inside]);
    disk.zero(whole, true).await.expect("punch");
    assert_eq!(disk.allocated(whole).await.expect("empty again"), vec![]);
}

#[tokio::test]
async fn a_directory_is_not_a_disk() {
    let dir = tempfile::tempdir().expect("dir");
    let error = RawDisk::open(dir.path(), false).expect_err("directory");
    assert!(error.to_string().contains("neither a regular file nor a block device"), "{error}");
    let error = RawDisk::open(&dir.path().join("none"), false).expect_err("missing");
    assert!(error.to_string().contains("none"), "names the path: {error}");
}

#[tokio::test]
async fn a_disk_measured_again_has_its_new_size_and_stays_locked_until_both_are_gone() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("disk");
    let disk = RawDisk::create(&path, 4096).expect("create");
    std::fs::File::options().write(true).open(&path).and_then(|file| file.set_len(8192)).expect("grown");
    let again = disk.measured_again().expect("measured");
    assert_eq!((disk.size(), again.size()), (4096, 8192));
    again.write(4096, vec![7; 4096].into()).await.expect("written in what is new");
    drop(disk);
    RawDisk::open(&path, true).expect_err("held by the other");
    drop(again);
    RawDisk::open(&path, true).expect("free");
    std::fs::File::options().write(true).open(&path).and_then(|file| file.set_len(100)).expect("cut");
    let error = RawDisk::open(&path, true).map(|_| ()).expect_err("no whole sectors");
    assert!(error.to_string().contains("disk"), "{error}");
}
