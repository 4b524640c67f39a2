//! `flamingo-eval leaks`: pictures and films that are asked about and that the model has seen, as examples or in
//! training.
//!
//! Queries of every task are compared with the examples of all tasks (COCO's captions of `restval` show pictures that
//! VQA's validation asks about) and with corpora. Three things tell that two media are one:
//!
//! - `id`: the id of the picture or film, within a task; the name of its file, between tasks;
//! - `sha256`: the same bytes, of a film those of its frames;
//! - `phash`: the difference hash, 64 bits, that survives shrinking and re-encoding. It is taken of the frame in the middle
//!   of a film. Pictures of one colour, whose hash is 0 or all ones, are left out.
//!
//! Of corpora only the columns of hashes are read, no picture. Those that keep none (lists and tars of others) are
//! compared by what they have.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;

use clap::Args;
use flamingo_dataset::{Corpus, Row, Slot, image_hash, sha256_hex};
use serde::Serialize;

use crate::benchmark::{Benchmark, SplitChoice};
use crate::error::EvalError;
use crate::ids::some_of;
use crate::item::Item;
use crate::medium::Medium;
use crate::near_hashes::NearHashes;
use crate::task_file::TaskFile;

/// Hashes that pictures of one colour have, or a corpus that keeps none.
const EMPTY_HASHES: [u64; 2] = [0, u64::MAX];

/// What is compared.
#[derive(Debug, Args)]
pub struct Leaks {
    /// Task, or the path of a task file; repeatable, the first --task goes with the first --annotations and so on.
    #[arg(long = "task", required = true, value_name = "TASK")]
    tasks: Vec<String>,
    /// Folder with the official files and the media; repeatable.
    #[arg(long, required = true, value_name = "DIR")]
    annotations: Vec<String>,
    /// Corpus of ours that a model was trained on; repeatable.
    #[arg(long = "corpus", value_name = "CORPUS")]
    corpora: Vec<String>,
    /// Most bits of 64 in which perceptual hashes of the same picture differ; 4 bears shrinking and JPEG.
    #[arg(long, default_value_t = 4, value_name = "BITS",
          value_parser = clap::value_parser!(u32).range(0..=16))]
    distance: u32,
    /// Prints one JSON object with all pairs in place of counts and some of them.
    #[arg(long)]
    json: bool,
}

/// Why two media are taken for one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum Reason {
    Id,
    Sha256,
    Phash,
}

/// A query and where its medium was seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Pair {
    query: String,
    seen: String,
    reason: Reason,
    /// Bits in which the perceptual hashes differ, where they are the reason.
    #[serde(skip_serializing_if = "Option::is_none")]
    distance: Option<u32>,
}

/// What is between the queries of a task and one place.
#[derive(Debug, Serialize)]
struct Overlap {
    /// The task.
    queries_of: String,
    /// `examples of TASK`, or a corpus.
    seen_in: String,
    /// Queries whose medium was seen there.
    n_queries: usize,
    /// Queries of the task.
    of: usize,
    pairs: Vec<Pair>,
}

/// What tells a medium.
#[derive(Debug, Clone, Default)]
struct Print {
    name: String,
    medium_id: String,
    file: Option<String>,
    sha256: Option<String>,
    hash: Option<u64>,
}

/// Media of a benchmark.
struct Prints {
    task: String,
    queries: Vec<Print>,
    examples: Vec<Print>,
}

