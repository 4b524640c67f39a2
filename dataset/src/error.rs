//! Why a corpus, a shard, a row or a sample could not be read or written.

use crate::CorpusKind;

/// Every failure of this crate. Each message names the location, object, row or field it is about.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CorpusError {
    /// The location is not a folder or URL that can hold a corpus.
    #[error("cannot open {location}: {problem}")]
    Location {
        /// The path or URL as given.
        location: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The object store refused an operation on one object.
    #[error("cannot {action} {object}")]
    Object {
        /// `read`, `write`, `list` or `delete`.
        action: &'static str,
        /// Location and object name.
        object: String,
        /// The store's own reason.
        source: object_store::Error,
    },
    /// The folder exists and has no manifest.
    #[error("{location} is not a corpus: no manifest.json")]
    NotACorpus {
        /// The path or URL as given.
        location: String,
    },
    /// The manifest is not valid JSON of the expected shape.
    #[error("{object} is not a corpus manifest")]
    Manifest {
        /// Location and object name.
        object: String,
        /// Where the JSON departs from the expectation.
        source: serde_json::Error,
    },
    /// The corpus was written by a newer version of this crate.
    #[error("{object} has schema version {found}, this program reads versions up to {known}")]
    NewerSchema {
        /// Location and object name.
        object: String,
        /// Version in the manifest.
        found: u32,
        /// Highest version this crate knows.
        known: u32,
    },
    /// A shard is not the file that the manifest describes.
    #[error("shard {object} has {found} {what}, the manifest says {expected}")]
    ShardMismatch {
        /// Location and object name.
        object: String,
        /// `bytes`, `rows` or `sha256`.
        what: &'static str,
        /// What the file has.
        found: String,
        /// What the manifest says.
        expected: String,
    },
    /// A file of another program is not as that program writes it.
    #[error("{object}: {problem}")]
    Layout {
        /// Location and object name.
        object: String,
        /// What was expected.
        problem: String,
    },
    /// A piece of a distant object cannot be kept on the local disk, or did not come whole.
    #[error("disk cache, {path}: {problem}")]
    DiskCache {
        /// The file, folder or object.
        path: String,
        /// What is wrong.
        problem: String,
    },
    /// A file of kept features cannot be read or written.
    #[error("feature cache {path}: {problem}; it may be deleted")]
    FeatureCache {
        /// The file or folder.
        path: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A shard lacks a column of the schema, or has it with another type.
    #[error("shard {object} column `{column}` should be {expected}, found {found}")]
    Column {
        /// Location and object name.
        object: String,
        /// Name of the column.
        column: String,
        /// The Arrow type of the schema.
        expected: String,
        /// The Arrow type of the file, or `nothing`.
        found: String,
    },
    /// The end of a shard, which tells where its rows lie, is not valid Parquet.
    #[error("cannot read the footer of shard {object}")]
    Footer {
        /// Location and object name.
        object: String,
        /// The decoder's own reason.
        source: parquet::errors::ParquetError,
    },
    /// The pages of a row are not valid Parquet.
    #[error("cannot decode shard {object}")]
    Parquet {
        /// Location and object name.
        object: String,
        /// The decoder's own reason.
        source: parquet::errors::ParquetError,
    },
    /// The columns of a row cannot be decoded.
    #[error("cannot decode shard {object}")]
    Arrow {
        /// Location and object name.
        object: String,
        /// Arrow's own reason.
        source: arrow::error::ArrowError,
    },
    /// Rows cannot be encoded as Parquet.
    #[error("cannot encode a shard of {kind} rows")]
    Encode {
        /// Kind of the corpus.
        kind: CorpusKind,
        /// The encoder's own reason.
        source: parquet::errors::ParquetError,
    },
    /// A row of another kind, or too large for one page, was given to a shard.
    #[error("row `{key}` cannot go into a shard of {kind} rows: {problem}")]
    Unwritable {
        /// Key of the row.
        key: String,
        /// Kind of the corpus.
        kind: CorpusKind,
        /// What is wrong with the row.
        problem: String,
    },
    /// A row number past the end of the corpus.
    #[error("{location} has {n_rows} rows, row {row} does not exist")]
    NoSuchRow {
        /// The corpus.
        location: String,
        /// The row asked for.
        row: u64,
        /// Rows in the corpus.
        n_rows: u64,
    },
    /// A row whose columns contradict each other.
    #[error("{location} row {row}, column `{column}`: {problem}")]
    Row {
        /// The corpus.
        location: String,
        /// Number of the row in the corpus.
        row: u64,
        /// The column at fault.
        column: String,
        /// What is wrong with it.
        problem: String,
    },
    /// An image is not one, or is larger than the limits.
    #[error("image{}: {problem}", name.as_deref().map(|n| format!(" {n}")).unwrap_or_default())]
    Image {
        /// Path inside the corpus, where there is one.
        name: Option<String>,
        /// What is wrong with it.
        problem: String,
    },
    /// A caption of which only an answer is to be learned has none.
    #[error("no answer to learn after `{text}`: {problem}")]
    NoAnswer {
        /// What stands before an answer.
        text: String,
        /// Why there is none.
        problem: String,
    },
    /// The tokenizer could not be read, written or trained.
    #[error("tokenizer {path}: {problem}")]
    Tokenizer {
        /// The file, or `(training)`.
        path: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A setting of the mixture or of a sample is out of range.
    #[error("dataset `{name}`: `{field}` {problem}")]
    Setting {
        /// Name of the mixture entry.
        name: String,
        /// The field at fault.
        field: &'static str,
        /// What was expected.
        problem: String,
    },
    /// A mixture without a dataset.
    #[error("the mixture names no dataset")]
    EmptyMixture,
    /// No row could be found that can be made into a sample.
    #[error(
        "dataset `{name}` ({location}): row {row} and the {tried} rows drawn in its place are all corrupt"
    )]
    AllCorrupt {
        /// Name of the mixture entry.
        name: String,
        /// The corpus.
        location: String,
        /// The row that was to be read.
        row: u64,
        /// How many were tried in its place.
        tried: u64,
        /// Why the last of them failed.
        source: Box<CorpusError>,
    },
    /// More of a dataset is corrupt than its setting allows.
    #[error(
        "dataset `{name}` ({location}): {n_corrupt} of {n_rows} rows read are corrupt, more than \
         `corrupt_share_max` = {share_max}; the last is row {row}: {problem}"
    )]
    TooManyCorrupt {
        /// Name of the mixture entry.
        name: String,
        /// The corpus.
        location: String,
        /// Corrupt rows since the loader began.
        n_corrupt: u64,
        /// All rows since then.
        n_rows: u64,
        /// The setting.
        share_max: f64,
        /// The last corrupt row.
        row: u64,
        /// What is wrong with it.
        problem: String,
    },
    /// A background thread of the loader ended early.
    #[error("the loader's worker threads stopped before step {step}")]
    LoaderStopped {
        /// The step that was to be read.
        step: u64,
    },
}

impl CorpusError {
    /// Whether it says that an object does not exist.
    pub fn is_not_found(&self) -> bool {
        use object_store::Error::NotFound;
        matches!(self, Self::Object { source: NotFound { .. }, .. })
    }

    /// Whether it says that an object is denied, as stores also say of missing objects to those who may not
    /// list.
    pub fn is_denied(&self) -> bool {
        use object_store::Error::PermissionDenied;
        matches!(self, Self::Object { source: PermissionDenied { .. }, .. })
    }

    /// Whether a store did not answer as it should, which may pass.
    pub fn is_outage(&self) -> bool {
        use object_store::Error::Generic;
        matches!(self, Self::Object { source: Generic { .. }, .. })
    }

    /// Whether another row of the same corpus may well be readable. The loader goes on after such
    /// an error and counts it; a missing shard or a failing disk stops it.
    pub fn is_about_one_row(&self) -> bool {
        matches!(
            self,
            Self::Row { .. }
                | Self::Image { .. }
                | Self::NoAnswer { .. }
                | Self::Parquet { .. }
                | Self::Arrow { .. }
        )
    }
}
