//! Named models: the paper's three, `OpenFlamingo`'s three, and a tiny one for tests; and tables of
//! how many parameters each part of a model has, which are counted without making any.
//!
//! What the paper leaves open is said at [`FlamingoConfig::preset`]. Letters: `D` text width.

use std::fmt::{self, Display, Formatter};

use crate::architecture::{Architecture, Positions, Rotary};
use crate::clip::VISION_PREFIX;
use crate::decoder::LanguageConfig;
use crate::error::ModelError;
use crate::flamingo::{Flamingo, FlamingoConfig, Towers};
use crate::gated_xattn::CrossAttentionConfig;
use crate::language_model::LANGUAGE_PREFIX;
use crate::layers::NormKind;
use crate::nfnet::NfnetConfig;
use crate::openflamingo::{OUR_CROSS_ATTENTION, OUR_RESAMPLER};
use crate::ops::Activation;
use crate::params::{Params, Source, Trainable, Training};
use crate::resampler::ResamplerConfig;
use crate::vision::VisionConfig;
use crate::vit::{PatchStates, VitConfig};

/// Tokens of Chinchilla's `SentencePiece` tokenizer (paper, model card).
const CHINCHILLA_VOCABULARY: usize = 32_000;
/// Tokens of GPT-NeoX's tokenizer with `<|endofchunk|>`, `<image>` and `<PAD>`: the rows of
/// `OpenFlamingo`'s embeddings.
const NEOX_VOCABULARY: usize = 50_280;
/// Tokens that the language models of all presets read at most. For Chinchilla it is Gopher's.
const CONTEXT: usize = 2048;
/// Side of the paper's images, in pixels (section 2.4 and appendix B.1.2).
const PAPER_IMAGE_SIZE: usize = 320;
/// Width of one head in the paper's first version, and of Chinchilla.
const PAPER_HEAD_DIM: usize = 128;

/// What a model of a name is and what is said of it elsewhere.
struct Preset {
    name: &'static str,
    config: fn() -> Result<FlamingoConfig, ModelError>,
    /// Parameters as published, by the names of rows.
    published: &'static [(&'static str, &'static str)],
    /// Where what is published does not fit together.
    remarks: &'static [&'static str],
}

const VISION: &str = "vision encoder";
const RESAMPLER: &str = "resampler";
const CROSS_ATTENTION: &str = "cross-attention";
const LANGUAGE: &str = "language model";
const BLOCKS: &str = "  blocks";
const EMBEDDINGS: &str = "  embeddings and head";
const ADDED: &str = "rows of added tokens";
const ALONE: &str = "rows trained alone";
const TOTAL: &str = "total";
const TRAINED: &str = "  trained";

const RESAMPLER_REMARK: &str = "resampler: 194M holds for heads of 128 (the paper's first version) \
     and features mapped from 3072 to 1536; heads of 96 (second version) give 170M to 175M.";

