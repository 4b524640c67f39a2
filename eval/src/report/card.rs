//! A query with all that the model saw of it, and what came of it.

use flamingo_dataset::EncodedImage;
use flamingo_dataset::report::Page;

use super::credit::credit_table;
use super::shown::shown;
use super::table;
use crate::benchmark::Benchmark;
use crate::error::EvalError;
use crate::evaluation::{Evaluation, Outcome, Round, Scored};
use crate::item::Item;

/// Bytes of images in the page; once they are used up, cards come without images.
const IMAGE_BYTES_MAX: usize = 8 << 20;

/// Frames of a film that are shown, at even distances.
const FRAMES_SHOWN: usize = 4;

/// A page with what is left of the room for images.
pub(super) struct Cards<'p> {
    pub(super) page: &'p mut Page,
    image_bytes: usize,
}

impl<'p> Cards<'p> {
    pub(super) fn on(page: &'p mut Page) -> Self {
        Self { page, image_bytes: 0 }
    }

    /// Query `index`: its medium, the shots of the largest shot count, what people said, and all answers.
    pub(super) fn card(
        &mut self,
        evaluation: &Evaluation<'_>,
        index: usize,
    ) -> Result<(), EvalError> {
        let benchmark = evaluation.benchmark;
        let item = &benchmark.query[index];
        let fields = item.fields.iter().map(|(name, text)| format!("{name}: {}", shown(text)));
        let lines: Vec<String> = fields.chain(item.targets().iter().map(|it| shown(it))).collect();
        self.page.subheading(&format!("query {}", shown(&item.id)));
        self.medium(benchmark, item, &lines.join("\n"))?;
        let scored = scored_rounds(evaluation);
        let most = scored.iter().filter(|(round, _)| round.key.control.is_none());
        if let Some((round, most)) = most.max_by_key(|(round, _)| round.key.n_shots) {
            let sample = &most.samples[index];
            self.shots(benchmark, &sample.shots, round.key.n_shots > 0)?;
            if let Some(found) = credit_table(item, &sample.prediction) {
                let suffix = round.key.suffix(evaluation.has_seeds);
                self.page.paragraph(&format!("{suffix}: {}", shown(&sample.prediction)));
                table(self.page, &found);
            }
        }
        let rows = scored.iter().map(|(round, scored)| {
            let credit = scored.judgements.first().map(|(_, found)| credit(&found.credits[index]));
            let answer = shown(&scored.samples[index].prediction);
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
            let answer = item.shown_answer(benchmark.task.shown_answer).unwrap_or_default();
            let text = format!("shot {}: {}\n{}", place + 1, shown(id), shown(answer));
            if with_images {
                self.medium(benchmark, item, &text)?;
            } else {
                self.page.paragraph(&text);
            }
        }
        Ok(())
    }

    /// A picture, or some frames of a film, the text below the first. What is not there, as with predictions that were made
    /// elsewhere, is not shown.
    fn medium(&mut self, benchmark: &Benchmark, item: &Item, text: &str) -> Result<(), EvalError> {
        let Some(medium) = item.medium.as_ref().filter(|medium| medium.exists()) else {
            self.page.paragraph(text);
            return Ok(());
        };
        let frames = medium.frames(benchmark.task.frames)?;
        if let [picture] = &frames[..] {
            self.figure(picture, text);
            return Ok(());
        }
        let n = frames.len().min(FRAMES_SHOWN);
        for i in 0..n {
            let caption = if i == 0 { text } else { "" };
            self.figure(&frames[(2 * i + 1) * frames.len() / (2 * n)], caption);
        }
        Ok(())
    }

    fn figure(&mut self, image: &EncodedImage, text: &str) {
        if self.image_bytes + image.bytes.len() > IMAGE_BYTES_MAX {
            self.page.paragraph(text);
            return;
        }
        self.image_bytes += image.bytes.len();
        self.page.thumbnail(&image.bytes, media_type(&image.bytes), text);
    }
}

fn scored_rounds<'e>(evaluation: &'e Evaluation<'_>) -> Vec<(&'e Round, &'e Scored)> {
    let scored = evaluation.rounds.iter().filter_map(|round| match &round.outcome {
        Outcome::Scored(scored) => Some((round, scored)),
        Outcome::OutOfContext(_) => None,
    });
    scored.collect()
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
