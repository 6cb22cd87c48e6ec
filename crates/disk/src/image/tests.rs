//! Goal: what we write is what qemu-img reads. Method: write an image and a raw twin, and let qemu-img check and compare
//! them; a twin that differs in one byte must not pass.

use std::os::unix::fs::{FileExt, MetadataExt};
use std::process::Command;

use super::*;

/// Runs qemu-img and returns whether it was content, and what it said.
fn qemu_img(args: &[&str], files: &[&Path]) -> (bool, String) {
    let output = Command::new("qemu-img")
        .args(args)
        .args(files)
        .output()
        .expect("qemu-img cannot be run: install the package qemu-utils");
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.success(), said)
}

/// qemu-img's name for a format.
fn qemu_name(format: ImageFormat) -> &'static str {
    match format {
        ImageFormat::Raw => "raw",
        ImageFormat::Qcow2 => "qcow2",
        ImageFormat::Vhd => "vpc",
    }
}

/// Ranges of a disk of this size that cross clusters, share clusters, and touch the first and last sector.
fn pieces(size: u64) -> Vec<(u64, Bytes)> {
    let fill = |seed: u64, len: u64| -> Bytes { (0..len).map(|i| (i * 7 + seed * 13 + 1) as u8).collect() };
    let mut pieces = vec![(0, fill(1, 512)), (1024, fill(2, 512))];
    if size > 1 << 20 {
        pieces.push(((64 << 10) - 512, fill(3, 70 << 10)));
        pieces.push((size / 1024 * 512, fill(4, 300 << 10)));
        pieces.push((size - 512, fill(5, 512)));
    }
    pieces
}

/// The ranges of the pieces.
fn data(size: u64) -> Vec<Extent> {
    pieces(size).iter().map(|(offset, data)| extent(*offset, data.len() as u64)).collect()
}

fn extent(offset: u64, len: u64) -> Extent {
    Extent::new(offset, len).expect("aligned by the test")
}

async fn write_image(path: &Path, format: ImageFormat, size: u64) {
    let image = Image::create(path, format, size, &data(size)).await.expect("create");
    let writes = pieces(size).into_iter().map(|(offset, data)| image.write(offset, data));
    for written in join_all(writes).await {
        written.expect("write");
    }
    image.finish().await.expect("finish");
}

/// Polls all together, as the restore does.
async fn join_all<T>(futures: impl IntoIterator<Item = impl Future<Output = T>>) -> Vec<T> {
    let mut pending: Vec<_> = futures.into_iter().map(|f| (Box::pin(f), None)).collect();
    std::future::poll_fn(|cx| {
        for (future, done) in pending.iter_mut().filter(|(_, done)| done.is_none()) {
            if let std::task::Poll::Ready(value) = future.as_mut().poll(cx) {
                *done = Some(value);
            }
        }
        if pending.iter().all(|(_, done)| done.is_some()) {
            std::task::Poll::Ready(())
        } else {
            std::task::Poll::Pending
        }
    })
    .await;
    pending.into_iter().filter_map(|(_, done)| done).collect()
}

#[tokio::test]
async fn qemu_img_reads_every_format_at_every_size_as_it_was_written() {
    let dir = tempfile::tempdir().expect("dir");
    for size in [1536, (1 << 20) + 512, (10 << 20) + (3 << 10), 64 << 20, (1 << 30) + 512] {
        let twin = dir.path().join(format!("{size}.twin"));
        let file = std::fs::File::create(&twin).expect("twin");
        file.set_len(size).expect("size");
        for (offset, data) in pieces(size) {
            file.write_all_at(&data, offset).expect("twin");
        }
        for format in ImageFormat::ALL {
            let path = dir.path().join(format!("{size}.{}", format.extension()));
            write_image(&path, format, size).await;
            let (ok, said) = qemu_img(&["info", "-f", qemu_name(format), "--output=json"], &[&path]);
            let virtual_size = match format {
                ImageFormat::Vhd => size.next_multiple_of(1 << 20),
                _ => size,
            };
            assert!(ok && said.contains(&format!("\"virtual-size\": {virtual_size},")), "{format} {size}: {said}");
            if format == ImageFormat::Qcow2 {
                let (ok, said) = qemu_img(&["check", "-f", "qcow2"], &[&path]);
                assert!(ok && said.contains("No errors"), "{size}: {said}");
            }
            let compare = ["compare", "-f", "raw", "-F", qemu_name(format)];
            let (same, said) = qemu_img(&compare, &[&twin, &path]);
            assert!(same, "{format} {size}: {said}");
            // The control: one changed byte of the last write is noticed.
            let (offset, data) = pieces(size).pop().expect("pieces");
            file.write_all_at(&[!data[0]], offset).expect("change");
            let (same, _) = qemu_img(&compare, &[&twin, &path]);
            assert!(!same, "{format} {size}: a changed byte was not noticed");
            file.write_all_at(&data[..1], offset).expect("change back");
        }
    }
}

