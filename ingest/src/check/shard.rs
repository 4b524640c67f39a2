//! The footer of each shard: size, rows, exact columns, and how they are stored.

use arrow::datatypes::Schema;
use flamingo_dataset::{CorpusKind, CorpusStore, Manifest, ShardEntry, StoredObject, schema};
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions};
use parquet::basic::Compression;
use parquet::file::metadata::{ColumnChunkMetaData, PageIndexPolicy, ParquetMetaData};

use super::Checked;
use super::layout::error_text;
use crate::error::IngestError;
use crate::table::guarded;

/// Largest row group of more than one row. Viewers refuse larger ones; the writer counts 100 MB of
/// values, so that levels and pages may come on top.
const ROW_GROUP_BYTES_MAX: i64 = 104_857_600;
/// Key under which Hugging Face `datasets` looks for its features.
const HUGGINGFACE_KEY: &str = "huggingface";

/// A shard whose footer can be trusted.
pub(super) struct Footer<'a> {
    pub(super) entry: &'a ShardEntry,
    /// First row in the corpus.
    pub(super) first_row: u64,
    pub(super) metadata: ArrowReaderMetadata,
}

/// Checks all footers; those with which rows can be read come back.
pub(super) fn check_all<'a>(
    store: &CorpusStore,
    manifest: &'a Manifest,
    checked: &mut Checked,
) -> Result<Vec<Footer<'a>>, IngestError> {
    let mut footers = Vec::new();
    let mut first_row = 0;
    for entry in &manifest.shards {
        if let Some(metadata) = check(store, manifest.kind, entry, checked)? {
            footers.push(Footer { entry, first_row, metadata });
        }
        first_row += entry.rows;
    }
    Ok(footers)
}

fn check(
    store: &CorpusStore,
    kind: CorpusKind,
    entry: &ShardEntry,
    checked: &mut Checked,
) -> Result<Option<ArrowReaderMetadata>, IngestError> {
    let file = &entry.file;
    if !store.exists(file)? {
        checked.add(file, "the manifest lists it, it is missing");
        return Ok(None);
    }
    let bytes = store.size(file)?;
    if bytes != entry.bytes {
        checked.add(file, format!("it has {bytes} bytes, the manifest says {}", entry.bytes));
        return Ok(None);
    }
    let object = StoredObject::open(store, file)?;
    let options = ArrowReaderOptions::new().with_page_index_policy(PageIndexPolicy::Optional);
    let metadata = match guarded(|| ArrowReaderMetadata::load(&object, options)) {
        Ok(metadata) => metadata,
        Err(error) => {
            checked.add(file, format!("its footer cannot be read: {}", error_text(&error)));
            return Ok(None);
        }
    };
    let rows = metadata.metadata().file_metadata().num_rows();
    if rows as u64 != entry.rows {
        checked.add(file, format!("it has {rows} rows, the manifest says {}", entry.rows));
        return Ok(None);
    }
    let columns = wrong_columns(metadata.schema(), &schema(kind));
    let can_be_read = columns.is_empty();
    let stored = wrong_storage(metadata.metadata(), kind);
    for problem in columns.into_iter().chain(features(&metadata, kind)).chain(stored) {
        checked.add(file, problem);
    }
    Ok(can_be_read.then_some(metadata))
}

/// Names, order, types and nullability of all columns, at every level.
fn wrong_columns(found: &Schema, expected: &Schema) -> Vec<String> {
    let mut problems = Vec::new();
    for field in expected.fields() {
        match found.field_with_name(field.name()) {
            Err(_) => problems.push(format!("column `{}` is missing", field.name())),
            Ok(other) if other.data_type() != field.data_type() => problems.push(format!(
                "column `{}` should be {}, found {}",
                field.name(),
                field.data_type(),
                other.data_type()
            )),
            Ok(other) if !other.is_nullable() => {
                problems.push(format!("column `{}` should be nullable", field.name()));
            }
            Ok(_) => {}
        }
    }
    let names = |schema: &Schema| -> Vec<String> {
        schema.fields().iter().map(|field| field.name().clone()).collect()
    };
    if problems.is_empty() && names(found) != names(expected) {
        let found = names(found).join(", ");
        problems.push(format!("its columns are {found}: others, or in another order"));
    }
    problems
}

