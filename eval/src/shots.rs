//! Which support examples a query is shown.
//!
//! Every support example gets a random number that depends on (seed, query, example) alone, and the
//! smallest numbers win. So the choice does not depend on other queries, on a limit, on the batch
//! or on threads; and the 4 shots of a query are among its 8.

use crate::annotations::Example;
use crate::draw::{mix, mix_text};
use crate::error::EvalError;

/// Indices into `support` of the shots for `query`, in the order in which they are shown.
///
/// Only examples that `may_show` holds for are drawn, and never one with the query's own image.
///
/// # Errors
/// When fewer than `n_shots` examples may be shown.
pub fn choose_shots(
    support: &[Example],
    query: &Example,
    n_shots: usize,
    seed: u64,
    may_show: impl Fn(&Example) -> bool,
) -> Result<Vec<usize>, EvalError> {
    let key = mix_text(mix(seed, 0), &query.key);
    let pool = support.iter().enumerate();
    let pool = pool.filter(|(_, example)| example.sha256 != query.sha256 && may_show(example));
    let mut drawn: Vec<(u64, usize)> =
        pool.map(|(index, example)| (mix_text(key, &example.key), index)).collect();
    if drawn.len() < n_shots {
        let (query, available) = (query.key.clone(), drawn.len());
        return Err(EvalError::FewExamples { query, available, shots: n_shots });
    }
    drawn.sort_unstable();
    Ok(drawn.into_iter().take(n_shots).map(|(_, index)| index).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example(key: &str, image: &str) -> Example {
        Example { key: key.into(), caption: key.into(), sha256: image.into(), source: None }
    }

    fn support(n: usize) -> Vec<Example> {
        (0..n).map(|i| example(&format!("s{i}"), &format!("image-{i}"))).collect()
    }

    fn keys<'a>(support: &'a [Example], shots: &[usize]) -> Vec<&'a str> {
        shots.iter().map(|&i| support[i].key.as_str()).collect()
    }

    #[test]
    fn choice_does_not_depend_on_the_order_of_support() {
        let (support, query) = (support(50), example("q", "other"));
        let mut reversed = support.clone();
        reversed.reverse();
        let shots = choose_shots(&support, &query, 8, 3, |_| true).unwrap();
        let again = choose_shots(&reversed, &query, 8, 3, |_| true).unwrap();
        assert_eq!(keys(&support, &shots), keys(&reversed, &again));
    }

    #[test]
    fn fewer_shots_are_the_first_of_more() {
        let (support, query) = (support(50), example("q", "other"));
        let eight = choose_shots(&support, &query, 8, 3, |_| true).unwrap();
        assert_eq!(choose_shots(&support, &query, 4, 3, |_| true).unwrap(), eight[..4]);
    }

    #[test]
    fn seed_and_query_change_the_choice() {
        let (support, query) = (support(50), example("q", "other"));
        let shots =
            |query: &Example, seed| choose_shots(&support, query, 8, seed, |_| true).unwrap();
        assert_ne!(shots(&query, 0), shots(&query, 1));
        assert_ne!(shots(&query, 0), shots(&example("r", "other"), 0));
    }

    #[test]
    fn own_image_and_barred_examples_are_never_shown() {
        let (support, query) = (support(10), example("q", "image-4"));
        let mut shots = choose_shots(&support, &query, 8, 0, |e| e.key != "s7").unwrap();
        shots.sort_unstable();
        assert_eq!(shots, [0, 1, 2, 3, 5, 6, 8, 9]);
        let error = choose_shots(&support, &query, 9, 0, |e| e.key != "s7").unwrap_err();
        assert!(error.to_string().contains("query `q` has 8 support examples"), "{error}");
    }

    #[test]
    fn every_example_is_chosen_about_equally_often() {
        let support = support(20);
        let mut counts = [0; 20];
        for i in 0..2000 {
            let query = example(&format!("q{i}"), "other");
            for shot in choose_shots(&support, &query, 4, 0, |_| true).unwrap() {
                counts[shot] += 1;
            }
        }
        assert!(counts.iter().all(|n| (320..480).contains(n)), "{counts:?}");
    }
}
