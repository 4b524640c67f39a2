//! Arrow columns back to rows. Every contradiction is an error that names row and column.

use arrow::array::{Array, ArrayRef, AsArray, StructArray};
use arrow::datatypes::{Float32Type, Int32Type, Int64Type, TimestampMicrosecondType, UInt64Type};
use bytes::Bytes;

use crate::{
    CorpusError, CorpusKind, EncodedImage, ImageMeta, ImageText, Interleaved, Row, Slot, VideoText,
    WarcPlace,
};

/// Row `row_idx` of `columns`, whose types must be those of the schema of `kind`.
///
/// `location` and `row` name the row in messages. Where the bytes of the images were not read, there are
/// none in the row.
///
/// # Errors
/// When the columns of the row contradict each other.
///
/// # Panics
/// When `columns` lacks one of the schema of `kind` that a row is made of, or has it with another type or
/// with other names within it.
pub fn read_row(
    kind: CorpusKind,
    columns: &StructArray,
    row_idx: usize,
    location: &str,
    row: u64,
) -> Result<Row, CorpusError> {
    let view = RowView { columns, row_idx, location, row };
    match kind {
        CorpusKind::Interleaved => view.interleaved().map(Row::Interleaved),
        CorpusKind::ImageText => view.image_text().map(Row::ImageText),
        CorpusKind::VideoText => view.video_text().map(Row::VideoText),
    }
}

/// One row of a struct array whose column types were checked against the schema.
#[derive(Clone, Copy)]
struct RowView<'a> {
    columns: &'a StructArray,
    row_idx: usize,
    location: &'a str,
    row: u64,
}

impl<'a> RowView<'a> {
    fn interleaved(&self) -> Result<Interleaved, CorpusError> {
        Ok(Interleaved {
            doc_id: self.text("doc_id")?,
            url: self.text("url")?,
            slots: self.slots()?,
            title: self.optional_text("title"),
            lang: self.optional_text("lang"),
            lang_score: self
                .value("lang_score")
                .map(|c| c.as_primitive::<Float32Type>().value(self.row_idx)),
            warc: self.warc()?,
            fetched_at_us: self
                .value("fetched_at")
                .map(|c| c.as_primitive::<TimestampMicrosecondType>().value(self.row_idx)),
        })
    }

    fn image_text(&self) -> Result<ImageText, CorpusError> {
        Ok(ImageText {
            key: self.text("key")?,
            url: self.optional_text("url"),
            caption: self.text("caption")?,
            image: self.image("image")?,
            width: self.int32("width")?,
            height: self.int32("height")?,
            original_width: self.int32("original_width")?,
            original_height: self.int32("original_height")?,
            sha256: self.text("sha256")?,
            phash: self.uint64("phash")?,
            source: self.optional_text("source"),
            scores: self.scores()?,
            warc: self.warc()?,
        })
    }

    fn video_text(&self) -> Result<VideoText, CorpusError> {
        let clip = VideoText {
            key: self.text("key")?,
            url: self.optional_text("url"),
            caption: self.text("caption")?,
            frames: self.frames()?,
            frame_ms: self.int32_list("frame_ms")?,
            start_ms: self.int32("start_ms")?,
            end_ms: self.int32("end_ms")?,
            duration_ms: self.int32("duration_ms")?,
            width: self.int32("width")?,
            height: self.int32("height")?,
            codec: self.text("codec")?,
            sha256: self.text("sha256")?,
        };
        if clip.frames.len() != clip.frame_ms.len() {
            let (n, times) = (clip.frames.len(), clip.frame_ms.len());
            return Err(self.wrong("frame_ms", format!("{times} times for {n} frames")));
        }
        Ok(clip)
    }

    fn slots(&self) -> Result<Vec<Slot>, CorpusError> {
        let texts = self.list("texts")?;
        let images = self.list("images")?;
        let metas = self.list("image_meta")?;
        let (texts, images) = (texts.as_string::<i32>(), images.as_struct());
        if texts.len() != images.len() {
            let (t, i) = (texts.len(), images.len());
            return Err(self.wrong("images", format!("{i} slots, `texts` has {t}")));
        }
        let mut metas = self.inside(metas.as_struct());
        let mut slots = Vec::with_capacity(texts.len());
        for (slot, text) in texts.iter().enumerate() {
            slots.push(match (text, images.is_valid(slot)) {
                (Some(text), false) => Slot::Text(text.to_owned()),
                (None, true) => {
                    let image = self.image_at("images", images, slot)?;
                    if metas.row_idx == metas.columns.len() {
                        return Err(self.wrong("image_meta", "too few entries".to_owned()));
                    }
                    let meta = metas.meta()?;
                    metas.row_idx += 1;
                    Slot::Image { image, meta }
                }
                _ => {
                    let problem = format!("slot {slot} must be either text or image");
                    return Err(self.wrong("texts", problem));
                }
            });
        }
        Ok(slots)
    }

