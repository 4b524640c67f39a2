//! Counter-based random numbers: a value is a function of its key alone, so a draw never depends on
//! how many draws came before it, on the batch or on the thread.

/// Mixes two words into one (the output function of splitmix64).
pub fn mix(key: u64, counter: u64) -> u64 {
    const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut z = key.wrapping_add(counter.wrapping_mul(GOLDEN)).wrapping_add(GOLDEN);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Mixes a text into a key.
pub fn mix_text(key: u64, text: &str) -> u64 {
    let words = text.as_bytes().chunks(8).map(|chunk| {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        u64::from_le_bytes(word)
    });
    words.fold(mix(key, text.len() as u64), mix)
}

/// A number from 0 to `n - 1`; `n` is at least 1.
pub fn below(word: u64, n: usize) -> usize {
    ((u128::from(word) * n as u128) >> 64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_are_even_and_keys_matter() {
        let mut counts = [0; 8];
        (0..8000).for_each(|i| counts[below(mix(7, i), 8)] += 1);
        assert!(counts.iter().all(|c| (850..1150).contains(c)), "{counts:?}");
        assert_ne!(mix_text(0, "query-1"), mix_text(0, "query-2"));
        assert_ne!(mix_text(0, "query-1"), mix_text(1, "query-1"));
        assert_ne!(mix_text(0, "ab"), mix_text(0, "ab\0"));
    }
}