/// Compares; what is to be printed comes back.
///
/// # Errors
/// When a task, annotation file, picture or corpus cannot be read.
///
/// # Panics
/// Never: overlaps are texts and numbers.
pub fn run(leaks: &Leaks) -> Result<String, EvalError> {
    if leaks.tasks.len() != leaks.annotations.len() {
        let (tasks, n) = (leaks.tasks.len(), leaks.annotations.len());
        let problem = format!("{tasks} times, but {n} times --annotations");
        return Err(EvalError::Unfit { what: "--task".into(), problem });
    }
    let mut all = Vec::new();
    for (task, location) in leaks.tasks.iter().zip(&leaks.annotations) {
        let mut task = TaskFile::find(task)?;
        // Which examples a seed draws is another question.
        task.support_max = 0;
        all.push(prints(&Benchmark::open(task, location, &SplitChoice::default(), 0)?)?);
    }
    let indices: Vec<Index<'_>> = all.iter().map(|it| Index::new(it, leaks.distance)).collect();
    let mut overlaps = Vec::new();
    for index in &indices {
        for other in all.iter().filter(|other| !other.examples.is_empty()) {
            let pairs = other
                .examples
                .iter()
                .flat_map(|seen| index.pairs(seen, index.prints.task == other.task));
            overlaps.push(index.overlap(format!("examples of {}", other.task), pairs.collect()));
        }
    }
    for location in &leaks.corpora {
        let pairs = in_corpus(location, &indices)?;
        let found = indices.iter().zip(pairs);
        overlaps.extend(found.map(|(index, pairs)| index.overlap(location.clone(), pairs)));
    }
    Ok(if leaks.json {
        let text = serde_json::to_string_pretty(&overlaps).expect("texts and numbers");
        format!("{text}\n")
    } else {
        as_text(&overlaps)
    })
}

fn prints(benchmark: &Benchmark) -> Result<Prints, EvalError> {
    // A medium is looked at once, however many questions there are on it.
    let mut known: HashMap<String, Print> = HashMap::new();
    let mut of = |items: &[Item]| {
        let mut all = Vec::new();
        for item in items {
            if !known.contains_key(&item.medium_id) {
                known.insert(item.medium_id.clone(), print_of(item, benchmark)?);
            }
            all.push(Print { name: item.id.clone(), ..known[&item.medium_id].clone() });
        }
        Ok::<_, EvalError>(all)
    };
    let queries = of(&benchmark.query)?;
    Ok(Prints { task: benchmark.task.name.clone(), queries, examples: of(&benchmark.support)? })
}

fn print_of(item: &Item, benchmark: &Benchmark) -> Result<Print, EvalError> {
    let medium_id = item.medium_id.clone();
    let Some(medium) = item.medium.as_ref().filter(|medium| medium.exists()) else {
        return Ok(Print { medium_id, ..Print::default() });
    };
    let frames = medium.frames(benchmark.task.frames)?;
    let hash = image_hash(&frames[frames.len() / 2].bytes)
        .map_err(|source| EvalError::Image { key: item.id.clone(), source: Box::new(source) })?;
    let sha256 = match (medium, &frames[..]) {
        (_, [picture]) => sha256_hex(&picture.bytes),
        (medium, _) => medium.sha256(benchmark.task.frames)?,
    };
    let file = match medium {
        Medium::Image(path) | Medium::Frames { folder: path, .. } => path.file_name(),
        Medium::Row { .. } => None,
    };
    Ok(Print {
        name: String::new(),
        medium_id,
        file: file.map(|name| name.to_string_lossy().into_owned()),
        sha256: Some(sha256),
        hash: Some(hash).filter(|hash| !EMPTY_HASHES.contains(hash)),
    })
}

/// Queries by all that tells their media.
struct Index<'a> {
    prints: &'a Prints,
    by_id: HashMap<&'a str, Vec<usize>>,
    by_file: HashMap<&'a str, Vec<usize>>,
    by_sha256: HashMap<&'a str, Vec<usize>>,
    /// Places of the queries that have a hash.
    hashed: Vec<usize>,
    near: NearHashes,
}

