//! The control of the checks: a decoder with three faults, each of which the fuzzer must report.
//!
//! `cargo xtask fuzz --ci` gives it an input for each fault, and one that meets none; it must fail on the three.
#![no_main]

use farshore_fuzz::{cap, watched};

/// A kind byte, a length, a payload.
#[derive(Debug, PartialEq)]
struct Frame {
    kind: u8,
    payload: Vec<u8>,
}

fn decode(data: &[u8]) -> Option<Frame> {
    let (&kind, rest) = data.split_first()?;
    let (len, rest) = rest.split_first_chunk::<4>()?;
    let len = u32::from_le_bytes(*len) as usize;
    let payload = match kind {
        // Believes the length before it has seen the bytes.
        b'a' => {
            let mut payload = Vec::with_capacity(len);
            payload.extend_from_slice(rest.get(..len)?);
            payload
        }
        // Looks where there may be nothing.
        b'p' => rest[..len].to_vec(),
        // Loses the last byte.
        b'l' => rest.get(..len.saturating_sub(1))?.to_vec(),
        _ => rest.get(..len)?.to_vec(),
    };
    Some(Frame { kind, payload })
}

fn encode(frame: &Frame) -> Vec<u8> {
    let len = (frame.payload.len() as u32).to_le_bytes();
    [&[frame.kind], len.as_slice(), &frame.payload].concat()
}

fn careless(data: &[u8]) {
    let _ = decode(data);
    if let Some((&kind, payload)) = data.split_first() {
        let frame = Frame { kind, payload: payload.to_vec() };
        assert_eq!(decode(&encode(&frame)).as_ref(), Some(&frame));
    }
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| watched(data, cap::CARELESS, careless));
