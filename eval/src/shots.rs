//! Which support examples a query is shown.
//!
//! At random: every support example gets a random number that depends on (seed, query, example) alone, and the
//! smallest numbers win. So the choice does not depend on other queries, on a limit, on the batch,
//! on threads or on shards; and the 4 shots of a query are among its 8.
//!
//! By likeness (RICES, paper appendix A.2): those whose pictures are most like the query's, the most similar
//! last.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::benchmark::Benchmark;
use crate::draw::{below, mix, mix_text};
use crate::error::EvalError;
use crate::item::Item;
use crate::likeness::Likeness;

/// How examples are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ShotChoice {
    /// At random, anew for each query.
    #[default]
    Random,
    /// Those with the most similar pictures, the most similar last.
    Rices,
}

/// Examples of a benchmark for its queries.
pub struct Shots<'a> {
    /// The benchmark.
    pub benchmark: &'a Benchmark,
    /// How alike pictures are, where examples are chosen by it.
    pub likeness: Option<&'a Likeness>,
}

impl Shots<'_> {
    /// Indices into the support items of the shots for a query, in the order in which they are shown.
    ///
    /// # Errors
    /// When fewer than `n_shots` examples may be shown, or the task has none at all.
    pub fn choose(&self, query: usize, n_shots: usize, seed: u64) -> Result<Vec<usize>, EvalError> {
        let Benchmark { task, support, query: queries, .. } = self.benchmark;
        let item = &queries[query];
        let may_show = |shot: &Item| {
            shot.medium_id != item.medium_id
                && (!task.shots_of_category || shot.category == item.category)
        };
        let pool = support.iter().enumerate().filter(|(_, shot)| may_show(shot));
        let chosen = match self.likeness {
            None => at_random(pool, item, n_shots, seed),
            Some(likeness) => most_similar(pool.map(|(index, _)| index), n_shots, |index| {
                likeness.of(query, index)
            }),
        };
        if n_shots > 0 && task.support.is_none() {
            return Err(EvalError::NoExamples { task: task.name.clone() });
        }
        if chosen.len() < n_shots {
            let (query, available) = (item.id.clone(), chosen.len());
            return Err(EvalError::FewExamples { query, available, shots: n_shots });
        }
        Ok(chosen)
    }
}

/// The `n_shots` with the smallest random numbers, or as many as there are.
fn at_random<'i>(
    pool: impl Iterator<Item = (usize, &'i Item)>,
    query: &Item,
    n_shots: usize,
    seed: u64,
) -> Vec<usize> {
    let key = mix_text(mix(seed, 0), &query.id);
    let mut drawn: Vec<(u64, usize)> =
        pool.map(|(index, shot)| (mix_text(key, &shot.id), index)).collect();
    let n = n_shots.min(drawn.len());
    if n < drawn.len() {
        drawn.select_nth_unstable(n);
        drawn.truncate(n);
    }
    drawn.sort_unstable();
    drawn.into_iter().map(|(_, index)| index).collect()
}

/// The `n_shots` most similar, the most similar last; of equals, the first of the file is the more similar.
fn most_similar(
    pool: impl Iterator<Item = usize>,
    n_shots: usize,
    likeness: impl Fn(usize) -> f32,
) -> Vec<usize> {
    let mut all: Vec<(f32, usize)> = pool.map(|index| (likeness(index), index)).collect();
    all.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    all.truncate(n_shots);
    all.into_iter().rev().map(|(_, index)| index).collect()
}

