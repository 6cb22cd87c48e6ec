//! The vault key as text: Crockford base32 in groups, made to be printed, read aloud and typed again.
//!
//! ```text
//! FARSHORE-KEY-1-GGGGGGG-…     eight groups of seven digits: 256 key bits and 24 checksum bits, most significant first
//! ```
//! The alphabet has no I, L, O or U; I and L read as 1 and O as 0. The checksum is derived from the key, so a typing
//! error passes once in sixteen million; a wrong key that passes still fails to open the vault.

use zeroize::Zeroizing;

use crate::FormatError;

const PREFIX: &str = "FARSHORE-KEY-1";
const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
const CHECKSUM_CONTEXT: &str = "farshore 2026 vault key checksum";
const CHECKSUM_BYTES: usize = 3;
const DIGITS: usize = (32 + CHECKSUM_BYTES) * 8 / 5;
const GROUP_DIGITS: usize = 7;

/// Longest text looked at: a key takes 78 characters, the rest is room for white space.
const TEXT_BYTES_MAX: usize = 4096;

const NOT_A_KEY: FormatError = FormatError::Invalid { what: "vault key text (expected FARSHORE-KEY-1-…)" };

fn checksum(key: &[u8; 32]) -> [u8; CHECKSUM_BYTES] {
    let hash = Zeroizing::new(blake3::derive_key(CHECKSUM_CONTEXT, key));
    [hash[0], hash[1], hash[2]]
}

pub(super) fn print(key: &[u8; 32]) -> Zeroizing<String> {
    let mut bytes = Zeroizing::new([0u8; 32 + CHECKSUM_BYTES]);
    bytes[..32].copy_from_slice(key);
    bytes[32..].copy_from_slice(&checksum(key));
    // Room for all of it at once: a string that grows leaves copies of the key behind.
    let mut text = Zeroizing::new(String::with_capacity(PREFIX.len() + 2 * DIGITS));
    text.push_str(PREFIX);
    for digit in 0..DIGITS {
        if digit % GROUP_DIGITS == 0 {
            text.push('-');
        }
        let value = (0..5).fold(0, |value, bit| (value << 1) | bit_at(&bytes[..], digit * 5 + bit));
        text.push(char::from(ALPHABET[usize::from(value)]));
    }
    text
}

fn bit_at(bytes: &[u8], bit: usize) -> u8 {
    (bytes[bit / 8] >> (7 - bit % 8)) & 1
}

pub(super) fn parse(text: &str) -> Result<Zeroizing<[u8; 32]>, FormatError> {
    if text.len() > TEXT_BYTES_MAX {
        return Err(NOT_A_KEY);
    }
    let mut bare = Zeroizing::new(String::with_capacity(text.len()));
    text.chars().filter(|c| *c != '-' && !c.is_whitespace()).for_each(|c| bare.push(c.to_ascii_uppercase()));
    let rest = bare.strip_prefix("FARSHOREKEY").ok_or(NOT_A_KEY)?;
    let mut digits = rest.chars();
    match digits.next().and_then(|c| c.to_digit(10)) {
        Some(1) => decode(digits.as_str()),
        Some(found) => Err(FormatError::Version { what: "vault key text", found, newest: 1 }),
        None => Err(NOT_A_KEY),
    }
}

fn decode(digits: &str) -> Result<Zeroizing<[u8; 32]>, FormatError> {
    if digits.len() != DIGITS {
        return Err(NOT_A_KEY);
    }
    let mut bytes = Zeroizing::new([0u8; 32 + CHECKSUM_BYTES]);
    for (at, digit) in digits.bytes().enumerate() {
        let digit = match digit {
            b'I' | b'L' => b'1',
            b'O' => b'0',
            other => other,
        };
        let value = ALPHABET.iter().position(|&a| a == digit).ok_or(NOT_A_KEY)?;
        for bit in (0..5).filter(|bit| value >> (4 - bit) & 1 == 1) {
            bytes[(at * 5 + bit) / 8] |= 0x80 >> ((at * 5 + bit) % 8);
        }
    }
    let mut key = Zeroizing::new([0u8; 32]);
    key.copy_from_slice(&bytes[..32]);
    if bytes[32..] != checksum(&key) {
        return Err(FormatError::Checksum { what: "vault key" });
    }
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::VaultKey;

    fn fixed() -> Zeroizing<[u8; 32]> {
        Zeroizing::new(std::array::from_fn(|i| i as u8))
    }

    #[test]
    fn a_key_prints_as_it_always_did() {
        assert_eq!(
            print(&fixed()).as_str(),
            "FARSHORE-KEY-1-000G40R-40M30E2-09185GR-38E1W81-24GK2GA-HC5RR34-D1P70X3-RFS821F"
        );
    }

    #[test]
    fn a_key_reads_back_however_it_is_typed() {
        let text = print(&fixed());
        let typed = [
            text.to_string(),
            text.to_lowercase(),
            text.replace('-', " "),
            text.replace('-', "\n\t "),
            text.replace('-', ""),
            format!("  {}\n", text.replace("KEY-1-", "key-1-").replace('0', "o")).replace("FARSHoRE", "FARSHORE"),
        ];
        for text in typed {
            assert_eq!(*parse(&text).expect(&text), *fixed(), "{text:?}");
        }
        let random = VaultKey::generate();
        assert_eq!(*VaultKey::parse(&random.to_text()).expect("own text").bytes, *random.bytes);
        assert_eq!(format!("{random:?}"), "VaultKey(secret)");
    }

    #[test]
    fn every_single_typing_error_is_caught() {
        let text = print(&fixed());
        for at in PREFIX.len() + 1..text.len() {
            for digit in ALPHABET.iter().map(|&d| char::from(d)) {
                let mut typed: Vec<char> = text.chars().collect();
                if typed[at] == '-' || typed[at] == digit {
                    continue;
                }
                typed[at] = digit;
                let typed: String = typed.into_iter().collect();
                assert_eq!(parse(&typed).err(), Some(FormatError::Checksum { what: "vault key" }), "{typed}");
            }
        }
    }

    #[test]
    fn what_is_not_a_key_says_so() {
        let long = " ".repeat(TEXT_BYTES_MAX + 1);
        for bad in
            ["", "hunter2", "FARSHORE-KEY-", "FARSHORE-KEY-1-", "FARSHORE-KEY-1-ÄÄÄÄÄÄÄ", "FARSHORE-KEY-x", &long]
        {
            assert_eq!(parse(bad).err(), Some(NOT_A_KEY), "{bad:?}");
        }
        let later = print(&fixed()).replace("KEY-1", "KEY-2");
        assert!(matches!(parse(&later), Err(FormatError::Version { found: 2, newest: 1, .. })));
        let long = format!("{}0", *print(&fixed()));
        assert_eq!(parse(&long).err(), Some(NOT_A_KEY));
    }
}
