//! One benchmark from beginning to end: shots, prompts, answers, scores, controls.

use std::ops::Range;
use std::path::Path;

use crate::annotations::Annotations;
use crate::bootstrap::{Estimate, Term, estimate};
use crate::controls::{ControlScore, Controls, control_scores, longest, swap_images};
use crate::draw::mix;
use crate::error::EvalError;
use crate::progress::Progress;
use crate::prompt::{ImagePlace, Piece, Prompt};
use crate::samples::{Record, Sample, SampleLog};
use crate::settings::Settings;
use crate::shots::choose_shots;
use crate::subject::Subject;
use crate::task::{Answer, Query, Task, ZeroShot};

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

/// Support examples shown in one round: for each query, indices in the order in which they are
/// shown.
pub struct ShownShots {
    n_shots: usize,
    by_query: Vec<Vec<usize>>,
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
    /// Chooses the shots of all rounds, so that too many fail before the first answer is made.
    ///
    /// # Errors
    /// When there are fewer support examples than shots.
    pub fn choose_shots(&self) -> Result<Vec<ShownShots>, EvalError> {
        let all = self.task.queries(self.annotations);
        let queries = self.asked(&all);
        let rounds = self.shots.iter().map(|&n_shots| {
            let by_query = queries.iter().map(|query| self.shown(query, n_shots));
            Ok(ShownShots { n_shots, by_query: by_query.collect::<Result<_, _>>()? })
        });
        rounds.collect()
    }

    /// Evaluates a model with the shots that were chosen, going on from samples that are there
    /// already.
    ///
    /// # Errors
    /// When a file or image cannot be read or written, the output folder holds samples made with
    /// other settings, or the model fails.
    pub fn run(
        &self,
        subject: &Subject<'_>,
        chosen: &[ShownShots],
    ) -> Result<Evaluation, EvalError> {
        let name = self.task.name();
        let settings = Settings::new(name, self.annotations, subject, self.seed);
        settings.claim(&self.out.join(format!("settings_{name}.json")))?;
        let all = self.task.queries(self.annotations);
        let queries = self.asked(&all);
        let mut rounds: Vec<Round> = Vec::new();
        for shown in chosen {
            let outcome = self.round(subject, queries, shown, &rounds)?;
            rounds.push(Round { n_shots: shown.n_shots, outcome });
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
        shown: &ShownShots,
        before: &[Round],
    ) -> Result<Outcome, EvalError> {
        let (n_shots, shown) = (shown.n_shots, &shown.by_query);
        let prompts: Vec<Prompt> = queries
            .iter()
            .zip(shown)
            .map(|(query, shots)| self.prompt(subject, query, shots, n_shots))
            .collect();
        let answer = self.task.answer_tokens_max(subject.tokenizer());
        // The last token of an answer is predicted and never read.
        let longest = prompts.iter().map(|prompt| prompt.tokens.len()).max().unwrap_or(0);
        let needed = (longest + answer).saturating_sub(1);
        if needed > subject.context() {
            return Ok(Outcome::OutOfContext { needed, context: subject.context() });
        }
        let samples = self.fill(&format!("{n_shots}shot"), queries, |batch| {
            let answers = self.task.answer(subject, &prompts[batch.clone()])?;
            let asked = queries[batch.clone()].iter().zip(&shown[batch]).zip(answers);
            Ok(asked.map(|((query, shots), answer)| self.sample(query, shots, answer)).collect())
        })?;
        Ok(Outcome::Scored(self.scored(samples, before)))
    }

    /// The queries that are asked, of all that there are.
    fn asked<'q>(&self, all: &'q [Query]) -> &'q [Query] {
        &all[..self.limit.unwrap_or(all.len()).min(all.len())]
    }

    fn sample(&self, query: &Query, shots: &[usize], answer: Answer) -> Sample {
        let support = &self.annotations.support.examples;
        Sample {
            doc_id: query.example,
            key: self.key(query).to_owned(),
            shots: shots.iter().map(|&shot| support[shot].key.clone()).collect(),
            target: query.targets.clone(),
            prediction: answer.prediction,
            log_likelihoods: answer.log_likelihoods,
        }
    }

    /// One record per query, in order: those that are on disk, and for batches with missing ones
    /// what `measure` finds for a range of queries.
    fn fill<R: Record + Clone>(
        &self,
        part: &str,
        queries: &[Query],
        measure: impl Fn(Range<usize>) -> Result<Vec<R>, EvalError>,
    ) -> Result<Vec<R>, EvalError> {
        let name = format!("{}_{part}", self.task.name());
        let mut log = SampleLog::<R>::open(&self.out.join(format!("samples_{name}.jsonl")))?;
        let progress = Progress::start(name, queries.len());
        for start in (0..queries.len()).step_by(BATCH) {
            let batch = start..queries.len().min(start + BATCH);
            if queries[batch.clone()].iter().any(|query| log.get(self.key(query)).is_none()) {
                log.append(measure(batch.clone())?)?;
            }
            progress.advance(batch.len());
        }
        progress.finish();
        Ok(queries.iter().filter_map(|query| log.get(self.key(query)).cloned()).collect())
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
        if !self.task.has_controls() {
            return Ok(None);
        }
        let template = self.task.template();
        let queries = &all[..n_queries];
        let (needed, context) = (longest(template, queries, subject), subject.context());
        let keys: Vec<&str> = all.iter().map(|query| self.key(query)).collect();
        let partners = swap_images(&keys, self.seed);
        let partners = partners.filter(|_| needed <= context);
        let Some(partners) = partners else {
            eprintln!(
                "{}_controls: left out, with {} images and {needed} tokens of {context}",
                self.task.name(),
                all.len()
            );
            return Ok(None);
        };
        let controls = Controls { subject, annotations: self.annotations, template };
        let samples = self.fill("controls", queries, |batch| {
            let pairs = batch.map(|index| (&queries[index], &all[partners[index]]));
            controls.measure(&pairs.collect::<Vec<_>>())
        })?;
        Ok(Some(control_scores(&samples, self.interval_seed())))
    }
}
