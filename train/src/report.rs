//! `report.html`: loss curves, what the stage observed, throughput and the config, in one
//! self-contained page.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use flamingo_dataset::CorruptRow;
use flamingo_dataset::report::Page;

use crate::device::{self, Devices};
use crate::error::TrainError;
use crate::files;
use crate::machine::Machine;
use crate::metrics::{self, StepMetrics};
use crate::run_folder;
use crate::trouble::Trouble;

const FILE: &str = "report.html";

/// Corrupt rows that the page names.
const CORRUPT_ROWS_MAX: usize = 100;

/// A named line of a chart: points `(step, value)`.
type Series = (String, Vec<(f64, f64)>);

/// Writes the report of a run from its metrics, its config, where it was made and the steps that went
/// wrong.
///
/// # Errors
/// When the run's files cannot be read or the report cannot be written.
pub fn write(run: &Path, devices: &Devices, troubles: &[Trouble]) -> Result<(), TrainError> {
    let steps = metrics::read(run)?;
    let config_path = run.join(run_folder::CONFIG);
    let config =
        std::fs::read_to_string(&config_path).map_err(TrainError::file("read", &config_path))?;
    let name = run
        .file_name()
        .map_or_else(|| run.display().to_string(), |name| name.to_string_lossy().into_owned());
    files::replace(&run.join(FILE), page(&name, &steps, devices, troubles, &config).as_bytes())
}

fn page(
    name: &str,
    steps: &[StepMetrics],
    devices: &Devices,
    troubles: &[Trouble],
    config: &str,
) -> String {
    let mut page = Page::new(&format!("Training run {name}"));
    if let Some(last) = steps.last() {
        page.heading("At the last step");
        page.table(&["measure", "value"], &summary(steps, last, devices));
    }
    page.heading("Loss");
    page.line_chart("Loss of each dataset", "step", &series(steps, |step| &step.losses));
    page.line_chart("Objective", "step", &[single("loss", steps, |step| step.loss)]);
    for (group, lines) in groups(series(steps, |step| &step.observed)) {
        page.line_chart(&format!("Observed: {group}"), "step", &lines);
    }
    page.heading("Optimizer");
    page.line_chart("Learning rate", "step", &[single("lr", steps, |step| step.lr)]);
    let norm = single("norm", steps, |step| step.grad_norm);
    page.line_chart("Norm of the gradient before clipping", "step", &[norm]);
    page.heading("Speed");
    let seconds = single("whole step", steps, |step| step.seconds);
    let waiting = single("waiting for rows", steps, |step| step.data_wait_seconds);
    page.line_chart("Seconds per step", "step", &[seconds, waiting]);
    draw_machine(&mut page, steps);
    let corrupt = corrupt_rows(steps);
    if !corrupt.is_empty() {
        page.heading("Corrupt rows, which the next ones stood in for");
        page.table(&["step", "dataset", "row", "problem"], &corrupt);
    }
    if !troubles.is_empty() {
        page.heading("Steps that went wrong, whose rows are left out");
        page.table(&["step", "what was found", "what followed", "rows"], &trouble_rows(troubles));
    }
    page.heading("Config");
    page.table(&["line"], &config.lines().map(|line| vec![line.to_owned()]).collect::<Vec<_>>());
    page.finish()
}

/// Samples a second, and of the machine what is known of it.
fn draw_machine(page: &mut Page, steps: &[StepMetrics]) {
    let samples = single("samples", steps, |step| step.per_second(step.samples));
    page.line_chart("Samples per second", "step", &[samples]);
    let images = single("images", steps, |step| 1000.0 * step.images_per_token());
    page.line_chart("Images for 1,000 predicted tokens", "step", &[images]);
    let gibibytes = |bytes: Option<u64>| bytes.map_or(f64::NAN, |n| n as f64 / f64::from(1 << 30));
    let of_machine = |name: &str, value: fn(&Machine) -> Option<f64>| {
        single(name, steps, |step| value(&step.machine).unwrap_or(f64::NAN))
    };
    let memory = |name: &str, bytes: fn(&Machine) -> Option<u64>| {
        single(name, steps, |step| gibibytes(bytes(&step.machine)))
    };
    for (title, lines) in [
        ("Operations in 10^12 a second", vec![of_machine("counted", |m| m.tflops)]),
        ("Share of the device's operations (MFU)", vec![of_machine("mfu", |m| m.mfu)]),
        (
            "Memory in GiB",
            vec![
                memory("process", |m| m.memory_bytes),
                memory("process, at most", |m| m.memory_peak_bytes),
                memory("GPU", |m| m.gpu_memory_bytes),
                memory("GPU, at most", |m| m.gpu_memory_peak_bytes),
            ],
        ),
    ] {
        let known: Vec<Series> = lines.into_iter().filter(|(_, line)| !line.is_empty()).collect();
        if !known.is_empty() {
            page.line_chart(title, "step", &known);
        }
    }
}

