//! Answers that are not what was asked for: they are scored as they stand, and counted.

use crate::evaluation::{Evaluation, Outcome, Scored};
use crate::samples::Sample;
use crate::subject::Ending;
use crate::table::Table;

/// What is odd about an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Oddity {
    /// It is none of the candidates of its query, and counts as wrong.
    Unmatched,
    /// It ended at the limit of tokens.
    CutOff,
    /// A filter of the server kept it back.
    KeptBack,
}

impl Oddity {
    /// In the order in which they are told.
    pub const ALL: [Self; 3] = [Self::Unmatched, Self::CutOff, Self::KeptBack];

    /// Its key in results.
    pub fn key(self) -> &'static str {
        match self {
            Self::Unmatched => "unmatched_answers",
            Self::CutOff => "cut_off_answers",
            Self::KeptBack => "kept_back_answers",
        }
    }

    fn heading(self) -> &'static str {
        match self {
            Self::Unmatched => "no candidate",
            Self::CutOff => "cut off at the limit of tokens",
            Self::KeptBack => "kept back by a filter",
        }
    }

    /// How many answers of a round have it.
    pub fn count(self, evaluation: &Evaluation<'_>, scored: &Scored) -> usize {
        let benchmark = evaluation.benchmark;
        let is_odd = |sample: &&Sample| match self {
            Self::Unmatched => {
                let candidates = &benchmark.query[sample.doc_id].candidates;
                benchmark.task.decoding.is_closed() && !candidates.contains(&sample.prediction)
            }
            Self::CutOff => sample.ending == Some(Ending::Length),
            Self::KeptBack => sample.ending == Some(Ending::ContentFilter),
        };
        scored.samples.iter().filter(is_odd).count()
    }
}

/// The rounds that have odd answers, with how many; none where no round has any.
pub fn oddity_table(evaluations: &[Evaluation<'_>]) -> Option<Table> {
    let rounds = evaluations.iter().flat_map(|evaluation| {
        evaluation.rounds.iter().filter_map(move |round| match &round.outcome {
            Outcome::Scored(scored) => {
                let name = &evaluation.benchmark.task.name;
                let name = format!("{name}_{}", round.key.suffix(evaluation.has_seeds));
                let counts = Oddity::ALL.map(|oddity| oddity.count(evaluation, scored));
                Some((name, scored.samples.len(), counts))
            }
            Outcome::OutOfContext(_) => None,
        })
    });
    let odd: Vec<_> = rounds.filter(|(_, _, counts)| counts.iter().any(|n| *n > 0)).collect();
    let headers = ["answers that are not as asked", "of"].into_iter();
    let headers = headers.chain(Oddity::ALL.map(Oddity::heading)).map(str::to_owned).collect();
    let row = |(name, of, counts): &(String, usize, [usize; 3])| {
        let counts = counts.map(|n| n.to_string());
        [name.clone(), of.to_string()].into_iter().chain(counts).collect()
    };
    let rows: Vec<Vec<String>> = odd.iter().map(row).collect();
    (!rows.is_empty()).then_some(Table { headers, rows })
}
