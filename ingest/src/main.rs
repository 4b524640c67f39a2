//! `flamingo-ingest`: web pages, image/alt-text pairs and clips to sharded Parquet corpora.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Args, Parser, Subcommand};
use flamingo_dataset::{CorpusStore, Manifest};
use flamingo_ingest::check::{self, Checked};
use flamingo_ingest::decoder;
use flamingo_ingest::error::IngestError;
use flamingo_ingest::export;
use flamingo_ingest::fetch::cause::Cause;
use flamingo_ingest::meter::Meter;
use flamingo_ingest::metrics::MetricsServer;
use flamingo_ingest::output::{Start, Totals};
use flamingo_ingest::partition::Partition;
use flamingo_ingest::pipeline::{self, Job};
use flamingo_ingest::plan::BuildPlan;
use flamingo_ingest::purge::{self, By, Mode, Target, Targets};
use flamingo_ingest::report;
use flamingo_ingest::retry::{self, Retried, RetryJob};
use flamingo_ingest::rules::preset::Preset;
use flamingo_ingest::view::{self, Which};

/// Turns web pages, image/alt-text pairs and video clips into sharded Parquet corpora.
///
/// Example: flamingo-ingest webpages --input crawl.warc.gz --out corpora/pages
#[derive(Parser)]
#[command(version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Makes interleaved documents of the pages of web archives (.warc, .arc, .wet, each also .gz, .zst,
    /// .lz4) or of a folder of saved pages (.html), with the images found in the same inputs.
    ///
    /// Example: flamingo-ingest webpages --plan plan.toml --input crawl.warc.gz --out corpora/pages
    Webpages(Common),
    /// Makes pairs of lists of images with alt-texts: .csv, .tsv, .jsonl and .txt (addresses only), each
    /// also .gz; .parquet; .tar and .tar.gz of webdataset; .wat and .wat.gz of Common Crawl. Or of
    /// web archives (.warc, .warc.gz): the images of pages with their `alt`.
    ///
    /// Example: flamingo-ingest alt-text --input pairs.csv --images photos --out corpora/pairs
    AltText {
        #[command(flatten)]
        common: Common,
        /// Where the files of the list lie [default: the folder of the list].
        #[arg(long, value_name = "ROOT")]
        images: Option<String>,
    },
    /// Makes rows of frames of video clips: of a folder with a list `clips.csv`, of a list, or of clips
    /// with a .txt, .json, .vtt or .srt file beside them.
    ///
    /// Example: flamingo-ingest video-text --input clips --out corpora/clips
    VideoText(Common),
    /// Prints the keys that a preset sets, or the names of all presets.
    ///
    /// Example: flamingo-ingest presets m3w > plan.toml
    Presets {
        /// `preset` of a plan.
        name: Option<Preset>,
    },
    /// Decodes the clips that another process of this program asks for.
    #[command(hide = true, name = decoder::COMMAND)]
    DecodeClips,
    /// Compares a corpus with everything it promises: files, checksums, exact columns, masks, unique
    /// keys, images that decode. Lists all problems; exits with 1 where there is one.
    ///
    /// Example: flamingo-ingest check corpora/pages --sample 0.01
    Check {
        /// Folder or address of the corpus.
        corpus: String,
        /// How much is read: `all`, a fraction (0.01) or a number of rows (500), evenly spread. Files,
        /// footers, keys and tables are always checked.
        #[arg(long, value_name = "FRACTION|ROWS", default_value = "all")]
        sample: check::Sample,
        /// Prints the result as JSON.
        #[arg(long)]
        json: bool,
        /// Threads that decode [default: one for each processor].
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
        workers: Option<u16>,
    },
    /// Asks again for the images of a corpus of pairs that could not be fetched, and adds the pairs
    /// that can be made now as new shards.
    ///
    /// Example: flamingo-ingest retry corpora/pairs --cause dns,timeout,429
    Retry {
        /// Folder or address of the corpus.
        corpus: String,
        /// Causes as in the corpus's ledger, with commas between.
        #[arg(
            long,
            value_name = "CAUSE",
            required = true,
            value_delimiter = ',',
            value_parser = clap::builder::PossibleValuesParser::new(Cause::NAMES)
        )]
        cause: Vec<String>,
        /// Threads that work on images [default: one for each processor].
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
        workers: Option<u16>,
    },
    /// Writes report.html of a corpus again: the funnel, what other thresholds would keep, samples of
    /// what was kept and dropped.
    ///
    /// Example: flamingo-ingest report corpora/pages
    Report {
        /// Folder or address of the corpus.
        corpus: String,
    },
    /// Shows one row: its texts and images in order, and which image each text may see.
    ///
    /// Example: flamingo-ingest view corpora/pages --row 7 --out row.html
    View {
        /// Folder or address of the corpus.
        corpus: String,
        /// Number of the row, from 0 [default: 0].
        #[arg(long, value_name = "N", conflicts_with_all = ["key", "url"])]
        row: Option<u64>,
        /// Identifier of the row: `doc_id` or `key`.
        #[arg(long, conflicts_with = "url")]
        key: Option<String>,
        /// Address of the row.
        #[arg(long)]
        url: Option<String>,
        /// Also writes the row with its images into this new HTML file.
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Writes a corpus in a form that other programs read.
    ///
    /// Example: flamingo-ingest export corpora/pages --format webdataset --out pages-wds
    Export {
        /// Folder or address of the corpus.
        corpus: String,
        /// The form.
        #[arg(long, value_enum)]
        format: export::Format,
        /// The new folder.
        #[arg(long, value_name = "FOLDER")]
        out: String,
        /// Rows of one file.
        #[arg(long, value_name = "N", default_value_t = export::FILE_ROWS,
              value_parser = clap::value_parser!(u64).range(1..))]
        file_rows: u64,
    },
    /// Takes documents and images out of a corpus for good. What is asked for is recorded in the corpus,
    /// so that no later run or retry brings it back. Without anything to remove, ends a purge that was
    /// cut off.
    ///
    /// Example: flamingo-ingest purge corpora/pages --domain a.example --list takedown.txt
    Purge {
        /// Folder or address of the corpus.
        corpus: String,
        /// Addresses of documents, images, pairs or clips.
        #[arg(long, value_name = "URL", num_args = 1..)]
        url: Vec<String>,
        /// Hosts, with all their subdomains.
        #[arg(long, value_name = "DOMAIN", num_args = 1..)]
        domain: Vec<String>,
        /// Hashes of stored images, or of the files of clips.
        #[arg(long, value_name = "HASH", num_args = 1..)]
        sha256: Vec<String>,
        /// A file with one of these on each line: `url ...`, `domain ...`, `sha256 ...`.
        #[arg(long, value_name = "FILE")]
        list: Option<PathBuf>,
        /// Only tells what would be removed.
        #[arg(long)]
        dry_run: bool,
    },
}