const PRESETS: &[Preset] = &[
    Preset {
        name: "flamingo-3b",
        config: || paper(24, 16, 1),
        published: &[
            (VISION, "435M"),
            (RESAMPLER, "194M"),
            (CROSS_ATTENTION, "1.2B"),
            (LANGUAGE, "1.4B"),
            (TOTAL, "3.2B"),
        ],
        remarks: &[
            RESAMPLER_REMARK,
            "cross-attention: 1.2B in the paper's table, 1.4B in its appendix B.1.1; with media as \
             wide as the text it would be 1.208B.",
            "language model: 1.374B with 13 D^2 a layer, that is with Transformer-XL's relative \
             positions as in Gopher, for which rotary ones stand here.",
        ],
    },
    Preset {
        name: "flamingo-9b",
        config: || paper(40, 32, 4),
        published: &[
            (VISION, "435M"),
            (RESAMPLER, "194M"),
            (CROSS_ATTENTION, "1.6B"),
            (LANGUAGE, "7.1B"),
            (TOTAL, "9.3B"),
        ],
        remarks: &[
            RESAMPLER_REMARK,
            "cross-attention: 1.6B in the paper's table, 1.8B in its appendix B.1.1. Ten blocks are \
             1.804B; eight, with media as wide as the text, would be 1.611B.",
            "language model: 40 layers of width 4096 with the usual 12 D^2 have more than 7.1B; 32 \
             layers of 13 D^2 (see flamingo-3b) would be 7.11B, and every fourth of them would make \
             eight blocks.",
        ],
    },
    Preset {
        name: "flamingo-80b",
        config: || paper(80, 64, 7),
        published: &[
            (VISION, "435M"),
            (RESAMPLER, "194M"),
            (CROSS_ATTENTION, "10B"),
            (LANGUAGE, "70B"),
            (TOTAL, "80B"),
        ],
        remarks: &[
            RESAMPLER_REMARK,
            "cross-attention: with media as wide as the text it would be 9.664B.",
            "language model: 70.06B with 13 D^2 a layer (see flamingo-3b).",
        ],
    },
    Preset {
        name: "openflamingo-3b",
        config: || open_flamingo(mpt(24, 2048, 16, true), 1),
        published: &[(RESAMPLER, "63.0M"), (CROSS_ATTENTION, "881.0M")],
        remarks: &[],
    },
    Preset {
        name: "openflamingo-4b",
        config: || open_flamingo(redpajama_3b(), 2),
        published: &[(RESAMPLER, "63.0M"), (CROSS_ATTENTION, "897.7M")],
        remarks: &[],
    },
    Preset {
        name: "openflamingo-9b",
        config: || open_flamingo(mpt(32, 4096, 32, false), 4),
        published: &[(RESAMPLER, "63.0M"), (CROSS_ATTENTION, "1115.8M")],
        remarks: &[],
    },
    Preset { name: "tiny", config: tiny, published: &[], remarks: &[] },
];

impl FlamingoConfig {
    /// The names that [`FlamingoConfig::preset`] knows.
    pub fn preset_names() -> impl Iterator<Item = &'static str> {
        PRESETS.iter().map(|preset| preset.name)
    }

    /// A model by its name.
    ///
    /// `flamingo-3b`, `flamingo-9b` and `flamingo-80b` are the paper's (tables 4 and 5, appendix
    /// B.1.1). It does not say how Chinchilla is built beyond depth, width, heads and GELU.
    /// Chinchilla is Gopher's architecture, and Gopher has root-mean-square norms and Transformer-XL's
    /// relative positions. Norms are therefore root-mean-square here. Positions are rotary: they are
    /// relative as well, and unlike learned ones they add no parameters that Chinchilla lacks; but
    /// the `D^2` parameters a layer that Transformer-XL's have are missing from the count. Biases are
    /// not spoken of and left out; the head is the token embedding, with which the counts fit best.
    ///
    /// `openflamingo-3b` (on MPT-1B), `openflamingo-4b` (on RedPajama-INCITE-3B) and
    /// `openflamingo-9b` (on MPT-7B) are as released. `tiny` is for tests.
    ///
    /// # Errors
    /// When there is no model of that name.
    pub fn preset(name: &str) -> Result<Self, ModelError> {
        match PRESETS.iter().find(|preset| preset.name == name) {
            Some(preset) => (preset.config)(),
            None => Err(ModelError::Config {
                field: "preset".to_owned(),
                value: name.to_owned(),
                expected: format!("one of {}", Self::preset_names().collect::<Vec<_>>().join(", ")),
            }),
        }
    }

    /// The model without values: its parameters have names and shapes alone.
    pub(crate) fn outline(&self) -> Result<Flamingo, ModelError> {
        let towers = Towers {
            shape: self.vision.clone(),
            vision: Source::Shapes,
            language: Source::Shapes,
            train: [Training::Frozen; 2],
        };
        Flamingo::from_sources(self.clone(), towers, Source::Shapes)
    }

    /// How many parameters each part has, with both towers frozen as in the paper. A preset's have
    /// what is published beside them.
    ///
    /// # Errors
    /// When the sizes cannot work.
    pub fn parameter_table(&self) -> Result<ParameterTable, ModelError> {
        let outline = self.outline()?;
        let count = |prefixes: &[&str]| {
            let all = outline.params().into_iter().flat_map(Params::iter);
            let of_part = all.filter(|p| prefixes.iter().any(|prefix| p.name.starts_with(prefix)));
            of_part.map(crate::Parameter::n_values).sum::<usize>()
        };
        let at = |part: &str| format!("{LANGUAGE_PREFIX}{part}");
        let vision = count(&[VISION_PREFIX]);
        let (resampler, crossing) = (count(&[OUR_RESAMPLER]), count(&[OUR_CROSS_ATTENTION]));
        let language = count(&[LANGUAGE_PREFIX]);
        let blocks = count(&[&at("blocks."), &at("norm.")]);
        let (added, alone) = (count(&["added_"]), count(&["trained_"]));
        let (trained, total) = (resampler + crossing + added + alone, count(&[""]));
        let preset = PRESETS.iter().find(|p| (p.config)().is_ok_and(|config| config == *self));
        let published = |part| {
            let mut all = preset.map_or(&[][..], |preset| preset.published).iter();
            all.find(|(of, _)| *of == part).map(|(_, number)| *number)
        };
        let rows = [
            (VISION, vision, "frozen"),
            (RESAMPLER, resampler, "trained"),
            (CROSS_ATTENTION, crossing, "trained"),
            (LANGUAGE, language, "frozen"),
            (BLOCKS, blocks, "frozen"),
            (EMBEDDINGS, language - blocks, "frozen"),
            (ADDED, added, "trained"),
            (ALONE, alone, "trained"),
            (TOTAL, total, ""),
            (TRAINED, trained, "trained"),
        ];
        let row = |(part, n_values, state)| {
            let published = published(part);
            ParameterRow { part, n_values, state, published }
        };
        Ok(ParameterTable {
            rows: rows
                .into_iter()
                .filter(|(part, n, _)| ![ADDED, ALONE].contains(part) || *n > 0)
                .map(row)
                .collect(),
            remarks: preset.map_or(&[], |preset| preset.remarks),
        })
    }
}

