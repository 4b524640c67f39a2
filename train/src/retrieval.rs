//! Images and captions that find each other by their embeddings, and images that are told apart by the
//! names of classes (paper, appendix B.1.3; CLIP): what is measured of the contrastive stage.
//!
//! Letters: `Q` queries, `C` candidates, `E` width of an embedding.

use rayon::prelude::*;

/// Embeddings `[Q, E]` or `[C, E]`, each with what it is of: those of one number belong together.
#[derive(Debug, Clone, Copy)]
pub struct Side<'a> {
    /// Rows of width `E` and length 1.
    pub embeddings: &'a [f32],
    /// The number of each row.
    pub of: &'a [usize],
}

/// For each query, how many candidates that do not belong to it are at least as similar as the best one
/// that does: 0 if it is found first. Ties count against it, and so does what is not a number.
pub fn ranks(queries: Side, candidates: Side, width: usize) -> Vec<usize> {
    let rank = |(query, of): (&[f32], &usize)| {
        let all = candidates.embeddings.chunks(width).zip(candidates.of);
        let all: Vec<_> = all.map(|(other, number)| (dot(query, other), number == of)).collect();
        let own = all.iter().filter(|(_, belongs)| *belongs).map(|(similarity, _)| *similarity);
        let best = own.fold(f64::NEG_INFINITY, f64::max);
        let is_before = |(similarity, belongs): &&(f64, bool)| {
            !belongs && (best.is_nan() || similarity.is_nan() || *similarity >= best)
        };
        all.iter().filter(is_before).count()
    };
    queries.embeddings.par_chunks(width).zip(queries.of).map(rank).collect()
}

/// Share of the ranks that are among the first `k`; 0 of none.
pub fn recall(ranks: &[usize], k: usize) -> f64 {
    ranks.iter().filter(|rank| **rank < k).count() as f64 / ranks.len().max(1) as f64
}

/// A number for each caption, in the order of their first occurrences; those that are alike have the
/// same.
pub fn numbered<T: Ord>(captions: &[T]) -> Vec<usize> {
    let mut numbers = std::collections::BTreeMap::new();
    let number = |caption| {
        let next = numbers.len();
        *numbers.entry(caption).or_insert(next)
    };
    captions.iter().map(number).collect()
}

/// The mean of embeddings `[C, E]` at length 1: `[E]`.
pub fn mean_direction(embeddings: &[f32], width: usize) -> Vec<f32> {
    let mut sum = vec![0.0_f64; width];
    for embedding in embeddings.chunks(width) {
        sum.iter_mut().zip(embedding).for_each(|(sum, value)| *sum += f64::from(*value));
    }
    let length = sum.iter().map(|value| value * value).sum::<f64>().sqrt();
    sum.iter().map(|value| (value / length) as f32).collect()
}

/// The class that a caption names: the only one whose name stands in it as whole words, whatever their
/// case. A name within a longer one that stands there, too, does not count.
pub fn class_named(caption: &str, classes: &[String]) -> Option<usize> {
    let caption = words(caption);
    let names: Vec<String> = classes.iter().map(|class| words(class)).collect();
    let found: Vec<usize> = (0..names.len()).filter(|i| caption.contains(&names[*i])).collect();
    let within =
        |i: usize, j: usize| names[j].len() > names[i].len() && names[j].contains(&names[i]);
    let mut longest = found.iter().filter(|i| !found.iter().any(|j| within(**i, *j)));
    match (longest.next(), longest.next()) {
        (Some(class), None) => Some(*class),
        _ => None,
    }
}

