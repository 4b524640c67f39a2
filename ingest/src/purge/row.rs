//! What a purge leaves of one row.

use arrow::array::{AsArray, RecordBatch};
use flamingo_dataset::{CorpusKind, CorpusStore, Interleaved, Row, ShardEntry, Slot};

use super::tables::Record;
use super::targets::{Target, Targets};
use crate::error::IngestError;
use crate::reject::Origin;
use crate::table;

/// What stands between two texts that an image parted: blocks are parted by an empty line.
const BLOCK_GAP: &str = "\n\n";

/// What is left of a row, and what went.
#[derive(Debug, Clone, PartialEq)]
pub struct Applied {
    /// The row, if any of it stays.
    pub row: Option<Row>,
    /// What was removed.
    pub removed: Vec<Record>,
}

/// Takes what `targets` name out of a row. A document that is named goes as a whole, with all its
/// images; one that is left with fewer than `images_min` images goes too.
pub fn apply(targets: &Targets, row: Row, images_min: u64) -> Applied {
    let whole = |target: &Target, url: Option<&str>, sha256: Option<&str>| {
        Record::of_row(target, &row, url, sha256)
    };
    let gone = match &row {
        Row::Interleaved(page) => {
            targets.of_url(&page.url).map(|target| whole(target, Some(&page.url), None))
        }
        Row::ImageText(pair) => {
            let (url, sha256) = (pair.url.as_deref(), pair.sha256.as_str());
            let target = url.and_then(|url| targets.of_url(url));
            let target = target.or_else(|| targets.of_sha256(sha256));
            target.map(|target| whole(target, url, Some(sha256)))
        }
        Row::VideoText(clip) => {
            let (url, sha256) = (clip.url.as_deref(), clip.sha256.as_str());
            let target = url.and_then(|url| targets.of_url(url));
            let target = target.or_else(|| targets.of_sha256(sha256));
            target.map(|target| whole(target, url, Some(sha256)))
        }
    };
    match (gone, row) {
        (Some(record), _) => Applied { row: None, removed: vec![record] },
        (None, Row::Interleaved(page)) => without_images(targets, page, images_min),
        (None, row) => Applied { row: Some(row), removed: Vec::new() },
    }
}

/// Where a row came from, without its address.
pub(super) fn origin(row: &Row) -> Origin {
    let place = match row {
        Row::Interleaved(page) => page.warc.as_ref(),
        Row::ImageText(pair) => pair.warc.as_ref(),
        Row::VideoText(_) => None,
    };
    match place {
        Some(warc) => {
            Origin { source: warc.filename.clone(), offset: Some(warc.offset), url: None }
        }
        None => Origin { source: row.key().to_owned(), offset: None, url: None },
    }
}

fn without_images(targets: &Targets, mut page: Interleaved, images_min: u64) -> Applied {
    let mut removed = Vec::new();
    let mut slots: Vec<Slot> = Vec::with_capacity(page.slots.len());
    // Texts are joined only where an image between them went.
    let mut is_gap = false;
    for slot in std::mem::take(&mut page.slots) {
        let meta = match &slot {
            Slot::Image { meta, .. } => Some(meta),
            Slot::Text(_) => None,
        };
        let target = meta.and_then(|meta| {
            let by_url = meta.url.as_deref().and_then(|url| targets.of_url(url));
            by_url.or_else(|| targets.of_sha256(&meta.sha256))
        });
        if let (Some(target), Some(meta)) = (target, meta) {
            removed.push(Record::of_image(target, &page.doc_id, meta));
            is_gap = true;
            continue;
        }
        match (slots.last_mut(), slot) {
            (Some(Slot::Text(before)), Slot::Text(text)) if is_gap => {
                before.push_str(BLOCK_GAP);
                before.push_str(&text);
            }
            (_, slot) => slots.push(slot),
        }
        is_gap = false;
    }
    page.slots = slots;
    let n_images = page.images().count() as u64;
    if removed.is_empty() || n_images >= images_min {
        return Applied { row: Some(Row::Interleaved(page)), removed };
    }
    let target = removed[0].target.clone();
    let url = page.url.clone();
    let record = Record::of_row(&target, &Row::Interleaved(page), Some(&url), None);
    removed.push(record);
    Applied { row: None, removed }
}