/// How many parameters the parts of a model have. Printed, it is a table of text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParameterTable {
    /// The parts; those whose names begin with spaces are contained in the one before.
    pub rows: Vec<ParameterRow>,
    /// What does not fit together in what is published.
    pub remarks: &'static [&'static str],
}

/// One part of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ParameterRow {
    /// The part.
    pub part: &'static str,
    /// Values in all its parameters.
    pub n_values: usize,
    /// `trained` or `frozen`; empty for the sum of both.
    pub state: &'static str,
    /// The number that the paper gives, or that `OpenFlamingo`'s checkpoints have.
    pub published: Option<&'static str>,
}

impl ParameterTable {
    /// Values of the part of this name; 0 if there is none.
    pub fn n_values(&self, part: &str) -> usize {
        self.rows.iter().find(|row| row.part.trim() == part).map_or(0, |row| row.n_values)
    }
}

impl Display for ParameterTable {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let mut line = |part, number: &str, state, published| {
            let text = format!("{part:<22} {number:>16}  {state:<7}  {published:>9}");
            writeln!(f, "{}", text.trim_end())
        };
        let any_published = self.rows.iter().any(|row| row.published.is_some());
        line("part", "parameters", "", if any_published { "published" } else { "" })?;
        for row in &self.rows {
            line(row.part, &grouped(row.n_values), row.state, row.published.unwrap_or(""))?;
        }
        self.remarks.iter().try_for_each(|remark| writeln!(f, "- {remark}"))
    }
}

/// A number with commas between its thousands.
fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let groups = digits.as_bytes().rchunks(3).rev().map(String::from_utf8_lossy);
    groups.collect::<Vec<_>>().join(",")
}

