//! Answers that are right word by word: `MSVDQA` and `MSRVTTQA` (one right answer), iVQA (five annotators,
//! of whom two must agree with an answer for it to be right).

/// Annotators that must have given an answer for it to be right (Yang et al. 2021, iVQA).
const RIGHT_FROM: f64 = 2.0;

/// Whether an answer is the right one, in lower case and without white space around it.
pub fn is_exact(prediction: &str, reference: &str) -> bool {
    folded(prediction) == folded(reference)
}

/// Accuracy of an answer of iVQA: half for each annotator who gave it, at most 1.
pub fn ivqa_accuracy(prediction: &str, annotators: &[String]) -> f64 {
    let n_equal = annotators.iter().filter(|answer| is_exact(prediction, answer)).count();
    (n_equal as f64 / RIGHT_FROM).min(1.0)
}

fn folded(answer: &str) -> String {
    answer.trim().to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn case_and_white_space_around_do_not_count_but_words_do() {
        for (prediction, expected) in
            [(" Dog\n", true), ("dog", true), ("dogs", false), ("a dog", false), ("", false)]
        {
            assert_eq!(is_exact(prediction, "dog"), expected, "{prediction:?}");
        }
    }

    #[test]
    fn one_annotator_of_five_is_half_and_two_are_all() {
        let annotators = ["pan", "Pan", "pot", "wok", "pan"].map(str::to_owned);
        for (prediction, expected) in [("pan", 1.0), ("pot", 0.5), ("lid", 0.0)] {
            assert!((ivqa_accuracy(prediction, &annotators) - expected).abs() < 1e-12);
        }
    }
}