#[derive(Args)]
struct Common {
    /// Rules of the run (TOML) [default: every rule's default].
    #[arg(long, value_name = "PLAN")]
    plan: Option<PathBuf>,
    /// Files or folders to read.
    #[arg(long, value_name = "URL", required = true, num_args = 1..)]
    input: Vec<String>,
    /// Folder or address of the new corpus.
    #[arg(long, value_name = "CORPUS")]
    out: String,
    /// Go on with a run that was cut off; its bytes end up as if it never was.
    #[arg(long)]
    resume: bool,
    /// Threads that work on items [default: one for each processor]. The result does not depend on it.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    workers: Option<u16>,
    /// Do partition I of N only, counted from 0, so that N machines share the work without knowing of
    /// each other. Each writes part-I-of-N/ below the output; the last one to finish joins them. Pages
    /// and rows are dealt out by their number, lists whole where there are four for each partition. To
    /// find the images of pages, every machine reads the heads of all archive records.
    #[arg(long, value_name = "I/N")]
    index: Option<Partition>,
    /// Serve the numbers of the run to Prometheus while it works, at ADDRESS and the path /metrics
    /// [default address: 127.0.0.1:9100].
    #[arg(long, value_name = "ADDRESS", num_args = 0..=1, default_missing_value = "127.0.0.1:9100")]
    metrics: Option<std::net::SocketAddr>,
}

