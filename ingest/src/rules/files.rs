//! Files that a plan names.

use std::io::Read;

use crate::error::IngestError;
use crate::plan::BuildPlan;
use crate::source::Source;

/// Largest list in bytes.
const LIST_BYTES_MAX: u64 = 4 << 30;

/// A text file that a plan names.
///
/// # Errors
/// When it cannot be read, is too large, or is no UTF-8.
pub(super) fn read_text(file: &str) -> Result<String, IngestError> {
    let source = Source::open(file)?;
    let wrong = |message: String| IngestError::InputFormat { input: file.to_owned(), message };
    if source.len() > LIST_BYTES_MAX {
        return Err(wrong(format!("{} bytes, expected at most {LIST_BYTES_MAX}", source.len())));
    }
    let mut text = String::new();
    source.reader(0).read_to_string(&mut text).map_err(|error| wrong(error.to_string()))?;
    Ok(text)
}

/// Reads every file that the plan names and puts its SHA-256 into the plan.
///
/// # Errors
/// When a file cannot be read, or the plan was made with another one.
pub(crate) fn seal(plan: &mut BuildPlan) -> Result<(), IngestError> {
    let (words, explicit, block) = (&mut plan.words, &mut plan.explicit, &mut plan.block);
    let opt_out = &mut plan.opt_out;
    seal_file("words.stop_sha256", &words.stop_file, &mut words.stop_sha256)?;
    seal_file("words.spam_sha256", &words.spam_file, &mut words.spam_sha256)?;
    seal_file("words.common_sha256", &words.common_file, &mut words.common_sha256)?;
    seal_file("explicit.words_sha256", &explicit.words_file, &mut explicit.words_sha256)?;
    seal_file("block.domains_sha256", &block.domains_file, &mut block.domains_sha256)?;
    seal_file("block.urls_sha256", &block.urls_file, &mut block.urls_sha256)?;
    seal_file("opt_out.domains_sha256", &opt_out.domains_file, &mut opt_out.domains_sha256)?;
    seal_file("opt_out.urls_sha256", &opt_out.urls_file, &mut opt_out.urls_sha256)?;
    for table in &mut plan.scores {
        seal_file("scores.sha256", &table.file, &mut table.sha256)?;
    }
    Ok(())
}

fn seal_file(key: &'static str, file: &str, sha256: &mut String) -> Result<(), IngestError> {
    if file.is_empty() {
        sha256.clear();
        return Ok(());
    }
    let source = Source::open(file)?;
    let found = source
        .sha256()
        .map_err(|source| IngestError::InputRead { input: file.to_owned(), source })?;
    if !sha256.is_empty() && !sha256.eq_ignore_ascii_case(&found) {
        let value = format!("{sha256} but {file} has {found}");
        return Err(IngestError::PlanValue { key, value, expected: "the file's SHA-256, or none" });
    }
    *sha256 = found;
    Ok(())
}