/// The paper's models on its Chinchilla of `layers` layers with `heads` heads.
fn paper(layers: usize, heads: usize, every: usize) -> Result<FlamingoConfig, ModelError> {
    let language = LanguageConfig {
        vocabulary: CHINCHILLA_VOCABULARY,
        context: CONTEXT,
        width: heads * PAPER_HEAD_DIM,
        layers,
        heads,
        activation: Activation::Gelu,
        architecture: Architecture {
            positions: Positions::Rotary,
            norm: NormKind::RootMeanSquare,
            qkv_bias: false,
            biases: false,
            ..Architecture::default()
        },
    };
    Ok(FlamingoConfig {
        added_tokens: 0,
        trained_tokens: Vec::new(),
        vision: NfnetConfig::named("f6", PAPER_IMAGE_SIZE)?.into(),
        resampler: ResamplerConfig {
            width: Some(1536),
            head_dim: PAPER_HEAD_DIM,
            ..ResamplerConfig::paper()
        },
        cross_attention: CrossAttentionConfig {
            every,
            heads,
            head_dim: PAPER_HEAD_DIM,
            ..CrossAttentionConfig::paper_3b()
        },
        language,
    })
}

/// `OpenFlamingo` on a language model, with `OpenAI`'s CLIP ViT-L/14.
#[expect(clippy::unnecessary_wraps, reason = "of one kind with the paper's")]
fn open_flamingo(language: LanguageConfig, every: usize) -> Result<FlamingoConfig, ModelError> {
    Ok(FlamingoConfig {
        added_tokens: 0,
        trained_tokens: Vec::new(),
        vision: VisionConfig::Vit(VitConfig {
            image_size: 224,
            patch_size: 14,
            width: 1024,
            layers: 24,
            heads: 16,
            activation: Activation::QuickGelu,
            feed_forward_width: None,
            patch_states: PatchStates::BeforeNorm,
        }),
        resampler: ResamplerConfig::open_flamingo(),
        cross_attention: CrossAttentionConfig::open_flamingo(every),
        language,
    })
}

/// MPT; the first, MPT-1B, normalises queries and keys.
fn mpt(layers: usize, width: usize, heads: usize, qk_norm: bool) -> LanguageConfig {
    let architecture = Architecture {
        positions: Positions::Alibi,
        norm: NormKind::LayerWithoutBias,
        qkv_bias: false,
        biases: false,
        qk_norm,
        ..Architecture::default()
    };
    LanguageConfig {
        vocabulary: NEOX_VOCABULARY,
        context: CONTEXT,
        width,
        layers,
        heads,
        activation: Activation::Gelu,
        architecture,
    }
}

/// RedPajama-INCITE-3B: GPT-NeoX whose blocks are not parallel and whose heads are turned whole.
fn redpajama_3b() -> LanguageConfig {
    LanguageConfig {
        vocabulary: NEOX_VOCABULARY,
        context: CONTEXT,
        width: 2560,
        layers: 32,
        heads: 32,
        activation: Activation::Gelu,
        architecture: Architecture {
            positions: Positions::Rotary,
            rotary: Rotary::default(),
            tied: false,
            ..Architecture::default()
        },
    }
}