impl Common {
    /// The job, and the server of its numbers while it is kept.
    fn job(self) -> Result<(Job, Option<MetricsServer>), IngestError> {
        let meter = Arc::new(Meter::default());
        let serve = |address| MetricsServer::start(address, Arc::clone(&meter));
        let server = self.metrics.map(serve).transpose()?;
        let job = Job {
            plan: BuildPlan::load(self.plan.as_deref())?,
            inputs: self.input.iter().map(|input| without_scheme(input)).collect(),
            out: without_scheme(&self.out),
            start: if self.resume { Start::Resume } else { Start::New },
            workers: threads(self.workers),
            partition: self.index,
            meter,
        };
        Ok((job, server))
    }
}

/// Threads to work with: as many as were asked for, else one for each processor.
fn threads(asked: Option<u16>) -> usize {
    let processors = || std::thread::available_parallelism().map_or(1, usize::from);
    asked.map_or_else(processors, usize::from)
}

/// A local path where an address says `file://`; other addresses stay as they are.
fn without_scheme(location: &str) -> String {
    location.strip_prefix("file://").unwrap_or(location).to_owned()
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", one_line(&error));
            ExitCode::from(error.exit_code())
        }
    }
}

fn run(command: Command) -> Result<(), IngestError> {
    let lines = match command {
        Command::Webpages(common) => {
            let (job, _server) = common.job()?;
            summary("documents", &job.out, &pipeline::webpages(&job)?)
        }
        Command::AltText { common, images } => {
            let (job, _server) = common.job()?;
            let images = images.as_deref().map(without_scheme);
            summary("pairs", &job.out, &pipeline::alt_text(&job, images.as_deref())?)
        }
        Command::VideoText(common) => {
            let (job, _server) = common.job()?;
            summary("clips", &job.out, &pipeline::video_text(&job)?)
        }
        Command::Presets { name } => presets(name),
        Command::DecodeClips => {
            let gone =
                |error: std::io::Error| IngestError::VideoDecoder { message: error.to_string() };
            decoder::serve().map_err(gone)?;
            String::new()
        }
        Command::Retry { corpus, cause, workers } => {
            let corpus = without_scheme(&corpus);
            let job = RetryJob { corpus, causes: cause, workers: threads(workers) };
            retried(&job.corpus, &retry::retry(&job)?)
        }
        Command::Check { corpus, sample, json, workers } => {
            let checked = check::check(&corpus, sample, threads(workers))?;
            let lines = if json { checked.to_json(&corpus) } else { verdict(&corpus, &checked) };
            print(&lines)?;
            return checked.verdict(&corpus);
        }
        Command::Report { corpus } => {
            let store = CorpusStore::open(&corpus)?;
            let manifest = Manifest::read(&store)?;
            report::write(&store, manifest)?;
            format!("{}/{}\n", corpus.trim_end_matches('/'), report::REPORT_FILE)
        }
        Command::View { corpus, row, key, url, out } => {
            let which = key.map(Which::Key).or(url.map(Which::Url));
            let which = which.unwrap_or(Which::Row(row.unwrap_or(0)));
            let (row_idx, row) = view::find(&corpus, &which)?;
            if let Some(path) = out {
                let html = view::to_html(row_idx, &row);
                flamingo_dataset::write_durably(&path, html.as_bytes())
                    .map_err(|source| IngestError::Write { path, source })?;
            }
            view::to_text(row_idx, &row)
        }
        Command::Export { corpus, format, out, file_rows } => {
            let exported = export::export(&corpus, format, &out, file_rows)?;
            let export::Exported { rows, images, files, bytes } = exported;
            format!("{out}: {rows} rows, {images} images, {files} files, {bytes} bytes\n")
        }
        Command::Purge { corpus, url, domain, sha256, list, dry_run } => {
            let mut targets = list.as_deref().map(Targets::read).transpose()?.unwrap_or_default();
            for (by, values) in [(By::Url, url), (By::Domain, domain), (By::Sha256, sha256)] {
                for value in values {
                    targets.add(Target::parse(by, &value)?);
                }
            }
            let mode = if dry_run { Mode::DryRun } else { Mode::Remove };
            let outcome = purge::purge(&corpus, &targets, mode)?;
            purged(&corpus, mode, &outcome)
        }
    };
    print(&lines)
}

fn print(lines: &str) -> Result<(), IngestError> {
    std::io::stdout().write_all(lines.as_bytes()).map_err(|source| IngestError::Stdout { source })
}