/// Orders of `n` shots over which a closed task's likelihoods are averaged (paper, appendix A.2: 6): the
/// given one, then random ones, all different, as many as there are up to `most`.
pub fn orders(n: usize, most: usize, seed: u64, query: &str) -> Vec<Vec<usize>> {
    let n_orders = (1..=n).try_fold(1_usize, usize::checked_mul).unwrap_or(usize::MAX);
    let mut orders: Vec<Vec<usize>> = vec![(0..n).collect()];
    let key = mix_text(mix(seed, 4), query);
    for attempt in 0.. {
        if orders.len() >= most.min(n_orders) {
            break;
        }
        let mut order: Vec<usize> = (0..n).collect();
        let key = mix(key, attempt);
        for i in (1..n).rev() {
            order.swap(i, below(mix(key, i as u64), i + 1));
        }
        if !orders.contains(&order) {
            orders.push(order);
        }
    }
    orders
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::item::Truth;
    use crate::task_file::TaskFile;

    fn item(id: &str, medium: &str) -> Item {
        Item {
            id: id.into(),
            medium_id: medium.into(),
            medium: None,
            fields: [].into(),
            truth: Truth::Captions(vec!["a".into()]),
            candidates: [].into(),
            category: None,
        }
    }

    fn benchmark(n: usize, queries: &[(&str, &str)]) -> Benchmark {
        Benchmark {
            n_skipped: 0,
            task: TaskFile::find("caption").unwrap(),
            location: "folder".into(),
            support: (0..n).map(|i| item(&format!("s{i}"), &format!("image-{i}"))).collect(),
            query: queries.iter().map(|(id, medium)| item(id, medium)).collect(),
        }
    }

    fn chosen(benchmark: &Benchmark, query: usize, n: usize, seed: u64) -> Vec<String> {
        let shots = Shots { benchmark, likeness: None };
        let chosen = shots.choose(query, n, seed).unwrap();
        chosen.into_iter().map(|i| benchmark.support[i].id.clone()).collect()
    }

    #[test]
    fn a_task_without_examples_is_named() {
        let benchmark = Benchmark {
            task: TaskFile::find("rareact").unwrap(),
            ..benchmark(0, &[("0", "video")])
        };
        let shots = Shots { benchmark: &benchmark, likeness: None };
        assert!(shots.choose(0, 0, 0).unwrap().is_empty());
        let message = shots.choose(0, 4, 0).unwrap_err().to_string();
        assert!(message.contains("`rareact` has no examples"), "{message}");
    }

    #[test]
    fn choice_does_not_depend_on_the_order_of_support() {
        let benchmark_ = benchmark(50, &[("q", "other")]);
        let mut reversed = benchmark(50, &[("q", "other")]);
        reversed.support.reverse();
        assert_eq!(chosen(&benchmark_, 0, 8, 3), chosen(&reversed, 0, 8, 3));
    }

    #[test]
    fn fewer_shots_are_the_first_of_more() {
        let benchmark = benchmark(50, &[("q", "other")]);
        assert_eq!(chosen(&benchmark, 0, 4, 3), chosen(&benchmark, 0, 8, 3)[..4]);
    }

    #[test]
    fn seed_and_query_change_the_choice() {
        let benchmark = benchmark(50, &[("q", "other"), ("r", "other")]);
        assert_ne!(chosen(&benchmark, 0, 8, 0), chosen(&benchmark, 0, 8, 1));
        assert_ne!(chosen(&benchmark, 0, 8, 0), chosen(&benchmark, 1, 8, 0));
    }

    #[test]
    fn own_image_and_other_categories_are_never_shown() {
        let mut benchmark = benchmark(10, &[("q", "image-4")]);
        benchmark.task.shots_of_category = true;
        benchmark.support[7].category = Some("shape".into());
        let mut all = chosen(&benchmark, 0, 8, 0);
        all.sort_unstable();
        assert_eq!(all, ["s0", "s1", "s2", "s3", "s5", "s6", "s8", "s9"]);
        let shots = Shots { benchmark: &benchmark, likeness: None };
        let error = shots.choose(0, 9, 0).unwrap_err();
        assert!(error.to_string().contains("query `q` has 8 support examples"), "{error}");
        benchmark.task.shots_of_category = false;
        assert_eq!(chosen(&benchmark, 0, 9, 0).len(), 9);
    }

    #[test]
    fn every_example_is_chosen_about_equally_often() {
        let names: Vec<String> = (0..2000).map(|i| format!("q{i}")).collect();
        let queries: Vec<(&str, &str)> = names.iter().map(|id| (id.as_str(), "other")).collect();
        let benchmark = benchmark(20, &queries);
        let mut counts = [0; 20];
        for query in 0..2000 {
            for shot in
                (Shots { benchmark: &benchmark, likeness: None }).choose(query, 4, 0).unwrap()
            {
                counts[shot] += 1;
            }
        }
        assert!(counts.iter().all(|n| (320..480).contains(n)), "{counts:?}");
    }

    #[test]
    fn the_most_similar_comes_last() {
        let likeness = [0.1, 0.9, 0.5, 0.9, -1.0];
        let check = |n, expected: &[usize]| {
            assert_eq!(most_similar(0..5, n, |i| likeness[i]), expected);
        };
        check(3, &[2, 3, 1]);
        check(9, &[4, 0, 2, 3, 1]);
        check(0, &[]);
    }

    #[test]
    fn orders_differ_and_the_given_one_is_first() {
        for (n, most, expected) in
            [(0, 6, 1), (1, 6, 1), (2, 6, 2), (3, 6, 6), (8, 6, 6), (8, 1, 1)]
        {
            let orders = orders(n, most, 0, "q");
            assert_eq!(orders.len(), expected, "{n} shots");
            assert!(orders[0].is_sorted());
            for (i, order) in orders.iter().enumerate() {
                let mut sorted = order.clone();
                sorted.sort_unstable();
                assert_eq!(sorted, orders[0]);
                assert!(!orders[..i].contains(order));
            }
        }
        assert_ne!(orders(8, 6, 0, "q"), orders(8, 6, 0, "r"));
    }
}
