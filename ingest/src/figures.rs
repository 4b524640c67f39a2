//! The figures that the rules looked at, kept for every document, image and caption, dropped or not:
//! with them a threshold can be moved on paper before a run is made again.
//!
//! A row of `figures/part-NNNNN.parquet` is one thing that was measured; each figure has a column of
//! its own, null where it was not taken. The files lie beside the shards and are no part of them.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanArray, Float32Array, Float32Builder, ListBuilder, RecordBatch, StringArray,
    StringBuilder, StructBuilder,
};
use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef};
use serde::{Deserialize, Serialize};

use crate::reject::{self, DropReason, Stage};
use crate::word::{self, Word};

/// Names of all figures, which are the columns of the table, in order.
pub const NAMES: &[&str] = &[
    "bytes",
    "width",
    "height",
    "aspect",
    "colour_span",
    // Texts of any kind: OBELICS' figures, see `rules::words`.
    "words",
    "spaced_words",
    "chars",
    "sentences",
    "stop_words",
    "flagged_words",
    "spam_words",
    "common_words",
    "word_repetition",
    "char_repetition",
    "special_chars",
    "punctuation",
    "lang_score",
    // Whole documents: Gopher's, C4's and FineWeb's figures.
    "gopher_words",
    "word_length",
    "hashes",
    "ellipses",
    "bullet_lines",
    "ellipsis_lines",
    "alphabetic_words",
    "gopher_stop_words",
    "duplicate_paragraphs",
    "duplicate_paragraph_chars",
    "duplicate_lines",
    "duplicate_line_chars",
    "top_2_gram",
    "top_3_gram",
    "top_4_gram",
    "duplicate_5_gram",
    "duplicate_6_gram",
    "duplicate_7_gram",
    "duplicate_8_gram",
    "duplicate_9_gram",
    "duplicate_10_gram",
    "c4_sentences",
    "c4_lines",
    "lorem_ipsum",
    "curly_brackets",
    "javascript_lines",
    "policy_lines",
    "line_punctuation",
    "short_lines",
    "duplicate_chars",
    "newlines",
    "images",
    "image_bytes",
];

/// What the name of a figure begins with that is the score of an outside classifier. Scores have no
/// column of their own: they are the list `scores` of names and numbers.
pub const SCORE: &str = "score:";

/// What was measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Level {
    /// An interleaved document.
    Document,
    /// A paragraph of one.
    Paragraph,
    /// A caption of an image or clip.
    Caption,
    /// One image.
    Image,
}

impl Level {
    /// Name in the table.
    pub fn name(self) -> &'static str {
        match self {
            Self::Document => "document",
            Self::Paragraph => "paragraph",
            Self::Caption => "caption",
            Self::Image => "image",
        }
    }
}

/// What is known of one document, paragraph, caption or image.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// What it is.
    pub level: Level,
    /// Identifier of the row it belongs to: `doc_id` of a document, `key` of a pair or clip.
    pub key: String,
    /// Address of the document or image, where it has one.
    pub url: Option<String>,
    /// The first rule that dropped it, as in the rejects (`stage/reason`); none where it was kept.
    pub dropped_by: Option<String>,
    /// Figures by their name among [`NAMES`], and scores by [`SCORE`] and their name.
    #[serde(deserialize_with = "word::deserialize_named")]
    pub values: Vec<(Word, f32)>,
}

impl Figures {
    /// Adds the scores of an image, and the rule among theirs that dropped it.
    pub fn judge(&mut self, scores: &[(Word, f32)], drop: Option<&DropReason>) {
        self.values.extend(scores);
        if let Some(drop) = drop {
            self.dropped_by = Some(format!("{}/{}", Stage::Image.name(), drop.reason));
        }
    }
}

