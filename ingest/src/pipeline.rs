//! One run from inputs to corpus: inputs are opened and checked, items are worked on by several
//! threads, and their outcomes go to the output in the order of the input.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::sync_channel;
use std::thread::Scope;

use flamingo_dataset::{CorpusKind, CorpusStore};

use crate::alt_text::PairJob;
use crate::archive::{self, Archive, Walking};
use crate::error::IngestError;
use crate::fetch::{Asked, Fetcher};
use crate::identity::RunIdentity;
use crate::list;
use crate::meter::Meter;
use crate::ordered::{Limits, Weigh, ordered_map, ordered_map_within};
use crate::outcome::Outcome;
use crate::output::{Opened, Output, Start, Totals};
use crate::page_pairs;
use crate::partition::Partition;
use crate::plan::BuildPlan;
use crate::progress::{Phase, Progress};
use crate::rules::Rules;
use crate::source::{self, Source};
use crate::video_text::{self, ClipJob};
use crate::webpage::WebJob;

/// Most bytes of items and outcomes that wait for a worker or for the output.
const UNDER_WAY_BYTES_MAX: u64 = 128 << 20;

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
    /// Which part of the work is done, where several machines share it.
    pub partition: Option<Partition>,
    /// Counts what is done.
    pub meter: Arc<Meter>,
    /// The rules.
    pub plan: BuildPlan,
}

/// Archives of web pages to interleaved documents.
///
/// # Errors
/// When an input or the output cannot be used.
pub fn webpages(job: &Job) -> Result<Totals, IngestError> {
    job.check_out()?;
    let rules = Rules::new(&job.plan)?;
    let files = archive::expand(&job.inputs)?;
    let sources = source::open_all(&files)?;
    let archive = job.index(&sources)?;
    let web = WebJob { sources: &sources, archive: &archive, plan: &job.plan, rules: &rules };
    let pages = archive.found.iter().map(Ok);
    let (kind, n_items) = (CorpusKind::Interleaved, Some(archive.found.len()));
    let run = Run { kind, noun: "pages", n_items, images: None, is_dealt: false };
    if !job.plan.fetch.pages {
        let pages = |wanted: Wanted| wanted.of(pages);
        return job.run(&run, &sources, pages, |found| web.document(found, Vec::new()));
    }
    let fetcher = Fetcher::new(&job.plan);
    std::thread::scope(|scope| {
        let pages = |wanted: Wanted| {
            let wished = |found| Ok((found, web.wishes(found)?));
            let read = read_ahead(scope, wanted.of(pages), job.workers, wished);
            fetcher.ahead(scope, read, |wished| wished)
        };
        job.run(&run, &sources, pages, |Asked { item, answers }| web.document(item, answers))
    })
}

/// Lists of images with alt-texts to pairs. Files of the lists are relative to `images`, by default
/// the folder of the list.
///
/// # Errors
/// When an input or the output cannot be used.
pub fn alt_text(job: &Job, images: Option<&str>) -> Result<Totals, IngestError> {
    job.check_out()?;
    if job.inputs.iter().any(|input| archive::is_archive(input)) {
        return page_pairs(job);
    }
    let sources = source::open_all(&list::expand(&job.inputs)?)?;
    list::check(
        &sources,
        &job.plan,
        &[&job.plan.list.file_column, &job.plan.list.url_column, &job.plan.list.image_column],
    )?;
    let rules = Rules::new(&job.plan)?;
    let pairs = PairJob { sources: &sources, images, plan: &job.plan, rules: &rules };
    // Where there are many lists, each machine reads its own only.
    let dealt = job.partition.filter(|partition| partition.deals_files(sources.len()));
    let is_wanted = |list: usize| dealt.is_none_or(|partition| partition.has(list as u64));
    let (kind, is_dealt) = (CorpusKind::ImageText, dealt.is_some());
    let n_items = list::n_rows(&sources, is_wanted)?.map(|n| n as usize);
    let run = Run { kind, noun: "pairs", n_items, images, is_dealt };
    let rows = list::rows(&sources, &job.plan.list, is_wanted);
    let fetcher = Fetcher::new(&job.plan);
    std::thread::scope(|scope| {
        let wishes = |row| {
            let wishes = pairs.wishes(&row);
            (row, wishes)
        };
        let rows = |wanted: Wanted| fetcher.ahead(scope, wanted.of(rows), wishes);
        job.run(&run, &sources, rows, |asked| Ok(pairs.pair(asked)))
    })
}

