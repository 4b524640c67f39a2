//! Where the credit of an answer comes from: which people said the same, which n-grams are theirs.

use std::collections::HashMap;

use crate::item::{Item, Truth};
use crate::metrics::captions::N_MAX;
use crate::metrics::ptb_tokenize::ptb_tokens;
use crate::metrics::vqa::normalised;
use crate::table::Table;

/// n-grams of one length that are listed.
const GRAMS_MAX: usize = 12;

/// What explains the credit of a prediction; none where its score explains itself.
pub(super) fn credit_table(item: &Item, prediction: &str) -> Option<Table> {
    match &item.truth {
        Truth::Captions(captions) => Some(grams(captions, prediction)),
        Truth::Answers(answers) => {
            let texts: Vec<&str> = answers.iter().map(|it| &*it.answer).collect();
            Some(people(&texts, prediction))
        }
        Truth::Candidate { .. } | Truth::Action { .. } | Truth::Hidden => None,
    }
}

/// Each answer that people gave, how many did, and whether it is the prediction, as it stands or once both are normalised.
fn people(answers: &[&str], prediction: &str) -> Table {
    let mut counts: Vec<(&str, usize)> = Vec::new();
    for answer in answers {
        match counts.iter_mut().find(|(known, _)| known == answer) {
            Some((_, n)) => *n += 1,
            None => counts.push((answer, 1)),
        }
    }
    let rows = counts.into_iter().map(|(answer, n)| {
        let is_same = if answer == prediction.trim() {
            "the same"
        } else if normalised(answer) == normalised(prediction) {
            "once normalised"
        } else {
            ""
        };
        vec![answer.to_owned(), n.to_string(), is_same.to_owned()]
    });
    let headers = ["answer of people", "people", "match"].map(str::to_owned).to_vec();
    Table { headers, rows: rows.collect() }
}

/// Of each length, how many n-grams of the prediction a reference has, too, each as often as it has it, and which.
fn grams(references: &[String], prediction: &str) -> Table {
    let references: Vec<Vec<String>> = references.iter().map(|text| ptb_tokens(text)).collect();
    let prediction = ptb_tokens(prediction);
    let rows = (1..=N_MAX).map(|n| {
        let most = most_in_one(&references, n);
        let all = counts(&prediction, n);
        let total: usize = all.values().sum();
        let mut found: Vec<(String, usize)> = all
            .iter()
            .filter_map(|(gram, count)| Some((gram.join(" "), *count.min(most.get(gram)?))))
            .collect();
        found.sort();
        let n_found: usize = found.iter().map(|(_, count)| count).sum();
        let mut named: Vec<&str> =
            found.iter().take(GRAMS_MAX).map(|(gram, _)| gram.as_str()).collect();
        if found.len() > GRAMS_MAX {
            named.push("...");
        }
        vec![n.to_string(), format!("{n_found} of {total}"), named.join(", ")]
    });
    let headers = ["words", "of the answer's n-grams", "which"].map(str::to_owned).to_vec();
    Table { headers, rows: rows.collect() }
}

/// How often each n-gram stands in the reference that has it most often.
fn most_in_one(references: &[Vec<String>], n: usize) -> HashMap<&[String], usize> {
    let mut most: HashMap<&[String], usize> = HashMap::new();
    for reference in references {
        for (gram, count) in counts(reference, n) {
            let known = most.entry(gram).or_default();
            *known = count.max(*known);
        }
    }
    most
}

fn counts(words: &[String], n: usize) -> HashMap<&[String], usize> {
    let mut counts = HashMap::new();
    for gram in words.windows(n) {
        *counts.entry(gram).or_default() += 1;
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn n_grams_count_as_often_as_one_reference_has_them() {
        let references = ["A dog runs.".to_owned(), "a dog, a dog".to_owned()];
        let table = grams(&references, "a dog a a dog dog");
        let rows: Vec<(&str, &str)> = table.rows.iter().map(|row| (&*row[1], &*row[2])).collect();
        let expected = [
            ("4 of 6", "a, dog"),
            ("3 of 5", "a dog, dog a"),
            ("1 of 4", "a dog a"),
            ("0 of 3", ""),
        ];
        assert_eq!(rows, expected);
        assert_eq!(grams(&references, "").rows[0][1], "0 of 0");
    }

    #[test]
    fn people_who_said_the_same_are_told_from_those_who_meant_it() {
        let table = people(&["red", "The red", "red", "blue"], "red");
        let rows =
            [["red", "2", "the same"], ["The red", "1", "once normalised"], ["blue", "1", ""]];
        assert_eq!(table.rows, rows.map(|row| row.map(str::to_owned).to_vec()));
    }
}
