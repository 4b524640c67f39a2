//! One benchmark from beginning to end: shots, prompts, answers, scores, controls.

use std::path::Path;

use crate::annotations::Annotations;
use crate::bootstrap::{Estimate, Term, estimate};
use crate::controls::{
    ControlSample, ControlScore, Controls, control_scores, longest, swap_images,
};
use crate::draw::mix;
use crate::error::EvalError;
use crate::progress::Progress;
use crate::prompt::{ImagePlace, Piece, Prompt};
use crate::samples::{Sample, SampleLog};
use crate::settings::Settings;
use crate::shots::choose_shots;
use crate::subject::Subject;
use crate::task::{Query, Task, ZeroShot};

/// Queries answered at a time. Fixed, so that a resumed evaluation repeats the same batches and
/// thereby the same rounding.
const BATCH: usize = 16;

/// What to evaluate beside the model.
pub struct Plan<'a> {
    /// The benchmark's rules.
    pub task: &'a dyn Task,
    /// The benchmark's files.
    pub annotations: &'a Annotations,
    /// Shot counts, without repeats.
    pub shots: &'a [usize],
    /// Only this many queries, from the start of the corpus.
    pub limit: Option<usize>,
    /// Seed of everything random.
    pub seed: u64,
    /// Folder of the samples.
    pub out: &'a Path,
}

/// What became of one benchmark.
pub struct Evaluation {
    /// Name of the task.
    pub task: &'static str,
    /// Name of its score.
    pub metric: &'static str,
    /// Queries that were asked.
    pub queries: Vec<Query>,
    /// Queries in the corpus.
    pub n_queries_total: usize,
    /// One entry per shot count.
    pub rounds: Vec<Round>,
    /// Whether the model looks; of captioning.
    pub controls: Option<Vec<ControlScore>>,
    /// The settings that the samples were made with.
    pub settings: Settings,
}

/// One shot count.
pub struct Round {
    /// Shots asked for.
    pub n_shots: usize,
    /// What came of it.
    pub outcome: Outcome,
}

/// What came of one shot count.
pub enum Outcome {
    /// All queries were answered.
    Scored(Scored),
    /// The longest prompt and its answer do not fit the model.
    OutOfContext {
        /// Tokens of the longest prompt and its answer.
        needed: usize,
        /// Tokens that the model can hold.
        context: usize,
    },
}

/// Answers with their scores.
pub struct Scored {
    /// One per query, in order.
    pub samples: Vec<Sample>,
    /// One per query, in order.
    pub scores: Vec<f64>,
    /// Mean score with its interval.
    pub estimate: Estimate,
    /// Mean difference to the first shot count, paired by query; none for the first itself.
    pub gain: Option<Estimate>,
}