/// One preset as it is, or what there are.
fn presets(name: Option<Preset>) -> String {
    let title = |preset: &Preset| {
        let first = preset.toml().lines().next().unwrap_or("").trim_start_matches("# ");
        format!("{:<16}{first}\n", preset.name())
    };
    name.map_or_else(|| Preset::ALL.iter().map(title).collect(), |preset| preset.toml().to_owned())
}

/// The last lines of a run: what there is now, and what was dropped, most frequent first.
fn summary(noun: &str, out: &str, totals: &Totals) -> String {
    let Totals { n_items, rows, images, shards, rejects, resumed, was_finished, joined } = totals;
    let of = if *n_items > 0 { format!(" of {n_items} items") } else { String::new() };
    let already = if *was_finished { "complete already, " } else { "" };
    let mut lines =
        format!("{out}: {already}{rows} {noun}, {images} images, {shards} shards{of}\n");
    if *resumed > 0 {
        writeln!(lines, "resumed: {resumed} items were done before")
            .expect("writing to a string does not fail");
    }
    if let Some(Manifest { rows, images, shards, .. }) = joined {
        let shards = shards.len();
        writeln!(lines, "{out}: all partitions: {rows} {noun}, {images} images, {shards} shards")
            .expect("writing to a string does not fail");
    }
    let mut rejects: Vec<_> = rejects.iter().collect();
    rejects.sort_by_key(|(_, n)| std::cmp::Reverse(**n));
    for (rule, n) in rejects {
        writeln!(lines, "rejected: {n} {rule}").expect("writing to a string does not fail");
    }
    lines
}

/// What a retry did, and what is still dropped, most frequent first.
fn retried(corpus: &str, retried: &Retried) -> String {
    let Retried { n_asked, n_added, rejects } = retried;
    let mut lines =
        format!("{corpus}: asked again for {n_asked} addresses, {n_added} pairs added\n");
    let mut rejects: Vec<_> = rejects.iter().collect();
    rejects.sort_by_key(|(_, n)| std::cmp::Reverse(**n));
    for (rule, n) in rejects {
        writeln!(lines, "still rejected: {n} {rule}").expect("writing to a string does not fail");
    }
    lines
}

fn verdict(corpus: &str, checked: &Checked) -> String {
    let mut lines = String::new();
    let mut add = |line: std::fmt::Arguments<'_>| {
        lines.write_fmt(line).expect("writing to a string does not fail");
    };
    for problem in &checked.problems {
        add(format_args!("problem: {}: {}\n", problem.place, problem.problem));
    }
    let more = checked.n_problems - checked.problems.len() as u64;
    if more > 0 {
        add(format_args!("problem: and {more} more\n"));
    }
    for note in &checked.notes {
        add(format_args!("note: {note}\n"));
    }
    let Checked { kind, rows, images, words, shards, .. } = checked;
    let kind = kind.name();
    if checked.n_problems == 0 {
        let read = if checked.rows_read == *rows {
            format!("{images} images, {words} words, {shards} shards")
        } else {
            let (rows_read, hashed) = (checked.rows_read, checked.shards_hashed);
            format!(
                "{shards} shards; sampled {rows_read} rows with {images} images and {hashed} checksums"
            )
        };
        add(format_args!("{corpus}: ok, {kind}, {rows} rows, {read}\n"));
    }
    lines
}

/// What a purge did, or would do.
fn purged(corpus: &str, mode: Mode, outcome: &purge::Outcome) -> String {
    let purge::Outcome { rows, images, rewritten, shards, of_shards, table_rows, .. } = outcome;
    let (removed, written) = match mode {
        Mode::Remove => ("removed", "written again"),
        Mode::DryRun => ("to remove", "to write again"),
    };
    let mut lines = format!(
        "{corpus}: {removed}: {rows} rows, and {images} images of {rewritten} documents that stay; \
         {written}: {shards} of {of_shards} shards; {removed} from the tables: {table_rows} rows\n"
    );
    for target in &outcome.not_found {
        writeln!(lines, "not found: {target}").expect("writing to a string does not fail");
    }
    lines
}

/// An error and its causes in one line.
fn one_line(error: &IngestError) -> String {
    let mut line = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        let text = cause.to_string();
        // Some errors repeat their cause in their own words.
        if !line.ends_with(&text) {
            write!(line, ": {text}").expect("writing to a string does not fail");
        }
        source = cause.source();
    }
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}
