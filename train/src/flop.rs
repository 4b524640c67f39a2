//! How many operations a training step is, and how many a device can do.
//!
//! Counted are products with weights, `N` being the parameters of a part:
//!
//! - language model: 4 `N` a token where it is frozen, else 6 `N`; of its tables, the head alone:
//!   tokens, where they have another one, and positions, where they are learned, are looked up
//! - cross-attention and rows of added tokens: 6 `N` a token
//! - resampler: 6 `N` a latent
//! - vision encoder: 2 operations a product where it is frozen, else 6; of a transformer `N` products a visual token,
//!   the class token too, of an `NFNet` those of its convolutions, whose pixels become fewer on the way
//! - text encoder of the contrastive stage: 6 `N` a token, its tables left out; the projections into the common
//!   space 6 `N` an image or text
//!
//! Attention itself, and what is made a second time for the backward pass, are not counted. Positions of
//! padding are: they are multiplied as others are.

use flamingo_model::{
    Clip, Device, FlamingoConfig, LanguageConfig, LanguageModel, Parameter, Params, Positions,
    Precision, Trainable, TrainedTowers, VisionConfig,
};
use serde_json::{Value, json};

use crate::error::TrainError;

/// What an H100 or H200 can do in bf16 without sparsity, in 10^12 operations a second (NVIDIA's data
/// sheet).
const HOPPER_TFLOPS: f64 = 989.0;

/// Operations that a device can do at most, in 10^12 a second, where that is known.
pub fn peak_tflops(device: Device) -> Option<f64> {
    let name = device.to_string();
    let is_hopper = ["H100", "H200"].iter().any(|hopper| name.contains(hopper));
    (is_hopper && device.precision() == Precision::Bf16).then_some(HOPPER_TFLOPS)
}

/// Products of a vision encoder of so many parameters in a pass over one image.
fn products_of_image(config: &VisionConfig, n_parameters: usize) -> usize {
    match config {
        VisionConfig::Vit(_) => n_parameters * (config.n_feature_rows() + 1),
        VisionConfig::Nfnet(nfnet) => nfnet.n_products(),
    }
}

/// Values of a model's parameters whose names `counts` chooses.
fn n_values(model: &dyn Trainable, counts: impl Fn(&str) -> bool) -> usize {
    let all = model.params().into_iter().flat_map(Params::iter);
    all.filter(|parameter| counts(&parameter.name)).map(Parameter::n_values).sum()
}

/// Operations of a training step of a language model on so many tokens, padding included.
pub fn of_language(model: &LanguageModel, tokens: usize) -> f64 {
    let is_tied = model.config().architecture.tied;
    let counts = |name: &str| {
        (is_tied || !name.ends_with("tokens.weight")) && !name.ends_with("positions.weight")
    };
    6.0 * n_values(model, counts) as f64 * tokens as f64
}

/// Values of a language model's tables that are looked up and not multiplied.
fn looked_up(config: &LanguageConfig) -> usize {
    let how = &config.architecture;
    let tokens = if how.tied { 0 } else { config.vocabulary };
    let positions = match how.positions {
        Positions::Learned => config.context + how.position_offset,
        Positions::Rotary | Positions::Alibi => 0,
    };
    (tokens + positions) * config.width
}

/// Products of a contrastive model.
#[derive(Debug, Clone, Copy)]
pub struct ContrastiveProducts {
    image: usize,
    token: usize,
    text: usize,
}

impl ContrastiveProducts {
    /// Those of a model.
    pub fn of(model: &Clip) -> Self {
        let is_table = |name: &str| {
            ["tokens.weight", "positions.weight", "head.weight"].iter().any(|t| name.ends_with(t))
        };
        let part = |part: &str| n_values(model, |name| name.starts_with(part) && !is_table(name));
        let vision = products_of_image(&model.config().vision, part("vision."));
        Self {
            image: vision + part("vision_projection."),
            token: part("text."),
            text: part("text_projection."),
        }
    }

    /// Operations of a training step on so many pairs, and so many tokens without their padding.
    pub fn flop(&self, pairs: usize, tokens: usize) -> f64 {
        6.0 * (pairs as f64 * (self.image + self.text) as f64 + tokens as f64 * self.token as f64)
    }
}

/// How many parameters the parts of a model have.
#[derive(Debug, Clone, Copy)]
pub struct Parts {
    /// Vision encoder.
    pub vision: usize,
    /// Resampler.
    pub resampler: usize,
    /// Cross-attention blocks.
    pub cross_attention: usize,
    /// Language model.
    pub language: usize,
    /// Rows of added tokens.
    pub added_rows: usize,
}

