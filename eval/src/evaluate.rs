//! One benchmark from beginning to end: shots, prompts, answers, scores, controls.

mod questions;
mod records;

use std::path::PathBuf;

use crate::benchmark::Benchmark;
use crate::error::EvalError;
use crate::evaluation::{Control, Evaluation, Outcome, Round, RoundKey};
use crate::item::{Item, Truth};
use crate::likeness::Likeness;
use crate::local_subject::LocalSubject;
use crate::part::{Part, remove_parts};
use crate::prompt::Template;
use crate::settings::Settings;
use crate::shots::{ShotChoice, Shots};
use crate::subject::Subject;

/// What is asked of every benchmark.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// Shot counts, without repeats.
    pub shots: Vec<usize>,
    /// Seeds of the choice of shots, without repeats, at least one.
    pub demo_seeds: Vec<u64>,
    /// How shots are chosen.
    pub choice: ShotChoice,
    /// Name of the template.
    pub template: String,
    /// Orders of the shots over which likelihoods are averaged, at least 1.
    pub orders: usize,
    /// Open continuations at a time, at least 1.
    pub beams: usize,
    /// A continuation's log-probability is divided by its length to this power.
    pub length_penalty: f32,
    /// Prompts in which something is missing or wrong, each at every shot count.
    pub controls: Vec<Control>,
    /// Only this many queries, from the start of the split.
    pub limit: Option<usize>,
    /// Seed of everything random but the choice of shots.
    pub seed: u64,
    /// Only this part of the queries.
    pub part: Option<Part>,
    /// Folder of the samples.
    pub out: PathBuf,
}

/// A benchmark, a model, and what is asked.
pub struct Plan<'a> {
    /// The benchmark.
    pub benchmark: &'a Benchmark,
    /// What is asked.
    pub options: &'a Options,
    /// The layout of prompts.
    template: &'a Template,
}

impl<'a> Plan<'a> {
    /// A plan for a benchmark.
    ///
    /// # Errors
    /// When the task has no such template, or no two images to shuffle.
    pub fn new(benchmark: &'a Benchmark, options: &'a Options) -> Result<Self, EvalError> {
        let templates = &benchmark.task.templates;
        let template = templates.get(&options.template).ok_or_else(|| EvalError::NoTemplate {
            task: benchmark.task.name.clone(),
            template: options.template.clone(),
            templates: templates.keys().cloned().collect(),
        })?;
        let plan = Self { benchmark, options, template };
        if options.controls.contains(&Control::ShuffledImages) && plan.partners().is_none() {
            return Err(EvalError::Unfit {
                what: "--controls shuffled-images".into(),
                problem: format!("task `{}` has no two images", benchmark.task.name),
            });
        }
        plan.check_metrics()?;
        Ok(plan)
    }

    /// Each metric must fit every query, unless the benchmark keeps all their answers back.
    fn check_metrics(&self) -> Result<(), EvalError> {
        let Benchmark { task, query, .. } = self.benchmark;
        if query.iter().all(|item| item.truth == Truth::Hidden) {
            return Ok(());
        }
        for metric in &task.metrics {
            if let Some(item) = query.iter().find(|item| !metric.fits(&item.truth)) {
                return Err(EvalError::Unfit {
                    what: format!("task `{}`, split `{}`", task.name, task.query),
                    problem: format!(
                        "`{}` has nothing that {} could judge",
                        item.id,
                        metric.name()
                    ),
                });
            }
        }
        Ok(())
    }

    /// Whether there are enough examples for all rounds, before the first answer is made.
    ///
    /// # Errors
    /// When there are fewer support examples than shots.
    pub fn check_shots(&self) -> Result<(), EvalError> {
        let shots = Shots { benchmark: self.benchmark, likeness: None };
        let most = self.options.shots.iter().map(|&n| self.n_shown(n)).max().unwrap_or(0);
        (0..self.n_queries()).try_for_each(|query| shots.choose(query, most, 0).map(|_| ()))
    }

