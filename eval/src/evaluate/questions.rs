//! What a model is asked: whose image each query has, after which examples, in which orders; and what it says.

use std::collections::BTreeMap;

use super::Plan;
use crate::controls::swap_images;
use crate::error::EvalError;
use crate::evaluation::{Control, Outcome, RoundKey, TooLong};
use crate::prompt::{ImagePlace, Piece};
use crate::samples::Sample;
use crate::shots::orders;
use crate::subject::{Asked, OutOfContext, Ranked, Said, Subject, Writing};
use crate::task_file::{Decoding, ZeroShot};

/// Text-only shots that stand in for shots in the zero-shot setting (paper, appendix A.2).
const TEXT_SHOTS: usize = 2;

impl<'a> Plan<'a> {
    /// How many examples a query is shown.
    pub(super) fn n_shown(&self, n_shots: usize) -> usize {
        let zero_shot = self.template.zero_shot.unwrap_or(self.benchmark.task.zero_shot);
        match (n_shots, zero_shot) {
            (0, ZeroShot::TextShots) if !self.benchmark.support.is_empty() => TEXT_SHOTS,
            _ => n_shots,
        }
    }

    /// How answers come about in this layout.
    fn decoding(&self) -> Decoding {
        self.template.decoding.unwrap_or(self.benchmark.task.decoding)
    }

    /// Whose image each query has: its own, another's, none.
    pub(super) fn images(&self, control: Option<Control>) -> Vec<Option<usize>> {
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
    pub(super) fn partners(&self) -> Option<Vec<usize>> {
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
    pub(super) fn ask(
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

    pub(super) fn out_of_context(
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
    pub(super) fn answer(
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