/// Arrow schema of `figures/part-NNNNN.parquet`; every column is nullable, as in the corpus.
pub fn schema() -> SchemaRef {
    let texts = ["level", "key", "url", "dropped_by"];
    let mut fields: Vec<_> =
        texts.iter().map(|name| Field::new(*name, DataType::Utf8, true)).collect();
    fields.insert(3, Field::new("kept", DataType::Boolean, true));
    fields.extend(NAMES.iter().map(|name| Field::new(*name, DataType::Float32, true)));
    let score = DataType::Struct(score_fields());
    fields.push(Field::new(
        "scores",
        DataType::List(Arc::new(Field::new_list_field(score, true))),
        true,
    ));
    Arc::new(Schema::new(fields))
}

fn score_fields() -> Fields {
    Fields::from(vec![
        Field::new("name", DataType::Utf8, true),
        Field::new("score", DataType::Float32, true),
    ])
}

/// The figures as a Parquet file; equal figures give equal bytes.
pub fn encode(figures: &[Figures]) -> Vec<u8> {
    reject::encode_batch(&to_batch(figures))
}

/// The figures as one record batch of [`schema`].
///
/// # Panics
/// When a figure is named that is not among [`NAMES`].
pub fn to_batch(figures: &[Figures]) -> RecordBatch {
    let text = |value: fn(&Figures) -> Option<&str>| -> ArrayRef {
        Arc::new(figures.iter().map(value).collect::<StringArray>())
    };
    let mut columns = vec![
        text(|f| Some(f.level.name())),
        text(|f| Some(&f.key)),
        text(|f| f.url.as_deref()),
        Arc::new(figures.iter().map(|f| Some(f.dropped_by.is_none())).collect::<BooleanArray>()),
        text(|f| f.dropped_by.as_deref()),
    ];
    let mut values = vec![vec![None; figures.len()]; NAMES.len()];
    for (row, measured) in figures.iter().enumerate() {
        for (name, value) in measured.values.iter().filter(|(name, _)| !name.starts_with(SCORE)) {
            let column = NAMES.iter().position(|known| known == name);
            values[column.unwrap_or_else(|| panic!("`{name}` is no figure"))][row] = Some(*value);
        }
    }
    columns.extend(values.into_iter().map(|v| Arc::new(Float32Array::from(v)) as ArrayRef));
    columns.push(scores(figures));
    RecordBatch::try_new(schema(), columns).expect("the columns are built from the same schema")
}

/// The scores of each row; null where it has none.
fn scores(figures: &[Figures]) -> ArrayRef {
    let mut lists = ListBuilder::new(StructBuilder::from_fields(score_fields(), 0));
    for measured in figures {
        let scores =
            measured.values.iter().filter_map(|(name, v)| Some((name.strip_prefix(SCORE)?, v)));
        let mut has_score = false;
        for (name, value) in scores {
            let score = lists.values();
            let names = score.field_builder::<StringBuilder>(0).expect("the first field is a name");
            names.append_value(name);
            let values = score.field_builder::<Float32Builder>(1).expect("the second is a number");
            values.append_value(*value);
            score.append(true);
            has_score = true;
        }
        lists.append(has_score);
    }
    Arc::new(lists.finish())
}

#[cfg(test)]
mod tests {
    use arrow::array::AsArray;
    use arrow::datatypes::Float32Type;

    use super::*;

    #[test]
    fn a_figure_that_was_not_taken_is_null() {
        let figures = |dropped_by: Option<&str>, values| Figures {
            level: Level::Image,
            key: "k".into(),
            url: None,
            dropped_by: dropped_by.map(str::to_owned),
            values,
        };
        let batch = to_batch(&[
            figures(None, vec![("aspect", 1.5), ("score:nsfw", 0.5)]),
            figures(Some("image/too_small"), vec![("width", 3.0), ("height", 2.0)]),
        ]);
        assert!(batch["kept"].as_boolean().value(0) && !batch["kept"].as_boolean().value(1));
        let aspect = batch["aspect"].as_primitive::<Float32Type>();
        assert!((aspect.value(0) - 1.5).abs() < f32::EPSILON && aspect.iter().nth(1) == Some(None));
        let scores = batch["scores"].as_list::<i32>();
        assert!(scores.value(0).as_struct().column(0).as_string::<i32>().value(0) == "nsfw");
        assert!(arrow::array::Array::is_null(scores, 1));
        assert!(!encode(&[]).is_empty());
    }
}
