//! Pairs of an image and its `alt` from the pages of archives, with the images of the same archives.
//!
//! A page is made into a document whose images are as they came; each image that has an `alt` is then
//! a pair under the rules of pairs.

use flamingo_dataset::{ImageMeta, ImageText, Interleaved, Row, Slot};

use crate::alt_text::{check_caption, named};
use crate::figures::{Figures, Level};
use crate::image;
use crate::outcome::{Outcome, without_panic};
use crate::plan::{BuildPlan, Encode, Originals, Resize};
use crate::reject::{Origin, Stage};
use crate::rules::plan::{LanguagePlan, ScoreLevel, TextPlan};
use crate::rules::{Keys, Rules};

/// Most bytes of the images of one page, so that one page cannot fill the memory.
const PAGE_IMAGE_BYTES_MAX: u64 = 256 << 20;

/// The rules by which pages are read for their pairs: images stay as they are, and no page is too
/// short or has too few or too many of them.
pub fn page_plan(plan: &BuildPlan) -> BuildPlan {
    let mut plan = plan.clone();
    plan.image.resize = Resize::No;
    plan.image.originals = Originals::Web;
    (plan.image.encode, plan.image.quality) = (Encode::Jpeg, 100);
    plan.document.words_min = 0;
    plan.document.words_max = u64::MAX;
    plan.document.images_min = 0;
    plan.document.images_max = u64::MAX;
    // Rules for the texts of pages are not about their captions.
    plan.text = TextPlan::default();
    plan.language = LanguagePlan::default();
    plan.explicit.words_max = f64::INFINITY;
    plan.scores = Vec::new();
    plan.document.image_bytes_max = PAGE_IMAGE_BYTES_MAX;
    plan
}

/// The pairs in what became of a page.
pub fn pairs(page: Outcome, plan: &BuildPlan, rules: &Rules) -> Outcome {
    let mut outcome = Outcome { rows: Vec::new(), ..page };
    for row in page.rows {
        if let Row::Interleaved(document) = row {
            add_pairs(document, plan, rules, &mut outcome);
        }
    }
    outcome
}

fn add_pairs(document: Interleaved, plan: &BuildPlan, rules: &Rules, outcome: &mut Outcome) {
    let (source, offset) = match &document.warc {
        Some(warc) => (warc.filename.clone(), warc.offset),
        None => (document.doc_id.clone(), 0),
    };
    let images = document.slots.into_iter().filter_map(|slot| match slot {
        Slot::Image { image, meta } => Some((image, meta)),
        Slot::Text(_) => None,
    });
    for (n, (image, meta)) in images.enumerate() {
        let url = meta.url.clone();
        let mut figures = Figures {
            level: Level::Caption,
            key: format!("{source}:{offset:012}:{n:03}"),
            url: url.clone(),
            dropped_by: None,
            values: Vec::new(),
        };
        let pair = without_panic(|| {
            let caption = check_caption(meta.alt.as_deref(), &plan.caption)
                .map_err(|drop| (Stage::Caption, drop))?;
            let text = rules.caption(&caption);
            figures.values = text.values.0;
            if let Some(drop) = text.drop {
                return Err((Stage::Caption, drop));
            }
            // The figures of the image are there already, from the page.
            let judged = image::prepare(&image.bytes, &plan.image);
            let picture = judged.picture.map_err(|drop| (Stage::Image, drop))?;
            let ImageMeta { url, .. } = meta;
            let key = Some(figures.key.as_str());
            let keys = Keys { url: url.as_deref(), sha256: Some(&picture.sha256), key };
            let (scores, drop) = rules.scores(ScoreLevel::Image, keys);
            figures.values.extend(&scores);
            if let Some(drop) = drop {
                return Err((Stage::Image, drop));
            }
            Ok(ImageText {
                key: figures.key.clone(),
                url,
                caption,
                image: picture.image,
                width: picture.size.0 as i32,
                height: picture.size.1 as i32,
                original_width: picture.original_size.0 as i32,
                original_height: picture.original_size.1 as i32,
                sha256: picture.sha256,
                phash: picture.phash,
                source: Some(document.url.clone()),
                scores: named(&scores),
                warc: None,
            })
        });
        match pair.unwrap_or_else(|drop| Err((Stage::Image, drop))) {
            Ok(pair) => outcome.rows.push(Row::ImageText(pair)),
            Err((stage, drop)) => {
                let page = Some(document.url.clone());
                let origin = Origin { source: source.clone(), offset: Some(offset), url: page };
                let reject = drop.at(stage, &origin, url.as_deref());
                figures.dropped_by = Some(reject.rule());
                outcome.rejects.push(reject);
            }
        }
        if !figures.values.is_empty() {
            outcome.figures.push(figures);
        }
    }
}
