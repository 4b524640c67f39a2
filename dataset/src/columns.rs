//! Rows to Arrow columns, in the order of the schema.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BinaryArray, Float32Array, Int16Array, Int32Array, Int64Array, ListArray,
    StringArray, StructArray, TimestampMicrosecondArray, UInt64Array,
};
use arrow::buffer::{NullBuffer, OffsetBuffer};
use arrow::datatypes::Fields;

use crate::media_mask::{Attend, phi_of_marks};
use crate::schema::{image_fields, image_meta_fields, list_element, score_fields};
use crate::{EncodedImage, ImageMeta, ImageText, Interleaved, Slot, VideoText, WarcPlace};

/// Columns of `pages`, as `schema(CorpusKind::Interleaved)` names them.
pub(crate) fn interleaved(pages: &[&Interleaved]) -> Vec<ArrayRef> {
    let joined: Vec<_> = pages.iter().map(|page| page.joined_text()).collect();
    let mut columns = vec![
        text(pages, |page| Some(&page.doc_id)),
        text(pages, |page| Some(&page.url)),
        slot_texts(pages),
        slot_images(pages),
        slot_media(pages, Attend::Previous),
        slot_media(pages, Attend::Next),
        image_meta(pages),
        Arc::new(StringArray::from_iter_values(joined.iter().map(|j| &j.text))),
        int32_lists(joined.iter().map(|j| j.image_char_offset.as_slice())),
        text(pages, |page| page.title.as_ref()),
        text(pages, |page| page.lang.as_ref()),
        Arc::new(pages.iter().map(|page| page.lang_score).collect::<Float32Array>()),
    ];
    columns.extend(warc(pages, |page| page.warc.as_ref()));
    let fetched = pages.iter().map(|page| page.fetched_at_us);
    columns.push(Arc::new(fetched.collect::<TimestampMicrosecondArray>().with_timezone("UTC")));
    columns
}

/// Columns of `pairs`, as `schema(CorpusKind::ImageText)` names them.
pub(crate) fn image_text(pairs: &[&ImageText]) -> Vec<ArrayRef> {
    let mut columns = vec![
        text(pairs, |pair| Some(&pair.key)),
        text(pairs, |pair| pair.url.as_ref()),
        text(pairs, |pair| Some(&pair.caption)),
        images(pairs.iter().map(|pair| Some(&pair.image))),
        int32(pairs, |pair| pair.width),
        int32(pairs, |pair| pair.height),
        int32(pairs, |pair| pair.original_width),
        int32(pairs, |pair| pair.original_height),
        text(pairs, |pair| Some(&pair.sha256)),
        Arc::new(UInt64Array::from_iter_values(pairs.iter().map(|pair| pair.phash))),
        text(pairs, |pair| pair.source.as_ref()),
        scores(pairs),
    ];
    columns.extend(warc(pairs, |pair| pair.warc.as_ref()));
    columns
}

/// Columns of `clips`, as `schema(CorpusKind::VideoText)` names them.
pub(crate) fn video_text(clips: &[&VideoText]) -> Vec<ArrayRef> {
    let frames = images(clips.iter().flat_map(|clip| clip.frames.iter().map(Some)));
    vec![
        text(clips, |clip| Some(&clip.key)),
        text(clips, |clip| clip.url.as_ref()),
        text(clips, |clip| Some(&clip.caption)),
        lists(clips.iter().map(|clip| clip.frames.len()), frames),
        int32_lists(clips.iter().map(|clip| clip.frame_ms.as_slice())),
        int32(clips, |clip| clip.start_ms),
        int32(clips, |clip| clip.end_ms),
        int32(clips, |clip| clip.duration_ms),
        int32(clips, |clip| clip.width),
        int32(clips, |clip| clip.height),
        text(clips, |clip| Some(&clip.codec)),
        text(clips, |clip| Some(&clip.sha256)),
    ]
}

fn text<T>(rows: &[&T], of: impl Fn(&T) -> Option<&String>) -> ArrayRef {
    Arc::new(rows.iter().map(|row| of(row)).collect::<StringArray>())
}

fn int32<T>(rows: &[&T], of: impl Fn(&T) -> i32) -> ArrayRef {
    Arc::new(Int32Array::from_iter_values(rows.iter().map(|row| of(row))))
}

fn int32_lists<'a>(rows: impl Iterator<Item = &'a [i32]> + Clone) -> ArrayRef {
    let values = Int32Array::from_iter_values(rows.clone().flatten().copied());
    lists(rows.map(<[i32]>::len), Arc::new(values))
}

