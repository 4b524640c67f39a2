//! What a run is: its rules and its inputs. It stays beside the corpus, so that a run is neither
//! continued nor called finished with other rules or inputs than it was started with.

use std::sync::Arc;

use flamingo_dataset::CorpusKind;
use serde::{Deserialize, Serialize};

use crate::error::IngestError;
use crate::list;
use crate::source::{Source, has_suffix};

/// Raised whenever the same inputs and plan give other bytes than before.
const FORMAT: u32 = 1;

/// Two runs with the same identity write the same bytes, wherever their inputs lie.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunIdentity {
    /// Version of the rules that are not part of a plan.
    pub format: u32,
    /// Kind of the corpus.
    pub kind: CorpusKind,
    /// Hash of the effective plan.
    pub plan_sha256: String,
    /// Where the files of the lists lie, where it was given.
    pub images: Option<String>,
    /// Which partition of a shared run it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partition: Option<String>,
    /// The inputs in order.
    pub inputs: Vec<InputIdentity>,
}

/// One input, without its folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InputIdentity {
    /// What the corpus calls it.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// Hash of the whole file for lists of text, else [`Source::fingerprint`].
    pub sha256: String,
}

impl RunIdentity {
    /// The identity of a run over `sources`.
    ///
    /// # Errors
    /// When an input cannot be read.
    pub fn new(
        kind: CorpusKind,
        plan_sha256: String,
        images: Option<&str>,
        sources: &[Arc<Source>],
    ) -> Result<Self, IngestError> {
        let inputs =
            sources.iter().map(|source| InputIdentity::of(source)).collect::<Result<_, _>>()?;
        let images = images.map(str::to_owned);
        Ok(Self { format: FORMAT, kind, plan_sha256, images, partition: None, inputs })
    }

    /// The same run, as one partition or as a whole.
    #[must_use]
    pub fn with_partition(&self, partition: Option<String>) -> Self {
        Self { partition, ..self.clone() }
    }

    /// Compares the run that was started at `out` with the one that is asked for.
    ///
    /// # Errors
    /// With the first thing that differs.
    pub fn expect(&self, out: &str, now: &Self) -> Result<(), IngestError> {
        let images = |run: &Self| run.images.clone().unwrap_or_else(|| "none".to_owned());
        expect_same(out, "format version", &self.format.to_string(), &now.format.to_string())?;
        expect_same(out, "kind", self.kind.name(), now.kind.name())?;
        expect_same(out, "plan", &self.plan_sha256, &now.plan_sha256)?;
        expect_same(out, "folder of images", &images(self), &images(now))?;
        let partition = |run: &Self| run.partition.clone().unwrap_or_else(|| "none".to_owned());
        expect_same(out, "partition", &partition(self), &partition(now))?;
        for i in 0..self.inputs.len().max(now.inputs.len()) {
            let show =
                |run: &Self| run.inputs.get(i).map_or("none".to_owned(), InputIdentity::show);
            expect_same(out, "input", &show(self), &show(now))?;
        }
        Ok(())
    }
}

impl InputIdentity {
    fn of(source: &Source) -> Result<Self, IngestError> {
        // A row may be changed anywhere in a list; archives and clips are too large to be read twice.
        let is_text = list::is_list(source.input()) && !has_suffix(source.input(), &[".parquet"]);
        let sha256 = if is_text { source.sha256() } else { source.fingerprint() };
        let input = || source.input().to_owned();
        let sha256 = sha256.map_err(|source| IngestError::InputRead { input: input(), source })?;
        Ok(Self { name: source.name().to_owned(), bytes: source.len(), sha256 })
    }

    fn show(&self) -> String {
        let Self { name, bytes, sha256 } = self;
        format!("{name} ({bytes} bytes, {})", sha256.get(..16).unwrap_or(sha256))
    }
}

fn expect_same(
    out: &str,
    what: &'static str,
    expected: &str,
    found: &str,
) -> Result<(), IngestError> {
    if expected == found {
        return Ok(());
    }
    let (out, expected, found) = (out.to_owned(), expected.to_owned(), found.to_owned());
    Err(IngestError::ResumeMismatch { out, what, expected, found })
}
