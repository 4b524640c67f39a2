//! `report.html`: scores, controls, loss curves and a few queries with all that the model saw, in
//! one file that needs no network.

use flamingo_dataset::EncodedImage;
use flamingo_dataset::report::Page;

use crate::benchmark::Benchmark;
use crate::error::EvalError;
use crate::evaluate::{Evaluation, Outcome, Round, Scored};
use crate::item::{Item, ShownAnswer};
use crate::run_folder::{RunFolder, loss_curves};
use crate::subject::ModelCard;
use crate::table::{Table, control_table, score_table, seed_table};

/// Queries shown per task.
const CARDS: usize = 12;

/// Bytes of images in the page; once they are used up, cards come without images.
const IMAGE_BYTES_MAX: usize = 8 << 20;

/// The page.
///
/// # Errors
/// When an image of a shown query cannot be read.
pub fn report_html(
    model: &ModelCard,
    run: Option<&RunFolder>,
    evaluations: &[Evaluation<'_>],
) -> Result<String, EvalError> {
    let mut report = Report { page: Page::new("Few-shot evaluation"), image_bytes: 0 };
    report.scores(model, evaluations);
    if let Some(run) = run {
        report.losses(run);
    }
    for evaluation in evaluations {
        report.cards(evaluation)?;
    }
    Ok(report.page.finish())
}

struct Report {
    page: Page,
    image_bytes: usize,
}

impl Report {
    fn scores(&mut self, model: &ModelCard, evaluations: &[Evaluation<'_>]) {
        self.page.paragraph(&format!("Model: {}, on {}", model.name, model.device));
        self.page.heading("Scores");
        self.table(&score_table(evaluations));
        self.page.paragraph(
            "In brackets: 95 % percentile bootstrap over queries. Gains are paired by query. \
             CIDEr-D is on the scale of pycocoevalcap, where 1.0 is what papers print as 100; its \
             document frequencies stay those of the whole set. At 0 shots, free text is prompted \
             with two examples without their images.",
        );
        for table in evaluations.iter().filter_map(seed_table) {
            self.table(&table);
            self.page.paragraph(
                "Several seeds of the choice of shots: how far scores move with other shots, and with other \
                 queries.",
            );
        }
        let controls: Vec<Table> = evaluations.iter().filter_map(control_table).collect();
        if !controls.is_empty() {
            self.page.heading("Does the model look?");
        }
        for table in &controls {
            self.table(table);
            self.page.paragraph(
                "The right captions, each token predicted from the true ones before it, under the \
                 right image, under the image of another query, and without any.",
            );
        }
    }

    fn table(&mut self, table: &Table) {
        let headers: Vec<&str> = table.headers.iter().map(String::as_str).collect();
        self.page.table(&headers, &table.rows);
    }

    fn losses(&mut self, run: &RunFolder) {
        self.page.heading("Losses in training");
        let own = ("this model".to_owned(), run.run.clone());
        for (stage, folder) in [own].iter().chain(&run.built_from) {
            let curves = loss_curves(folder);
            if curves.is_empty() {
                self.page.paragraph(&format!("{stage}: no metrics in {}", folder.display()));
            } else {
                self.page.line_chart(&format!("loss, {stage}"), "step", &curves);
            }
        }
    }

    fn cards(&mut self, evaluation: &Evaluation<'_>) -> Result<(), EvalError> {
        self.page.heading(&format!("{}: some queries", evaluation.benchmark.task.name));
        for index in 0..evaluation.n_queries.min(CARDS) {
            self.card(evaluation, index)?;
        }
        Ok(())
    }

    /// Query `index`: the shots of the largest shot count, the image, and all answers.
    fn card(&mut self, evaluation: &Evaluation<'_>, index: usize) -> Result<(), EvalError> {
        let benchmark = evaluation.benchmark;
        let item = &benchmark.query[index];
        let fields = item.fields.iter().map(|(name, text)| format!("{name}: {text}"));
        let lines: Vec<String> = fields.chain(item.targets()).collect();
        self.medium(benchmark, item, &format!("query {}\n{}", item.id, lines.join("\n")))?;
        let scored: Vec<(&Round, &Scored)> = evaluation
            .rounds
            .iter()
            .filter_map(|round| match &round.outcome {
                Outcome::Scored(scored) => Some((round, scored)),
                Outcome::OutOfContext { .. } => None,
            })
            .collect();
        let right = scored.iter().filter(|(round, _)| round.key.control.is_none());
        if let Some((round, most)) = right.max_by_key(|(round, _)| round.key.n_shots) {
            self.shots(benchmark, &most.samples[index].shots, round.key.n_shots > 0)?;
        }
        let rows = scored.iter().map(|(round, scored)| {
            let credit = scored.judgements.first().map(|(_, found)| credit(&found.credits[index]));
            let answer = scored.samples[index].prediction.clone();
            vec![round.key.suffix(evaluation.has_seeds), answer, credit.unwrap_or_default()]
        });
        let rows: Vec<Vec<String>> = rows.collect();
        self.page.table(&["round", "answer", &benchmark.task.metric().name()], &rows);
        Ok(())
    }

    fn shots(
        &mut self,
        benchmark: &Benchmark,
        ids: &[String],
        with_images: bool,
    ) -> Result<(), EvalError> {
        for (place, id) in ids.iter().enumerate() {
            let Some(item) = benchmark.support.iter().find(|item| item.id == *id) else {
                continue;
            };
            let answer = item.shown_answer(ShownAnswer::First).unwrap_or_default();
            let text = format!("shot {}\n{answer}", place + 1);
            if with_images {
                self.medium(benchmark, item, &text)?;
            } else {
                self.page.paragraph(&text);
            }
        }
        Ok(())
    }

    /// A picture, or the frame in the middle of a film.
    fn medium(&mut self, benchmark: &Benchmark, item: &Item, text: &str) -> Result<(), EvalError> {
        let Some(medium) = &item.medium else {
            self.page.paragraph(text);
            return Ok(());
        };
        let frames = medium.frames(benchmark.task.frames)?;
        self.figure(&frames[frames.len() / 2], text);
        Ok(())
    }

    fn figure(&mut self, image: &EncodedImage, text: &str) {
        if self.image_bytes + image.bytes.len() > IMAGE_BYTES_MAX {
            self.page.paragraph(text);
            return;
        }
        self.image_bytes += image.bytes.len();
        self.page.figure(&image.bytes, media_type(&image.bytes), text);
    }
}

/// A number with three digits, or several.
fn credit(value: &serde_json::Value) -> String {
    value.as_f64().map_or_else(|| value.to_string(), |value| format!("{value:.3}"))
}

/// Media type by the first bytes of the file.
fn media_type(bytes: &[u8]) -> &'static str {
    match bytes {
        [0xff, 0xd8, ..] => "image/jpeg",
        [0x89, b'P', b'N', b'G', ..] => "image/png",
        [b'G', b'I', b'F', ..] => "image/gif",
        [b'B', b'M', ..] => "image/bmp",
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => "image/webp",
        _ => "application/octet-stream",
    }
}