fn summary(steps: &[StepMetrics], last: &StepMetrics, devices: &Devices) -> Vec<Vec<String>> {
    let sum = |value: fn(&StepMetrics) -> f64| steps.iter().map(value).sum::<f64>();
    let seconds = sum(|step| step.seconds);
    let row = |name: &str, value: String| vec![name.to_owned(), value];
    let mut rows = vec![row("step", last.step.to_string())];
    rows.extend(
        last.losses.iter().map(|(name, loss)| row(&format!("loss, {name}"), format!("{loss:.4}"))),
    );
    rows.extend([
        row("seconds in all steps", format!("{seconds:.1}")),
        row("of these, waiting for rows", format!("{:.1}", sum(|step| step.data_wait_seconds))),
        row("tokens per second", format!("{:.0}", sum(|step| step.tokens as f64) / seconds)),
        row("samples per second", format!("{:.1}", sum(|step| step.samples as f64) / seconds)),
        row("images per second", format!("{:.1}", sum(|step| step.images as f64) / seconds)),
        row("device", device::text(devices)),
        row("corrupt rows", sum(|step| step.corrupt_rows.len() as f64).to_string()),
    ]);
    rows
}

/// The first [`CORRUPT_ROWS_MAX`] of them; the metrics have all.
fn corrupt_rows(steps: &[StepMetrics]) -> Vec<Vec<String>> {
    let rows = steps.iter().flat_map(|step| step.corrupt_rows.iter().map(move |row| (step, row)));
    let line = |(step, found): (&StepMetrics, &CorruptRow)| {
        let (step, row) = (step.step.to_string(), found.row.to_string());
        vec![step, found.dataset.clone(), row, found.problem.clone()]
    };
    rows.take(CORRUPT_ROWS_MAX).map(line).collect()
}

fn trouble_rows(troubles: &[Trouble]) -> Vec<Vec<String>> {
    let line = |trouble: &Trouble| {
        let Trouble { step, found, back_to, .. } = trouble;
        let action =
            back_to.map_or_else(|| "skipped".to_owned(), |step| format!("back to step {step}"));
        vec![step.to_string(), found.clone(), action, trouble.rows_text()]
    };
    troubles.iter().map(line).collect()
}

fn single(name: &str, steps: &[StepMetrics], value: impl Fn(&StepMetrics) -> f64) -> Series {
    let points = steps.iter().map(|step| (step.step as f64, value(step)));
    (name.to_owned(), points.filter(|(_, value)| value.is_finite()).collect())
}

/// One line for each name in the maps.
fn series(
    steps: &[StepMetrics],
    values: impl Fn(&StepMetrics) -> &BTreeMap<String, f64>,
) -> Vec<Series> {
    let names: BTreeSet<&String> = steps.iter().flat_map(|step| values(step).keys()).collect();
    let points = |name: &String| {
        let point = |step: &StepMetrics| Some((step.step as f64, *values(step).get(name)?));
        steps.iter().filter_map(point).collect()
    };
    names.into_iter().map(|name| (name.clone(), points(name))).collect()
}

/// Lines with the same first word before a dot go into one chart.
fn groups(lines: Vec<Series>) -> BTreeMap<String, Vec<Series>> {
    let mut groups: BTreeMap<String, Vec<Series>> = BTreeMap::new();
    for (name, points) in lines {
        let (group, rest) = name.split_once('.').unwrap_or((&name, &name));
        groups.entry(group.to_owned()).or_default().push((rest.to_owned(), points));
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::tests::metrics;

    #[test]
    fn the_page_shows_losses_observations_and_config() {
        let mut steps = [metrics(1, 3.0), metrics(2, 2.0)];
        let (dataset, problem) = ("pairs".to_owned(), "it is cut off".to_owned());
        steps[1].corrupt_rows = vec![CorruptRow { dataset, row: 77, problem }];
        let trouble = Trouble {
            step: 9,
            found: "the loss of dataset `pairs` is NaN".to_owned(),
            back_to: Some(4),
            rows: BTreeMap::from([("pairs".to_owned(), vec![8, 1234])]),
        };
        let devices = Devices::from([(0, "CPU (f32)".to_owned())]);
        let html = page("demo", &steps, &devices, &[trouble], "seed = 7\n");
        for part in [
            "Training run demo",
            "loss, pairs",
            "2.0000",
            "Observed: gate",
            "0.attention",
            "seed = 7",
            "it is cut off",
            "the loss of dataset `pairs` is NaN",
            "back to step 4",
            "CPU (f32)",
            "pairs 8 1234",
        ] {
            assert!(html.contains(part), "{part} is missing");
        }
        page("demo", &[], &devices, &[], "");
    }

    #[test]
    fn a_dataset_that_came_later_has_a_shorter_line() {
        let mut steps = [metrics(1, 3.0), metrics(2, 2.0)];
        steps[1].losses.insert("clips".to_owned(), 5.0);
        let lines = series(&steps, |step| &step.losses);
        assert_eq!(lines[0], ("clips".to_owned(), vec![(2.0, 5.0)]));
        assert_eq!(lines[1], ("pairs".to_owned(), vec![(1.0, 3.0), (2.0, 2.0)]));
    }
}
