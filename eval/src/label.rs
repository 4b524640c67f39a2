//! Choosing one of several answers by their log-likelihood (paper, appendix B.1.4: closed-ended).
//!
//! A benchmark may consist of sub-datasets, told apart by the `source` of their rows, that ask
//! different things of the same kind of image. Shots come from the query's own sub-dataset; which
//! answers are meant is then told by the shots alone, since all candidates are ranked.

use std::collections::BTreeSet;

use flamingo_dataset::Tokenizer;

use crate::annotations::{Annotations, Example};
use crate::error::EvalError;
use crate::prompt::{Prompt, Template};
use crate::samples::Sample;
use crate::subject::Subject;
use crate::task::{Answer, Query, Task, TaskName, ZeroShot};
use crate::task_file::TASK_FILE;

/// The labelling task.
pub struct Label {
    template: Template,
    candidates: Vec<String>,
}

impl Label {
    /// Labelling with the candidates of `task.toml`, else the distinct captions of the support
    /// examples in alphabetical order.
    ///
    /// # Errors
    /// When there are not two candidates, or the answer of a query is not among them.
    pub fn new(annotations: &Annotations) -> Result<Self, EvalError> {
        let template = Template { prompt: annotations.config.prompt.clone() };
        let mut candidates = annotations.config.candidates.clone();
        if candidates.is_empty() {
            let captions = annotations.support.examples.iter().map(|e| e.caption.clone());
            candidates = captions.collect::<BTreeSet<_>>().into_iter().collect();
        }
        let outside = |found: String, expected| EvalError::Setting {
            file: format!("{}/{TASK_FILE}", annotations.location.trim_end_matches('/')),
            key: "candidates",
            found,
            expected,
        };
        if candidates.len() < 2 {
            return Err(outside(format!("{candidates:?}"), "at least two different answers"));
        }
        let answers = &annotations.query.examples;
        match answers.iter().find(|query| !candidates.contains(&query.caption)) {
            None => Ok(Self { template, candidates }),
            Some(query) => Err(outside(
                format!("without `{}`, the answer of query `{}`", query.caption, query.key),
                "all answers of the queries",
            )),
        }
    }
}

impl Task for Label {
    fn name(&self) -> &'static str {
        TaskName::Label.name()
    }

    fn metric(&self) -> &'static str {
        "acc"
    }

    fn template(&self) -> &Template {
        &self.template
    }

    fn zero_shot(&self) -> ZeroShot {
        ZeroShot::Bare
    }

    fn queries(&self, annotations: &Annotations) -> Vec<Query> {
        let rows = annotations.query.examples.iter().enumerate();
        rows.map(|(example, row)| Query { example, targets: vec![row.caption.clone()] }).collect()
    }

    fn may_show(&self, query: &Example, shot: &Example) -> bool {
        query.source == shot.source
    }

    fn answer_tokens_max(&self, tokenizer: &Tokenizer) -> usize {
        let lengths = self
            .candidates
            .iter()
            .map(|candidate| self.template.answer_tokens(candidate, tokenizer).len());
        lengths.max().unwrap_or_default()
    }

    fn answer(&self, subject: &Subject<'_>, prompts: &[Prompt]) -> Result<Vec<Answer>, EvalError> {
        let answers = self
            .candidates
            .iter()
            .map(|candidate| self.template.answer_tokens(candidate, subject.tokenizer()));
        let answers: Vec<Vec<u32>> = answers.collect();
        let table = subject.log_likelihoods(prompts, &answers)?;
        Ok(table.into_iter().map(|log_likelihoods| self.chosen(log_likelihoods)).collect())
    }

    fn scores(&self, samples: &[&Sample]) -> Vec<f64> {
        samples.iter().map(|sample| f64::from(u8::from(is_right(sample)))).collect()
    }

    fn has_controls(&self) -> bool {
        false
    }
}

impl Label {
    /// The most likely candidate; the first of several.
    fn chosen(&self, log_likelihoods: Vec<f64>) -> Answer {
        let mut best = 0;
        for (index, value) in log_likelihoods.iter().enumerate() {
            if *value > log_likelihoods[best] {
                best = index;
            }
        }
        Answer { prediction: self.candidates[best].clone(), log_likelihoods }
    }
}

fn is_right(sample: &Sample) -> bool {
    sample.target.contains(&sample.prediction)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_likely_candidate_is_chosen_and_the_first_of_equals() {
        let label = Label {
            template: Template { prompt: "shows:".into() },
            candidates: ["red", "blue", "green"].map(str::to_owned).to_vec(),
        };
        let check = |values: [f64; 3], expected: &str| {
            assert_eq!(label.chosen(values.to_vec()).prediction, expected, "{values:?}");
        };
        check([-3.0, -1.0, -2.0], "blue");
        check([-1.0, -1.0, -2.0], "red");
        check([-9.0, -1e30, -8.9], "green");
    }

    #[test]
    fn accuracy_counts_exact_answers() {
        let sample = |target: &str, prediction: &str| Sample {
            doc_id: 0,
            key: String::new(),
            shots: Vec::new(),
            target: vec![target.into()],
            prediction: prediction.into(),
            log_likelihoods: Vec::new(),
        };
        let label = Label { template: Template { prompt: String::new() }, candidates: Vec::new() };
        let (right, wrong) = (sample("red", "red"), sample("red", "blue"));
        assert_eq!(label.scores(&[&right, &wrong]), [1.0, 0.0]);
    }
}
