//! mWAP of `RareAct` (Miech et al. 2020), as its `compute_score.py` computes it: for each action, a verb with a
//! noun, the average precision of its clips among all that are known not to show it; the mean over actions
//! that have a clip.
//!
//! Not to show it are clips annotated for the action, and clips that show another action. Those that share
//! the verb or the noun, or were annotated as showing one of them, are hard negatives. A video counts once
//! among the positives, once among the negatives and once among the hard ones, however many clips it has.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};

use super::roc_auc::{Judged, Thresholds};

/// What the annotator saw of the action that was looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Seen {
    /// Neither verb nor noun (0).
    Nothing,
    /// The action (1).
    Action,
    /// A part of it (2, 3 and 4).
    Part,
}

impl Seen {
    /// From the number in the column `annotation`; none where there is no such number.
    pub fn from_annotation(annotation: u32) -> Option<Self> {
        match annotation {
            0 => Some(Self::Nothing),
            1 => Some(Self::Action),
            2..=4 => Some(Self::Part),
            _ => None,
        }
    }
}

/// A row of `rareact.csv`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clip {
    /// The video that it is of.
    pub video: String,
    /// The action that was looked for.
    pub class: usize,
    /// Its verb.
    pub verb: String,
    /// Its noun.
    pub noun: String,
    /// What was found.
    pub seen: Seen,
}

/// Clips that count for one action, by falling score of the action.
#[derive(Debug, Clone)]
pub struct Action {
    /// Number of the action, a column of the scores.
    pub class: usize,
    /// Verb and noun.
    pub name: String,
    /// Numbers of the clips.
    pub clips: Vec<usize>,
    /// Weight of each, 1 over the clips of its video in its group.
    pub weights: Vec<f64>,
    thresholds: Thresholds,
}

/// Why scores cannot be ranked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotANumber {
    /// Row, from 0.
    pub clip: usize,
    /// Column, from 0.
    pub class: usize,
}

impl Action {
    /// Average precision where the video of clip `i` counts `times(i)` times. None without a positive.
    pub fn average_precision(&self, times: impl Fn(usize) -> f64) -> Option<f64> {
        self.thresholds.average_precision(|i| self.weights[i] * times(self.clips[i]))
    }

    /// Precision at each of its positives, with the number of the clip.
    pub fn precisions(&self) -> impl Iterator<Item = (usize, f64)> {
        let precisions = self.thresholds.precisions(|i| self.weights[i]);
        self.clips.iter().zip(precisions).filter_map(|(clip, precision)| Some((*clip, precision?)))
    }
}

/// Mean over actions that have an average precision.
pub fn mwap(actions: &[Action], times: impl Fn(usize) -> f64) -> Option<f64> {
    let scores: Vec<f64> =
        actions.iter().filter_map(|action| action.average_precision(&times)).collect();
    (!scores.is_empty()).then(|| scores.iter().sum::<f64>() / scores.len() as f64)
}

/// The actions that have a positive clip; `score(clip, class)` is the model's.
///
/// # Errors
/// When a score is not a number.
///
/// # Panics
/// Never: what is ranked are numbers.
pub fn actions(
    clips: &[Clip],
    score: impl Fn(usize, usize) -> f64,
) -> Result<Vec<Action>, NotANumber> {
    let mut names = BTreeMap::new();
    for clip in clips {
        names.insert((clip.verb.as_str(), clip.noun.as_str()), clip.class);
    }
    let mut actions = Vec::new();
    for ((verb, noun), class) in names {
        let groups: Vec<Option<Group>> =
            clips.iter().map(|clip| Group::of(clip, verb, noun)).collect();
        if !groups.contains(&Some(Group::Positive)) {
            continue;
        }
        let mut n_clips = HashMap::<(Group, &str), f64>::new();
        let grouped = || groups.iter().enumerate().filter_map(|(i, group)| Some((i, (*group)?)));
        for (i, group) in grouped() {
            *n_clips.entry((group, clips[i].video.as_str())).or_default() += 1.0;
        }
        let judged: Vec<Judged> =
            grouped().map(|(i, group)| (score(i, class), group == Group::Positive)).collect();
        let numbers: Vec<usize> = grouped().map(|(i, _)| i).collect();
        if let Some(at) = judged.iter().position(|(score, _)| score.is_nan()) {
            return Err(NotANumber { clip: numbers[at], class });
        }
        let weight = |(i, group): (usize, Group)| 1.0 / n_clips[&(group, clips[i].video.as_str())];
        actions.push(Action {
            class,
            name: format!("{verb} {noun}"),
            weights: grouped().map(weight).collect(),
            clips: numbers,
            thresholds: Thresholds::of(&judged).expect("each score is a number"),
        });
    }
    Ok(actions)
}

