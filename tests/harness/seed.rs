//! Randomness that replays: every random test draws from one seed, prints it, and takes it from `FARSHORE_SEED`.

/// splitmix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014).
#[derive(Debug, Clone)]
pub struct Seed(u64);

impl Seed {
    /// From `FARSHORE_SEED`, or the seed given. Says which, so that a failure can be replayed.
    pub fn from_environment(otherwise: u64) -> Self {
        let seed = std::env::var("FARSHORE_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(otherwise);
        eprintln!("seed {seed}: replay with FARSHORE_SEED={seed}");
        Seed(seed)
    }

    /// 64 random bits.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A generator of its own, drawn from this one.
    pub fn fork(&mut self) -> Self {
        Seed(self.next())
    }

    /// Below `bound`, which is not 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}