    /// Evaluates a model, going on from samples that are there already. `eyes` find examples that look alike; without
    /// them the model itself does.
    ///
    /// # Errors
    /// When a file or picture cannot be read or written, the output folder holds samples made with
    /// other settings, or the model fails.
    pub fn run(
        &self,
        subject: &dyn Subject,
        eyes: Option<&LocalSubject<'_>>,
    ) -> Result<Evaluation<'a>, EvalError> {
        let name = &self.benchmark.task.name;
        let settings = Settings {
            rices_with: eyes.map(|eyes| eyes.card().into()),
            ..Settings::new(self.benchmark, &subject.card(), self.options)
        };
        settings.claim(&self.options.out.join(format!("settings_{name}.json")))?;
        let likeness = self.likeness(subject, eyes)?;
        let shots = Shots { benchmark: self.benchmark, likeness: likeness.as_ref() };
        let mut rounds: Vec<Round> = Vec::new();
        for key in self.round_keys() {
            let outcome = self.round(subject, key, &shots, &rounds)?;
            rounds.push(Round { key, outcome });
        }
        let reading_controls = self.reading_controls(subject)?;
        Ok(Evaluation {
            benchmark: self.benchmark,
            n_queries: self.n_queries(),
            rounds,
            reading_controls,
            settings,
            has_seeds: self.has_seeds(),
        })
    }

    fn round_keys(&self) -> Vec<RoundKey> {
        let mut keys = Vec::new();
        let controls = || [None].into_iter().chain(self.options.controls.iter().copied().map(Some));
        for &n_shots in &self.options.shots {
            // Without any shots there is nothing to choose, and likeness knows no chance.
            let is_fixed = self.n_shown(n_shots) == 0 || self.options.choice == ShotChoice::Rices;
            let n_seeds = if is_fixed { 1 } else { self.options.demo_seeds.len() };
            for &demo_seed in &self.options.demo_seeds[..n_seeds] {
                keys.extend(controls().map(|control| RoundKey { n_shots, demo_seed, control }));
            }
        }
        // Text-only shots are what there is at 0 shots anyway.
        keys.retain(|key| key.n_shots > 0 || key.control != Some(Control::TextShots));
        keys
    }

    /// Whether files and results are named by the seed of their shots: else it is the one of all the rest.
    fn has_seeds(&self) -> bool {
        self.options.demo_seeds != [self.options.seed]
    }

    fn likeness(
        &self,
        subject: &dyn Subject,
        eyes: Option<&LocalSubject<'_>>,
    ) -> Result<Option<Likeness>, EvalError> {
        if self.options.choice == ShotChoice::Random || self.benchmark.support.is_empty() {
            return Ok(None);
        }
        let eyes = eyes.or(subject.local()).ok_or_else(|| EvalError::Unfit {
            what: "--shot-choice rices".into(),
            problem: "the model has no vision encoder here; name one of ours by --rices-with RUN"
                .into(),
        })?;
        let part = Part::suffix(self.options.part);
        let name = format!("features_{}", self.benchmark.task.name);
        let cache = self.options.out.join(format!("{name}{part}.jsonl"));
        let queries = (0..self.n_queries()).filter(|&query| self.is_ours(query, subject)).collect();
        let likeness = Likeness::of_benchmark(eyes, self.benchmark, queries, &cache)?;
        if self.options.part.is_none() {
            remove_parts(&self.options.out, &name)?;
        }
        Ok(Some(likeness))
    }

    fn round(
        &self,
        subject: &dyn Subject,
        key: RoundKey,
        shots: &Shots<'_>,
        before: &[Round],
    ) -> Result<Outcome, EvalError> {
        let n_shown = self.n_shown(key.n_shots);
        let choose = |query| shots.choose(query, n_shown, key.demo_seed);
        let shown = (0..self.n_queries())
            .map(|query| if self.is_ours(query, subject) { choose(query) } else { Ok(Vec::new()) });
        let shown = shown.collect::<Result<Vec<_>, _>>()?;
        let images = self.images(key.control);
        let ask = |query: usize, order: &[usize]| self.ask(query, order, key, &images);
        if let Some(outcome) = self.out_of_context(subject, &shown, ask) {
            return Ok(outcome);
        }
        let samples = self.fill(&key.suffix(self.has_seeds()), subject, |batch| {
            self.answer(subject, batch, &shown, &ask)
        });
        let samples = match samples {
            Err(EvalError::OutOfContext(too_long)) => return Ok(Outcome::OutOfContext(too_long)),
            samples => samples?,
        };
        let scored = self.scored(samples, key, before)?;
        if self.options.part.is_none() {
            self.write_credits(&key.suffix(self.has_seeds()), &scored)?;
        }
        Ok(Outcome::Scored(scored))
    }

    fn item(&self, query: usize) -> &'a Item {
        &self.benchmark.query[query]
    }

    /// Whether a query is of the part that is asked here.
    fn is_ours(&self, query: usize, subject: &dyn Subject) -> bool {
        self.options.part.is_none_or(|part| part.has(query, subject.together()))
    }

    /// How many queries are asked.
    fn n_queries(&self) -> usize {
        let all = self.benchmark.query.len();
        self.options.limit.unwrap_or(all).min(all)
    }
}