impl Plan<'_> {
    /// Evaluates a model, going on from samples that are there already.
    ///
    /// # Errors
    /// When a file or image cannot be read or written, the output folder holds samples made with
    /// other settings, or the model fails.
    pub fn run(&self, subject: &Subject<'_>) -> Result<Evaluation, EvalError> {
        let name = self.task.name();
        let settings = Settings::new(name, self.annotations, subject.sha256(), self.seed);
        settings.claim(&self.out.join(format!("settings_{name}.json")))?;
        let all = self.task.queries(self.annotations);
        let queries = &all[..self.limit.unwrap_or(all.len()).min(all.len())];
        let mut rounds: Vec<Round> = Vec::new();
        for &n_shots in self.shots {
            let outcome = self.round(subject, queries, n_shots, &rounds)?;
            rounds.push(Round { n_shots, outcome });
        }
        let controls = self.controls(subject, &all, queries.len())?;
        Ok(Evaluation {
            task: name,
            metric: self.task.metric(),
            queries: queries.to_vec(),
            n_queries_total: all.len(),
            rounds,
            controls,
            settings,
        })
    }

    fn round(
        &self,
        subject: &Subject<'_>,
        queries: &[Query],
        n_shots: usize,
        before: &[Round],
    ) -> Result<Outcome, EvalError> {
        let shown = queries.iter().map(|query| self.shown(query, n_shots));
        let shown = shown.collect::<Result<Vec<_>, _>>()?;
        let prompts: Vec<Prompt> = queries
            .iter()
            .zip(&shown)
            .map(|(query, shots)| self.prompt(subject, query, shots, n_shots))
            .collect();
        let answer = self.task.answer_tokens_max(subject.tokenizer());
        // The last token of an answer is predicted and never read.
        let longest = prompts.iter().map(|prompt| prompt.tokens.len()).max().unwrap_or(0);
        let needed = (longest + answer).saturating_sub(1);
        if needed > subject.context() {
            return Ok(Outcome::OutOfContext { needed, context: subject.context() });
        }
        let file = format!("samples_{}_{n_shots}shot.jsonl", self.task.name());
        let mut log = SampleLog::<Sample>::open(&self.out.join(file))?;
        let name = format!("{}, {n_shots} shots", self.task.name());
        let progress = Progress::start(name, queries.len());
        for (batch, chunk) in queries.chunks(BATCH).enumerate() {
            let from = batch * BATCH;
            if chunk.iter().any(|query| log.get(self.key(query)).is_none()) {
                let answers = self.task.answer(subject, &prompts[from..from + chunk.len()])?;
                let samples = chunk.iter().zip(&shown[from..]).zip(answers);
                let samples = samples.map(|((query, shots), answer)| Sample {
                    doc_id: query.example,
                    key: self.key(query).to_owned(),
                    shots: self.support_keys(shots),
                    target: query.targets.clone(),
                    prediction: answer.prediction,
                    log_likelihoods: answer.log_likelihoods,
                });
                log.append(samples.collect())?;
            }
            progress.advance(chunk.len());
        }
        progress.finish();
        let samples = queries.iter().filter_map(|query| log.get(self.key(query)).cloned());
        Ok(Outcome::Scored(self.scored(samples.collect(), before)))
    }

    /// Support examples that a query is shown.
    fn shown(&self, query: &Query, n_shots: usize) -> Result<Vec<usize>, EvalError> {
        let n_shown = match (n_shots, self.task.zero_shot()) {
            (0, ZeroShot::TextShots(n)) => n,
            _ => n_shots,
        };
        let example = &self.annotations.query.examples[query.example];
        let support = &self.annotations.support.examples;
        choose_shots(support, example, n_shown, self.seed, |shot| self.task.may_show(example, shot))
    }

    fn prompt(
        &self,
        subject: &Subject<'_>,
        query: &Query,
        shots: &[usize],
        n_shots: usize,
    ) -> Prompt {
        let template = self.task.template();
        let mut pieces: Vec<Piece> = Vec::new();
        for &shot in shots {
            let image = (n_shots > 0).then_some(ImagePlace::Support(shot));
            pieces.extend(template.shot(image, &self.annotations.support.examples[shot].caption));
        }
        pieces.extend(template.query(Some(ImagePlace::Query(query.example))));
        Prompt::encode(&pieces, subject.tokenizer())
    }

    fn key(&self, query: &Query) -> &str {
        &self.annotations.query.examples[query.example].key
    }

    fn support_keys(&self, shots: &[usize]) -> Vec<String> {
        shots.iter().map(|&shot| self.annotations.support.examples[shot].key.clone()).collect()
    }

    fn scored(&self, samples: Vec<Sample>, before: &[Round]) -> Scored {
        let scores = self.task.scores(&samples.iter().collect::<Vec<_>>());
        let mean = |values: &[f64]| {
            let terms: Vec<Term> = values.iter().copied().map(Term::of).collect();
            estimate(&terms, self.interval_seed()).expect("an annotation corpus has rows")
        };
        let first = before.iter().find_map(|round| match &round.outcome {
            Outcome::Scored(first) => Some(first),
            Outcome::OutOfContext { .. } => None,
        });
        let gain = first.map(|first| {
            let pairs = scores.iter().zip(&first.scores);
            mean(&pairs.map(|(now, then)| now - then).collect::<Vec<_>>())
        });
        Scored { estimate: mean(&scores), gain, samples, scores }
    }

    fn interval_seed(&self) -> u64 {
        mix(self.seed, 2)
    }

    fn controls(
        &self,
        subject: &Subject<'_>,
        all: &[Query],
        n_queries: usize,
    ) -> Result<Option<Vec<ControlScore>>, EvalError> {
        let template = self.task.template();
        let queries: Vec<&Query> = all[..n_queries].iter().collect();
        let partners = swap_images(all, self.annotations, self.seed);
        let (true, Some(partners)) = (self.task.has_controls(), partners) else { return Ok(None) };
        if longest(template, &queries, subject) > subject.context() {
            return Ok(None);
        }
        let controls = Controls { subject, annotations: self.annotations, template };
        let file = format!("samples_{}_controls.jsonl", self.task.name());
        let mut log = SampleLog::<ControlSample>::open(&self.out.join(file))?;
        let name = format!("{}, controls", self.task.name());
        let progress = Progress::start(name, queries.len());
        for (batch, chunk) in queries.chunks(BATCH).enumerate() {
            if chunk.iter().any(|query| log.get(self.key(query)).is_none()) {
                let partners = &partners[batch * BATCH..];
                let pairs = chunk.iter().zip(partners).map(|(query, &other)| (*query, &all[other]));
                log.append(controls.measure(&pairs.collect::<Vec<_>>())?)?;
            }
            progress.advance(chunk.len());
        }
        progress.finish();
        let samples: Vec<&ControlSample> =
            queries.iter().filter_map(|query| log.get(self.key(query))).collect();
        Ok(Some(control_scores(&samples, self.interval_seed())))
    }
}
