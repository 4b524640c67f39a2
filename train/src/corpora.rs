//! The corpora of a run: open, of the right kind, and those that the run began with.

use std::collections::BTreeMap;

use flamingo_dataset::{Corpus, CorpusError, CorpusKind, ImageConfig, MixtureEntry};

use crate::command::{Command, Purpose};
use crate::config::{DataConfig, RunConfig};
use crate::error::TrainError;
use crate::run::Source;
use crate::run_folder::RunFolder;

/// Open corpora, in the order of the config.
pub(crate) struct Corpora {
    /// Those that are learned from.
    pub(crate) learned: Vec<(MixtureEntry, Corpus)>,
    /// Those of `[validation]`; none where a step is only seen again.
    pub(crate) held_out: Vec<(MixtureEntry, Corpus)>,
}

/// Opens the corpora of a config.
///
/// `expected` describes the kinds for which `fits` holds.
pub(crate) fn open_corpora<M>(
    command: &Command,
    config: &RunConfig<M>,
    image: &ImageConfig,
    fits: impl Fn(CorpusKind) -> bool,
    expected: &'static str,
) -> Result<Corpora, TrainError> {
    let open = |mut entry: MixtureEntry| {
        if command.purpose == Purpose::DryRun {
            entry.disk_cache = None;
        }
        let corpus = Corpus::open_as(&entry.corpus, &entry.layout, entry.disk_cache.as_ref())
            .map_err(in_dataset(&entry.name))?;
        if fits(corpus.kind()) {
            return Ok((entry, corpus));
        }
        Err(TrainError::CorpusKind {
            name: entry.name.clone(),
            corpus: corpus.location().to_owned(),
            found: corpus.kind().name().to_owned(),
            expected,
        })
    };
    let all = |entries: Vec<MixtureEntry>| entries.into_iter().map(open).collect();
    let learned: Result<_, TrainError> =
        all(config.mixture_entries(image, |path| command.locate(path)));
    let held_out = if command.purpose.is_replay() {
        Vec::new()
    } else {
        config.held_out_entries(image, |path| command.locate(path))
    };
    let held_out: Result<_, TrainError> = all(held_out);
    Ok(Corpora { learned: learned?, held_out: held_out? })
}

fn in_dataset(name: &str) -> impl FnOnce(CorpusError) -> TrainError {
    let name = name.to_owned();
    move |source| TrainError::Corpus { name, source: Box::new(source) }
}

/// The rows of each dataset.
pub(crate) fn sources<M>(config: &RunConfig<M>, learned: &[(MixtureEntry, Corpus)]) -> Vec<Source> {
    let source = |(data, (entry, corpus)): (&DataConfig, &(MixtureEntry, Corpus))| Source {
        name: data.name.clone(),
        batch: data.batch,
        batch_rows: data.rows(),
        n_rows: corpus.n_rows(),
        left_out: entry.skip_rows.clone(),
    };
    config.data.iter().zip(learned).map(source).collect()
}

/// Digests of the corpora, after comparing them with the checkpoint's: rows of another corpus are
/// other rows.
pub(crate) fn same_corpora<M>(
    config: &RunConfig<M>,
    folder: &RunFolder,
    corpora: &[(MixtureEntry, Corpus)],
) -> Result<Vec<String>, TrainError> {
    let now: Vec<String> = corpora.iter().map(|(_, corpus)| corpus.manifest().sha256()).collect();
    let Some(checkpoint) = &folder.checkpoint else { return Ok(now) };
    let both = checkpoint.state.corpora_sha256.iter().zip(&now);
    for (entry, (was, now)) in config.data.iter().zip(both) {
        let what = format!("the manifest's digest of dataset `{}`", entry.name);
        checkpoint.require_same(what, was, now)?;
    }
    Ok(now)
}

/// The same for corpora that are not learned from: under one name there is one curve.
pub(crate) fn same_held_out(
    folder: &RunFolder,
    corpora: &[(MixtureEntry, Corpus)],
) -> Result<BTreeMap<String, String>, TrainError> {
    let digest =
        |(entry, corpus): &(MixtureEntry, Corpus)| (entry.name.clone(), corpus.manifest().sha256());
    let now: BTreeMap<String, String> = corpora.iter().map(digest).collect();
    let Some(checkpoint) = &folder.checkpoint else { return Ok(now) };
    for (name, now) in &now {
        if let Some(was) = checkpoint.state.held_out_sha256.get(name) {
            let what = format!("the manifest's digest of the validation's dataset `{name}`");
            checkpoint.require_same(what, was, now)?;
        }
    }
    // A dataset that is left out for a while comes back as what it was.
    let mut known = checkpoint.state.held_out_sha256.clone();
    known.extend(now);
    Ok(known)
}
