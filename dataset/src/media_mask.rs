//! Which image a token may see: the only place where this rule is written (paper section 2.3 and
//! appendix A.3.2).
//!
//! `phi(l)` is the index, among the images of the sequence, of the one image that the
//! cross-attention of token `l` reads; [`SEES_NONE`] where it reads none.

use serde::{Deserialize, Serialize};

/// Value of `phi` for a token that sees no image.
pub const SEES_NONE: i32 = -1;

/// On which side of a token its image stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Attend {
    /// The last image at or before the token; an image mark sees its own image.
    Previous,
    /// The first image at or after the token: on some pages the text comes before its image.
    Next,
}

/// `phi` of each token `[L]`.
pub fn phi(tokens: &[u32], image_id: u32, attend: Attend) -> Vec<i32> {
    let marks: Vec<bool> = tokens.iter().map(|&token| token == image_id).collect();
    phi_of_marks(&marks, attend)
}

/// `phi` of each place `[L]`, where `marks[l]` tells whether place `l` is an image.
pub fn phi_of_marks(marks: &[bool], attend: Attend) -> Vec<i32> {
    let n_images = marks.iter().filter(|&&mark| mark).count() as i32;
    let mut seen = 0; // images at or before the place
    let mut phi = Vec::with_capacity(marks.len());
    for &mark in marks {
        seen += i32::from(mark);
        let last = seen - 1;
        let next = if mark { last } else { seen };
        phi.push(match attend {
            Attend::Previous => last, // SEES_NONE before the first image
            Attend::Next if next < n_images => next,
            Attend::Next => SEES_NONE,
        });
    }
    phi
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const IMAGE: u32 = 3;

    #[test]
    fn text_belongs_to_the_image_before_or_after_it() {
        let tokens = [1, 9, IMAGE, 9, 9, IMAGE, 9];
        assert_eq!(phi(&tokens, IMAGE, Attend::Previous), [-1, -1, 0, 0, 0, 1, 1]);
        assert_eq!(phi(&tokens, IMAGE, Attend::Next), [0, 0, 0, 1, 1, 1, -1]);
        assert_eq!(phi(&[9, 9], IMAGE, Attend::Previous), [-1, -1]);
        assert_eq!(phi(&[9, 9], IMAGE, Attend::Next), [-1, -1]);
        assert_eq!(phi(&[], IMAGE, Attend::Next), [0; 0]);
    }

    /// The rule as the paper words it, without running counts.
    fn by_search(marks: &[bool], l: usize, attend: Attend) -> i32 {
        let places: Vec<usize> = (0..marks.len()).filter(|&i| marks[i]).collect();
        let found = match attend {
            Attend::Previous => places.iter().rposition(|&place| place <= l),
            Attend::Next => places.iter().position(|&place| place >= l),
        };
        found.map_or(SEES_NONE, |image| image as i32)
    }

    proptest! {
        #[test]
        fn the_fast_rule_equals_the_slow_one(marks in proptest::collection::vec(any::<bool>(), 0..40)) {
            for attend in [Attend::Previous, Attend::Next] {
                let expected: Vec<i32> =
                    (0..marks.len()).map(|l| by_search(&marks, l, attend)).collect();
                prop_assert_eq!(phi_of_marks(&marks, attend), expected);
            }
        }

        /// What comes after a token cannot change which previous image it sees.
        #[test]
        fn previous_is_causal(
            start in proptest::collection::vec(0..5u32, 0..30),
            one in proptest::collection::vec(0..5u32, 0..30),
            other in proptest::collection::vec(0..5u32, 0..30),
        ) {
            let with = |end: &[u32]| {
                let mut seen = phi(&[start.as_slice(), end].concat(), IMAGE, Attend::Previous);
                seen.truncate(start.len());
                seen
            };
            prop_assert_eq!(with(&one), with(&other));
        }

        #[test]
        fn a_mark_sees_its_own_image_and_every_image_is_seen(
            tokens in proptest::collection::vec(0..5u32, 0..40),
        ) {
            for attend in [Attend::Previous, Attend::Next] {
                let seen = phi(&tokens, IMAGE, attend);
                let own: Vec<i32> =
                    seen.iter().zip(&tokens).filter(|(_, t)| **t == IMAGE).map(|(s, _)| *s).collect();
                prop_assert_eq!(own, (0..tokens.iter().filter(|t| **t == IMAGE).count() as i32).collect::<Vec<_>>());
                let steps = seen.windows(2).filter(|w| w[1] != SEES_NONE).all(|w| w[0] <= w[1]);
                prop_assert!(steps, "never goes back: {:?}", seen);
            }
        }
    }
}
