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
