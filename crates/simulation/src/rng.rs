//! One root seed, split by name: adding a consumer of chance in one place changes nothing in another.

use store::SplitMix64;

/// The generator of one consumer of chance, derived from the root seed and the consumer's name.
pub fn derive(seed: u64, name: &str) -> SplitMix64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    hasher.update(name.as_bytes());
    let hash = hasher.finalize();
    let bytes = hash.as_bytes().first_chunk::<8>().expect("a hash has 32 bytes");
    SplitMix64::new(u64::from_le_bytes(*bytes))
}

/// One of several, all alike.
pub fn pick<'a, T>(rng: &mut SplitMix64, from: &'a [T]) -> &'a T {
    let index = rng.below(from.len() as u64);
    &from[usize::try_from(index).expect("an index of a slice")]
}
