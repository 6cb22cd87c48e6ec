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

async fn write_image(path: &Path, format: ImageFormat, size: u64) {
    let image = create_image(path, format, size).await.expect("create");
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
        let image = create_image(&path, format, 1 << 30).await.expect("create");
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
        let error = create_image(&path, format, 1 << 20).await.err().expect("exists");
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert!(error.to_string().contains("move it away"), "{error}");
        assert_eq!(std::fs::read(&path).expect("kept"), b"precious");

        let path = dir.path().join(format!("new.{format}"));
        for size in [0, 1000] {
            assert!(create_image(&path, format, size).await.is_err(), "{format} {size}");
            assert!(!path.exists());
        }
        let image = create_image(&path, format, 1 << 20).await.expect("create");
        assert!(image.write(1 << 20, Bytes::from_static(&[1; 512])).await.is_err(), "{format}");
    }
    let huge = create_image(&dir.path().join("huge"), ImageFormat::Vhd, (2040 << 30) + 512).await.err();
    assert!(huge.expect("too large").to_string().contains("choose raw or qcow2"));
}

#[tokio::test]
async fn an_unfinished_vhd_is_not_taken_for_one() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("disk.vhd");
    let image = create_image(&path, ImageFormat::Vhd, 1 << 20).await.expect("create");
    image.write(0, Bytes::from_static(&[1; 512])).await.expect("write");
    drop(image);
    let (ok, _) = qemu_img(&["info", "-f", "vpc"], &[&path]);
    assert!(!ok, "it has no footer");
}

#[test]
fn formats_print_as_they_read() {
    for format in ImageFormat::ALL {
        assert_eq!(format.to_string().parse(), Ok(format));
    }
    let error = "vmdk".parse::<ImageFormat>().expect_err("unknown");
    assert!(error.to_string().contains("raw, qcow2 or vhd"), "{error}");
}
