//! One run from inputs to corpus: inputs are opened and checked, items are worked on by several
//! threads, and their outcomes go to the output in the order of the input.

use std::path::Path;
use std::sync::Arc;

use flamingo_dataset::{CorpusKind, CorpusStore};

use crate::alt_text::PairJob;
use crate::archive::Archive;
use crate::error::IngestError;
use crate::identity::RunIdentity;
use crate::list;
use crate::ordered::ordered_map;
use crate::outcome::Outcome;
use crate::output::{Opened, Output, Start, Totals};
use crate::plan::BuildPlan;
use crate::progress::Progress;
use crate::source::{self, Source};
use crate::video_text::{self, ClipJob};
use crate::webpage::WebJob;

/// Endings of archives.
const ARCHIVE_SUFFIXES: &[&str] = &[".warc", ".warc.gz"];

/// What the command line says, whatever the kind of run.
#[derive(Debug, Clone)]
pub struct Job {
    /// Files, folders or addresses.
    pub inputs: Vec<String>,
    /// Where the corpus goes.
    pub out: String,
    /// Whether something may be there already.
    pub start: Start,
    /// Threads that work on items.
    pub workers: usize,
    /// The rules.
    pub plan: BuildPlan,
}

/// Archives of web pages to interleaved documents.
///
/// # Errors
/// When an input or the output cannot be used.
pub fn webpages(job: &Job) -> Result<Totals, IngestError> {
    job.check_out()?;
    let files = source::expand(&job.inputs, ARCHIVE_SUFFIXES)?;
    let sources = source::open_all(&files)?;
    let mut progress = Progress::new("records", None, 0);
    let archive = Archive::index(&sources, &job.plan, || progress.step())?;
    progress.finish();
    let web = WebJob { sources: &sources, archive: &archive, plan: &job.plan };
    let pages = archive.found.iter().map(Ok);
    let (kind, n_items) = (CorpusKind::Interleaved, Some(archive.found.len()));
    let run = Run { kind, noun: "pages", n_items, images: None };
    job.run(&run, &sources, pages, |found| web.document(found))
}

/// Lists of images with alt-texts to pairs. Files of the lists are relative to `images`, by default
/// the folder of the list.
///
/// # Errors
/// When an input or the output cannot be used.
pub fn alt_text(job: &Job, images: Option<&str>) -> Result<Totals, IngestError> {
    job.check_out()?;
    let sources = source::open_all(&source::expand(&job.inputs, list::SUFFIXES)?)?;
    list::check(
        &sources,
        &job.plan.list,
        &[&job.plan.list.file_column, &job.plan.list.url_column, &job.plan.list.image_column],
    )?;
    let pairs = PairJob { sources: &sources, images, plan: &job.plan };
    let run = Run { kind: CorpusKind::ImageText, noun: "pairs", n_items: None, images };
    job.run(&run, &sources, list::rows(&sources, &job.plan.list), |row| Ok(pairs.pair(row)))
}

/// Clips with captions to frames with captions.
///
/// # Errors
/// When an input or the output cannot be used, or the video library cannot be started.
pub fn video_text(job: &Job) -> Result<Totals, IngestError> {
    job.check_out()?;
    let inputs = video_text::expand(&job.inputs)?;
    let sources = source::open_all(&inputs)?;
    let lists = sources.iter().filter(|source| list::is_list(source.input())).cloned();
    list::check(&lists.collect::<Vec<_>>(), &job.plan.list, &[&job.plan.list.file_column])?;
    let clips = ClipJob::new(&sources, &job.plan)?;
    let run = Run { kind: CorpusKind::VideoText, noun: "clips", n_items: None, images: None };
    job.run(&run, &sources, clips.items(), |item| Ok(clips.clip(item)))
}

/// What differs between kinds of runs.
struct Run<'a> {
    kind: CorpusKind,
    /// What an item is called, in the plural.
    noun: &'static str,
    /// How many there are, where that is known before.
    n_items: Option<usize>,
    /// Where the files of the lists lie, where it was given.
    images: Option<&'a str>,
}

impl Job {
    /// Finds out at once, before inputs are read, that the output is taken.
    fn check_out(&self) -> Result<(), IngestError> {
        let taken = || IngestError::OutputExists { out: self.out.clone() };
        let path = Path::new(&self.out);
        let is_url = source::is_url(&self.out);
        if !is_url && path.exists() && !path.is_dir() {
            return Err(taken());
        }
        if self.start == Start::Resume || (!is_url && !path.exists()) {
            return Ok(());
        }
        let is_empty = CorpusStore::open(&self.out)?.list("")?.is_empty();
        if is_empty { Ok(()) } else { Err(taken()) }
    }

    fn run<T: Send>(
        &self,
        run: &Run<'_>,
        sources: &[Arc<Source>],
        items: impl Iterator<Item = Result<T, IngestError>> + Send,
        work: impl Fn(T) -> Result<Outcome, IngestError> + Sync,
    ) -> Result<Totals, IngestError> {
        let plan_sha256 = self.plan.sha256(run.kind);
        let identity = RunIdentity::new(run.kind, plan_sha256, run.images, sources)?;
        let mut output = match Output::open(&self.out, self.start, identity, &self.plan)? {
            Opened::Finished(manifest) => return Ok(Totals::of(&manifest)),
            Opened::Open(output) => output,
        };
        let done = output.n_items_done();
        let mut progress = Progress::new(run.noun, run.n_items.map(|n| n as u64), done);
        let worked = ordered_map(items.skip(done as usize), self.workers, work, |outcome| {
            progress.step();
            output.push(outcome)
        });
        progress.finish();
        match worked {
            Ok(()) => output.finish(),
            Err(error) => Err(output.abandon(error)),
        }
    }
}
