//! The parts of a job one after the other in one thread, with nothing around them: what a role that does the job costs at least.

use anyhow::{Context, Result};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};

use crate::inputs::PAGE;

/// Bytes of a frame.
const FRAME: usize = 64 << 10;

const KEY: [u8; 32] = [7; 32];

/// What seals and compresses frames, and does the opposite.
struct Packer {
    key: LessSafeKey,
    zstd: zstd::bulk::Compressor<'static>,
    unzstd: zstd::bulk::Decompressor<'static>,
}

impl Packer {
    fn new() -> Result<Self> {
        let key = UnboundKey::new(&AES_256_GCM, &KEY).ok().context("a key has 32 bytes")?;
        let (zstd, unzstd) = (zstd::bulk::Compressor::new(1)?, zstd::bulk::Decompressor::new()?);
        Ok(Self { key: LessSafeKey::new(key), zstd, unzstd })
    }

    /// A frame of plain bytes compressed by zstd level 1 and sealed.
    fn seal(&mut self, plain: &[u8], out: &mut Vec<u8>) -> Result<()> {
        out.clear();
        out.reserve(zstd::zstd_safe::compress_bound(plain.len()));
        self.zstd.compress_to_buffer(plain, out)?;
        let nonce = Nonce::assume_unique_for_key([0; 12]);
        self.key.seal_in_place_append_tag(nonce, Aad::empty(), out).ok().context("sealing works")
    }

    /// The opposite, with room for a frame.
    fn open(&mut self, sealed: &mut [u8], plain: &mut Vec<u8>) -> Result<()> {
        let nonce = Nonce::assume_unique_for_key([0; 12]);
        let opened = self.key.open_in_place(nonce, Aad::empty(), sealed).ok().context("what was sealed opens")?;
        plain.clear();
        Ok(self.unzstd.decompress_to_buffer(opened, plain).map(drop)?)
    }
}

/// What a gateway cannot do without for these pages: a name of each, zstd level 1 and AES of frames of 64 KiB.
pub fn pack_pages(pages: &[u8]) -> Result<()> {
    let (mut packer, mut out) = (Packer::new()?, Vec::new());
    for frame in pages.chunks(FRAME) {
        for page in frame.chunks(PAGE) {
            std::hint::black_box(blake3::keyed_hash(&KEY, page));
        }
        packer.seal(frame, &mut out)?;
        std::hint::black_box(&out);
    }
    Ok(())
}

/// Frames as they lie in a store.
pub fn sealed_frames(data: &[u8]) -> Result<Vec<Vec<u8>>> {
    let mut packer = Packer::new()?;
    let seal = |frame: &[u8]| {
        let mut out = Vec::new();
        packer.seal(frame, &mut out).map(|()| out)
    };
    data.chunks(FRAME).map(seal).collect()
}

/// What an applier cannot do without for these frames: a hash of what was read, AES, zstd, and a hash of what came out.
pub fn unpack(frames: &[Vec<u8>]) -> Result<()> {
    let (mut packer, mut sealed, mut plain) = (Packer::new()?, Vec::new(), Vec::with_capacity(FRAME));
    for frame in frames {
        std::hint::black_box(blake3::hash(frame));
        sealed.clone_from(frame);
        packer.open(&mut sealed, &mut plain)?;
        std::hint::black_box(blake3::keyed_hash(&KEY, &plain));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_packed_comes_out_again() {
        let data = benches::table_pages(3 * FRAME + PAGE, 1);
        let (mut packer, mut plain) = (Packer::new().expect("made"), Vec::with_capacity(FRAME));
        let frames = sealed_frames(&data).expect("sealed");
        let mut all = Vec::new();
        for frame in &frames {
            packer.open(&mut frame.clone(), &mut plain).expect("opened");
            all.extend_from_slice(&plain);
        }
        assert!(all == data && frames.iter().map(Vec::len).sum::<usize>() < data.len());
        unpack(&frames).expect("unpacked");
        let mut altered = frames;
        altered[1][100] ^= 1;
        unpack(&altered).expect_err("a flipped bit");
    }
}
