//! State digests: what a disk holds, in 32 bytes, however it came to hold it. The exact form stands in
//! `manifest/FORMAT.md`.
//!
//! A disk's sum is that of a keyed hash of (offset, bytes) over all its sectors that are not all zeros, modulo 2^256. Neither
//! the order of writes nor their cutting into chunks enters, nor the disk's size, nor where its bytes lie in the store: a
//! write takes out of the sum what the sectors held before and adds what they hold now.
//!
//! This is MSet-Add-Hash (Clarke, Devadas, van Dijk, Gassend, Suh: Incremental Multiset Hash Functions, ASIACRYPT 2003; the
//! sum is the AdHash of Bellare and Micciancio, EUROCRYPT 1997): to find two contents with one sum is as hard as to tell the
//! keyed hash from chance, for whoever does not have the key. Without a key 256 bits would be too few for sums (Wagner: A
//! Generalized Birthday Problem, CRYPTO 2002), so sums stay sealed, and what is shown is a keyed hash of the sum. Whoever has
//! the vault key can forge it, as anything else.

use std::fmt;

use model::SECTOR_BYTES;
use serde::{Deserialize, Serialize};

use crate::keys::Keys;

/// The sum over a disk's sectors. An empty disk's is zero.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "[u8; 32]", into = "[u8; 32]")]
pub struct StateSum {
    low: u128,
    high: u128,
}

/// What may be shown of a sum: equal for equal contents of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StateDigest(pub [u8; 32]);

impl fmt::Display for StateDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl From<[u8; 32]> for StateSum {
    fn from(bytes: [u8; 32]) -> Self {
        let [low, high] = *bytes.as_chunks::<16>().0 else { unreachable!("32 bytes are twice 16") };
        Self { low: u128::from_le_bytes(low), high: u128::from_le_bytes(high) }
    }
}

impl From<StateSum> for [u8; 32] {
    fn from(sum: StateSum) -> Self {
        let mut bytes = [0; 32];
        bytes[..16].copy_from_slice(&sum.low.to_le_bytes());
        bytes[16..].copy_from_slice(&sum.high.to_le_bytes());
        bytes
    }
}

impl StateSum {
    /// The disk holds these whole sectors from `offset` on.
    pub fn add(&mut self, keys: &Keys, offset: u64, bytes: &[u8]) {
        terms(keys, offset, bytes, |term| {
            let (low, carry) = self.low.overflowing_add(term.low);
            *self = Self { low, high: self.high.wrapping_add(term.high).wrapping_add(u128::from(carry)) };
        });
    }

    /// The disk no longer holds what was added for these whole sectors.
    pub fn take(&mut self, keys: &Keys, offset: u64, bytes: &[u8]) {
        terms(keys, offset, bytes, |term| {
            let (low, borrow) = self.low.overflowing_sub(term.low);
            *self = Self { low, high: self.high.wrapping_sub(term.high).wrapping_sub(u128::from(borrow)) };
        });
    }

    /// The state digest.
    pub fn digest(self, keys: &Keys) -> StateDigest {
        StateDigest(keys.state_hash(&<[u8; 32]>::from(self)))
    }
}

fn terms(keys: &Keys, offset: u64, bytes: &[u8], mut take: impl FnMut(StateSum)) {
    let mut input = [0; 8 + SECTOR_BYTES as usize];
    for (number, sector) in bytes.chunks(SECTOR_BYTES as usize).enumerate() {
        if sector.iter().fold(0, |seen, byte| seen | byte) == 0 {
            continue;
        }
        input[..8].copy_from_slice(&(offset + number as u64 * SECTOR_BYTES).to_le_bytes());
        input[8..][..sector.len()].copy_from_slice(sector);
        take(keys.state_hash(&input[..8 + sector.len()]).into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::VaultKey;

    fn sum(keys: &Keys, parts: &[(u64, &[u8])]) -> StateSum {
        let mut sum = StateSum::default();
        parts.iter().for_each(|(offset, bytes)| sum.add(keys, *offset, bytes));
        sum
    }

    #[test]
    fn the_sum_says_what_is_where_and_not_how_it_came_there() {
        let keys = Keys::new(&VaultKey::generate());
        let (a, b, zeros) = ([1; 512], [2; 512], [0; 1024]);
        let both = [a, b].concat();
        let whole = sum(&keys, &[(512, &both)]);
        assert_eq!(whole, sum(&keys, &[(1024, &b), (0, &zeros[..512]), (512, &a), (4096, &zeros)]));
        let others = [sum(&keys, &[(0, &both)]), sum(&keys, &[(512, &b), (1024, &a)]), sum(&keys, &[(512, &a)])];
        assert!(others.iter().all(|other| *other != whole));
        let mut written_over = whole;
        written_over.take(&keys, 1024, &b);
        assert_eq!(written_over, sum(&keys, &[(512, &a)]));
        written_over.take(&keys, 512, &a);
        assert_eq!(written_over, StateSum::default());
        let other = Keys::new(&VaultKey::generate());
        assert_ne!(sum(&other, &[(512, &both)]), whole);
        assert_ne!(whole.digest(&keys).0, <[u8; 32]>::from(whole));
        assert_eq!(StateSum::from(<[u8; 32]>::from(whole)), whole);
    }

    #[test]
    fn carries_go_over_and_come_back() {
        let keys = Keys::new(&VaultKey::generate());
        let near = StateSum { low: u128::MAX, high: u128::MAX };
        let mut sum = near;
        for number in 0..64 {
            sum.add(&keys, number * 512, &[7; 512]);
        }
        for number in 0..64 {
            sum.take(&keys, number * 512, &[7; 512]);
        }
        assert_eq!(sum, near);
    }
}
