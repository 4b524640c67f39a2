//! Which of many perceptual hashes lie within a few bits of one: exact, and without comparing all pairs.
//!
//! Two hashes that differ in at most d bits are equal in at least one of d + 1 stretches of their bits: only those
//! that share a stretch are compared.

use std::collections::HashMap;

/// Bits of a hash.
const BITS: u32 = 64;

/// Hashes to be found again.
pub struct NearHashes {
    distance_max: u32,
    hashes: Vec<u64>,
    /// For each stretch, the places of hashes by its bits.
    stretches: Vec<HashMap<u64, Vec<usize>>>,
}

impl NearHashes {
    /// An index that finds what differs in at most `distance_max` bits, up to 63.
    pub fn new(hashes: Vec<u64>, distance_max: u32) -> Self {
        let distance_max = distance_max.min(BITS - 1);
        let mut stretches = vec![HashMap::<u64, Vec<usize>>::new(); distance_max as usize + 1];
        for (place, hash) in hashes.iter().enumerate() {
            for (stretch, bits) in stretches.iter_mut().zip(bits_of(*hash, distance_max + 1)) {
                stretch.entry(bits).or_default().push(place);
            }
        }
        Self { distance_max, hashes, stretches }
    }

    /// Places of the hashes near one, in order, each with the number of bits in which it differs.
    pub fn near(&self, hash: u64) -> Vec<(usize, u32)> {
        let parts = self.stretches.iter().zip(bits_of(hash, self.distance_max + 1));
        let places = parts.filter_map(|(stretch, bits)| stretch.get(&bits)).flatten().copied();
        let mut places: Vec<usize> = places.collect();
        places.sort_unstable();
        places.dedup();
        let near =
            places.into_iter().map(|place| (place, (self.hashes[place] ^ hash).count_ones()));
        near.filter(|(_, distance)| *distance <= self.distance_max).collect()
    }
}

/// The bits of each of `n` stretches that together are the hash.
fn bits_of(hash: u64, n: u32) -> impl Iterator<Item = u64> {
    (0..n).map(move |i| {
        let (start, end) = (i * BITS / n, (i + 1) * BITS / n);
        (hash >> start) & (u64::MAX >> (BITS - (end - start)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::draw::mix;

    #[test]
    fn it_finds_what_comparing_all_finds() {
        let mut hashes: Vec<u64> = (0..300).map(|i| mix(7, i)).collect();
        // Relatives of the first ones, further and further away.
        for i in 0..120 {
            let flipped =
                (0..i % 12).fold(hashes[i as usize], |hash, k| hash ^ 1 << (mix(i, k) % 64));
            hashes.push(flipped);
        }
        for distance in [0, 1, 4, 10, 70] {
            let index = NearHashes::new(hashes.clone(), distance);
            for hash in hashes.iter().step_by(7).chain(&[0, u64::MAX]) {
                let all = hashes.iter().enumerate();
                let all = all.map(|(place, other)| (place, (other ^ hash).count_ones()));
                let expected: Vec<_> = all.filter(|(_, found)| *found <= distance).collect();
                assert_eq!(index.near(*hash), expected, "{distance}");
            }
        }
    }
}
