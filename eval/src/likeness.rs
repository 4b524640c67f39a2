//! How alike the pictures of queries and examples are: the cosine between what the model's own vision encoder
//! makes of them, averaged over patches and frames.
//!
//! Features are kept in a file beside the samples, so that a resumed evaluation looks at nothing twice.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::benchmark::Benchmark;
use crate::error::EvalError;
use crate::local_subject::LocalSubject;
use crate::progress::Progress;
use crate::prompt::ImagePlace;
use crate::samples::{Record, SampleLog};

/// Features of a medium, of length 1.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Features {
    /// `support` or `query`, and the item's id.
    key: String,
    values: Vec<f32>,
}

impl Record for Features {
    fn key(&self) -> &str {
        &self.key
    }
}

/// Features of all items of a benchmark.
pub struct Likeness {
    support: Vec<Vec<f32>>,
    query: BTreeMap<usize, Vec<f32>>,
}

/// Media whose features are written at a time.
const BATCH: usize = 16;

impl Likeness {
    /// Looks at the media of all examples and of some queries that are not in `cache` yet. The caches of parts
    /// beside it are taken over.
    ///
    /// # Errors
    /// When a picture or the cache cannot be read or written, or the model fails.
    pub fn of_benchmark(
        subject: &LocalSubject<'_>,
        benchmark: &Benchmark,
        queries: Vec<usize>,
        cache: &Path,
    ) -> Result<Self, EvalError> {
        let mut log = SampleLog::<Features>::open(cache)?;
        if let (Some(folder), Some(name)) = (cache.parent(), cache.file_stem()) {
            log.take_over(folder, &name.to_string_lossy())?;
        }
        let progress = Progress::start(
            format!("{}_features", benchmark.task.name),
            benchmark.support.len() + queries.len(),
        );
        let mut look = |places: Vec<ImagePlace>| {
            for batch in places.chunks(BATCH) {
                let mut found = Vec::new();
                for &place in batch {
                    let key = key(benchmark, place);
                    if log.get(&key).is_none() {
                        found.push(Features { key, values: subject.features(place)? });
                    }
                }
                log.append(found)?;
                progress.advance(batch.len());
            }
            let values = |place: &ImagePlace| {
                log.get(&key(benchmark, *place)).map(|it| it.values.clone()).unwrap_or_default()
            };
            Ok::<Vec<_>, EvalError>(places.iter().map(values).collect())
        };
        let support = look((0..benchmark.support.len()).map(ImagePlace::Support).collect())?;
        let features = look(queries.iter().copied().map(ImagePlace::Query).collect())?;
        progress.finish();
        Ok(Self { support, query: queries.into_iter().zip(features).collect() })
    }

    /// The cosine between the media of a query and an example, -1 to 1.
    pub fn of(&self, query: usize, support: usize) -> f32 {
        self.query[&query].iter().zip(&self.support[support]).map(|(a, b)| a * b).sum()
    }
}

fn key(benchmark: &Benchmark, place: ImagePlace) -> String {
    let side = match place {
        ImagePlace::Support(_) => "support",
        ImagePlace::Query(_) => "query",
    };
    format!("{side} {}", benchmark.item(place).id)
}