/// Pages of archives to pairs of their images with the `alt` of each.
fn page_pairs(job: &Job) -> Result<Totals, IngestError> {
    let sources = source::open_all(&archive::expand(&job.inputs)?)?;
    let archive = job.index(&sources)?;
    let plan = page_pairs::page_plan(&job.plan);
    let (rules, page_rules) = (Rules::new(&job.plan)?, Rules::new(&plan)?);
    let web = WebJob { sources: &sources, archive: &archive, plan: &plan, rules: &page_rules };
    let pages = archive.found.iter().map(Ok);
    let (kind, n_items) = (CorpusKind::ImageText, Some(archive.found.len()));
    let run = Run { kind, noun: "pages", n_items, images: None, is_dealt: false };
    let work = |found| Ok(page_pairs::pairs(web.document(found, Vec::new())?, &job.plan, &rules));
    job.run(&run, &sources, |wanted| wanted.of(pages), work)
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
    list::check(&lists.collect::<Vec<_>>(), &job.plan, &[&job.plan.list.file_column])?;
    let clips = ClipJob::new(&sources, &job.plan)?;
    let kind = CorpusKind::VideoText;
    let run = Run { kind, noun: "clips", n_items: None, images: None, is_dealt: false };
    job.run(&run, &sources, |wanted| wanted.of(clips.items()), |item| clips.clip(item))
}

/// Items that other threads work on before anyone takes them, in order.
fn read_ahead<'scope, T: Send + 'scope, R: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    items: impl Iterator<Item = Result<T, IngestError>> + Send + 'scope,
    workers: usize,
    work: impl Fn(T) -> Result<R, IngestError> + Send + Sync + 'scope,
) -> impl Iterator<Item = Result<R, IngestError>> + Send + 'scope {
    let (to_queue, queue) = sync_channel(workers);
    scope.spawn(move || {
        let items = items.map(|item| item.map_err(Some));
        let work = |item| work(item).map_err(Some);
        // Sending fails where the run has ended early.
        let send = |item| to_queue.send(Ok(item)).map_err(|_| None);
        if let Err(Some(error)) = ordered_map(items, workers, work, send) {
            let _ = to_queue.send(Err(error));
        }
    });
    queue.into_iter()
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
    /// Whether the items are those of this partition only.
    is_dealt: bool,
}

/// Which items of the input are still to be worked on.
#[derive(Debug, Clone, Copy)]
struct Wanted {
    /// Where several machines share the items, the partition of this one.
    partition: Option<Partition>,
    /// How many of these are done.
    n_done: u64,
}

impl Wanted {
    /// Those of `items` that are wanted, and every error.
    fn of<T>(
        self,
        items: impl Iterator<Item = Result<T, IngestError>>,
    ) -> impl Iterator<Item = Result<T, IngestError>> {
        let items = items.enumerate().filter(move |(n, item)| {
            item.is_err() || self.partition.is_none_or(|partition| partition.has(*n as u64))
        });
        items.map(|(_, item)| item).skip(self.n_done as usize)
    }
}

impl Job {
    /// What the archives hold.
    fn index(&self, sources: &[Arc<Source>]) -> Result<Archive, IngestError> {
        let _progress = Progress::start(Phase::Index, "records", &self.meter);
        let spool_folder = self.spool_folder();
        let walking = Walking { workers: self.workers, spool_folder: &spool_folder };
        Archive::index(sources, &self.plan, walking, || {
            self.meter.records.fetch_add(1, Relaxed);
        })
    }

    /// Where this run, or its partition, writes.
    fn location(&self) -> String {
        self.partition.map_or_else(|| self.out.clone(), |partition| partition.location(&self.out))
    }

