//! `report.html`: scores, beside those that others published and in parts, controls, loss curves, and a few queries
//! with all that the model saw and where their credit comes from, in one file that needs no network.

mod card;
mod credit;
mod published;
mod shown;
mod slices;

use flamingo_dataset::report::Page;

use self::card::Cards;
use self::published::published_table;
use self::slices::slice_tables;
use crate::error::EvalError;
use crate::evaluation::{Evaluation, Outcome};
use crate::oddities::oddity_table;
use crate::run_folder::{RunFolder, loss_curves};
use crate::subject::ModelCard;
use crate::table::{Table, control_table, score_table, seed_table};

/// Queries shown per task.
const CARDS: usize = 12;

/// The page.
///
/// # Errors
/// When an image of a shown query cannot be read.
pub fn report_html(
    model: &ModelCard,
    run: Option<&RunFolder>,
    evaluations: &[Evaluation<'_>],
) -> Result<String, EvalError> {
    let mut report = Report { page: Page::new("Few-shot evaluation") };
    report.scores(model, evaluations);
    if let Some(run) = run {
        report.losses(run);
    }
    for evaluation in evaluations {
        report.task(evaluation);
    }
    report.cards(evaluations)?;
    Ok(report.page.finish())
}

struct Report {
    page: Page,
}

impl Report {
    fn scores(&mut self, model: &ModelCard, evaluations: &[Evaluation<'_>]) {
        self.page.paragraph(&format!("Model: {}, on {}", model.name, model.device));
        self.page.heading("Scores");
        table(&mut self.page, &score_table(evaluations));
        self.page.paragraph(
            "In brackets: 95 % percentile bootstrap over queries. Gains are paired by query. \
             CIDEr-D is on the scale of pycocoevalcap, where 1.0 is what papers print as 100; its \
             document frequencies stay those of the whole set.",
        );
        let text_shots = evaluations.iter().filter(|it| has_text_shots(it));
        let tasks: Vec<&str> = text_shots.map(|it| it.benchmark.task.name.as_str()).collect();
        if !tasks.is_empty() {
            self.page.paragraph(&format!(
                "At 0 shots, prompts have examples without their images: {}.",
                tasks.join(", ")
            ));
        }
        for seeds in evaluations.iter().filter_map(seed_table) {
            table(&mut self.page, &seeds);
            self.page.paragraph(
                "Several seeds of the choice of shots: how far scores move with other shots, and with other \
                 queries.",
            );
        }
        if let Some(odd) = oddity_table(evaluations) {
            table(&mut self.page, &odd);
            self.page.paragraph(
                "Scored as they stand: what is no candidate is wrong, and what a filter kept back is empty.",
            );
        }
        let controls: Vec<Table> = evaluations.iter().filter_map(control_table).collect();
        if !controls.is_empty() {
            self.page.heading("Does the model look?");
        }
        for control in &controls {
            table(&mut self.page, control);
            self.page.paragraph(
                "The right captions, each token predicted from the true ones before it, under the \
                 right image, under the image of another query, and without any.",
            );
        }
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

    fn task(&mut self, evaluation: &Evaluation<'_>) {
        let published = published_table(evaluation);
        let slices = slice_tables(evaluation);
        if published.is_none() && slices.is_empty() {
            return;
        }
        self.page
            .heading(&format!("{}: beside others, and in parts", evaluation.benchmark.task.name));
        if let Some(published) = published {
            table(&mut self.page, &published);
            self.page.paragraph(
                "Flamingo: arXiv 2204.14198; OpenFlamingo: arXiv 2308.01390; IDEFICS: the models' card; all few-shot. Splits, \
                 numbers of queries and prompts may differ from those here.",
            );
        }
        for slice in &slices {
            table(&mut self.page, slice);
        }
    }

    fn cards(&mut self, evaluations: &[Evaluation<'_>]) -> Result<(), EvalError> {
        let mut cards = Cards::on(&mut self.page);
        for evaluation in evaluations {
            cards.page.heading(&format!("{}: some queries", evaluation.benchmark.task.name));
            for index in 0..evaluation.n_queries.min(CARDS) {
                cards.card(evaluation, index)?;
            }
        }
        Ok(())
    }
}

/// Whether examples without images were shown where none were asked for.
fn has_text_shots(evaluation: &Evaluation<'_>) -> bool {
    evaluation.rounds.iter().filter(|round| round.key.n_shots == 0).any(|round| {
        match &round.outcome {
            Outcome::Scored(scored) => scored.samples.iter().any(|sample| !sample.shots.is_empty()),
            Outcome::OutOfContext(_) => false,
        }
    })
}

fn table(page: &mut Page, table: &Table) {
    let headers: Vec<&str> = table.headers.iter().map(String::as_str).collect();
    page.table(&headers, &table.rows);
}
