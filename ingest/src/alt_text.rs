//! Rows of a list to pairs of an image and its alt-text (paper, section 2.4: ALIGN and LTIP).

use std::path::{Component, Path};
use std::sync::Arc;

use bytes::Bytes;
use flamingo_dataset::{ImageText, Row};

use crate::error::IngestError;
use crate::fetch::{Answer, Asked, Wish};
use crate::figures::{Figures, Level, SCORE};
use crate::html::joined;
use crate::image::{self, Picture};
use crate::ledger::PairRow;
use crate::list::{ListItem, ListRow};
use crate::outcome::{Outcome, without_panic};
use crate::plan::{BuildPlan, CaptionPlan};
use crate::reject::{DropReason, Origin, Reject, Stage};
use crate::rules::plan::ScoreLevel;
use crate::rules::{Keys, Rules};
use crate::source::{Source, is_url};
use crate::split;
use crate::word::Word;

/// The inputs and rules that every pair needs.
pub struct PairJob<'a> {
    /// The lists.
    pub sources: &'a [Arc<Source>],
    /// Where the files of the lists lie; by default beside the list.
    pub images: Option<&'a str>,
    /// The rules.
    pub plan: &'a BuildPlan,
    /// The rules for texts, addresses and scores.
    pub rules: &'a Rules,
}

impl PairJob<'_> {
    /// The address that a row needs: none where it has its image, or is dropped without it.
    pub fn wishes(&self, item: &ListItem) -> Vec<Wish> {
        let ListItem::Row(row @ ListRow { image: None, file: None, url: Some(url), .. }) = item
        else {
            return Vec::new();
        };
        let is_held_out = split::check(&self.plan.split, url).is_some();
        let caption = check_caption(row.caption.as_deref(), &self.plan.caption);
        let is_dropped =
            caption.map_or(true, |caption| self.rules.caption(&caption).drop.is_some());
        let is_refused = self.rules.refuse(url, Stage::Image).is_some();
        if !self.plan.fetch.enabled || is_held_out || is_dropped || is_refused {
            return Vec::new();
        }
        let key = key(self.sources[row.list].name(), row.row);
        vec![Wish { key, url: url.clone(), bytes_max: self.plan.image.bytes_max }]
    }

    /// Makes one pair, or says why not, with the answer to its wish.
    pub fn pair(&self, Asked { item, mut answers }: Asked<ListItem>) -> Outcome {
        let row = match item {
            ListItem::Row(row) => row,
            ListItem::Dropped(reject) => return Outcome::dropped(reject),
        };
        let list = &self.sources[row.list];
        pair_of_row(self.plan, self.rules, list.name(), row, answers.pop(), |row| {
            self.own_bytes(list, row)
        })
    }

    /// The encoded image that is not asked for: from the row, else from its file.
    fn own_bytes(&self, list: &Source, row: &ListRow) -> Result<Bytes, DropReason> {
        match (&row.image, &row.file, &row.url) {
            (Some(bytes), ..) => Ok(bytes.clone()),
            (None, Some(file), _) => {
                let root = self.images.unwrap_or_else(|| folder(list.input()));
                read_file(root, file, self.plan.image.bytes_max)
            }
            (None, None, Some(_)) => Err(DropReason::because("not_fetched")),
            (None, None, None) => Err(DropReason::because("no_image")),
        }
    }
}

