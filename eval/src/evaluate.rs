//! One benchmark from beginning to end: shots, prompts, answers, scores, controls.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::benchmark::Benchmark;
use crate::bootstrap::Clusters;
use crate::controls::{ControlScore, ReadingControls, control_scores, longest, swap_images};
use crate::draw::mix;
use crate::error::EvalError;
use crate::evaluation::{Control, Evaluation, Outcome, Round, RoundKey, Scored, TooLong, gain};
use crate::item::{Item, Truth};
use crate::likeness::Likeness;
use crate::local_subject::LocalSubject;
use crate::metric::{Judged, Judging, Metric};
use crate::part::{Part, remove_parts};
use crate::progress::Progress;
use crate::prompt::{ImagePlace, Piece, Template};
use crate::samples::{Record, Sample, SampleLog, rewrite};
use crate::settings::Settings;
use crate::shots::{ShotChoice, Shots, orders};
use crate::subject::{Asked, OutOfContext, Ranked, Said, Subject, Writing};
use crate::task_file::{Decoding, ZeroShot};

/// Text-only shots that stand in for shots in the zero-shot setting (paper, appendix A.2).
const TEXT_SHOTS: usize = 2;

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

    /// Whose image each query has: its own, another's, none.
    fn images(&self, control: Option<Control>) -> Vec<Option<usize>> {
        let own = (0..self.n_queries()).map(Some);
        match control {
            Some(Control::NoImage) => own.map(|_| None).collect(),
            Some(Control::ShuffledImages) => {
                let partners = self.partners();
                own.map(|query| query.map(|query| partners.as_ref().map_or(query, |p| p[query])))
                    .collect()
            }
            None | Some(Control::TextShots) => own.collect(),
        }
    }

    /// For each query of the split one whose image it gets; none where there is no other image. Media swap, so
    /// that queries of one image get the same other one.
    fn partners(&self) -> Option<Vec<usize>> {
        let mut place = BTreeMap::new();
        let mut firsts: Vec<usize> = Vec::new();
        let media = self.benchmark.query.iter().enumerate().map(|(query, item)| {
            *place.entry(item.medium_id.as_str()).or_insert_with(|| {
                firsts.push(query);
                firsts.len() - 1
            })
        });
        let media: Vec<usize> = media.collect();
        let keys: Vec<&str> =
            firsts.iter().map(|&query| self.benchmark.query[query].medium_id.as_str()).collect();
        let partners = swap_images(&keys, self.options.seed)?;
        Some(media.into_iter().map(|medium| firsts[partners[medium]]).collect())
    }

    /// The prompt of a query after examples in this order.
    fn ask(
        &self,
        query: usize,
        shots: &[usize],
        key: RoundKey,
        images: &[Option<usize>],
    ) -> Asked<'a> {
        let item = &self.benchmark.query[query];
        let has_images =
            key.n_shots > 0 && !matches!(key.control, Some(Control::TextShots | Control::NoImage));
        let rule = self.template.shown_answer.unwrap_or(self.benchmark.task.shown_answer);
        let mut pieces: Vec<Piece> = Vec::new();
        for &shot in shots {
            let image = has_images.then_some(ImagePlace::Support(shot));
            let shot = self.template.shot(&self.benchmark.support[shot], image, rule);
            pieces.extend(shot.into_iter().flatten());
        }
        pieces.extend(self.template.query(item, images[query].map(ImagePlace::Query)));
        let answers = item.candidates.iter();
        let answers = answers.filter(|_| self.decoding().is_closed());
        Asked {
            item,
            pieces,
            answers: answers.map(|answer| self.template.continuation(answer)).collect(),
            decoding: self.decoding(),
        }
    }

    fn out_of_context(
        &self,
        subject: &dyn Subject,
        shown: &[Vec<usize>],
        ask: impl Fn(usize, &[usize]) -> Asked<'a>,
    ) -> Option<Outcome> {
        let tokens_max = self.benchmark.task.max_new_tokens;
        let too_long = shown
            .iter()
            .enumerate()
            .filter_map(|(query, shots)| subject.out_of_context(&ask(query, shots), tokens_max));
        let too_long: Vec<OutOfContext> = too_long.collect();
        let longest = too_long.iter().copied().max_by_key(|it| it.needed)?;
        let (n_queries, of) = (too_long.len(), shown.len());
        Some(Outcome::OutOfContext(TooLong { longest: Some(longest), n_queries, of }))
    }

    /// Answers some queries.
    fn answer(
        &self,
        subject: &dyn Subject,
        batch: &[usize],
        shown: &[Vec<usize>],
        ask: &impl Fn(usize, &[usize]) -> Asked<'a>,
    ) -> Result<Vec<Sample>, EvalError> {
        let task = &self.benchmark.task;
        if task.decoding.is_closed() {
            return self.choose(subject, batch, shown, ask);
        }
        let asked: Vec<Asked<'_>> = batch.iter().map(|&query| ask(query, &shown[query])).collect();
        let writing = Writing {
            tokens_max: task.max_new_tokens,
            beams: self.options.beams,
            length_penalty: self.options.length_penalty,
            stop: &self.template.cut_at,
        };
        let all = subject.write(&asked, writing)?;
        let samples = batch.iter().zip(all).map(|(&query, said)| {
            let text = self.template.answer_in(&said.text);
            // What stands before a mark that ends answers is whole.
            let ending = said.ending.filter(|_| !self.template.ends_in(&said.text));
            self.sample(query, &shown[query], Said { text, ending }, Vec::new())
        });
        Ok(samples.collect())
    }

    /// Lets the model choose among the candidates of some queries, in each order of the shots.
    fn choose(
        &self,
        subject: &dyn Subject,
        batch: &[usize],
        shown: &[Vec<usize>],
        ask: &impl Fn(usize, &[usize]) -> Asked<'a>,
    ) -> Result<Vec<Sample>, EvalError> {
        let (n_orders, seed) = (self.options.orders, self.options.seed);
        let asked_of = |query: usize| {
            let shots = &shown[query];
            let orders = orders(shots.len(), n_orders, seed, &self.item(query).id).into_iter();
            let ask = |order: Vec<usize>| {
                ask(query, &order.iter().map(|&i| shots[i]).collect::<Vec<_>>())
            };
            orders.map(ask).collect::<Vec<_>>()
        };
        let asked: Vec<Vec<Asked<'_>>> = batch.iter().map(|&query| asked_of(query)).collect();
        let counts: Vec<usize> = asked.iter().map(Vec::len).collect();
        let mut ranked = subject.rank(&asked.concat(), self.decoding())?.into_iter();
        let samples = batch.iter().zip(counts).map(|(&query, n)| {
            let rows: Vec<Ranked> = ranked.by_ref().take(n).collect();
            let scores = mean_of_rows(&rows);
            let said = rows.iter().map(|row| row.said.clone()).collect::<Option<Vec<_>>>();
            let ending = rows.iter().find_map(|row| row.ending);
            let text = match said.and_then(|said| said.into_iter().next()) {
                Some(said) => said,
                None => self.item(query).candidates[highest(&scores)].clone(),
            };
            self.sample(query, &shown[query], Said { text, ending }, scores)
        });
        Ok(samples.collect())
    }

    /// How answers come about in this layout.
    fn decoding(&self) -> Decoding {
        self.template.decoding.unwrap_or(self.benchmark.task.decoding)
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

    /// How many examples a query is shown.
    fn n_shown(&self, n_shots: usize) -> usize {
        let zero_shot = self.template.zero_shot.unwrap_or(self.benchmark.task.zero_shot);
        match (n_shots, zero_shot) {
            (0, ZeroShot::TextShots) if !self.benchmark.support.is_empty() => TEXT_SHOTS,
            _ => n_shots,
        }
    }

    fn sample(
        &self,
        query: usize,
        shots: &[usize],
        said: Said,
        log_likelihoods: Vec<f64>,
    ) -> Sample {
        let item = self.item(query);
        Sample {
            doc_id: query,
            key: item.id.clone(),
            cluster: item.medium_id.clone(),
            shots: shots.iter().map(|&shot| self.benchmark.support[shot].id.clone()).collect(),
            target: item.targets(),
            prediction: said.text,
            ending: said.ending,
            log_likelihoods,
            credit: serde_json::Map::new(),
            terms: serde_json::Map::new(),
        }
    }

    /// One record per query, in order: those that are on disk, and for batches with missing ones what `measure` finds for
    /// them. Of a part, only its own queries are there.
    fn fill<R: Record>(
        &self,
        suffix: &str,
        subject: &dyn Subject,
        measure: impl Fn(&[usize]) -> Result<Vec<R>, EvalError>,
    ) -> Result<Vec<R>, EvalError> {
        let name = format!("{}_{suffix}", self.benchmark.task.name);
        let ours = (0..self.n_queries()).filter(|&query| self.is_ours(query, subject));
        let ours: Vec<usize> = ours.collect();
        let mut log = SampleLog::<R>::open(&self.sample_file(suffix, self.options.part))?;
        if self.options.part.is_none() {
            log.take_over(&self.options.out, &format!("samples_{name}"))?;
        }
        let progress = Progress::start(name, ours.len());
        for batch in ours.chunks(subject.batch()) {
            if batch.iter().any(|&query| log.get(&self.item(query).id).is_none()) {
                log.append(measure(batch)?)?;
            }
            progress.advance(batch.len());
        }
        progress.finish();
        let queries = 0..self.n_queries();
        Ok(queries.filter_map(|query| log.take(&self.item(query).id)).collect())
    }

    fn sample_file(&self, suffix: &str, part: Option<Part>) -> PathBuf {
        let (name, part) = (&self.benchmark.task.name, Part::suffix(part));
        self.options.out.join(format!("samples_{name}_{suffix}{part}.jsonl"))
    }

    fn scored(
        &self,
        samples: Vec<Sample>,
        key: RoundKey,
        before: &[Round],
    ) -> Result<Scored, EvalError> {
        let judged: Vec<Judged<'_>> = samples
            .iter()
            .map(|sample| Judged {
                item: self.item(sample.doc_id),
                prediction: &sample.prediction,
                scores: &sample.log_likelihoods,
            })
            .collect();
        let is_hidden = judged.iter().all(|one| one.item.truth == Truth::Hidden);
        let metrics: &[Metric] = if is_hidden { &[] } else { &self.benchmark.task.metrics };
        let how = Judging::of(self.interval_seed());
        let judgements = Metric::judge_all(metrics, &judged, &how)?;
        for problem in judgements.iter().filter_map(|found| found.problem.as_deref()) {
            let round = key.suffix(self.has_seeds());
            eprintln!("{} {round}: {problem}", self.benchmark.task.name);
        }
        let judgements = metrics.iter().copied().zip(judgements).collect();
        let mut scored = Scored { samples, judgements, gain: None };
        scored.gain = gain(&scored, key, before);
        Ok(scored)
    }

    /// Writes the samples again, in the order of the queries and each with its credit, and removes the files
    /// of parts, all of which are in it.
    fn write_credits(&self, suffix: &str, scored: &Scored) -> Result<(), EvalError> {
        let with_credit = scored.samples.iter().enumerate().map(|(i, sample)| {
            let mut sample = sample.clone();
            for (metric, judgement) in &scored.judgements {
                if let Some(credit) = judgement.credits.get(i) {
                    sample.credit.insert(metric.name(), credit.clone());
                }
                if let Some(terms) = judgement.terms.get(i) {
                    sample.terms.insert(metric.name(), terms.clone());
                }
            }
            sample
        });
        rewrite(&self.sample_file(suffix, None), with_credit)?;
        let name = format!("samples_{}_{suffix}", self.benchmark.task.name);
        remove_parts(&self.options.out, &name)
    }

    /// The queries of one image or film, which intervals draw together.
    fn clusters(&self) -> Clusters {
        Clusters::of((0..self.n_queries()).map(|query| &self.item(query).medium_id))
    }

    fn interval_seed(&self) -> u64 {
        mix(self.options.seed, 2)
    }

    fn reading_controls(
        &self,
        subject: &dyn Subject,
    ) -> Result<Option<Vec<ControlScore>>, EvalError> {
        let is_captioning = self.benchmark.task.metric() == Metric::CiderCoco;
        let Some(local) = subject.local().filter(|_| is_captioning) else { return Ok(None) };
        let controls =
            ReadingControls { subject: local, benchmark: self.benchmark, template: self.template };
        let (needed, context) = (longest(&controls, self.n_queries()), local.context());
        let Some(partners) = self.partners().filter(|_| needed <= context) else {
            eprintln!(
                "{}_controls: left out, with {} images and {needed} tokens of {context}",
                self.benchmark.task.name,
                self.benchmark.query.len()
            );
            return Ok(None);
        };
        let samples = self.fill("controls", subject, |batch| {
            let pairs = batch.iter().map(|&query| (query, partners[query]));
            controls.measure(&pairs.collect::<Vec<_>>())
        })?;
        if self.options.part.is_none() {
            rewrite(&self.sample_file("controls", None), samples.iter().cloned())?;
            remove_parts(
                &self.options.out,
                &format!("samples_{}_controls", self.benchmark.task.name),
            )?;
        }
        Ok(Some(control_scores(&samples, &self.clusters(), self.interval_seed())))
    }
}

/// The mean of each column.
fn mean_of_rows(rows: &[Ranked]) -> Vec<f64> {
    let mut mean = vec![0.0; rows.first().map_or(0, |row| row.scores.len())];
    for row in rows {
        mean.iter_mut().zip(&row.scores).for_each(|(sum, value)| *sum += value);
    }
    mean.iter().map(|sum| sum / rows.len() as f64).collect()
}

/// The place of the highest score; the first of equals.
fn highest(scores: &[f64]) -> usize {
    let mut best = 0;
    for (index, value) in scores.iter().enumerate() {
        if *value > scores[best] {
            best = index;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_likely_candidate_is_chosen_and_the_first_of_equals() {
        assert_eq!(highest(&[-3.0, -1.0, -2.0]), 1);
        assert_eq!(highest(&[-1.0, -1.0, -2.0]), 0);
        assert_eq!(highest(&[-9.0, -1e30, -8.9]), 2);
        assert_eq!(
            mean_of_rows(&[Ranked::of(vec![1.0, 2.0]), Ranked::of(vec![3.0, 6.0])]),
            [2.0, 4.0]
        );
    }
}
