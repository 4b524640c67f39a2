//! What may be wrong with an example, checked against the rules as the paper words them and not by the
//! code that applies them.

use std::fmt;

use crate::media_mask::SEES_NONE;
use crate::{Example, Tokenizer};

/// What is wrong with an example.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExampleProblem {
    /// There are not as many marks as images.
    Marks {
        /// Marks among the tokens.
        marks: usize,
        /// Images.
        images: usize,
    },
    /// Nothing is learned from it.
    NothingLearned,
    /// A token sees an image that it must not: neither do all see the last one before them, nor all the
    /// first one after them.
    Leak {
        /// The first such token, by the rule that holds for more tokens.
        token: usize,
        /// The image that it sees, [`SEES_NONE`] for none.
        sees: i32,
        /// The one that it may see.
        may_see: i32,
    },
    /// A mark or padding is to be predicted.
    Predicted {
        /// The token.
        token: usize,
    },
}

impl fmt::Display for ExampleProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Marks { marks, images } => write!(f, "{marks} marks for {images} images"),
            Self::NothingLearned => write!(f, "no token is learned"),
            Self::Leak { token, sees, may_see } => {
                let name = |image: i32| match image {
                    SEES_NONE => "no image".to_owned(),
                    image => format!("image {image}"),
                };
                write!(f, "token {token} sees {}, not {}", name(*sees), name(*may_see))
            }
            Self::Predicted { token } => write!(f, "token {token} is no text and is learned"),
        }
    }
}

/// Everything that is wrong with an example.
pub fn example_problems(example: &Example, tokenizer: &Tokenizer) -> Vec<ExampleProblem> {
    let is_mark = |token: &u32| *token == tokenizer.image_id();
    let places: Vec<usize> =
        (0..example.tokens.len()).filter(|&l| is_mark(&example.tokens[l])).collect();
    let mut problems = Vec::new();
    let (marks, images) = (places.len(), example.n_images);
    // An example of text alone keeps its marks and sees nothing.
    let is_text = images == 0 && example.phi.iter().all(|image| *image == SEES_NONE);
    if marks != images && !is_text {
        problems.push(ExampleProblem::Marks { marks, images });
    }
    if example.loss_mask.iter().all(|weight| *weight == 0.0) {
        problems.push(ExampleProblem::NothingLearned);
    }
    if !is_text {
        problems.extend(leak(example, &places));
    }
    let is_learnable = |token: u32| token != tokenizer.image_id() && token != tokenizer.pad_id();
    let predicted = example.loss_mask.iter().enumerate().filter(|(_, weight)| **weight > 0.0);
    problems.extend(
        predicted
            .map(|(l, _)| l + 1)
            .filter(|&token| !example.tokens.get(token).is_some_and(|token| is_learnable(*token)))
            .map(|token| ExampleProblem::Predicted { token }),
    );
    problems
}

fn leak(example: &Example, places: &[usize]) -> Option<ExampleProblem> {
    let image = |found: Option<usize>| found.map_or(SEES_NONE, |image| image as i32);
    let previous = |l: usize| image(places.iter().rposition(|&place| place <= l));
    let next = |l: usize| image(places.iter().position(|&place| place >= l));
    let wrong = |rule: &dyn Fn(usize) -> i32| -> Vec<usize> {
        (0..example.phi.len()).filter(|&l| example.phi[l] != rule(l)).collect()
    };
    let (by_previous, by_next) = (wrong(&previous), wrong(&next));
    let (tokens, may_see): (_, &dyn Fn(usize) -> i32) = if by_previous.len() <= by_next.len() {
        (by_previous, &previous)
    } else {
        (by_next, &next)
    };
    let token = *tokens.first()?;
    Some(ExampleProblem::Leak { token, sees: example.phi[token], may_see: may_see(token) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::BatchPixels;

    fn tokenizer() -> Tokenizer {
        Tokenizer::train(["a b".to_owned()].into_iter(), 262).unwrap()
    }

    /// Two images, each with a token of text after it, and padding: ids 3 are marks, 0 is padding.
    fn sound() -> Example {
        Example {
            tokens: vec![1, 3, 99, 4, 3, 98, 4, 0],
            phi: vec![-1, 0, 0, 0, 1, 1, 1, 1],
            loss_mask: vec![0.0, 1.0, 1.0, 0.0, 1.0, 1.0, 0.0, 0.0],
            pixels: BatchPixels::F32(vec![0.0, 1.0].into()),
            n_images: 2,
            first_image: 0,
        }
    }

    #[test]
    fn each_fault_is_found_and_a_sound_example_has_none() {
        let t = tokenizer();
        assert_eq!(example_problems(&sound(), &t), []);
        let ahead = Example { phi: vec![0, 0, 1, 1, 1, -1, -1, -1], ..sound() };
        assert_eq!(example_problems(&ahead, &t), []);
        let check = |change: fn(&mut Example), expected: ExampleProblem, words: &str| {
            let mut example = sound();
            change(&mut example);
            assert_eq!(example_problems(&example, &t), [expected]);
            assert_eq!(expected.to_string(), words);
        };
        check(
            |e| e.n_images = 1,
            ExampleProblem::Marks { marks: 2, images: 1 },
            "2 marks for 1 images",
        );
        check(|e| e.loss_mask.fill(0.0), ExampleProblem::NothingLearned, "no token is learned");
        check(
            |e| e.phi[2] = 1,
            ExampleProblem::Leak { token: 2, sees: 1, may_see: 0 },
            "token 2 sees image 1, not image 0",
        );
        check(
            |e| e.phi[0] = 0,
            ExampleProblem::Leak { token: 0, sees: 0, may_see: -1 },
            "token 0 sees image 0, not no image",
        );
        check(
            |e| e.loss_mask[3] = 1.0,
            ExampleProblem::Predicted { token: 4 },
            "token 4 is no text and is learned",
        );
        check(
            |e| e.loss_mask[6] = 1.0,
            ExampleProblem::Predicted { token: 7 },
            "token 7 is no text and is learned",
        );
    }
}