impl Parts {
    /// Those of a model.
    ///
    /// # Errors
    /// When the configuration cannot work.
    pub fn of(config: &FlamingoConfig) -> Result<Self, TrainError> {
        let table = config.parameter_table().map_err(TrainError::model("count"))?;
        Ok(Self {
            vision: table.n_values("vision encoder"),
            resampler: table.n_values("resampler"),
            cross_attention: table.n_values("cross-attention"),
            language: table.n_values("language model"),
            added_rows: table.n_values("rows of added tokens"),
        })
    }

    /// Parameters that are trained where both towers are frozen.
    pub fn trained(&self) -> usize {
        self.resampler + self.cross_attention + self.added_rows
    }

    /// All of them.
    pub fn total(&self) -> usize {
        self.vision + self.language + self.trained()
    }

    /// For programs.
    pub fn json(&self) -> Value {
        json!({
            "vision": self.vision,
            "resampler": self.resampler,
            "cross_attention": self.cross_attention,
            "language": self.language,
            "added_rows": self.added_rows,
            "trained": self.trained(),
            "total": self.total(),
        })
    }

    /// Operations of a training step, by part: see the head of this file.
    pub fn flop(
        &self,
        config: &FlamingoConfig,
        trained: TrainedTowers,
        rows: StepRows,
    ) -> [(&'static str, f64); 4] {
        let StepRows { tokens, images, frames } = rows;
        let of_image = products_of_image(&config.vision, self.vision);
        let looked_up = looked_up(&config.language);
        let latents = images * config.resampler.latents;
        let language = if trained.language { 6 } else { 4 };
        let vision = if trained.vision { 6 } else { 2 };
        let product = |each: usize, parameters: usize, rows: usize| {
            each as f64 * parameters as f64 * rows as f64
        };
        [
            ("language", product(language, self.language - looked_up, tokens)),
            ("cross_attention", product(6, self.cross_attention + self.added_rows, tokens)),
            ("resampler", product(6, self.resampler, latents)),
            ("vision", product(vision, of_image, images * frames)),
        ]
    }
}

/// What a step looks at.
#[derive(Debug, Clone, Copy)]
pub struct StepRows {
    /// Tokens of all sequences that are computed, which padding is not.
    pub tokens: usize,
    /// Images or clips of all sequences.
    pub images: usize,
    /// Frames of each.
    pub frames: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By hand, from round numbers of parameters.
    #[test]
    fn a_step_is_counted_by_part() {
        let config = FlamingoConfig::preset("openflamingo-3b").unwrap();
        let parts = Parts { vision: 300, resampler: 60, cross_attention: 70, ..NOTHING };
        let table = config.language.vocabulary * config.language.width;
        let head = if config.language.architecture.tied { 0 } else { table };
        let parts = Parts { language: head + 1000, added_rows: 5, ..parts };
        let rows = StepRows { tokens: 10, images: 3, frames: 2 };
        let visual = 3 * 2 * (config.vision.n_feature_rows() + 1);
        let frozen = parts.flop(&config, TrainedTowers::default(), rows);
        let expected =
            [4 * 1000 * 10, 6 * 75 * 10, 6 * 60 * 3 * config.resampler.latents, 2 * 300 * visual];
        assert_eq!(frozen.map(|(_, flop)| flop as usize), expected);
        let both = TrainedTowers { vision: true, language: true };
        let trained = parts.flop(&config, both, rows).map(|(_, flop)| flop as usize);
        assert_eq!(trained, [6 * 1000 * 10, expected[1], expected[2], 6 * 300 * visual]);
    }

    const NOTHING: Parts =
        Parts { vision: 0, resampler: 0, cross_attention: 0, language: 0, added_rows: 0 };

    /// The 377.28 billion multiply-adds of F6 at 576 pixels (Brock and others, 2021, table 3) grow with the
    /// number of pixels.
    #[test]
    fn an_nfnet_is_counted_by_its_convolutions() {
        let config = FlamingoConfig::preset("flamingo-3b").unwrap();
        let parts = Parts::of(&config).unwrap();
        let rows = StepRows { tokens: 1, images: 3, frames: 2 };
        let pixels = (config.vision.image_size() as f64 / 576.0).powi(2);
        for (vision, each) in [(false, 2.0), (true, 6.0)] {
            let trained = TrainedTowers { vision, language: false };
            let (part, flop) = parts.flop(&config, trained, rows)[3];
            let expected = each * 6.0 * 377.28e9 * pixels;
            assert!(part == "vision" && (flop / expected - 1.0).abs() < 0.01, "{flop}, {expected}");
        }
    }
}