#[tokio::test]
async fn holes_take_no_space_in_any_format() {
    let dir = tempfile::tempdir().expect("dir");
    for format in ImageFormat::ALL {
        let path = dir.path().join(format.extension());
        let data = [extent(512 << 20, 1 << 20)];
        let image = Image::create(&path, format, 1 << 30, &data).await.expect("create");
        image.write(512 << 20, vec![1; 1 << 20].into()).await.expect("write");
        image.finish().await.expect("finish");
        let taken = std::fs::metadata(&path).expect("metadata").blocks() * 512;
        assert!((1 << 20..3 << 20).contains(&taken), "{format}: {taken} bytes taken for 1 MiB of data");
    }
}

#[tokio::test]
async fn existing_files_bad_sizes_and_writes_past_the_end_are_refused() {
    let dir = tempfile::tempdir().expect("dir");
    for format in ImageFormat::ALL {
        let path = dir.path().join(format.extension());
        std::fs::write(&path, b"precious").expect("file");
        let error = Image::create(&path, format, 1 << 20, &[]).await.expect_err("exists");
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert!(error.to_string().contains("move it away"), "{error}");
        assert_eq!(std::fs::read(&path).expect("kept"), b"precious");

        let path = dir.path().join(format!("new.{format}"));
        for size in [0, 1000] {
            assert!(Image::create(&path, format, size, &[]).await.is_err(), "{format} {size}");
            assert!(!path.exists());
        }
        assert!(Image::create(&path, format, 512, &[extent(512, 512)]).await.is_err(), "data past the end");
        let image = Image::create(&path, format, 1 << 20, &[extent(0, 1 << 20)]).await.expect("create");
        assert!(image.write(1 << 20, Bytes::from_static(&[1; 512])).await.is_err(), "{format}");
    }
    let huge = Image::create(&dir.path().join("huge"), ImageFormat::Vhd, (2040 << 30) + 512, &[]).await;
    assert!(huge.expect_err("too large").to_string().contains("choose raw or qcow2"));
}

/// Opens an image that was let go: a process that another test forks just now has its lock too, until it becomes qemu-img.
async fn open_let_go(path: &Path, format: ImageFormat, size: u64, data: &[Extent]) -> io::Result<Image> {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    loop {
        match Image::open(path, format, size, data).await {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy && std::time::Instant::now() < deadline => {
                tokio::task::yield_now().await;
            }
            opened => return opened,
        }
    }
}

#[tokio::test]
async fn an_unfinished_image_is_not_taken_for_one_and_is_gone_on_with() {
    let dir = tempfile::tempdir().expect("dir");
    let size = (10 << 20) + (3 << 10);
    for format in [ImageFormat::Qcow2, ImageFormat::Vhd] {
        let path = dir.path().join(format.extension());
        let image = Image::create(&path, format, size, &data(size)).await.expect("create");
        let mut left = pieces(size);
        let (offset, bytes) = left.pop().expect("pieces");
        image.write(offset, bytes.clone()).await.expect("write");
        image.sync().await.expect("sync");
        drop(image);
        let (ok, said) = qemu_img(&["info", "-f", qemu_name(format)], &[&path]);
        assert!(!ok, "{format} has no header or footer: {said}");
        let image = open_let_go(&path, format, size, &data(size)).await.expect("open");
        for (offset, bytes) in left {
            image.write(offset, bytes).await.expect("write");
        }
        image.finish().await.expect("finish");
        image.finish().await.expect("again");
        assert_eq!(image.altered_frame().await.expect("read"), None);
        assert_eq!(image.read_back(extent(offset, bytes.len() as u64)).await.expect("read"), bytes);
        let (ok, said) = qemu_img(&["info", "-f", qemu_name(format)], &[&path]);
        assert!(ok, "{format}: {said}");
        let held = Image::open(&path, format, size, &data(size)).await.expect_err("it is held");
        assert_eq!(held.kind(), io::ErrorKind::ResourceBusy, "{held}");
        drop(image);
        let other = open_let_go(&path, format, size + (2 << 20), &[extent(0, 9 << 20)]).await.expect_err("refused");
        assert_eq!(other.kind(), io::ErrorKind::InvalidData, "{other}");
    }
}

