//! `RareAct` (`rareact.csv`): clips of `video_id`, `start` and `end`, each judged for a class, a `verb` with a `noun`:
//! `annotation` 1 shows it, 2 to 4 show a part of it, 0 neither verb nor noun.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;

use crate::error::EvalError;
use crate::item::{Item, Truth};
use crate::readers::SplitFiles;
use crate::readers::entries::{csv_rows, wrong};

#[derive(Deserialize)]
struct Row {
    id: String,
    video_id: String,
    start: String,
    end: String,
    class_id: usize,
    verb: String,
    noun: String,
    annotation: u8,
}

/// Highest verdict.
const ANNOTATION_MAX: u8 = 4;

/// One item per row. Candidates are the classes, in the order of their numbers, as the paper puts them (appendix
/// B.1.5): `a person blends a phone`. Fields: `verb` and `noun` of the row's class.
pub(super) fn read(split: &SplitFiles<'_>) -> Result<Vec<Item>, EvalError> {
    let path = split.path("annotations")?;
    let mut classes: BTreeMap<usize, (String, String)> = BTreeMap::new();
    let mut items: Vec<Item> = Vec::new();
    csv_rows(&path, |_, row: Row| {
        let own = (row.verb.clone(), row.noun.clone());
        let known = classes.entry(row.class_id).or_insert_with(|| own.clone());
        if *known != own {
            let ((verb, noun), class) = (known, row.class_id);
            return Err(format!(
                "has class {class} as `{} {}`, before it was `{verb} {noun}`",
                own.0, own.1
            ));
        }
        items.push(item(split, row)?);
        Ok(())
    })?;
    if let Some(missing) = (0..classes.len()).find(|class| !classes.contains_key(class)) {
        return Err(wrong(
            &path,
            format!("it has {} classes, but none with number {missing}", classes.len()),
        ));
    }
    let candidates: Arc<[String]> =
        classes.values().map(|(verb, noun)| caption(verb, noun)).collect();
    for item in &mut items {
        item.candidates = candidates.clone();
    }
    Ok(items)
}

fn item(split: &SplitFiles<'_>, row: Row) -> Result<Item, String> {
    if row.annotation > ANNOTATION_MAX {
        return Err(format!("has the annotation {}, expected 0 to 4", row.annotation));
    }
    let seconds =
        |text: &str| text.parse::<f64>().map_err(|_| format!("has `{text}` for a second"));
    let span = (seconds(&row.start)?, seconds(&row.end)?);
    let values =
        [("id", &*row.id), ("video_id", &row.video_id), ("start", &row.start), ("end", &row.end)];
    Ok(Item {
        medium: split.film(&values, Some(span))?,
        id: row.id,
        medium_id: row.video_id,
        fields: [("verb", row.verb), ("noun", row.noun)].into(),
        truth: Truth::Action { class: row.class_id, annotation: row.annotation },
        candidates: Arc::default(),
        category: None,
    })
}

/// The class as a sentence.
fn caption(verb: &str, noun: &str) -> String {
    let article = match noun {
        // The data has them without one: things of which there are several, and what is not counted.
        "bacon" | "hair" | "chocolate" | "corn" => "",
        _ if noun.ends_with('s') => "",
        _ if noun.starts_with(['a', 'e', 'i', 'o', 'u']) => "an ",
        _ => "a ",
    };
    format!("a person {} {article}{noun}", third_person(verb))
}

fn third_person(verb: &str) -> String {
    let hisses = ["s", "x", "z", "ch", "sh", "o"].iter().any(|ending| verb.ends_with(ending));
    let before_y = verb.strip_suffix('y').filter(|stem| !stem.ends_with(['a', 'e', 'i', 'o', 'u']));
    match before_y {
        Some(stem) => format!("{stem}ies"),
        None if hisses => format!("{verb}es"),
        None => format!("{verb}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_sentences() {
        let check = |verb, noun, expected| assert_eq!(caption(verb, noun), expected);
        check("blend", "phone", "a person blends a phone");
        check("cut", "egg", "a person cuts an egg");
        check("cut", "eggs", "a person cuts eggs");
        check("wash", "keyboard", "a person washes a keyboard");
        check("fry", "bacon", "a person fries bacon");
        check("spray", "oven", "a person sprays an oven");
        check("unplug", "orange", "a person unplugs an orange");
    }
}