    fn meta(&self) -> Result<ImageMeta, CorpusError> {
        Ok(ImageMeta {
            url: self.optional_text("url"),
            alt: self.optional_text("alt"),
            width: self.int32("width")?,
            height: self.int32("height")?,
            sha256: self.text("sha256")?,
            phash: self.uint64("phash")?,
            mime: self.text("mime")?,
        })
    }

    fn frames(&self) -> Result<Vec<EncodedImage>, CorpusError> {
        let frames = self.list("frames")?;
        let frames = frames.as_struct();
        (0..frames.len()).map(|frame| self.image_at("frames", frames, frame)).collect()
    }

    fn scores(&self) -> Result<Vec<(String, f32)>, CorpusError> {
        let Some(list) = self.value("scores") else { return Ok(Vec::new()) };
        let list = list.as_list::<i32>();
        if list.value_length(self.row_idx) == 0 {
            return Ok(Vec::new());
        }
        let list = list.value(self.row_idx);
        let mut view = self.inside(list.as_struct());
        let mut scores = Vec::with_capacity(view.columns.len());
        while view.row_idx < view.columns.len() {
            let score = view.required("score")?.as_primitive::<Float32Type>().value(view.row_idx);
            scores.push((view.text("name")?, score));
            view.row_idx += 1;
        }
        Ok(scores)
    }

    fn warc(&self) -> Result<Option<WarcPlace>, CorpusError> {
        let Some(filename) = self.optional_text("warc_filename") else { return Ok(None) };
        let offset = self.int64("warc_record_offset")?;
        let length = self.int64("warc_record_length")?;
        Ok(Some(WarcPlace { filename, offset, length }))
    }

    fn image(&self, column: &str) -> Result<EncodedImage, CorpusError> {
        self.image_at(column, self.required(column)?.as_struct(), self.row_idx)
    }

    fn image_at(
        &self,
        column: &str,
        images: &StructArray,
        idx: usize,
    ) -> Result<EncodedImage, CorpusError> {
        let bytes = images.column_by_name("bytes").map(AsArray::as_binary::<i32>);
        let path = images.column_by_name("path").expect("the schema was checked");
        let path = path.as_string::<i32>();
        if images.is_null(idx) || bytes.is_some_and(|bytes| bytes.is_null(idx)) {
            return Err(self.wrong(column, format!("image {idx} is null")));
        }
        Ok(EncodedImage {
            bytes: bytes.map_or_else(Bytes::new, |bytes| Bytes::copy_from_slice(bytes.value(idx))),
            path: path.is_valid(idx).then(|| path.value(idx).to_owned()),
        })
    }

    /// The same place in messages, the first row of a nested struct.
    fn inside<'b>(&'b self, columns: &'b StructArray) -> RowView<'b> {
        RowView { columns, row_idx: 0, location: self.location, row: self.row }
    }

    /// The column, unless it is null in this row.
    fn value(&self, column: &str) -> Option<&'a ArrayRef> {
        let values = self.columns.column_by_name(column).expect("the schema was checked");
        values.is_valid(self.row_idx).then_some(values)
    }

    fn required(&self, column: &str) -> Result<&'a ArrayRef, CorpusError> {
        self.value(column).ok_or_else(|| self.wrong(column, "it is null".to_owned()))
    }

    fn optional_text(&self, column: &str) -> Option<String> {
        self.value(column).map(|c| c.as_string::<i32>().value(self.row_idx).to_owned())
    }

    fn text(&self, column: &str) -> Result<String, CorpusError> {
        Ok(self.required(column)?.as_string::<i32>().value(self.row_idx).to_owned())
    }

    fn int32(&self, column: &str) -> Result<i32, CorpusError> {
        Ok(self.required(column)?.as_primitive::<Int32Type>().value(self.row_idx))
    }

    fn int64(&self, column: &str) -> Result<i64, CorpusError> {
        Ok(self.required(column)?.as_primitive::<Int64Type>().value(self.row_idx))
    }

    fn uint64(&self, column: &str) -> Result<u64, CorpusError> {
        Ok(self.required(column)?.as_primitive::<UInt64Type>().value(self.row_idx))
    }

    fn list(&self, column: &str) -> Result<ArrayRef, CorpusError> {
        Ok(self.required(column)?.as_list::<i32>().value(self.row_idx))
    }

    fn int32_list(&self, column: &str) -> Result<Vec<i32>, CorpusError> {
        Ok(self.list(column)?.as_primitive::<Int32Type>().values().to_vec())
    }

    fn wrong(&self, column: &str, problem: String) -> CorpusError {
        CorpusError::Row {
            location: self.location.to_owned(),
            row: self.row,
            column: column.to_owned(),
            problem,
        }
    }
}
