//! Which prediction is of which item, and which ids do not fit.

use rustc_hash::{FxHashMap, FxHashSet};

use crate::ids::{image_and_round, some_of};
use crate::item::Item;
use crate::metric::Form;

/// Names of what is asked.
#[derive(Debug, Default)]
pub(crate) struct Names<'a> {
    /// Places of items by their ids.
    places: FxHashMap<&'a str, usize>,
    /// Of iVQA, whose official predictions name films: the item of each film with just one.
    films: FxHashMap<&'a str, usize>,
    /// Of `VisDial`'s relevance, images of which only some rounds are asked.
    images: FxHashSet<&'a str>,
}

/// What an id names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    /// The item at a place.
    Item(usize),
    /// Another round of a dialog: submissions rank all of them, people judged one.
    OtherRound,
    /// Nothing that is asked.
    Nothing,
}

impl<'a> Names<'a> {
    /// The names of items, each an id with the image or video that it is of.
    pub(crate) fn of(
        form: Form,
        items: impl Iterator<Item = (&'a str, Option<&'a str>)> + Clone,
    ) -> Self {
        let places = items.clone().enumerate().map(|(place, (id, _))| (id, place)).collect();
        let mut names = Self { places, ..Self::default() };
        let media = items.enumerate().filter_map(|(place, (_, medium))| Some((place, medium?)));
        if form == Form::Ivqa {
            let mut several = FxHashSet::default();
            for (place, film) in media {
                if names.films.insert(film, place).is_some() {
                    several.insert(film);
                }
            }
            names.films.retain(|film, _| !several.contains(film));
        } else if form == Form::Relevance {
            names.images = media.map(|(_, image)| image).collect();
        }
        names
    }

    /// The ids of items alone.
    pub(crate) fn of_items(items: &'a [Item]) -> Self {
        let places = items.iter().enumerate().map(|(place, item)| (item.id.as_str(), place));
        Self { places: places.collect(), ..Self::default() }
    }

    pub(crate) fn find(&self, id: &str) -> Found {
        if let Some(place) = self.places.get(id).or_else(|| self.films.get(id)) {
            return Found::Item(*place);
        }
        let is_beside = |(image, round): (&str, &str)| {
            self.images.contains(image) && round.parse::<u32>().is_ok_and(|round| round > 0)
        };
        let is_beside = image_and_round(id).is_some_and(is_beside);
        if is_beside { Found::OtherRound } else { Found::Nothing }
    }
}

/// Predictions by what they are of.
#[derive(Debug, Default)]
pub(crate) struct Matched {
    /// For each item the place of its first prediction.
    pub(crate) of_item: Vec<Option<usize>>,
    /// Ids that do not fit, but for items without a prediction.
    pub(crate) faults: IdFaults,
    /// Predictions of rounds that are not asked.
    pub(crate) n_other_rounds: usize,
}

impl Matched {
    /// Finds the items of predictions with these ids.
    pub(crate) fn of<'p>(
        names: &Names<'_>,
        n_items: usize,
        predicted: impl Iterator<Item = &'p str>,
    ) -> Self {
        let mut matched = Self { of_item: vec![None; n_items], ..Self::default() };
        let mut strangers = FxHashSet::default();
        for (at, id) in predicted.enumerate() {
            match names.find(id) {
                Found::Item(place) if matched.of_item[place].is_none() => {
                    matched.of_item[place] = Some(at);
                }
                Found::Item(_) => matched.faults.repeated.push(id.to_owned()),
                _ if !strangers.insert(id) => matched.faults.repeated.push(id.to_owned()),
                Found::OtherRound => matched.n_other_rounds += 1,
                Found::Nothing => matched.faults.unknown.push(id.to_owned()),
            }
        }
        matched
    }

    /// With the items that have no prediction among the faults.
    pub(crate) fn with_missing<'i>(mut self, ids: impl Iterator<Item = &'i str>) -> Self {
        let missing = ids.zip(&self.of_item).filter(|(_, prediction)| prediction.is_none());
        self.faults.missing = missing.map(|(id, _)| id.to_owned()).collect();
        self
    }
}

/// Ids that do not fit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IdFaults {
    /// Of more than one prediction.
    pub repeated: Vec<String>,
    /// Of predictions, but of no item.
    pub unknown: Vec<String>,
    /// Of items without a prediction.
    pub missing: Vec<String>,
}

impl IdFaults {
    /// Whether all fit.
    pub fn is_empty(&self) -> bool {
        self.repeated.is_empty() && self.unknown.is_empty() && self.missing.is_empty()
    }

    /// One line for each kind of fault, with the first ids and how many there are.
    pub fn lines(&self) -> Vec<String> {
        let kinds = [
            ("more than one prediction of", &self.repeated),
            ("predictions of what is not asked:", &self.unknown),
            ("no prediction of", &self.missing),
        ];
        let kinds = kinds.into_iter().filter(|(_, ids)| !ids.is_empty());
        kinds.map(|(what, ids)| format!("{what} {}", some_of(ids))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matched(form: Form, items: &[(&str, &str)], predicted: &[&str]) -> Matched {
        let items_of = || items.iter().map(|(id, medium)| (*id, Some(*medium)));
        let matched =
            Matched::of(&Names::of(form, items_of()), items.len(), predicted.iter().copied());
        matched.with_missing(items.iter().map(|(id, _)| *id))
    }

    #[test]
    fn films_of_ivqa_name_their_question_unless_there_are_several() {
        let items = [("a-0", "a"), ("b-1", "b"), ("b-2", "b"), ("c-3", "c")];
        let found = matched(Form::Ivqa, &items, &["c", "a-0", "a", "b", "b-2"]);
        assert_eq!(found.of_item, [Some(1), None, Some(4), Some(0)]);
        let faults = found.faults.lines();
        let expected = [
            "more than one prediction of a",
            "predictions of what is not asked: b",
            "no prediction of b-1",
        ];
        assert_eq!(faults, expected);
        let found = matched(Form::OneAnswer, &items, &["c"]);
        assert_eq!(found.faults.unknown, ["c"]);
    }

    #[test]
    fn only_rounds_of_dialogs_that_are_asked_may_be_beside() {
        let items = [("7-3", "7")];
        let found = matched(Form::Relevance, &items, &["7-1", "7-3", "7-1", "8-3", "7-x", "7"]);
        assert_eq!((found.of_item.as_slice(), found.n_other_rounds), (&[Some(1)][..], 1));
        assert_eq!(found.faults.repeated, ["7-1"]);
        assert_eq!(found.faults.unknown, ["8-3", "7-x", "7"]);
        assert_eq!(matched(Form::Candidates, &items, &["7-1"]).faults.unknown, ["7-1"]);
    }
}
