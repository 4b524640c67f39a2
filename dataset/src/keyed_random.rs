//! Random numbers as pure functions of a key: no state that a resumed run would have to restore.

/// A stream of random numbers named by a key such as (seed, epoch, row).
#[derive(Debug, Clone)]
pub(crate) struct KeyedRandom {
    state: u64,
}

impl KeyedRandom {
    /// The stream of `key`. The order of the parts matters.
    pub(crate) fn new(key: &[u64]) -> Self {
        Self { state: key.iter().fold(0, |state, part| mix(state ^ mix(*part))) }
    }

    /// The next 64 bits.
    pub(crate) fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(GOLDEN);
        mix(self.state)
    }

    /// Uniform in [0, 1), with the 53 bits of an `f64`.
    pub(crate) fn unit(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// True with the given probability.
    pub(crate) fn chance(&mut self, probability: f64) -> bool {
        self.unit() < probability
    }

    /// Uniform in 0..n. The bias is below n / 2^64.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.next_u64()) * n as u128) >> 64) as usize
    }
}

/// 2^64 divided by the golden ratio: the increment of splitmix64 (Steele and others, 2014).
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// The output function of splitmix64: a bijection in which each input bit moves half the outputs.
pub(crate) fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(GOLDEN);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_names_its_stream() {
        let draw = |key: &[u64]| KeyedRandom::new(key).next_u64();
        assert_eq!(draw(&[1, 2, 3]), draw(&[1, 2, 3]));
        assert_ne!(draw(&[1, 2, 3]), draw(&[1, 3, 2]));
        assert_ne!(draw(&[0]), draw(&[0, 0]));
    }

    #[test]
    fn draws_are_uniform() {
        let mut random = KeyedRandom::new(&[7]);
        let mut counts = [0; 8];
        for _ in 0..8000 {
            counts[random.below(8)] += 1;
        }
        assert!(counts.iter().all(|&n| (850..1150).contains(&n)), "{counts:?}");
        let mean = (0..8000).map(|_| random.unit()).sum::<f64>() / 8000.0;
        assert!((mean - 0.5).abs() < 0.02, "{mean}");
    }
}