/// The key that makes `datasets` show images.
fn features(metadata: &ArrowReaderMetadata, kind: CorpusKind) -> Option<String> {
    let expected = schema(kind);
    let expected = &expected.metadata()[HUGGINGFACE_KEY];
    let key_values = metadata.metadata().file_metadata().key_value_metadata();
    let found = key_values.and_then(|all| all.iter().find(|pair| pair.key == HUGGINGFACE_KEY));
    let parse = |text: &str| serde_json::from_str::<serde_json::Value>(text).ok();
    let is_same = found
        .and_then(|pair| pair.value.as_deref())
        .is_some_and(|value| parse(value) == parse(expected));
    (!is_same)
        .then(|| format!("its `{HUGGINGFACE_KEY}` key does not name the features of its columns"))
}

/// Row groups, page index, and how the bytes of images are stored.
fn wrong_storage(metadata: &ParquetMetaData, kind: CorpusKind) -> Vec<String> {
    let mut problems = Vec::new();
    if metadata.num_row_groups() > 0 && metadata.offset_index().is_none() {
        problems.push("it has no page index".to_owned());
    }
    for (i, group) in metadata.row_groups().iter().enumerate() {
        let bytes = group.compressed_size();
        if bytes > ROW_GROUP_BYTES_MAX && group.num_rows() > 1 {
            problems.push(format!(
                "row group {i} has {bytes} bytes, expected at most {ROW_GROUP_BYTES_MAX}"
            ));
        }
        for column in group.columns() {
            let path = column.column_path().string();
            problems
                .extend(wrong_column(column, &path, kind).map(|p| format!("row group {i}: {p}")));
        }
    }
    problems
}

fn wrong_column(column: &ColumnChunkMetaData, path: &str, kind: CorpusKind) -> Option<String> {
    let images = match kind {
        CorpusKind::Interleaved => "images.",
        CorpusKind::ImageText => "image.",
        CorpusKind::VideoText => "frames.",
    };
    let is_image_bytes = path.starts_with(images) && path.rsplit('.').next() == Some("bytes");
    if !is_image_bytes {
        let is_plain = column.compression() == Compression::UNCOMPRESSED;
        return is_plain.then(|| format!("column `{path}` should be compressed"));
    }
    let problem = if column.compression() != Compression::UNCOMPRESSED {
        "should be stored uncompressed"
    } else if column.dictionary_page_offset().is_some() {
        "should have no dictionary"
    } else if column.statistics().is_some() {
        "should have no statistics"
    } else {
        return None;
    };
    Some(format!("column `{path}` {problem}"))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::datatypes::{DataType, Field};

    use super::*;

    #[test]
    fn columns_are_compared_at_every_level() {
        let expected = schema(CorpusKind::ImageText);
        let check = |change: &dyn Fn(&mut Vec<Field>), problem: &str| {
            let mut fields: Vec<Field> =
                expected.fields().iter().map(|field| field.as_ref().clone()).collect();
            change(&mut fields);
            let found = wrong_columns(&Schema::new(fields), &expected).join("; ");
            assert!(found.contains(problem), "{found}");
        };
        assert!(wrong_columns(&expected, &expected).is_empty());
        check(&|fields| drop(fields.remove(0)), "column `key` is missing");
        check(&|fields| fields.swap(0, 1), "in another order");
        check(&|fields| fields.push(Field::new("more", DataType::Utf8, true)), "others");
        check(&|fields| fields[0].set_nullable(false), "`key` should be nullable");
        check(&|fields| fields[0].set_data_type(DataType::LargeUtf8), "`key` should be Utf8");
        // The same names in another order inside a struct are not what `datasets` shows.
        let swapped = |fields: &mut Vec<Field>| {
            let DataType::Struct(inner) = fields[3].data_type().clone() else { unreachable!() };
            let inner: Vec<_> = inner.iter().rev().map(Arc::clone).collect();
            fields[3].set_data_type(DataType::Struct(inner.into()));
        };
        check(&swapped, "column `image` should be");
    }
}