/// Makes the pair of a row of `list`. Where its image was asked for there is an answer, else
/// `own_bytes` has it.
pub(crate) fn pair_of_row(
    plan: &BuildPlan,
    rules: &Rules,
    list: &str,
    row: ListRow,
    answer: Option<Answer>,
    own_bytes: impl FnOnce(&ListRow) -> Result<Bytes, DropReason>,
) -> Outcome {
    let origin = origin_of(list, &row);
    let mut fetch = None;
    let answer = answer.map(|answer| {
        fetch = Some(answer.fetch);
        answer.result
    });
    let pair_row = || {
        let (caption, source) = (row.caption.clone(), row.source.clone());
        PairRow { list: list.to_owned(), row: row.row, caption, source }
    };
    if let (Some(fetch), Some(Err(_))) = (&mut fetch, &answer) {
        fetch.pair = Some(pair_row());
    }
    let bytes = |row: &ListRow| match answer {
        Some(answer) => answer.and_then(|body| body.decoded(plan.image.bytes_max)),
        None => own_bytes(row).map_err(|drop| (Stage::Read, drop)),
    };
    let mut figures = Vec::new();
    let mut caption = Figures {
        level: Level::Caption,
        key: key(list, row.row),
        url: row.url.clone(),
        dropped_by: None,
        values: Vec::new(),
    };
    let pair = without_panic(|| checked_pair(plan, rules, row, bytes, &mut caption, &mut figures));
    let mut outcome = match pair.unwrap_or_else(|drop| Err((Stage::Image, drop))) {
        Ok(pair) => Outcome::kept(Row::ImageText(pair)),
        Err((stage, drop)) => Outcome::dropped(drop.at(stage, &origin, None)),
    };
    if !caption.values.is_empty() {
        caption.dropped_by = outcome.rejects.first().map(Reject::rule);
        outcome.figures.push(caption);
    }
    outcome.fetches.extend(fetch);
    outcome.figures.extend(figures);
    outcome
}

fn checked_pair(
    plan: &BuildPlan,
    rules: &Rules,
    row: ListRow,
    bytes: impl FnOnce(&ListRow) -> Result<Bytes, (Stage, DropReason)>,
    text_figures: &mut Figures,
    figures: &mut Vec<Figures>,
) -> Result<ImageText, (Stage, DropReason)> {
    let key = text_figures.key.clone();
    let address = row.url.as_ref().or(row.file.as_ref()).unwrap_or(&key);
    if let Some(drop) = split::check(&plan.split, address) {
        return Err((Stage::Split, drop));
    }
    let caption = check_caption(row.caption.as_deref(), &plan.caption)
        .map_err(|drop| (Stage::Caption, drop))?;
    let text = rules.caption(&caption);
    text_figures.values = text.values.0;
    if let Some(drop) = text.drop {
        return Err((Stage::Caption, drop));
    }
    if let Some(no) = row.url.as_deref().and_then(|url| rules.refuse(url, Stage::Image)) {
        return Err(no);
    }
    let bytes = bytes(&row)?;
    let judged = image::prepare(&bytes, &plan.image);
    let url = row.url.as_deref();
    let mut image_figures = judged.row(&key, url.or(row.file.as_deref()));
    let judged = judged.picture.and_then(|picture| {
        let keys = Keys { url, sha256: Some(&picture.sha256), key: Some(&key) };
        let (scores, drop) = rules.scores(ScoreLevel::Image, keys);
        image_figures.judge(&scores, drop.as_ref());
        drop.map_or(Ok((picture, scores)), Err)
    });
    figures.push(image_figures);
    let dropped = |drop: DropReason| (Stage::Image, drop.with_picture(&bytes));
    let (picture, scores) = judged.map_err(dropped)?;
    Ok(ImageText { scores: named(&scores), ..pair(key, caption, row, picture) })
}

/// Scores by their own names.
pub(crate) fn named(scores: &[(Word, f32)]) -> Vec<(String, f32)> {
    let name = |figure: &str| figure.strip_prefix(SCORE).unwrap_or(figure).to_owned();
    scores.iter().map(|(figure, score)| (name(figure), *score)).collect()
}

fn pair(key: String, caption: String, row: ListRow, picture: Picture) -> ImageText {
    ImageText {
        key,
        url: row.url,
        caption,
        image: flamingo_dataset::EncodedImage { path: row.file, ..picture.image },
        width: picture.size.0 as i32,
        height: picture.size.1 as i32,
        original_width: picture.original_size.0 as i32,
        original_height: picture.original_size.1 as i32,
        sha256: picture.sha256,
        phash: picture.phash,
        source: row.source,
        scores: Vec::new(),
        warc: None,
    }
}

/// Where a row of a list came from.
pub(crate) fn origin(list: &Source, row: &ListRow) -> Origin {
    origin_of(list.name(), row)
}