impl<'a> Index<'a> {
    fn new(prints: &'a Prints, distance: u32) -> Self {
        let queries = &prints.queries;
        let by = |key: fn(&'a Print) -> Option<&'a str>| {
            let mut map: HashMap<&str, Vec<usize>> = HashMap::new();
            for (place, query) in queries.iter().enumerate() {
                if let Some(key) = key(query) {
                    map.entry(key).or_default().push(place);
                }
            }
            map
        };
        let hashed = queries.iter().enumerate();
        let hashed = hashed.filter_map(|(place, query)| Some((place, query.hash?)));
        let (hashed, hashes): (Vec<usize>, Vec<u64>) = hashed.unzip();
        Self {
            prints,
            by_id: by(|it| Some(it.medium_id.as_str())),
            by_file: by(|it| it.file.as_deref()),
            by_sha256: by(|it| it.sha256.as_deref()),
            hashed,
            near: NearHashes::new(hashes, distance),
        }
    }

    /// Queries whose medium is `seen`, each for the strongest reason. Ids mean something within a task.
    fn pairs(&self, seen: &Print, is_own_task: bool) -> Vec<Pair> {
        let mut found: BTreeMap<usize, (Reason, Option<u32>)> = BTreeMap::new();
        let ids = if is_own_task {
            self.by_id.get(seen.medium_id.as_str())
        } else {
            seen.file.as_deref().and_then(|file| self.by_file.get(file))
        };
        let bytes = seen.sha256.as_deref().and_then(|sha256| self.by_sha256.get(sha256));
        for (reason, places) in [(Reason::Id, ids), (Reason::Sha256, bytes)] {
            for place in places.into_iter().flatten() {
                found.entry(*place).or_insert((reason, None));
            }
        }
        for (at, distance) in seen.hash.map(|hash| self.near.near(hash)).unwrap_or_default() {
            found.entry(self.hashed[at]).or_insert((Reason::Phash, Some(distance)));
        }
        let pair = |(place, (reason, distance)): (usize, _)| Pair {
            query: self.prints.queries[place].name.clone(),
            seen: seen.name.clone(),
            reason,
            distance,
        };
        found.into_iter().map(pair).collect()
    }

    fn overlap(&self, seen_in: String, pairs: Vec<Pair>) -> Overlap {
        let mut queries: Vec<&str> = pairs.iter().map(|pair| pair.query.as_str()).collect();
        queries.sort_unstable();
        queries.dedup();
        Overlap {
            queries_of: self.prints.task.clone(),
            seen_in,
            n_queries: queries.len(),
            of: self.prints.queries.len(),
            pairs,
        }
    }
}

/// Pairs of each task with the images and clips of a corpus.
fn in_corpus(location: &str, indices: &[Index<'_>]) -> Result<Vec<Vec<Pair>>, EvalError> {
    let corpus = Corpus::open(location)?;
    let mut pairs: Vec<Vec<Pair>> = indices.iter().map(|_| Vec::new()).collect();
    for row in 0..corpus.n_rows() {
        for seen in seen_in(corpus.read_texts(row)?) {
            for (index, pairs) in indices.iter().zip(&mut pairs) {
                pairs.extend(index.pairs(&seen, false));
            }
        }
    }
    Ok(pairs)
}

/// What a row tells of its pictures.
fn seen_in(row: Row) -> Vec<Print> {
    let print = |name: String, sha256: String, hash: u64| Print {
        name,
        sha256: Some(sha256).filter(|sha256| !sha256.is_empty()),
        hash: Some(hash).filter(|hash| !EMPTY_HASHES.contains(hash)),
        ..Print::default()
    };
    match row {
        Row::ImageText(pair) => vec![print(pair.key, pair.sha256, pair.phash)],
        Row::VideoText(clip) => vec![print(clip.key, clip.sha256, 0)],
        Row::Interleaved(document) => {
            let id = document.doc_id;
            let metas = document.slots.into_iter().filter_map(|slot| match slot {
                Slot::Image { meta, .. } => Some(meta),
                Slot::Text(_) => None,
            });
            metas.map(|meta| print(id.clone(), meta.sha256, meta.phash)).collect()
        }
    }
}

fn as_text(overlaps: &[Overlap]) -> String {
    let mut text = String::new();
    for overlap in overlaps {
        let Overlap { queries_of, seen_in, n_queries, of, pairs } = overlap;
        let _ = writeln!(text, "{queries_of}: {n_queries} of {of} queries in {seen_in}");
        for reason in [Reason::Id, Reason::Sha256, Reason::Phash] {
            let found: Vec<&Pair> = pairs.iter().filter(|pair| pair.reason == reason).collect();
            if found.is_empty() {
                continue;
            }
            let shown = found.iter().map(|pair| {
                let bits = pair.distance.map(|n| format!(" ({n} bits apart)")).unwrap_or_default();
                format!("{} = {}{bits}", pair.query, pair.seen)
            });
            let shown = some_of(&shown.collect::<Vec<_>>());
            let name = match reason {
                Reason::Id => "id",
                Reason::Sha256 => "bytes",
                Reason::Phash => "looks",
            };
            let _ = writeln!(text, "  by {name}: {} pairs: {shown}", found.len());
        }
    }
    text
}