/// Every byte of the frame counts: whichever is flipped, it is named, and nothing else is.
#[tokio::test]
async fn a_flipped_byte_of_header_tables_footer_or_padding_is_found() {
    let dir = tempfile::tempdir().expect("dir");
    let size = (1 << 20) + 512;
    for (format, places) in [
        (ImageFormat::Qcow2, vec![5, 70, 0x1_0001, 0x2_0003, 0x3_0007, 0x4_0009]),
        (ImageFormat::Vhd, vec![(1 << 20) + 600, (2 << 20) + 511]),
    ] {
        let path = dir.path().join(format.extension());
        let image = Image::create(&path, format, size, &data(size)).await.expect("create");
        image.finish().await.expect("finish");
        let file = std::fs::File::options().read(true).write(true).open(&path).expect("opens");
        for at in places {
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).expect("read");
            file.write_all_at(&[byte[0] ^ 4], at).expect("flip");
            file.sync_all().expect("sync");
            let found = image.altered_frame().await.expect("read").expect("noticed");
            assert!(found <= at && at < found + (8 << 20), "{format}: {at} is named as {found}");
            file.write_all_at(&byte, at).expect("flip back");
            file.sync_all().expect("sync");
            assert_eq!(image.altered_frame().await.expect("read"), None, "{format} {at}");
        }
    }
}

/// Tables of every level have several clusters, and partly filled ones; most of the data is never written.
#[tokio::test]
async fn a_large_scattered_qcow2_has_no_errors() {
    let dir = tempfile::tempdir().expect("dir");
    let (path, twin) = (dir.path().join("large.qcow2"), dir.path().join("twin"));
    let size = (5u64 << 40) + 512;
    let mut written: Vec<Extent> = (0..300).map(|i| extent(i * (17 << 30) + i * 1536, 512 * (1 + i))).collect();
    written.push(extent(size - 512, 512));
    let mut data = written.clone();
    data.insert(1, extent(1 << 30, 3 << 30));
    let image = Image::create(&path, ImageFormat::Qcow2, size, &data).await.expect("create");
    let file = std::fs::File::create(&twin).expect("twin");
    file.set_len(size).expect("size");
    for e in written {
        let bytes: Vec<u8> = (0..e.len()).map(|i| (i / 512 + e.offset() / 512) as u8 | 1).collect();
        file.write_all_at(&bytes, e.offset()).expect("twin");
        image.write(e.offset(), bytes.into()).await.expect("write");
    }
    image.finish().await.expect("finish");
    assert_eq!(image.altered_frame().await.expect("read"), None);
    assert!(image.write(16 << 30, Bytes::from_static(&[1; 512])).await.is_err(), "a hole is not written");
    drop(image);
    let (ok, said) = qemu_img(&["check", "-f", "qcow2"], &[&path]);
    assert!(ok && said.contains("No errors"), "{said}");
    let (same, said) = qemu_img(&["compare", "-f", "raw", "-F", "qcow2"], &[&twin, &path]);
    assert!(same, "{said}");
}

#[test]
fn formats_print_as_they_read() {
    for format in ImageFormat::ALL {
        assert_eq!(format.to_string().parse(), Ok(format));
    }
    let error = "vmdk".parse::<ImageFormat>().expect_err("unknown");
    assert!(error.to_string().contains("raw, qcow2 or vhd"), "{error}");
}
