//! A set of numbers below a fixed bound, one bit each: regions of a disk.
//!
//! Counting is kept up with every change, so that "how much is left to drain" costs nothing to ask.

/// Numbers below `len`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BitSet {
    words: Vec<u64>,
    len: u64,
    ones: u64,
}

impl BitSet {
    /// The empty set of numbers below `len`.
    pub(crate) fn new(len: u64) -> Self {
        let words = usize::try_from(len.div_ceil(64)).expect("a disk has at most 2^27 regions: checked at start");
        BitSet { words: vec![0; words], len, ones: 0 }
    }

    fn place(&self, number: u64) -> (usize, u64) {
        assert!(number < self.len, "region {number} of {}: ranges are checked against the disk first", self.len);
        ((number / 64) as usize, 1 << (number % 64))
    }

    /// How many numbers there could be.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// How many numbers there are.
    pub(crate) fn ones(&self) -> u64 {
        self.ones
    }

    /// Whether the number is in the set.
    pub(crate) fn get(&self, number: u64) -> bool {
        let (word, mask) = self.place(number);
        self.words[word] & mask != 0
    }

    /// Puts a number in; says whether it was not there.
    pub(crate) fn set(&mut self, number: u64) -> bool {
        let (word, mask) = self.place(number);
        let new = self.words[word] & mask == 0;
        self.words[word] |= mask;
        self.ones += u64::from(new);
        new
    }

    /// Takes a number out; says whether it was there.
    pub(crate) fn clear(&mut self, number: u64) -> bool {
        let (word, mask) = self.place(number);
        let was = self.words[word] & mask != 0;
        self.words[word] &= !mask;
        self.ones -= u64::from(was);
        was
    }

    /// The first number in the set that is not below `from`.
    pub(crate) fn next(&self, from: u64) -> Option<u64> {
        if from >= self.len {
            return None;
        }
        let first = (from / 64) as usize;
        let head = self.words[first] & (u64::MAX << (from % 64));
        if head != 0 {
            return Some(first as u64 * 64 + u64::from(head.trailing_zeros()));
        }
        let (word, bits) = self.words.iter().enumerate().skip(first + 1).find(|(_, bits)| **bits != 0)?;
        Some(word as u64 * 64 + u64::from(bits.trailing_zeros()))
    }

    /// The numbers in order.
    #[cfg(test)]
    pub(crate) fn iter(&self) -> impl Iterator<Item = u64> + '_ {
        let mut at = self.next(0);
        std::iter::from_fn(move || {
            let number = at?;
            at = self.next(number + 1);
            Some(number)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn behaves_as_a_set_of_numbers(len in 1u64..300, ops in proptest::collection::vec((any::<bool>(), any::<u64>()), 0..200)) {
            let (mut bits, mut model) = (BitSet::new(len), BTreeSet::new());
            for (put, number) in ops {
                let number = number % len;
                if put {
                    prop_assert_eq!(bits.set(number), model.insert(number));
                } else {
                    prop_assert_eq!(bits.clear(number), model.remove(&number));
                }
                prop_assert_eq!(bits.ones(), model.len() as u64);
                prop_assert_eq!(bits.next(number), model.range(number..).next().copied());
            }
            prop_assert_eq!(bits.iter().collect::<Vec<_>>(), model.into_iter().collect::<Vec<_>>());
        }
    }
}
