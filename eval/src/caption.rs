//! Captioning: free text, compared with what people wrote by CIDEr-D.
//!
//! Rows of the query corpus with equal images are the references of one query. The paper decodes
//! with a beam of 3; this takes the most likely token at each step.

use std::collections::BTreeMap;

use flamingo_dataset::Tokenizer;

use crate::annotations::{Annotations, Example};
use crate::error::EvalError;
use crate::metrics::captions::CaptionPair;
use crate::metrics::cider::cider_d;
use crate::prompt::{Prompt, Template};
use crate::samples::Sample;
use crate::subject::Subject;
use crate::task::{Answer, Query, Task, TaskName, ZeroShot};
use crate::task_file::TaskConfig;

/// Text-only shots that stand in for shots in the zero-shot setting (paper, appendix A.2).
const TEXT_SHOTS: usize = 2;

/// The captioning task.
pub struct Caption {
    template: Template,
    max_new_tokens: usize,
}

impl Caption {
    /// Captioning with the settings of a benchmark.
    pub fn new(config: &TaskConfig) -> Self {
        let template = Template { prompt: config.prompt.clone() };
        Self { template, max_new_tokens: config.max_new_tokens }
    }
}

impl Task for Caption {
    fn name(&self) -> &'static str {
        TaskName::Caption.name()
    }

    fn metric(&self) -> &'static str {
        "cider"
    }

    fn template(&self) -> &Template {
        &self.template
    }

    fn zero_shot(&self) -> ZeroShot {
        ZeroShot::TextShots(TEXT_SHOTS)
    }

    fn queries(&self, annotations: &Annotations) -> Vec<Query> {
        group_by_image(&annotations.query.examples)
    }

    fn may_show(&self, _query: &Example, _shot: &Example) -> bool {
        true
    }

    fn answer_tokens_max(&self, _tokenizer: &Tokenizer) -> usize {
        self.max_new_tokens
    }

    fn answer(&self, subject: &Subject<'_>, prompts: &[Prompt]) -> Result<Vec<Answer>, EvalError> {
        let texts = subject.generate(prompts, self.max_new_tokens)?;
        let answer = |text: String| Answer {
            prediction: text.trim().to_owned(),
            log_likelihoods: Vec::new(),
        };
        Ok(texts.into_iter().map(answer).collect())
    }

    fn scores(&self, samples: &[&Sample]) -> Vec<f64> {
        let pairs: Vec<CaptionPair<'_>> = samples
            .iter()
            .map(|sample| CaptionPair {
                prediction: &sample.prediction,
                references: sample.target.iter().map(String::as_str).collect(),
            })
            .collect();
        cider_d(&pairs)
    }

    fn has_controls(&self) -> bool {
        true
    }
}

/// One query per distinct image, in the order of first rows, with the captions of all its rows.
fn group_by_image(examples: &[Example]) -> Vec<Query> {
    let mut place = BTreeMap::new();
    let mut queries: Vec<Query> = Vec::new();
    for (index, example) in examples.iter().enumerate() {
        let at = *place.entry(&example.sha256).or_insert(queries.len());
        if at == queries.len() {
            queries.push(Query { example: index, targets: Vec::new() });
        }
        queries[at].targets.push(example.caption.clone());
    }
    queries
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_one_image_are_references_of_one_query() {
        let example = |caption: &str, image: &str| Example {
            key: caption.into(),
            caption: caption.into(),
            sha256: image.into(),
            source: None,
        };
        let rows = [example("a", "x"), example("b", "y"), example("c", "x")];
        let query = |example, targets: &[&str]| Query {
            example,
            targets: targets.iter().map(|t| (*t).to_owned()).collect(),
        };
        assert_eq!(group_by_image(&rows), [query(0, &["a", "c"]), query(1, &["b"])]);
    }
}