    /// Finds out at once, before inputs are read, that the output is taken.
    fn check_out(&self) -> Result<(), IngestError> {
        let out = self.location();
        let taken = || IngestError::OutputExists { out: out.clone() };
        let path = Path::new(&out);
        let is_url = source::is_url(&out);
        if !is_url && path.exists() && !path.is_dir() {
            return Err(taken());
        }
        if self.start == Start::Resume || (!is_url && !path.exists()) {
            return Ok(());
        }
        let is_empty = CorpusStore::open(&out)?.list("")?.is_empty();
        if is_empty { Ok(()) } else { Err(taken()) }
    }

    /// Where records of archives that were compressed as one stream are kept during the run: beside the
    /// output, where there is more room than in memory, else where the system keeps such files.
    fn spool_folder(&self) -> PathBuf {
        let beside = Path::new(&self.out).parent().filter(|_| !source::is_url(&self.out));
        let beside = beside
            .map(|folder| if folder.as_os_str().is_empty() { Path::new(".") } else { folder });
        beside.filter(|folder| folder.is_dir()).map_or_else(std::env::temp_dir, Path::to_owned)
    }

    /// Works on all items, or on those of this partition; `items` gives those that are wanted.
    fn run<T: Send + Weigh, I: Iterator<Item = Result<T, IngestError>> + Send>(
        &self,
        run: &Run<'_>,
        sources: &[Arc<Source>],
        items: impl FnOnce(Wanted) -> I,
        work: impl Fn(T) -> Result<Outcome, IngestError> + Sync,
    ) -> Result<Totals, IngestError> {
        let plan_sha256 = self.plan.sha256(run.kind);
        let whole = RunIdentity::new(run.kind, plan_sha256, run.images, sources)?;
        let Some(partition) = self.partition else {
            return self.run_to(&self.out, run, whole, items, work);
        };
        partition.check_out(&self.out)?;
        let identity = whole.with_partition(Some(partition.to_string()));
        let share = |n| if run.is_dealt { n } else { partition.share(n as u64) as usize };
        let n_items = run.n_items.map(share);
        let run = Run { n_items, ..*run };
        let totals = self.run_to(&self.location(), &run, identity, items, work);
        if totals.is_err() && !source::is_url(&self.out) {
            // Other partitions may have their folders there; else nothing stays.
            let _ = std::fs::remove_dir(&self.out);
        }
        let totals = totals?;
        let joined = partition.join(&self.out, &whole, &self.plan)?;
        Ok(Totals { joined, ..totals })
    }

    fn run_to<T: Send + Weigh, I: Iterator<Item = Result<T, IngestError>> + Send>(
        &self,
        out: &str,
        run: &Run<'_>,
        identity: RunIdentity,
        items: impl FnOnce(Wanted) -> I,
        work: impl Fn(T) -> Result<Outcome, IngestError> + Sync,
    ) -> Result<Totals, IngestError> {
        let meter = &self.meter;
        let opened = Output::open(out, self.start, identity, &self.plan, Arc::clone(meter))?;
        let mut output = match opened {
            Opened::Finished(manifest) => return Ok(Totals::of(&manifest)),
            Opened::Open(output) => output,
        };
        meter.items_expected.store(run.n_items.unwrap_or(0) as u64, Relaxed);
        let n_done = output.n_items_done();
        let partition = self.partition.filter(|_| !run.is_dealt);
        let items = items(Wanted { partition, n_done });
        let progress = Progress::start(Phase::Work, run.noun, meter);
        let limits = Limits { workers: self.workers, bytes_max: UNDER_WAY_BYTES_MAX };
        let worked = ordered_map_within(items, limits, meter, work, |outcome| output.push(outcome));
        drop(progress);
        match worked {
            Ok(()) => Ok(Totals { resumed: n_done, ..output.finish()? }),
            Err(error) => Err(output.abandon(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_that_are_done_or_of_other_partitions_are_not_wanted() {
        let wanted = |partition: Option<&str>, n_done| {
            let partition = partition.map(|text| text.parse().unwrap());
            let items = Wanted { partition, n_done }.of((0..10).map(Ok));
            items.map(|item| item.unwrap()).collect::<Vec<u32>>()
        };
        assert_eq!(wanted(None, 7), [7, 8, 9]);
        assert_eq!(wanted(Some("1/4"), 0), [1, 5, 9]);
        assert_eq!(wanted(Some("1/4"), 2), [9]);
        assert_eq!(wanted(Some("3/4"), 2), [0; 0]);
    }
}