/// The words of a text in lower case, each between spaces; one space where there are none.
pub(crate) fn words(text: &str) -> String {
    let text = text.to_lowercase();
    let words = text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
    words.fold(" ".to_owned(), |all, word| all + word + " ")
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assert_recalls(ranks: &[usize], at: [usize; 3], expected: [f64; 3]) {
        for (k, expected) in at.into_iter().zip(expected) {
            let found = recall(ranks, k);
            assert!((found - expected).abs() < 1e-12, "at {k}: {found}, not {expected}");
        }
    }

    #[test]
    fn ties_and_what_is_no_number_count_against_a_query() {
        let check = |query: [f32; 2], candidates: &[[f32; 2]], of: &[usize], expected: usize| {
            let candidates = candidates.concat();
            let queries = Side { embeddings: &query, of: &[0] };
            let ranks = ranks(queries, Side { embeddings: &candidates, of }, 2);
            assert_eq!(ranks, [expected], "{query:?} {candidates:?}");
        };
        check([1.0, 0.0], &[[0.6, 0.8], [0.0, 1.0]], &[0, 1], 0);
        check([1.0, 0.0], &[[0.6, 0.8], [0.6, -0.8], [1.0, 0.0]], &[0, 1, 2], 2);
        // The best of those that belong to it counts.
        check([1.0, 0.0], &[[0.6, 0.8], [1.0, 0.0], [0.8, 0.6]], &[0, 0, 1], 0);
        check([f32::NAN, 0.0], &[[0.6, 0.8], [0.0, 1.0], [1.0, 0.0]], &[0, 1, 2], 2);
        check([1.0, 0.0], &[[0.6, 0.8], [f32::NAN, 0.0]], &[0, 1], 1);
        assert_recalls(&[0, 1, 4, 9], [1, 2, 5], [0.25, 0.5, 0.75]);
    }

    /// Rows of length 1.
    fn made_up(n: usize, shift: f64) -> Vec<Vec<f64>> {
        let row = |i: usize| {
            (0..5).map(|j| (1.7 * ((i + 1) * (j + 1)) as f64 + shift).sin()).collect::<Vec<_>>()
        };
        (0..n).map(|i| unit(row(i))).collect()
    }

    fn unit(row: Vec<f64>) -> Vec<f64> {
        let length = row.iter().map(|value| value * value).sum::<f64>().sqrt();
        row.into_iter().map(|value| value / length).collect()
    }

    /// The expected numbers are those of `torch.topk` (PyTorch 2.11, f64) on the same embeddings: 40
    /// images, the last 8 of which have captions of others.
    #[test]
    fn recalls_are_those_of_pytorch() {
        const N_CAPTIONS: usize = 32;
        let images = made_up(40, 0.3);
        let near = |(image, noise): (&Vec<f64>, Vec<f64>)| {
            unit(image.iter().zip(noise).map(|(a, b)| 0.55 * a + 0.9 * b).collect())
        };
        let captions: Vec<_> = images.iter().zip(made_up(N_CAPTIONS, 1.1)).map(near).collect();
        let flat = |rows: &[Vec<f64>]| -> Vec<f32> {
            rows.iter().flatten().map(|value| *value as f32).collect()
        };
        let (images, captions) = (flat(&images), flat(&captions));
        let of: Vec<usize> = (0..40).map(|i| i % N_CAPTIONS).collect();
        let images = Side { embeddings: &images, of: &of };
        let captions = Side { embeddings: &captions, of: &of[..N_CAPTIONS] };
        assert_recalls(&ranks(images, captions, 5), [1, 5, 10], [0.125, 0.775, 0.825]);
        assert_recalls(&ranks(captions, images, 5), [1, 5, 10], [0.03125, 0.96875, 1.0]);
    }

    #[test]
    fn captions_that_are_alike_have_one_number() {
        assert_eq!(numbered(&["a", "b", "a", "c", "b"]), [0, 1, 0, 2, 1]);
    }

    #[test]
    fn a_class_is_the_mean_of_its_prompts() {
        let mean = mean_direction(&[1.0, 0.0, 0.0, 1.0], 2);
        assert!(mean.iter().all(|value| (value - 0.5_f32.sqrt()).abs() < 1e-7), "{mean:?}");
    }

    #[test]
    fn a_caption_names_a_class_by_whole_words() {
        let classes = ["red", "Dark Red", "blue"].map(str::to_owned);
        for (caption, expected) in [
            ("a RED square", Some(0)),
            ("reddish", None),
            ("a dark-red square", Some(1)),
            ("a dark red and a blue square", None),
            ("nothing", None),
        ] {
            assert_eq!(class_named(caption, &classes), expected, "{caption}");
        }
    }
}
