//! `ImageNet`: a folder of pictures per class (role `folder`: `val/n01440764/*.JPEG`), or flat pictures (role `image`)
//! with a list of their classes (role `labels`: `LOC_val_solution.csv`, `ImageId` and `PredictionString`). Names of
//! classes are in `LOC_synset_mapping.txt` (role `classes`): `n01440764 tench, Tinca tinca`, of which the first counts.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;

use crate::error::EvalError;
use crate::ids::some_of;
use crate::item::{Item, Truth};
use crate::medium::{Medium, is_picture};
use crate::readers::SplitFiles;
use crate::readers::entries::{csv_rows, wrong};
use crate::readers::kept::Kept;

struct Classes {
    /// Places among the names, by the id of the class.
    places: HashMap<String, usize>,
    names: Arc<[String]>,
}

/// One item per picture, named by its file without the ending. Two classes of `ImageNet` are called crane and two
/// maillot: the model cannot tell them apart by name, so each is one candidate.
pub(super) fn read(split: &SplitFiles<'_>) -> Result<Vec<Item>, EvalError> {
    let classes = Classes::read(&split.path("classes")?)?;
    match (split.optional("labels"), split.optional("folder")) {
        (Some(labels), None) if split.optional("image").is_some() => classes.listed(split, &labels),
        (None, Some(folder)) if split.optional("image").is_none() => {
            classes.in_folders(split, Path::new(&folder))
        }
        _ => Err(EvalError::Setting {
            file: format!("task `{}`", split.task.name),
            key: "splits",
            found: format!("{:?}", split.files),
            expected: "`folder`, or `labels` with `image`, and not both",
        }),
    }
}

#[derive(Deserialize)]
struct Label {
    #[serde(rename = "ImageId")]
    image: String,
    /// The class, and boxes behind it.
    #[serde(rename = "PredictionString")]
    prediction: String,
}

impl Classes {
    fn read(path: &str) -> Result<Self, EvalError> {
        let text = std::fs::read_to_string(path).map_err(EvalError::file("read", path))?;
        let mut places = HashMap::new();
        let mut names: Vec<String> = Vec::new();
        for (i, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let refuse = |problem: &str| wrong(path, format!("line {} {problem}", i + 1));
            let (id, all) =
                line.trim().split_once([' ', '\t']).ok_or_else(|| refuse("is not `CLASS NAME`"))?;
            let name = all.split(',').next().unwrap_or(all).trim();
            // A name that is there already stands for both classes.
            let known = names.iter().position(|known| known == name);
            let place = known.unwrap_or(names.len());
            if places.insert(id.to_owned(), place).is_some() {
                return Err(refuse(&format!("is the second of class `{id}`")));
            }
            if place == names.len() {
                names.push(name.to_owned());
            }
        }
        Ok(Self { places, names: names.into() })
    }

    fn listed(&self, split: &SplitFiles<'_>, labels: &str) -> Result<Vec<Item>, EvalError> {
        let mut kept = Kept::new(split.draw);
        csv_rows(labels, |place, label: Label| {
            let class = label.prediction.split_whitespace().next().ok_or("has no class")?;
            let right =
                self.places.get(class).ok_or_else(|| format!("has the unknown class `{class}`"))?;
            if kept.wants(&label.image, place) {
                let medium = split.image(&[("image_id", &label.image), ("class", class)])?;
                kept.push(&label.image, place, self.item(&label.image, medium, *right));
            }
            Ok(())
        })?;
        Ok(kept.into_entries())
    }

    fn in_folders(&self, split: &SplitFiles<'_>, folder: &Path) -> Result<Vec<Item>, EvalError> {
        let mut kept = Kept::new(split.draw);
        let mut place = 0;
        let mut unknown = Vec::new();
        for (class, path) in listing(folder)?.into_iter().filter(|(_, path)| path.is_dir()) {
            let Some(&right) = self.places.get(&class) else {
                unknown.push(class);
                continue;
            };
            for (name, path) in listing(&path)? {
                let id = name.rsplit_once('.').map_or(&*name, |(stem, _)| stem);
                if !is_picture(&path) {
                    continue;
                }
                place += 1;
                if kept.wants(id, place) {
                    kept.push(id, place, self.item(id, Some(Medium::Image(path)), right));
                }
            }
        }
        if unknown.is_empty() {
            return Ok(kept.into_entries());
        }
        let (n, named) = (unknown.len(), some_of(&unknown));
        Err(EvalError::Annotations {
            path: folder.to_path_buf(),
            problem: format!("{n} folders are of no known class: {named}"),
        })
    }

    fn item(&self, id: &str, medium: Option<Medium>, right: usize) -> Item {
        Item {
            id: id.to_owned(),
            medium_id: id.to_owned(),
            medium,
            fields: BTreeMap::new(),
            truth: Truth::Candidate { right, relevance: None },
            candidates: self.names.clone(),
            category: None,
        }
    }
}

/// Names and paths in a folder, in the order of the names.
fn listing(folder: &Path) -> Result<Vec<(String, PathBuf)>, EvalError> {
    let entries = std::fs::read_dir(folder).map_err(EvalError::file("read", folder))?;
    let mut all = Vec::new();
    for entry in entries {
        let entry = entry.map_err(EvalError::file("read", folder))?;
        all.push((entry.file_name().to_string_lossy().into_owned(), entry.path()));
    }
    all.sort();
    Ok(all)
}
