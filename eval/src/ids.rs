//! Ids of images, questions and clips: how files write them, and how messages name some of many.

use std::fmt;

use serde::de::Visitor;
use serde::{Deserialize, Deserializer};

/// Ids that a message names; of the rest it says how many.
pub(crate) const NAMED_MAX: usize = 5;

/// An id that some files have as a number and others as text.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Id(pub(crate) String);

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(IdVisitor)
    }
}

struct IdVisitor;

impl Visitor<'_> for IdVisitor {
    type Value = Id;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a whole number or a text")
    }

    fn visit_u64<E>(self, id: u64) -> Result<Id, E> {
        Ok(Id(id.to_string()))
    }

    fn visit_i64<E>(self, id: i64) -> Result<Id, E> {
        Ok(Id(id.to_string()))
    }

    fn visit_str<E>(self, id: &str) -> Result<Id, E> {
        Ok(Id(id.to_owned()))
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Some of several names: `7, 8, 9, 10, 11 and 3 more`.
pub(crate) fn some_of<S: AsRef<str>>(names: &[S]) -> String {
    first_of(names, names.len())
}

/// The same of `n` names, of which only the first ones are at hand.
pub(crate) fn first_of<S: AsRef<str>>(names: &[S], n: usize) -> String {
    let named: Vec<&str> = names.iter().take(NAMED_MAX).map(AsRef::as_ref).collect();
    let rest = n - named.len();
    let more = if rest > 0 { format!(" and {rest} more") } else { String::new() };
    format!("{}{more}", named.join(", "))
}

/// The name of a round of a dialog (`VisDial`), by the number of its image and its own, from 1.
pub(crate) fn round_id(image: &str, round: impl fmt::Display) -> String {
    format!("{image}-{round}")
}

/// The image and the number of a round, from its name.
pub(crate) fn image_and_round(id: &str) -> Option<(&str, &str)> {
    id.rsplit_once('-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_names_are_all_named_and_of_many_the_rest_is_counted() {
        let names: Vec<String> = (1..=8).map(|n| n.to_string()).collect();
        assert_eq!(some_of(&names[..0]), "");
        assert_eq!(some_of(&names[..5]), "1, 2, 3, 4, 5");
        assert_eq!(some_of(&names), "1, 2, 3, 4, 5 and 3 more");
        assert_eq!(first_of(&names[..2], 4), "1, 2 and 2 more");
    }

    #[test]
    fn ids_are_numbers_or_texts() {
        let read = |text: &str| serde_json::from_str::<Id>(text).map(|id| id.0).ok();
        assert_eq!(read("7").as_deref(), Some("7"));
        assert_eq!(read("-7").as_deref(), Some("-7"));
        assert_eq!(read("\"a\"").as_deref(), Some("a"));
        assert_eq!(read("1.5"), None);
        assert_eq!(image_and_round(&round_id("a-1", 10)), Some(("a-1", "10")));
    }
}