fn origin_of(list: &str, row: &ListRow) -> Origin {
    Origin {
        source: list.to_owned(),
        offset: Some(row.row as i64),
        url: row.url.clone().or_else(|| row.file.clone()),
    }
}

/// The stable identifier of a row: the list's name and the row's number.
pub(crate) fn key(list: &str, row: u64) -> String {
    format!("{list}:{row:09}")
}

/// The caption with its white space joined, if it keeps the rules.
pub(crate) fn check_caption(
    caption: Option<&str>,
    rules: &CaptionPlan,
) -> Result<String, DropReason> {
    let caption = joined(caption.unwrap_or(""));
    let chars = caption.chars().count() as u64;
    let words = caption.split(' ').count() as u64;
    if caption.is_empty() && rules.chars_min > 0 {
        Err(DropReason::because("no_caption"))
    } else if chars < rules.chars_min {
        Err(DropReason::limit("short_caption", chars as f64, rules.chars_min as f64))
    } else if words < rules.words_min {
        Err(DropReason::limit("few_words", words as f64, rules.words_min as f64))
    } else if words > rules.words_max {
        Err(DropReason::limit("long_caption", words as f64, rules.words_max as f64))
    } else {
        Ok(caption)
    }
}

/// The folder of a file, or the prefix of an object.
pub(crate) fn folder(input: &str) -> &str {
    input.rsplit_once('/').map_or(".", |(folder, _)| if folder.is_empty() { "/" } else { folder })
}

/// The place of a file that a list names, below `root`: a list must not lead out of it.
pub(crate) fn place(root: &str, file: &str) -> Result<String, DropReason> {
    let is_below = Path::new(file)
        .components()
        .all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    if !is_below || file.contains('\0') {
        return Err(DropReason::detail("path_outside", file));
    }
    Ok(format!("{}/{file}", root.trim_end_matches('/')))
}

fn read_file(root: &str, file: &str, bytes_max: u64) -> Result<Bytes, DropReason> {
    let place = place(root, file)?;
    let source = open_file(&place)?;
    if source.len() > bytes_max {
        return Err(DropReason::limit("too_many_bytes", source.len() as f64, bytes_max as f64));
    }
    let bytes = source.read_all();
    bytes.map(Bytes::from).map_err(|error| DropReason::detail("unreadable_file", error.to_string()))
}

/// Opens a file that a list names.
pub(crate) fn open_file(place: &str) -> Result<Source, DropReason> {
    if !is_url(place) && !Path::new(place).exists() {
        return Err(DropReason::because("file_not_found"));
    }
    Source::open(place).map_err(|error| match error {
        IngestError::InputRead { source, .. } => {
            DropReason::detail("unreadable_file", source.to_string())
        }
        error => DropReason::detail("unreadable_file", error.to_string()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn captions_are_joined_and_measured() {
        let rules = CaptionPlan { chars_min: 3, words_min: 1, words_max: 2 };
        assert_eq!(check_caption(Some(" a\n  b "), &rules).unwrap(), "a b");
        let reason = |caption| check_caption(caption, &rules).unwrap_err().reason;
        assert_eq!(reason(None), "no_caption");
        assert_eq!(reason(Some(" \t")), "no_caption");
        assert_eq!(reason(Some("ab")), "short_caption");
        assert_eq!(reason(Some("a b c")), "long_caption");
    }

    #[test]
    fn a_list_cannot_lead_out_of_its_folder() {
        assert_eq!(place("root/", "a/./b.jpg").unwrap(), "root/a/./b.jpg");
        for file in ["/etc/passwd", "../a.jpg", "a/../../b", "a\0b"] {
            assert_eq!(place("root", file).unwrap_err().reason, "path_outside", "{file}");
        }
    }

    #[test]
    fn the_default_root_is_the_folder_of_the_list() {
        assert_eq!((folder("a/b.csv"), folder("b.csv"), folder("/b.csv")), ("a", ".", "/"));
        assert_eq!(folder("s3://bucket/x/b.csv"), "s3://bucket/x");
    }
}
