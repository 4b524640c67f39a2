//! Why a whole run stops. A bad record never does: it becomes a [`crate::reject::Reject`].

use std::path::PathBuf;

use flamingo_dataset::CorpusError;

/// Why a run could not start or go on. Each message names the file, key or folder.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IngestError {
    /// The plan file could not be read.
    #[error("cannot read plan {}", path.display())]
    PlanRead {
        /// The plan file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The plan is not TOML, or has an unknown key or a value of a wrong type.
    #[error("plan {origin}: {message}")]
    PlanParse {
        /// The plan file.
        origin: String,
        /// The parser's message in one line, which names the key.
        message: String,
    },
    /// A value of the plan is out of its range.
    #[error("plan key `{key}` is {value}, expected {expected}")]
    PlanValue {
        /// Dotted key.
        key: &'static str,
        /// The value that was given.
        value: String,
        /// What would have been accepted.
        expected: &'static str,
    },
    /// An input has a name that this kind of run does not read.
    #[error("input {input} is not one of {expected}")]
    InputKind {
        /// The input as given.
        input: String,
        /// File kinds that are read.
        expected: String,
    },
    /// An input folder holds nothing to read.
    #[error("input folder {input} holds none of {expected}")]
    InputEmpty {
        /// The input as given.
        input: String,
        /// File kinds that are read.
        expected: String,
    },
    /// Something is to be asked for over the network, and nobody answers for it.
    #[error(
        "there are addresses to ask for and plan key `fetch.contact` is empty: expected an address or \
         mailbox of those who answer for the requests, or `fetch.enabled = false`"
    )]
    FetchContact,
    /// A corpus of a kind that is not asked for again.
    #[error("corpus {corpus} is of kind {kind}: expected a corpus of pairs (image_text)")]
    RetryKind {
        /// The corpus as given.
        corpus: String,
        /// Its kind.
        kind: &'static str,
    },
    /// One input is given twice.
    #[error("input {input} is given twice, expected each input once")]
    InputRepeated {
        /// The input as given the second time.
        input: String,
    },
    /// An input could not be opened or read.
    #[error("cannot read input {input}")]
    InputRead {
        /// The input as given.
        input: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// An input on an object store could not be read.
    #[error("cannot read input {input}")]
    InputFetch {
        /// The input as given.
        input: String,
        /// What the store said.
        source: Box<CorpusError>,
    },
    /// A list of images or clips lacks a column.
    #[error("input {input} has the columns `{found}`, expected {expected}")]
    InputColumns {
        /// The input as given.
        input: String,
        /// The columns it has.
        found: String,
        /// The columns it needs.
        expected: String,
    },
    /// A list of images or clips cannot be parsed.
    #[error("input {input}: {message}")]
    InputFormat {
        /// The input as given.
        input: String,
        /// What is wrong and what was expected.
        message: String,
    },
    /// An archive ends inside a record.
    #[error(
        "archive {input} is cut off in the record at byte {offset}: expected a whole file, or \
         `archive.cut_off = \"skip\"` in the plan"
    )]
    ArchiveCutOff {
        /// The input as given.
        input: String,
        /// Where the record that is not whole begins.
        offset: u64,
    },
    /// The records of archives that are compressed as one stream take more space than they may.
    #[error(
        "the records that must be kept of archives compressed as one stream take more than {limit} \
         bytes in {}: expected at most `archive.spool_bytes_max` of the plan, or archives with one \
         compressed member per record", folder.display()
    )]
    SpoolFull {
        /// Where they are kept.
        folder: PathBuf,
        /// Most bytes.
        limit: u64,
    },
    /// The records of archives that are compressed as one stream cannot be kept.
    #[error("cannot keep records of archives compressed as one stream in {}", folder.display())]
    SpoolWrite {
        /// Where they are kept.
        folder: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// An archive without a single record.
    #[error("input {input} is no WARC file: {reason} at byte 0")]
    ArchiveForeign {
        /// The input as given.
        input: String,
        /// What was found in place of a record.
        reason: &'static str,
    },
    /// Every item of the input was dropped.
    #[error("nothing was kept of {n_items} items, so no corpus was written: {reasons}")]
    NothingKept {
        /// Items of the input.
        n_items: u64,
        /// Reasons with their counts, and the first reject.
        reasons: String,
    },
    /// The archives hold more records than one run indexes.
    #[error(
        "the inputs hold more than {limit} archive records, expected at most that many per run"
    )]
    TooManyRecords {
        /// Most records that one run indexes.
        limit: usize,
    },
    /// A file of the output could not be written.
    #[error("cannot write {}", path.display())]
    OutputWrite {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Another run writes to the output.
    #[error("output {out} is being written by another run, expected to be alone")]
    OutputBusy {
        /// The output as given.
        out: String,
    },
    /// The output folder is there already.
    #[error("output {out} exists, expected a new folder or --resume")]
    OutputExists {
        /// The output as given.
        out: String,
    },
    /// The output folder is not the work of this program.
    #[error(
        "output {out} holds `{name}`, which no run of flamingo-ingest wrote: expected a run to resume"
    )]
    OutputForeign {
        /// The output as given.
        out: String,
        /// A file found there.
        name: String,
    },
    /// A resumed run differs from the one that was started.
    #[error("output {out} was started with another {what}: expected {expected}, found {found}")]
    ResumeMismatch {
        /// The output as given.
        out: String,
        /// Which part differs, e.g. plan or input.
        what: &'static str,
        /// What the first run had.
        expected: String,
        /// What this run has.
        found: String,
    },
    /// A journal entry cannot be read.
    #[error("journal entry {name} of {out} cannot be read: {message}")]
    Journal {
        /// The output as given.
        out: String,
        /// Name of the entry.
        name: String,
        /// The parser's message.
        message: String,
    },
    /// The corpus could not be read or written.
    #[error(transparent)]
    Corpus(Box<CorpusError>),
    /// A corpus does not keep its promises.
    #[error("corpus {corpus}: {message}")]
    CheckFailed {
        /// The corpus as given.
        corpus: String,
        /// The first broken promise.
        message: String,
    },
    /// A corpus that something else is writing.
    #[error(
        "corpus {corpus} is being written: expected no run that is unfinished and no other purge"
    )]
    CorpusBusy {
        /// The corpus as given.
        corpus: String,
    },
    /// The place of an export is taken, or is no folder of a disk.
    #[error("output {out} exists or is no local path, expected a new folder on a disk")]
    ExportExists {
        /// The output as given.
        out: String,
    },
    /// A format that has no place for rows of this kind.
    #[error("format {format} holds interleaved documents, the corpus is {kind}")]
    ExportKind {
        /// The format.
        format: &'static str,
        /// Kind of the corpus.
        kind: &'static str,
    },
    /// A file beside the corpus could not be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A row that is asked for and is not there.
    #[error("corpus {corpus} has no row with {what} `{value}`")]
    NoSuchRow {
        /// The corpus as given.
        corpus: String,
        /// `key` or `address`.
        what: &'static str,
        /// What was given.
        value: String,
    },
    /// What a person named is nothing that a corpus can hold.
    #[error("{by} `{value}` is not {expected}")]
    Target {
        /// How it was named: `url`, `domain`, `sha256`.
        by: &'static str,
        /// What was given.
        value: String,
        /// What would have been accepted.
        expected: &'static str,
    },
    /// The video library could not be started.
    #[error("cannot start the video decoder: {message}")]
    VideoDecoder {
        /// The library's message.
        message: String,
    },
    /// The address for metrics cannot be used.
    #[error("cannot serve metrics at {address}")]
    MetricsAddress {
        /// The address as given.
        address: std::net::SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// The terminal went away.
    #[error("cannot write to standard output")]
    Stdout {
        /// What the system said.
        source: std::io::Error,
    },
}

impl From<CorpusError> for IngestError {
    fn from(error: CorpusError) -> Self {
        Self::Corpus(Box::new(error))
    }
}

impl IngestError {
    /// Whether the fault lies with the output or the machine: the same run may go on later.
    pub fn is_of_output(&self) -> bool {
        matches!(self, Self::Corpus(_) | Self::OutputWrite { .. })
    }

    /// Process exit code: 2 for bad usage or configuration, 1 for everything else.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::PlanRead { .. }
            | Self::PlanParse { .. }
            | Self::PlanValue { .. }
            | Self::InputKind { .. }
            | Self::InputEmpty { .. }
            | Self::FetchContact
            | Self::RetryKind { .. }
            | Self::InputRepeated { .. }
            | Self::InputColumns { .. }
            | Self::MetricsAddress { .. }
            | Self::OutputExists { .. }
            | Self::OutputForeign { .. }
            | Self::Target { .. }
            | Self::ExportExists { .. }
            | Self::ExportKind { .. }
            | Self::ResumeMismatch { .. } => 2,
            _ => 1,
        }
    }
}
