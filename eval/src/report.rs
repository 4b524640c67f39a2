//! `report.html`: scores, controls, loss curves and a few queries with all that the model saw, in
//! one file that needs no network.

use flamingo_dataset::EncodedImage;
use flamingo_dataset::report::Page;

use crate::annotations::Annotations;
use crate::error::EvalError;
use crate::evaluate::{Evaluation, Outcome, Scored};
use crate::run_folder::{RunFolder, loss_curves};
use crate::subject::LoadedModel;
use crate::table::{Table, control_table, score_table};

/// Queries shown per task.
const CARDS: usize = 12;

/// Bytes of images in the page; once they are used up, cards come without images.
const IMAGE_BYTES_MAX: usize = 8 << 20;

/// The page.
///
/// # Errors
/// When an image of a shown query cannot be read.
pub fn report_html(
    model: &LoadedModel,
    evaluations: &[(&Evaluation, &Annotations)],
) -> Result<String, EvalError> {
    let mut report = Report { page: Page::new("Few-shot evaluation"), image_bytes: 0 };
    report.scores(model, evaluations);
    report.losses(&model.folder);
    for (evaluation, annotations) in evaluations {
        report.cards(evaluation, annotations)?;
    }
    Ok(report.page.finish())
}

struct Report {
    page: Page,
    image_bytes: usize,
}

impl Report {
    fn scores(&mut self, model: &LoadedModel, evaluations: &[(&Evaluation, &Annotations)]) {
        let (checkpoint, device) = (model.folder.checkpoint.display(), model.device());
        self.page.paragraph(&format!("Model: {checkpoint}, on {device}"));
        self.page.heading("Scores");
        let all: Vec<&Evaluation> = evaluations.iter().map(|(evaluation, _)| *evaluation).collect();
        self.table(&score_table(&all));
        self.page.paragraph(
            "In brackets: 95 % percentile bootstrap over queries. Gains are paired by query. \
             CIDEr-D is on the scale of pycocoevalcap, where 1.0 is what papers print as 100; its \
             document frequencies stay those of the whole set. At 0 shots, free text is prompted \
             with two examples without their images.",
        );
        let controls: Vec<Table> = all.iter().filter_map(|e| control_table(e)).collect();
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

    fn cards(
        &mut self,
        evaluation: &Evaluation,
        annotations: &Annotations,
    ) -> Result<(), EvalError> {
        self.page.heading(&format!("{}: some queries", evaluation.task));
        for index in 0..evaluation.queries.len().min(CARDS) {
            self.card(evaluation, annotations, index)?;
        }
        Ok(())
    }

    /// Query `index`: the shots of the largest shot count, the image, and all answers.
    fn card(
        &mut self,
        evaluation: &Evaluation,
        annotations: &Annotations,
        index: usize,
    ) -> Result<(), EvalError> {
        let query = &evaluation.queries[index];
        let example = &annotations.query.examples[query.example];
        let image = annotations.query.image(query.example)?;
        let caption = format!("query {}\n{}", example.key, query.targets.join("\n"));
        self.figure(&image, &caption);
        let scored: Vec<(usize, &Scored)> = evaluation
            .rounds
            .iter()
            .filter_map(|round| match &round.outcome {
                Outcome::Scored(scored) => Some((round.n_shots, scored)),
                Outcome::OutOfContext { .. } => None,
            })
            .collect();
        if let Some((n_shots, most)) = scored.iter().max_by_key(|(n_shots, _)| *n_shots) {
            self.shots(annotations, &most.samples[index].shots, *n_shots > 0)?;
        }
        let rows = scored.iter().map(|(n_shots, scored)| {
            let sample = &scored.samples[index];
            let score = format!("{:.3}", scored.scores[index]);
            vec![n_shots.to_string(), sample.prediction.clone(), score]
        });
        let rows: Vec<Vec<String>> = rows.collect();
        self.page.table(&["shots", "answer", evaluation.metric], &rows);
        Ok(())
    }

    fn shots(
        &mut self,
        annotations: &Annotations,
        keys: &[String],
        with_images: bool,
    ) -> Result<(), EvalError> {
        let support = &annotations.support.examples;
        for (place, key) in keys.iter().enumerate() {
            let Some(index) = support.iter().position(|example| example.key == *key) else {
                continue;
            };
            let text = format!("shot {}\n{}", place + 1, support[index].caption);
            if with_images {
                self.figure(&annotations.support.image(index)?, &text);
            } else {
                self.page.paragraph(&text);
            }
        }
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
