//! What was asked for over the network, and what came of it.

use std::collections::BTreeMap;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{Int32Type, Int64Type};
use flamingo_dataset::CorpusStore;
use flamingo_dataset::report::Page;
use url::Url;

use super::show_bytes;
use crate::error::IngestError;
use crate::output::LEDGER;
use crate::table;

/// Hosts that are counted one by one; further ones are one row.
const HOSTS_MAX: usize = 100_000;
/// Hosts that are shown.
const HOSTS_SHOWN: usize = 12;

#[derive(Debug, Clone, Copy, Default)]
struct Sum {
    n: u64,
    ok: u64,
    attempts: u64,
    bytes: u64,
    ms: u64,
}

#[derive(Default)]
struct Sums {
    causes: BTreeMap<String, Sum>,
    statuses: BTreeMap<i32, u64>,
    robots: BTreeMap<String, u64>,
    hosts: BTreeMap<String, Sum>,
}

pub(super) fn add(page: &mut Page, store: &CorpusStore) -> Result<(), IngestError> {
    let mut sums = Sums::default();
    for name in table::parts(store, LEDGER)? {
        for batch in table::read(store, &name, &[])? {
            sums.add(&batch?);
        }
    }
    let total: u64 = sums.causes.values().map(|sum| sum.n).sum();
    if total == 0 {
        return Ok(());
    }
    page.heading("Asked for over the network");
    let mut causes: Vec<_> = sums.causes.iter().collect();
    causes.sort_by_key(|(_, sum)| std::cmp::Reverse(sum.n));
    let share = |n: u64, of: u64| format!("{:.1} %", 100.0 * n as f64 / of.max(1) as f64);
    let mean = |sum: u64, n: u64| format!("{:.1}", sum as f64 / n.max(1) as f64);
    let rows: Vec<_> = causes
        .into_iter()
        .map(|(cause, s)| {
            let (n, share) = (s.n.to_string(), share(s.n, total));
            let (tries, ms) = (mean(s.attempts, s.n), mean(s.ms, s.n));
            vec![cause.clone(), n, share, tries, ms, show_bytes(s.bytes)]
        })
        .collect();
    let headers = ["outcome", "addresses", "share", "attempts, mean", "ms, mean", "bytes"];
    page.table(&headers, &rows);
    let pair = |name: String, n: &u64| vec![name, n.to_string(), share(*n, total)];
    let statuses = sums.statuses.iter().map(|(status, n)| pair(format!("HTTP {status}"), n));
    let robots = sums.robots.iter().map(|(name, n)| pair(format!("robots.txt: {name}"), n));
    page.table(&["answer", "addresses", "share"], &statuses.chain(robots).collect::<Vec<_>>());
    let mut hosts: Vec<_> = sums.hosts.iter().collect();
    hosts.sort_by_key(|(_, sum)| std::cmp::Reverse(sum.n));
    let rows: Vec<_> = hosts
        .into_iter()
        .take(HOSTS_SHOWN)
        .map(|(host, s)| {
            let failed = (s.n - s.ok).to_string();
            vec![host.clone(), s.n.to_string(), failed, share(s.ok, s.n), show_bytes(s.bytes)]
        })
        .collect();
    page.subheading(&format!("The largest of {} hosts", sums.hosts.len()));
    page.table(&["host", "addresses", "failed", "ok", "bytes"], &rows);
    Ok(())
}

impl Sums {
    fn add(&mut self, batch: &RecordBatch) {
        let small = |name: &str, i: usize| {
            let values = batch.column_by_name(name)?.as_primitive_opt::<Int32Type>()?;
            values.is_valid(i).then(|| values.value(i))
        };
        let large = |name: &str, i: usize| {
            let values = batch.column_by_name(name)?.as_primitive_opt::<Int64Type>()?;
            values.is_valid(i).then(|| values.value(i).max(0) as u64)
        };
        for i in 0..batch.num_rows() {
            let text = |name| table::text(batch, name, i);
            let cause = text("cause").unwrap_or("not known");
            let one = Sum {
                n: 1,
                ok: u64::from(cause == "ok"),
                attempts: small("attempts", i).unwrap_or(0).max(0) as u64,
                bytes: large("bytes", i).unwrap_or(0),
                ms: large("elapsed_ms", i).unwrap_or(0),
            };
            self.causes.entry(cause.to_owned()).or_default().add(one);
            if let Some(status) = small("http_status", i) {
                *self.statuses.entry(status).or_default() += 1;
            }
            let robots = text("robots").unwrap_or("none");
            *self.robots.entry(robots.to_owned()).or_default() += 1;
            let url = text("url").and_then(|url| Url::parse(url).ok());
            let host = url.as_ref().and_then(Url::host_str).unwrap_or("not known");
            let is_new = !self.hosts.contains_key(host);
            let host = if is_new && self.hosts.len() >= HOSTS_MAX { "all others" } else { host };
            self.hosts.entry(host.to_owned()).or_default().add(one);
        }
    }
}

impl Sum {
    fn add(&mut self, other: Self) {
        self.n += other.n;
        self.ok += other.ok;
        self.attempts += other.attempts;
        self.bytes += other.bytes;
        self.ms += other.ms;
    }
}