/// As what a clip counts for an action.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Group {
    Positive,
    Negative,
    HardNegative,
}

impl Group {
    /// None where it is not known whether the clip shows the action.
    fn of(clip: &Clip, verb: &str, noun: &str) -> Option<Self> {
        let (has_verb, has_noun) = (clip.verb == verb, clip.noun == noun);
        match (has_verb && has_noun, clip.seen) {
            (true, Seen::Action) => Some(Self::Positive),
            (true, Seen::Part) => Some(Self::HardNegative),
            (false, Seen::Action) if has_verb || has_noun => Some(Self::HardNegative),
            (true, Seen::Nothing) | (false, Seen::Action) => Some(Self::Negative),
            (false, _) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clip(video: &str, class: usize, name: &str, annotation: u32) -> Clip {
        let (verb, noun) = name.split_once(' ').unwrap();
        let (video, verb, noun) = (video.to_owned(), verb.to_owned(), noun.to_owned());
        Clip { video, class, verb, noun, seen: Seen::from_annotation(annotation).unwrap() }
    }

    #[test]
    fn a_video_counts_once_in_each_group_and_unknown_clips_do_not() {
        let clips = [
            clip("a", 0, "cut phone", 1),
            clip("a", 0, "cut phone", 1),
            clip("b", 0, "cut phone", 0),
            clip("c", 0, "cut phone", 2),
            // Positives of others: one shares the verb, one nothing.
            clip("d", 1, "cut shoe", 1),
            clip("e", 2, "wash hat", 1),
            // Not known whether it shows `cut phone`.
            clip("f", 1, "cut shoe", 0),
        ];
        // Only `cut phone` is asked here: scores fall from row to row, but the positives stand at 1 and 4.
        let scores = [9.0, 6.0, 8.0, 7.0, 5.0, 4.0, 10.0];
        let found = actions(&clips, |i, _| scores[i]).unwrap();
        assert_eq!(found.len(), 3);
        assert_eq!(
            (found[0].name.as_str(), &found[0].clips[..]),
            ("cut phone", &[0, 1, 2, 3, 4, 5][..])
        );
        // Weights 1/2, then 1, 1, then 1/2: precision 1 at the first, 1/3 at the second.
        let expected = 0.5 * 1.0 + 0.5 * (1.0 / 3.0);
        assert!((found[0].average_precision(|_| 1.0).unwrap() - expected).abs() < 1e-12);
        let precisions: Vec<(usize, f64)> = found[0].precisions().collect();
        assert_eq!(precisions.len(), 2);
        // Without the video of the negatives' first clip.
        let without = found[0].average_precision(|i| f64::from(u8::from(i != 2))).unwrap();
        assert!((without - (0.5 + 0.5 * 0.5)).abs() < 1e-12);
        // The action that ranks last of its clips.
        let mean = mwap(&found, |_| 1.0).unwrap();
        let each = found.iter().map(|action| action.average_precision(|_| 1.0).unwrap());
        assert!((mean - each.sum::<f64>() / 3.0).abs() < 1e-12);
    }

    #[test]
    fn a_score_that_is_no_number_is_named() {
        let clips = [clip("a", 3, "cut phone", 1), clip("b", 3, "cut phone", 0)];
        let error = actions(&clips, |i, _| if i == 1 { f64::NAN } else { 0.0 }).unwrap_err();
        assert_eq!(error, NotANumber { clip: 1, class: 3 });
        assert_eq!(Seen::from_annotation(5), None);
    }
}