/// Whether a shard holds anything to remove; images are not read for it.
pub(super) fn has_target(
    store: &CorpusStore,
    kind: CorpusKind,
    entry: &ShardEntry,
    targets: &Targets,
) -> Result<bool, IngestError> {
    if targets.is_empty() {
        return Ok(false);
    }
    let columns: &[&str] = match kind {
        CorpusKind::Interleaved => &["url", "image_meta"],
        CorpusKind::ImageText | CorpusKind::VideoText => &["url", "sha256"],
    };
    for batch in table::read(store, &entry.file, columns)? {
        if batch_has_target(&batch?, targets) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn batch_has_target(batch: &RecordBatch, targets: &Targets) -> bool {
    let is_url = |url: Option<&str>| url.is_some_and(|url| targets.of_url(url).is_some());
    let is_hash = |hash: Option<&str>| hash.is_some_and(|hash| targets.of_sha256(hash).is_some());
    let any_of_row = (0..batch.num_rows())
        .any(|i| is_url(table::text(batch, "url", i)) || is_hash(table::text(batch, "sha256", i)));
    any_of_row
        || batch.column_by_name("image_meta").is_some_and(|metas| {
            let metas = RecordBatch::from(metas.as_list::<i32>().values().as_struct());
            (0..metas.num_rows()).any(|i| {
                is_url(table::text(&metas, "url", i)) || is_hash(table::text(&metas, "sha256", i))
            })
        })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use flamingo_dataset::{EncodedImage, ImageMeta};

    use super::super::targets::By;
    use super::*;

    fn image(name: &str) -> Slot {
        let meta = ImageMeta {
            url: Some(format!("https://img.example/{name}")),
            alt: None,
            width: 1,
            height: 1,
            sha256: flamingo_dataset::sha256_hex(name.as_bytes()),
            phash: 0,
            mime: "image/png".into(),
        };
        Slot::Image { image: EncodedImage { bytes: Bytes::new(), path: None }, meta }
    }

    fn text(text: &str) -> Slot {
        Slot::Text(text.into())
    }

    fn page(slots: Vec<Slot>) -> Row {
        Row::Interleaved(Interleaved {
            doc_id: "d".into(),
            url: "https://site.example/page".into(),
            slots,
            title: None,
            lang: None,
            lang_score: None,
            warc: None,
            fetched_at_us: None,
        })
    }

    fn check(by: By, value: &str, images_min: u64, slots: &[Slot], expected: Option<Vec<Slot>>) {
        let mut targets = Targets::default();
        targets.add(Target::parse(by, value).unwrap());
        let applied = apply(&targets, page(slots.to_vec()), images_min);
        assert_eq!(applied.row, expected.map(page), "{value}");
    }

    #[test]
    fn a_document_loses_an_image_and_its_texts_meet() {
        let slots = [text("a"), image("1"), text("b"), image("2"), image("3"), text("c")];
        let url = "https://img.example/1";
        let left = vec![text("a\n\nb"), image("2"), image("3"), text("c")];
        check(By::Url, url, 1, &slots, Some(left));
        let hash = flamingo_dataset::sha256_hex(b"2");
        let left = vec![text("a"), image("1"), text("b"), image("3"), text("c")];
        check(By::Sha256, &hash, 1, &slots, Some(left));
        // All images go: the document goes too, unless the plan keeps texts.
        check(By::Domain, "img.example", 1, &slots, None);
        check(By::Domain, "img.example", 0, &slots, Some(vec![text("a\n\nb\n\nc")]));
        check(By::Url, url, 3, &slots, None);
        // Others stay as they are.
        check(By::Url, "https://img.example/4", 9, &slots, Some(slots.to_vec()));
        // The document itself.
        check(By::Url, "https://site.example/page#x", 0, &slots, None);
        check(By::Domain, "example", 0, &slots, None);
    }
}