/// A list column from the length of each row and all values in one array.
fn lists(lengths: impl Iterator<Item = usize>, values: ArrayRef) -> ArrayRef {
    let element = list_element(values.data_type().clone());
    Arc::new(ListArray::new(element, OffsetBuffer::from_lengths(lengths), values, None))
}

fn structs(fields: Fields, columns: Vec<ArrayRef>) -> ArrayRef {
    Arc::new(StructArray::new(fields, columns, None))
}

fn images<'a>(images: impl Iterator<Item = Option<&'a EncodedImage>> + Clone) -> ArrayRef {
    let bytes: BinaryArray = images.clone().map(|i| i.map(|i| i.bytes.as_ref())).collect();
    let path: StringArray = images.clone().map(|i| i.and_then(|i| i.path.as_deref())).collect();
    let present = NullBuffer::from(images.map(|i| i.is_some()).collect::<Vec<_>>());
    let columns: Vec<ArrayRef> = vec![Arc::new(bytes), Arc::new(path)];
    Arc::new(StructArray::new(image_fields(), columns, Some(present)))
}

fn n_slots<'a>(pages: &'a [&Interleaved]) -> impl Iterator<Item = usize> + 'a {
    pages.iter().map(|page| page.slots.len())
}

fn slot_texts(pages: &[&Interleaved]) -> ArrayRef {
    let slots = pages.iter().flat_map(|page| &page.slots);
    let texts = slots.map(|slot| match slot {
        Slot::Text(text) => Some(text),
        Slot::Image { .. } => None,
    });
    lists(n_slots(pages), Arc::new(texts.collect::<StringArray>()))
}

fn slot_images(pages: &[&Interleaved]) -> ArrayRef {
    let slots = pages.iter().flat_map(|page| &page.slots);
    let column = images(slots.map(|slot| match slot {
        Slot::Image { image, .. } => Some(image),
        Slot::Text(_) => None,
    }));
    lists(n_slots(pages), column)
}

fn slot_media(pages: &[&Interleaved], attend: Attend) -> ArrayRef {
    let per_page = pages.iter().flat_map(|page| {
        let marks: Vec<bool> = page.slots.iter().map(Slot::is_image).collect();
        phi_of_marks(&marks, attend)
    });
    let values = Int16Array::from_iter_values(per_page.map(|phi| phi as i16));
    lists(n_slots(pages), Arc::new(values))
}

/// One entry per image of each page, in reading order.
fn image_meta(pages: &[&Interleaved]) -> ArrayRef {
    let per_page: Vec<Vec<&ImageMeta>> = pages.iter().map(|page| metas(page)).collect();
    let all: Vec<&ImageMeta> = per_page.iter().flatten().copied().collect();
    let columns = vec![
        text(&all, |meta| meta.url.as_ref()),
        text(&all, |meta| meta.alt.as_ref()),
        int32(&all, |meta| meta.width),
        int32(&all, |meta| meta.height),
        text(&all, |meta| Some(&meta.sha256)),
        Arc::new(UInt64Array::from_iter_values(all.iter().map(|meta| meta.phash))),
        text(&all, |meta| Some(&meta.mime)),
    ];
    lists(per_page.iter().map(Vec::len), structs(image_meta_fields(), columns))
}

fn metas(page: &Interleaved) -> Vec<&ImageMeta> {
    let metas = page.slots.iter().filter_map(|slot| match slot {
        Slot::Image { meta, .. } => Some(meta),
        Slot::Text(_) => None,
    });
    metas.collect()
}

fn scores(pairs: &[&ImageText]) -> ArrayRef {
    let all = pairs.iter().flat_map(|pair| &pair.scores);
    let names: StringArray = all.clone().map(|(name, _)| Some(name)).collect();
    let values = Float32Array::from_iter_values(all.map(|(_, score)| *score));
    let columns: Vec<ArrayRef> = vec![Arc::new(names), Arc::new(values)];
    lists(pairs.iter().map(|pair| pair.scores.len()), structs(score_fields(), columns))
}

fn warc<T>(rows: &[&T], of: impl Fn(&T) -> Option<&WarcPlace>) -> [ArrayRef; 3] {
    let offsets = rows.iter().map(|row| of(row).map(|place| place.offset));
    let lengths = rows.iter().map(|row| of(row).map(|place| place.length));
    [
        text(rows, |row| of(row).map(|place| &place.filename)),
        Arc::new(offsets.collect::<Int64Array>()),
        Arc::new(lengths.collect::<Int64Array>()),
    ]
}
