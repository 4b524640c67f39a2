//! Counters of a running job: one set of numbers for the progress on the terminal and for whoever
//! scrapes `/metrics`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::outcome::Outcome;
use crate::source;

/// What a run has done, resumed parts included, and what is under way.
#[derive(Debug, Default)]
pub struct Meter {
    /// Records of archives that the index has seen.
    pub records: AtomicU64,
    /// Items of the input that are done.
    pub items: AtomicU64,
    /// How many items there are; 0 where that is not known.
    pub items_expected: AtomicU64,
    /// Rows kept.
    pub rows: AtomicU64,
    /// Images, or frames, kept.
    pub images: AtomicU64,
    /// Bytes of published shards.
    pub bytes_written: AtomicU64,
    /// Bytes of fetched bodies.
    pub bytes_fetched: AtomicU64,
    /// Items between the input and the output.
    pub items_under_way: AtomicU64,
    /// Bytes of them and of their results.
    pub bytes_under_way: AtomicU64,
    rejects: Mutex<BTreeMap<String, u64>>,
    fetches: Mutex<BTreeMap<String, u64>>,
}

impl Meter {
    /// Counts what became of one item.
    pub fn count(&self, outcome: &Outcome) {
        self.items.fetch_add(1, Relaxed);
        self.rows.fetch_add(outcome.rows.len() as u64, Relaxed);
        let images: usize = outcome.rows.iter().map(flamingo_dataset::Row::n_images).sum();
        self.images.fetch_add(images as u64, Relaxed);
        self.count_rejects(outcome.rejects.iter().map(|reject| (reject.rule(), 1)));
        let mut fetches = lock(&self.fetches);
        for fetch in &outcome.fetches {
            self.bytes_fetched.fetch_add(fetch.bytes, Relaxed);
            *fetches.entry(fetch.cause.to_owned()).or_default() += 1;
        }
    }

    /// Counts rejects by their rule.
    pub fn count_rejects(&self, counts: impl Iterator<Item = (String, u64)>) {
        let mut rejects = lock(&self.rejects);
        for (rule, n) in counts {
            *rejects.entry(rule).or_default() += n;
        }
    }

    /// The most frequent rules by which something was dropped, with their counts.
    pub fn top_rejects(&self, n: usize) -> Vec<(String, u64)> {
        let mut rejects: Vec<_> =
            lock(&self.rejects).iter().map(|(rule, n)| (rule.clone(), *n)).collect();
        rejects.sort_by_key(|(_, n)| std::cmp::Reverse(*n));
        rejects.truncate(n);
        rejects
    }

    /// All numbers in the text format of Prometheus.
    pub fn prometheus(&self) -> String {
        let mut text = String::new();
        let counters: [(&str, &str, u64); 8] = [
            ("records_total", "Archive records indexed.", self.records.load(Relaxed)),
            ("items_total", "Items of the input that are done.", self.items.load(Relaxed)),
            ("rows_total", "Rows kept.", self.rows.load(Relaxed)),
            ("images_total", "Images or frames kept.", self.images.load(Relaxed)),
            ("read_bytes_total", "Bytes read from inputs.", source::bytes_read()),
            ("fetched_bytes_total", "Bytes of fetched bodies.", self.bytes_fetched.load(Relaxed)),
            ("written_bytes_total", "Bytes of shards.", self.bytes_written.load(Relaxed)),
            ("cpu_seconds_total", "User and system time.", cpu_seconds()),
        ];
        for (name, help, value) in counters {
            add(&mut text, name, help, "counter", &[(String::new(), value)]);
        }
        let gauges: [(&str, &str, u64); 4] = [
            (
                "items_expected",
                "Items of the input, 0 if unknown.",
                self.items_expected.load(Relaxed),
            ),
            ("queue_items", "Items under way.", self.items_under_way.load(Relaxed)),
            ("queue_bytes", "Bytes under way.", self.bytes_under_way.load(Relaxed)),
            ("resident_bytes", "Resident memory of the process.", resident_bytes()),
        ];
        for (name, help, value) in gauges {
            add(&mut text, name, help, "gauge", &[(String::new(), value)]);
        }
        for (name, help, label, counts) in [
            ("rejects_total", "Dropped records.", "rule", &self.rejects),
            ("fetches_total", "Addresses asked for.", "cause", &self.fetches),
        ] {
            let samples: Vec<_> = lock(counts)
                .iter()
                .map(|(value, n)| (format!("{{{label}=\"{}\"}}", escaped(value)), *n))
                .collect();
            add(&mut text, name, help, "counter", &samples);
        }
        text
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn add(text: &mut String, name: &str, help: &str, kind: &str, samples: &[(String, u64)]) {
    let name = format!("flamingo_ingest_{name}");
    writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}")
        .expect("writing to a string does not fail");
    for (labels, value) in samples {
        writeln!(text, "{name}{labels} {value}").expect("writing to a string does not fail");
    }
}

/// A label's value as the format wants it.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// Resident memory; 0 where the system does not tell.
pub fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kilobytes = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .and_then(|rest| rest.split_whitespace().next())
        .and_then(|number| number.parse::<u64>().ok());
    kilobytes.unwrap_or(0) * 1024
}

/// Whole seconds of user and system time; 0 where the system does not tell.
fn cpu_seconds() -> u64 {
    /// Linux counts in hundredths of a second for every program.
    const TICKS: u64 = 100;
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks = after_name.split_whitespace().skip(11).take(2);
    ticks.filter_map(|number| number.parse::<u64>().ok()).sum::<u64>() / TICKS
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reject::{DropReason, Origin, Stage};

    #[test]
    fn rejects_are_labelled_by_rule_and_ranked() {
        let meter = Meter::default();
        let origin = Origin { source: "a".into(), offset: None, url: None };
        let outcome =
            |reason| Outcome::dropped(DropReason::because(reason).at(Stage::Image, &origin, None));
        for reason in ["aspect", "too_small", "too_small"] {
            meter.count(&outcome(reason));
        }
        assert_eq!(meter.top_rejects(1), [("image/too_small".to_owned(), 2)]);
        let text = meter.prometheus();
        assert!(text.contains("flamingo_ingest_items_total 3\n"), "{text}");
        assert!(
            text.contains("flamingo_ingest_rejects_total{rule=\"image/aspect\"} 1\n"),
            "{text}"
        );
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap();
        }
        assert!(resident_bytes() > 1 << 20);
        assert_eq!(escaped("a\"b\\c\nd"), "a\\\"b\\\\c\\nd");
    }
}