/// A few thousand parameters, built like the paper's but for a vision transformer.
#[expect(clippy::unnecessary_wraps, reason = "of one kind with the paper's")]
fn tiny() -> Result<FlamingoConfig, ModelError> {
    Ok(FlamingoConfig {
        added_tokens: 0,
        trained_tokens: Vec::new(),
        vision: VisionConfig::Vit(VitConfig {
            image_size: 8,
            patch_size: 4,
            width: 8,
            layers: 1,
            heads: 2,
            activation: Activation::QuickGelu,
            feed_forward_width: None,
            patch_states: PatchStates::BeforeNorm,
        }),
        resampler: ResamplerConfig {
            latents: 2,
            layers: 1,
            heads: 2,
            head_dim: 4,
            frames: 2,
            ..ResamplerConfig::paper()
        },
        cross_attention: CrossAttentionConfig {
            heads: 2,
            head_dim: 4,
            ..CrossAttentionConfig::paper_3b()
        },
        language: LanguageConfig {
            vocabulary: 32,
            context: 16,
            width: 8,
            layers: 2,
            heads: 2,
            activation: Activation::GeluTanh,
            architecture: Architecture::default(),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fails unless the number of parameters of a part, in millions, is this to a tenth.
    fn check(name: &str, part: &str, millions: f64) {
        let table = FlamingoConfig::preset(name).unwrap().parameter_table().unwrap();
        let found = table.n_values(part) as f64 / 1e6;
        assert!((found - millions).abs() <= 0.05, "{name}: {part} has {found}M, not {millions}M");
    }

    #[test]
    fn parts_have_as_many_parameters_as_is_known_of_them() {
        check("flamingo-3b", VISION, 435.3);
        check("flamingo-3b", RESAMPLER, 193.6);
        check("flamingo-3b", CROSS_ATTENTION, 1157.9);
        check("flamingo-9b", CROSS_ATTENTION, 1803.7);
        check("flamingo-80b", CROSS_ATTENTION, 8355.5);
        check("openflamingo-3b", RESAMPLER, 63.0);
        check("openflamingo-3b", CROSS_ATTENTION, 881.0);
        check("openflamingo-4b", CROSS_ATTENTION, 897.7);
        check("openflamingo-9b", CROSS_ATTENTION, 1115.8);
    }

    #[test]
    fn eighty_billion_parameters_are_counted_without_making_one() {
        let outline = FlamingoConfig::preset("flamingo-80b").unwrap().outline().unwrap();
        let all = || outline.params().into_iter().flat_map(Params::iter);
        assert!(all().map(crate::Parameter::n_values).sum::<usize>() > 70_000_000_000);
        assert!(all().all(|p| p.weight.values().is_empty()));
    }

    #[test]
    fn an_outline_has_the_names_and_shapes_of_the_model() {
        let config = FlamingoConfig::preset("tiny").unwrap();
        let towers = Towers {
            shape: config.vision.clone(),
            vision: Source::Random { seed: 1 },
            language: Source::Random { seed: 2 },
            train: [Training::Frozen; 2],
        };
        let seed = Source::Random { seed: 3 };
        let model = Flamingo::from_sources(config.clone(), towers, seed).unwrap();
        let shapes = |model: &Flamingo| {
            let all = model.params().into_iter().flat_map(Params::iter);
            all.map(|p| (p.name.clone(), p.shape.clone())).collect::<Vec<_>>()
        };
        assert_eq!(shapes(&model), shapes(&config.outline().unwrap()));
        let n: usize = model.params().into_iter().map(Params::n_values).sum();
        assert_eq!(n, config.parameter_table().unwrap().n_values(TOTAL));
        let config = FlamingoConfig { added_tokens: 3, trained_tokens: vec![1, 5], ..config };
        let table = config.parameter_table().unwrap();
        let parts = table.rows.iter().filter(|row| !row.part.starts_with(' ') && row.part != TOTAL);
        assert_eq!(parts.map(|row| row.n_values).sum::<usize>(), table.n_values(TOTAL));
        assert!((2_000..10_000).contains(&n), "{n}");
    }

    #[test]
    fn tables_are_text_and_an_unknown_name_lists_the_others() {
        let table = FlamingoConfig::preset("flamingo-9b").unwrap().parameter_table().unwrap();
        let text = table.to_string();
        let line = |part: &str| text.lines().find(|line| line.starts_with(part)).unwrap();
        assert!(line(CROSS_ATTENTION).ends_with("  trained       1.6B"), "{text}");
        assert!(line(VISION).contains(" 435,") && line(VISION).contains("  frozen "), "{text}");
        assert!(text.contains("1.8B in its appendix"), "{text}");
        let error = FlamingoConfig::preset("flamingo-4b").unwrap_err().to_string();
        assert!(
            error.starts_with("preset is flamingo-4b, expected one of flamingo-3b,"),
            "{error}"
        );
        for name in FlamingoConfig::preset_names() {
            FlamingoConfig::preset(name).unwrap().validate().unwrap();
            assert!(error.contains(name), "{error}");
        }
    }
}
