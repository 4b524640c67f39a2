//! Figures of texts, for comparison with other programs and for timing.
//!
//! `text_figures < texts.jsonl` reads one JSON string a line and prints its figures as a JSON object.
//! `text_figures --time FILE` prints how much text is measured in a second of processor time.

use std::io::{BufRead, Write};
use std::time::Instant;

use flamingo_ingest::plan::BuildPlan;
use flamingo_ingest::rules::Rules;

/// Texts are measured again until this much time has passed.
const SECONDS: f64 = 5.0;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let plan = BuildPlan::default();
    let rules = Rules::new(&plan)?;
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let mut out = std::io::stdout().lock();
    if let [_, file] = &arguments[..] {
        return time(&rules, file, &mut out);
    }
    for line in std::io::stdin().lock().lines() {
        let text: String = serde_json::from_str(&line?)?;
        let measured = rules.document(&text);
        let mut figures: serde_json::Map<_, _> =
            measured.values.0.iter().map(|(name, v)| ((*name).to_owned(), (*v).into())).collect();
        figures.insert("lang".into(), measured.language.map(|language| language.code).into());
        writeln!(out, "{}", serde_json::Value::Object(figures))?;
    }
    Ok(())
}

fn time(rules: &Rules, file: &str, out: &mut impl Write) -> Result<(), Box<dyn std::error::Error>> {
    let lines = std::fs::read_to_string(file)?;
    let texts: Vec<String> = lines.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let bytes: usize = texts.iter().map(String::len).sum();
    for (what, measure) in [
        ("all figures and the language", all as fn(&Rules, &str) -> usize),
        ("all figures", without_language),
        ("a caption", caption),
        ("the language", language),
    ] {
        let (start, cpu) = (Instant::now(), cpu_seconds()?);
        let (mut rounds, mut n) = (0, 0);
        while start.elapsed().as_secs_f64() < SECONDS {
            n += texts.iter().map(|text| measure(rules, text)).sum::<usize>();
            rounds += 1;
        }
        let seconds = (cpu_seconds()? - cpu) / f64::from(rounds);
        let (docs, mb) = (texts.len() as f64 / seconds, bytes as f64 / seconds / 1e6);
        writeln!(
            out,
            "{what}: {docs:.0} texts/s, {mb:.1} MB/s ({} texts, {n} figures)",
            texts.len()
        )?;
    }
    Ok(())
}

fn all(rules: &Rules, text: &str) -> usize {
    rules.document(text).values.0.len()
}

fn without_language(_: &Rules, text: &str) -> usize {
    thread_local!(static LEXICON: flamingo_ingest::rules::Lexicon = flamingo_ingest::rules::Lexicon::default());
    LEXICON.with(|lexicon| flamingo_ingest::rules::document(text, lexicon, 0).0.len())
}

fn caption(rules: &Rules, text: &str) -> usize {
    rules.caption(text).values.0.len()
}

fn language(_: &Rules, text: &str) -> usize {
    usize::from(flamingo_ingest::rules::language::tell(text).is_some())
}

/// Processor time of this process, user and system.
fn cpu_seconds() -> Result<f64, Box<dyn std::error::Error>> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks = after_name.split_whitespace().skip(11).take(2).map(str::parse::<f64>);
    // Linux counts in hundredths of a second for everyone.
    Ok(ticks.sum::<Result<f64, _>>()? / 100.0)
}
