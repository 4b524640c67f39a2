//! What stays of a round: its answers on disk as they are made, their scores, and what the model looks at.

use std::path::PathBuf;

use super::Plan;
use crate::bootstrap::Clusters;
use crate::controls::{ControlScore, ReadingControls, control_scores, longest};
use crate::draw::mix;
use crate::error::EvalError;
use crate::evaluation::{Round, RoundKey, Scored, gain};
use crate::item::Truth;
use crate::metric::{Judged, Judging, Metric};
use crate::part::{Part, remove_parts};
use crate::progress::Progress;
use crate::samples::{Record, Sample, SampleLog, rewrite};
use crate::subject::Subject;

impl Plan<'_> {
    /// One record per query, in order: those that are on disk, and for batches with missing ones what `measure` finds for
    /// them. Of a part, only its own queries are there.
    pub(super) fn fill<R: Record>(
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

    pub(super) fn scored(
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
    pub(super) fn write_credits(&self, suffix: &str, scored: &Scored) -> Result<(), EvalError> {
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

    pub(super) fn reading_controls(
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
