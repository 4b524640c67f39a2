//! The tokenizer of a run: read, trained on its corpora, or that of its checkpoint.

use std::path::Path;

use flamingo_dataset::{Corpus, CorpusError, Row, Slot, Tokenizer, sha256_hex};

use crate::checkpoint::Checkpoint;
use crate::command::Command;
use crate::config::TokenizerConfig;
use crate::corpora::Corpora;
use crate::error::TrainError;
use crate::run_folder::RunFolder;

/// The tokenizer of a stage that has its own: the run's, once it is under way, or as the config
/// says.
pub(crate) fn own_tokenizer(
    command: &Command,
    config: &TokenizerConfig,
    folder: &RunFolder,
    corpora: &Corpora,
) -> Result<Tokenizer, TrainError> {
    if let Some(checkpoint) = &folder.checkpoint {
        return same_tokenizer(folder, checkpoint);
    }
    match config {
        TokenizerConfig::Path(path) => {
            read_tokenizer(Path::new(&command.locate(&path.to_string_lossy())))
        }
        TokenizerConfig::Train { vocabulary, rows_max } => {
            let corpora = corpora.learned.iter().map(|(_, corpus)| corpus);
            Ok(train_tokenizer(*vocabulary, *rows_max, corpora)?.0)
        }
    }
}

/// The tokenizer of a run under way, after comparing it with the checkpoint's: other tokens are
/// other rows.
pub(crate) fn same_tokenizer(
    folder: &RunFolder,
    checkpoint: &Checkpoint,
) -> Result<Tokenizer, TrainError> {
    let path = folder.tokenizer();
    let now = tokenizer_sha256(&path)?;
    let was = &checkpoint.state.tokenizer_sha256;
    checkpoint.require_same("the digest of tokenizer.json", was, &now)?;
    read_tokenizer(&path)
}

/// Names the marks of a tokenizer beside it where their names do not.
pub(crate) const TOKENIZER_CONFIG: &str = "tokenizer_config.json";

/// Digest of a run's tokenizer, with what names its marks where there is such a file.
pub(crate) fn tokenizer_sha256(path: &Path) -> Result<String, TrainError> {
    let read = |path: &Path| std::fs::read(path).map_err(TrainError::file("read", path));
    let mut bytes = read(path)?;
    let config = path.with_file_name(TOKENIZER_CONFIG);
    if config.exists() {
        bytes.extend(read(&config)?);
    }
    Ok(sha256_hex(&bytes))
}

pub(crate) fn read_tokenizer(path: &Path) -> Result<Tokenizer, TrainError> {
    Tokenizer::load(path).map_err(TrainError::tokenizer("read"))
}

fn train_tokenizer<'a>(
    vocabulary: usize,
    rows_max: u64,
    corpora: impl Iterator<Item = &'a Corpus> + Send,
) -> Result<(Tokenizer, u64), TrainError> {
    let (mut failed, mut n_rows) = (None, 0_u64);
    let rows = corpora.flat_map(|corpus| {
        let numbers = 0..corpus.n_rows().min(rows_max);
        numbers.map(|number| corpus.read_texts(number))
    });
    // What is corrupt teaches nothing; it is counted and named where it is trained on.
    let rows = rows.filter(|row| !row.as_ref().is_err_and(CorpusError::is_about_one_row));
    let rows = rows.map_while(|row| row.map_err(|error| failed = Some(error)).ok());
    let rows = rows.inspect(|_| n_rows += 1);
    let tokenizer = Tokenizer::train(rows.flat_map(texts), vocabulary);
    let result = failed.map_or(tokenizer, Err);
    let tokenizer = result.map_err(TrainError::tokenizer("train"))?;
    Ok((tokenizer, n_rows))
}

/// Trains a tokenizer on the first `rows_max` rows of each corpus and writes it into a new file. Says how
/// many tokens it has, and of how many rows how many could be read.
///
/// # Errors
/// When the file, or a `tokenizer_config.json` beside it, is there already or cannot be written, or a
/// corpus cannot be read.
pub fn write_tokenizer(
    corpora: &[String],
    vocabulary: usize,
    rows_max: u64,
    out: &Path,
) -> Result<String, TrainError> {
    for path in [out.to_path_buf(), out.with_file_name(TOKENIZER_CONFIG)] {
        if path.exists() {
            let there = std::io::Error::from(std::io::ErrorKind::AlreadyExists);
            return Err(TrainError::file("write", &path)(there));
        }
    }
    let corpora = corpora.iter().map(|corpus| Corpus::open(corpus));
    let corpora = corpora.collect::<Result<Vec<_>, _>>().map_err(TrainError::loader)?;
    let (tokenizer, n_read) = train_tokenizer(vocabulary, rows_max, corpora.iter())?;
    tokenizer.save(out).map_err(TrainError::tokenizer("write"))?;
    let n_rows: u64 = corpora.iter().map(|corpus| corpus.n_rows().min(rows_max)).sum();
    let (n_tokens, name) = (tokenizer.n_tokens(), out.display());
    Ok(format!("{n_tokens} tokens in {name}, from {n_read} of {n_rows} rows"))
}

fn texts(row: Row) -> Vec<String> {
    match row {
        Row::Interleaved(document) => {
            let text = |slot| match slot {
                Slot::Text(text) => Some(text),
                Slot::Image { .. } => None,
            };
            document.slots.into_iter().filter_map(text).collect()
        }
        Row::ImageText(pair) => vec![pair.caption],
        Row::VideoText(clip) => vec![clip.caption],
    }
}
