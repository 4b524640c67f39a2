//! Families of language models as Hugging Face writes them: their `config.json` as a
//! [`LanguageConfig`], and their names and layouts as rules.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::architecture::{Architecture, Positions, Rotary, RotaryScaling};
use crate::config_fields::Fields;
use crate::decoder::LanguageConfig;
use crate::error::ModelError;
use crate::language_model::LANGUAGE_PREFIX;
use crate::layers::{FEED_FORWARD_WIDENING, NormKind};
use crate::ops::Activation;
use crate::params::Source;
use crate::translate::{Layout, Rule, Rules};
use crate::weights_file::Tensors;

/// A family of language models.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    Gpt2,
    /// MPT as in transformers, and the first MPT-1B under its own names.
    Mpt {
        first: bool,
    },
    Neox,
    Opt,
    /// `LLaMA` and what is built like it: Mistral, Qwen2.
    Llama,
}

impl Family {
    /// The family and shape that a Hugging Face `config.json` describes.
    ///
    /// # Errors
    /// Names the first field that is missing or asks for what is not supported.
    pub(crate) fn read(all: &Value, path: &Path) -> Result<(Self, LanguageConfig), ModelError> {
        let fields = Fields { path, all };
        let kind: String = fields.get("model_type")?;
        let (family, config) = match &*kind {
            "gpt2" => (Self::Gpt2, gpt2(&fields)?),
            "mpt" => (Self::Mpt { first: false }, mpt(&fields)?),
            "mosaic_gpt" => (Self::Mpt { first: true }, mosaic_gpt(&fields)?),
            "gpt_neox" => (Self::Neox, neox(&fields)?),
            "opt" => (Self::Opt, opt(&fields)?),
            "llama" | "mistral" => (Self::Llama, llama(&fields, false)?),
            "qwen2" => (Self::Llama, llama(&fields, true)?),
            _ => {
                let known = "`gpt2`, `mpt`, `mosaic_gpt`, `gpt_neox`, `opt`, `llama`, `mistral` or \
                             `qwen2`";
                return Err(fields.refused("model_type", known));
            }
        };
        config.validate()?;
        Ok((family, config))
    }

    /// The family that a model is built like.
    ///
    /// # Errors
    /// When there is none.
    pub(crate) fn of(config: &LanguageConfig) -> Result<Self, ModelError> {
        let how = &config.architecture;
        let plain = !how.gated && how.kv_heads.is_none() && how.head_dim.is_none();
        let layer = plain && how.norm == NormKind::Layer && how.qkv_bias && how.biases;
        match how.positions {
            Positions::Learned if layer && !how.parallel && !how.qk_norm => {
                if how.position_offset == 0 {
                    return Ok(Self::Gpt2);
                }
                if how.position_offset == 2 {
                    return Ok(Self::Opt);
                }
            }
            Positions::Rotary if layer && !how.qk_norm => return Ok(Self::Neox),
            Positions::Rotary
                if how.norm == NormKind::RootMeanSquare
                    && how.gated
                    && !(how.parallel || how.biases || how.qk_norm) =>
            {
                return Ok(Self::Llama);
            }
            Positions::Alibi
                if plain
                    && how.norm == NormKind::LayerWithoutBias
                    && how.tied
                    && config.activation == Activation::Gelu
                    && !(how.parallel || how.qkv_bias || how.biases) =>
            {
                return Ok(Self::Mpt { first: how.qk_norm });
            }
            _ => {}
        }
        Err(ModelError::NoFamily { what: "the language model", of: "Hugging Face" })
    }

    /// The `config.json` of a model of this family.
    pub(crate) fn write(self, config: &LanguageConfig) -> Value {
        let how = &config.architecture;
        let hidden = how.block_shape(config).hidden;
        let LanguageConfig { vocabulary, context, width, layers, heads, activation, .. } = config;
        let mut all = match self {
            Self::Gpt2 => json!({
                "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_embd": width,
                "n_positions": context, "n_layer": layers, "n_head": heads, "n_inner": hidden,
                "activation_function": activation, "layer_norm_epsilon": how.norm_epsilon,
            }),
            Self::Mpt { first: false } => json!({
                "model_type": "mpt", "architectures": ["MptForCausalLM"], "d_model": width,
                "max_seq_len": context, "n_layers": layers, "n_heads": heads, "no_bias": true,
                "expansion_ratio": hidden / width, "layer_norm_epsilon": how.norm_epsilon,
                "attn_config": {"alibi": true, "alibi_bias_max": 8, "qk_ln": false},
            }),
            Self::Mpt { first: true } => json!({
                "model_type": "mosaic_gpt", "architectures": ["MosaicGPT"], "d_model": width,
                "max_seq_len": context, "n_layers": layers, "n_heads": heads, "no_bias": true,
                "mlp_ratio": hidden / width, "alibi": true, "alibi_bias_max": 8,
                "attn_qk_ln": true,
            }),
            Self::Neox => json!({
                "model_type": "gpt_neox", "architectures": ["GPTNeoXForCausalLM"],
                "hidden_size": width, "max_position_embeddings": context,
                "num_hidden_layers": layers, "num_attention_heads": heads,
                "intermediate_size": hidden, "hidden_act": activation,
                "rotary_pct": how.rotary.fraction, "rotary_emb_base": how.rotary.base,
                "layer_norm_eps": how.norm_epsilon, "use_parallel_residual": how.parallel,
            }),
            Self::Opt => json!({
                "model_type": "opt", "architectures": ["OPTForCausalLM"], "hidden_size": width,
                "max_position_embeddings": context, "num_hidden_layers": layers,
                "num_attention_heads": heads, "ffn_dim": hidden, "word_embed_proj_dim": width,
                "activation_function": activation, "do_layer_norm_before": true,
            }),
            Self::Llama => json!({
                "model_type": if how.qkv_bias { "qwen2" } else { "llama" },
                "architectures": [if how.qkv_bias { "Qwen2ForCausalLM" } else { "LlamaForCausalLM" }],
                "hidden_size": width, "max_position_embeddings": context,
                "num_hidden_layers": layers, "num_attention_heads": heads,
                "num_key_value_heads": how.kv_heads.unwrap_or(*heads),
                "head_dim": how.head_dim.unwrap_or(width / heads),
                "intermediate_size": hidden, "hidden_act": activation,
                "rope_theta": how.rotary.base, "rms_norm_eps": how.norm_epsilon,
            }),
        };
        all["vocab_size"] = json!(vocabulary);
        all["tie_word_embeddings"] = json!(how.tied);
        all["torch_dtype"] = json!("float32");
        let scaling = match how.rotary.scaling {
            RotaryScaling::None => return all,
            RotaryScaling::Linear { factor } => json!({"type": "linear", "factor": factor}),
            RotaryScaling::Llama3 {
                factor,
                low_frequency_factor,
                high_frequency_factor,
                trained_context,
            } => json!({
                "rope_type": "llama3", "factor": factor, "low_freq_factor": low_frequency_factor,
                "high_freq_factor": high_frequency_factor,
                "original_max_position_embeddings": trained_context,
            }),
        };
        all["rope_scaling"] = scaling;
        all
    }

    /// The parameters of a model of this family, found in `tensors`.
    ///
    /// # Errors
    /// When two tensors come to share a name.
    pub(crate) fn source(
        self,
        config: &LanguageConfig,
        mut tensors: Tensors,
        path: PathBuf,
    ) -> Result<Source, ModelError> {
        // Files that were saved without the head leave out the base.
        if !tensors.names().any(|name| name.starts_with(self.base())) {
            let whole = |name: &str| name == self.head();
            let named = |name: &str| {
                if whole(name) { name.to_owned() } else { format!("{}{name}", self.base()) }
            };
            tensors.rename(named, &path)?;
        }
        let rules = self.rules(LANGUAGE_PREFIX, config);
        Ok(Source::Foreign { tensors, rules, path })
    }

    /// What stands before the names of all tensors but the head; some files leave it out.
    fn base(self) -> &'static str {
        match self {
            Self::Gpt2 | Self::Mpt { .. } => "transformer.",
            Self::Neox => "gpt_neox.",
            Self::Opt | Self::Llama => "model.",
        }
    }

    /// The name of the list of blocks.
    pub(crate) fn layers(self) -> String {
        let list = match self {
            Self::Gpt2 => "h",
            Self::Mpt { .. } => "blocks",
            Self::Neox | Self::Llama => "layers",
            Self::Opt => "decoder.layers",
        };
        format!("{}{list}", self.base())
    }

    /// The name of the token embedding.
    pub(crate) fn tokens(self) -> String {
        let name = match self {
            Self::Gpt2 | Self::Mpt { .. } => "wte.weight",
            Self::Neox => "embed_in.weight",
            Self::Opt => "decoder.embed_tokens.weight",
            Self::Llama => "embed_tokens.weight",
        };
        format!("{}{name}", self.base())
    }

    /// The name of the head, which files of tied models may have too.
    pub(crate) fn head(self) -> &'static str {
        if self == Self::Neox { "embed_out.weight" } else { "lm_head.weight" }
    }

    /// Where every parameter is found; ours carry `prefix`.
    pub(crate) fn rules(self, prefix: &str, config: &LanguageConfig) -> Rules {
        let mut rules = Rules::default();
        let (how, base) = (&config.architecture, self.base());
        let (rows, width) = (config.vocabulary, config.width);
        rules.add(format!("{prefix}tokens.weight"), Rule::same(self.tokens(), &[rows, width]));
        if how.positions == Positions::Learned {
            let name = if self == Self::Opt { "decoder.embed_positions" } else { "wpe" };
            let rows = config.context + how.position_offset;
            let rule = Rule::same(format!("{base}{name}.weight"), &[rows, width]);
            rules.add(format!("{prefix}positions.weight"), rule);
        }
        if !how.tied {
            let rule = Rule::same(self.head(), &[rows, width]);
            rules.add(format!("{prefix}head.weight"), rule);
        }
        let norm = match self {
            Self::Gpt2 | Self::Mpt { first: true } => "ln_f",
            Self::Mpt { first: false } => "norm_f",
            Self::Neox => "final_layer_norm",
            Self::Opt => "decoder.final_layer_norm",
            Self::Llama => "norm",
        };
        add_norm(&mut rules, how, width, &format!("{prefix}norm"), &format!("{base}{norm}"));
        for i in 0..config.layers {
            let ours = format!("{prefix}blocks.{i}.");
            let theirs = format!("{}.{i}.", self.layers());
            self.add_block(&mut rules, config, &ours, &theirs);
        }
        rules
    }

    /// The rules of one block, `ours` and `theirs` with a dot at the end.
    fn add_block(self, rules: &mut Rules, config: &LanguageConfig, ours: &str, theirs: &str) {
        let how = &config.architecture;
        let shape = how.block_shape(config);
        let (width, heads) = (config.width, shape.heads);
        let [norm_1, norm_2, qkv, out, up, down] = match self {
            Self::Gpt2 => ["ln_1", "ln_2", "attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"],
            Self::Mpt { first: false } => {
                ["norm_1", "norm_2", "attn.Wqkv", "attn.out_proj", "ffn.up_proj", "ffn.down_proj"]
            }
            Self::Mpt { first: true } => {
                ["ln_1", "ln_2", "attn.Wqkv", "attn.out_proj", "mlp.mlp_up", "mlp.mlp_down"]
            }
            Self::Neox => [
                "input_layernorm",
                "post_attention_layernorm",
                "attention.query_key_value",
                "attention.dense",
                "mlp.dense_h_to_4h",
                "mlp.dense_4h_to_h",
            ],
            Self::Opt => {
                ["self_attn_layer_norm", "final_layer_norm", "", "self_attn.out_proj", "fc1", "fc2"]
            }
            Self::Llama => [
                "input_layernorm",
                "post_attention_layernorm",
                "",
                "self_attn.o_proj",
                "",
                "mlp.down_proj",
            ],
        };
        for (to, from) in [("norm_1", norm_1), ("norm_2", norm_2)] {
            add_norm(rules, how, width, &format!("{ours}{to}"), &format!("{theirs}{from}"));
        }
        if how.qk_norm {
            for (to, from) in [("attn.q_norm", "attn.q_ln"), ("attn.k_norm", "attn.k_ln")] {
                let (to, from) = (format!("{ours}{to}"), format!("{theirs}{from}"));
                add_norm(rules, how, heads.query_width(), &to, &from);
            }
        }
        let layout = match self {
            Self::Gpt2 => Layout::Transposed,
            _ => Layout::Same,
        };
        let mut affine = |to: &str, from: &str, shape: [usize; 2], layout: Layout, bias: bool| {
            let rule = Rule::of(format!("{theirs}{from}.weight"), &shape, layout);
            rules.add(format!("{ours}{to}.weight"), rule);
            if bias {
                // A bias has no columns to be transposed.
                let layout = if layout == Layout::Transposed { Layout::Same } else { layout };
                let rule = Rule::of(format!("{theirs}{from}.bias"), &shape[..1], layout);
                rules.add(format!("{ours}{to}.bias"), rule);
            }
        };
        affine("attn.out", out, [width, heads.query_width()], layout, how.biases);
        affine("mlp.down", down, [width, shape.hidden], layout, how.biases);
        if !how.gated {
            affine("mlp.up", up, [shape.hidden, width], layout, how.biases);
        }
        let of_qkv = match self {
            Self::Neox => Layout::ByHead { heads: heads.queries },
            _ => layout,
        };
        if !qkv.is_empty() {
            affine("attn.qkv", qkv, [heads.row_width(), width], of_qkv, how.qkv_bias);
        }
        let mut stacked = |to: &str, parts: &[(&str, usize)], bias: bool| {
            let named = |part: &str| {
                let name = |(name, rows): &(&str, usize)| (format!("{theirs}{name}.{part}"), *rows);
                parts.iter().map(name).collect()
            };
            rules.add(format!("{ours}{to}.weight"), Rule::rows(named("weight"), &[width]));
            if bias {
                rules.add(format!("{ours}{to}.bias"), Rule::rows(named("bias"), &[]));
            }
        };
        if qkv.is_empty() {
            let (q, k) = (heads.query_width(), heads.key_width());
            let parts = [("self_attn.q_proj", q), ("self_attn.k_proj", k), ("self_attn.v_proj", k)];
            stacked("attn.qkv", &parts, how.qkv_bias);
        }
        if how.gated {
            let parts = [("mlp.gate_proj", shape.hidden), ("mlp.up_proj", shape.hidden)];
            stacked("mlp.gate_up", &parts, how.biases);
        }
    }
}

/// The rules of one norm.
fn add_norm(rules: &mut Rules, how: &Architecture, width: usize, ours: &str, theirs: &str) {
    let parts: &[&str] =
        if how.norm == NormKind::Layer { &["weight", "bias"] } else { &["weight"] };
    for part in parts {
        let rule = Rule::same(format!("{theirs}.{part}"), &[width]);
        rules.add(format!("{ours}.{part}"), rule);
    }
}

fn gpt2(f: &Fields) -> Result<LanguageConfig, ModelError> {
    f.only("scale_attn_weights", &Value::Bool(true))?;
    f.only("scale_attn_by_inverse_layer_idx", &Value::Bool(false))?;
    Ok(LanguageConfig {
        vocabulary: f.get("vocab_size")?,
        context: f.get("n_positions")?,
        width: f.get("n_embd")?,
        layers: f.get("n_layer")?,
        heads: f.get("n_head")?,
        activation: f.activation("activation_function")?,
        architecture: Architecture {
            norm_epsilon: f.or("layer_norm_epsilon", Some(1e-5))?,
            feed_forward_width: f.or("n_inner", Some(None))?,
            tied: f.or("tie_word_embeddings", Some(true))?,
            ..Architecture::default()
        },
    })
}

/// What both kinds of MPT have in common; `widening` names the field of the feed-forward's.
fn mpt_like(f: &Fields, widening: &str, qk_norm: bool) -> Result<LanguageConfig, ModelError> {
    f.only("no_bias", &Value::Bool(true))?;
    f.only("logit_scale", &Value::Null)?;
    let width = f.get("d_model")?;
    let widening: usize = f.or(widening, Some(FEED_FORWARD_WIDENING))?;
    Ok(LanguageConfig {
        vocabulary: f.get("vocab_size")?,
        context: f.get("max_seq_len")?,
        width,
        layers: f.get("n_layers")?,
        heads: f.get("n_heads")?,
        activation: Activation::Gelu,
        architecture: Architecture {
            positions: Positions::Alibi,
            norm: NormKind::LayerWithoutBias,
            norm_epsilon: f.or("layer_norm_epsilon", Some(1e-5))?,
            feed_forward_width: Some(widening.saturating_mul(width)),
            qkv_bias: false,
            biases: false,
            qk_norm,
            ..Architecture::default()
        },
    })
}

/// Fields of attention that are the same in both kinds of MPT.
const MPT_ATTENTION: [(&str, Value); 3] = [
    ("softmax_scale", Value::Null),
    ("prefix_lm", Value::Bool(false)),
    ("alibi", Value::Bool(true)),
];

fn mpt(f: &Fields) -> Result<LanguageConfig, ModelError> {
    let attention: Value = f.or("attn_config", Some(json!({})))?;
    let of_attention = Fields { path: f.path, all: &attention };
    for (name, expected) in [
        ("attn_type", Value::from("multihead_attention")),
        ("clip_qkv", Value::Null),
        ("qk_ln", Value::Bool(false)),
        ("alibi_bias_max", Value::from(8)),
    ]
    .iter()
    .chain(&MPT_ATTENTION)
    {
        of_attention.only(name, expected)?;
    }
    mpt_like(f, "expansion_ratio", false)
}

/// MPT-1B, whose configuration and names came before MPT's.
fn mosaic_gpt(f: &Fields) -> Result<LanguageConfig, ModelError> {
    for (name, expected) in [("attn_clip_qkv", Value::Null), ("alibi_bias_max", Value::from(8))]
        .iter()
        .chain(&MPT_ATTENTION)
    {
        f.only(name, expected)?;
    }
    mpt_like(f, "mlp_ratio", f.or("attn_qk_ln", Some(false))?)
}

fn neox(f: &Fields) -> Result<LanguageConfig, ModelError> {
    let biases = f.or("attention_bias", Some(true))?;
    if !biases {
        return Err(f.refused("attention_bias", "`true`"));
    }
    Ok(LanguageConfig {
        vocabulary: f.get("vocab_size")?,
        context: f.get("max_position_embeddings")?,
        width: f.get("hidden_size")?,
        layers: f.get("num_hidden_layers")?,
        heads: f.get("num_attention_heads")?,
        activation: f.activation("hidden_act")?,
        architecture: Architecture {
            positions: Positions::Rotary,
            rotary: rotary(f, f.or("rotary_pct", Some(0.25))?, "rotary_emb_base")?,
            norm_epsilon: f.or("layer_norm_eps", Some(1e-5))?,
            parallel: f.or("use_parallel_residual", Some(true))?,
            feed_forward_width: Some(f.get("intermediate_size")?),
            tied: f.or("tie_word_embeddings", Some(false))?,
            ..Architecture::default()
        },
    })
}

fn opt(f: &Fields) -> Result<LanguageConfig, ModelError> {
    f.only("do_layer_norm_before", &Value::Bool(true))?;
    f.only("_remove_final_layer_norm", &Value::Bool(false))?;
    f.only("enable_bias", &Value::Bool(true))?;
    f.only("layer_norm_elementwise_affine", &Value::Bool(true))?;
    let width: usize = f.get("hidden_size")?;
    f.only("word_embed_proj_dim", &Value::from(width))?;
    Ok(LanguageConfig {
        vocabulary: f.get("vocab_size")?,
        context: f.get("max_position_embeddings")?,
        width,
        layers: f.get("num_hidden_layers")?,
        heads: f.get("num_attention_heads")?,
        activation: f.activation("activation_function")?,
        architecture: Architecture {
            position_offset: 2,
            feed_forward_width: Some(f.get("ffn_dim")?),
            tied: f.or("tie_word_embeddings", Some(true))?,
            ..Architecture::default()
        },
    })
}

fn llama(f: &Fields, qkv_bias: bool) -> Result<LanguageConfig, ModelError> {
    f.only("attention_bias", &Value::Bool(false))?;
    f.only("mlp_bias", &Value::Bool(false))?;
    f.only("use_sliding_window", &Value::Bool(false))?;
    // Mistral's window, if any, must not be shorter than what is read.
    let context: usize = f.get("max_position_embeddings")?;
    let window: Option<usize> = if qkv_bias { None } else { f.or("sliding_window", Some(None))? };
    Ok(LanguageConfig {
        vocabulary: f.get("vocab_size")?,
        context: window.map_or(context, |window| window.min(context)),
        width: f.get("hidden_size")?,
        layers: f.get("num_hidden_layers")?,
        heads: f.get("num_attention_heads")?,
        activation: f.activation("hidden_act")?,
        architecture: Architecture {
            positions: Positions::Rotary,
            rotary: rotary(f, 1.0, "rope_theta")?,
            norm: NormKind::RootMeanSquare,
            norm_epsilon: f.or("rms_norm_eps", Some(1e-6))?,
            feed_forward_width: Some(f.get("intermediate_size")?),
            gated: true,
            kv_heads: f.or("num_key_value_heads", Some(None))?,
            head_dim: f.or("head_dim", Some(None))?,
            qkv_bias,
            biases: false,
            tied: f.or("tie_word_embeddings", Some(false))?,
            ..Architecture::default()
        },
    })
}

/// Rotary positions: transformers 5 puts all about them under `rope_parameters`, earlier versions put
/// the base under `base` and scaling under `rope_scaling`.
fn rotary(f: &Fields, fraction: f32, base: &str) -> Result<Rotary, ModelError> {
    let part = |name: &str| f.all.get(name).filter(|all| !all.is_null());
    if let Some(all) = part("rope_parameters") {
        let f = Fields { path: f.path, all };
        let plain = all.get("rope_type").is_none() && all.get("type").is_none();
        return Ok(Rotary {
            fraction: f.or("partial_rotary_factor", Some(fraction))?,
            base: f.or("rope_theta", Some(10_000.0))?,
            scaling: if plain { RotaryScaling::None } else { scaling(&f)? },
        });
    }
    let scaling = match part("rope_scaling") {
        None => RotaryScaling::None,
        Some(all) => scaling(&Fields { path: f.path, all })?,
    };
    Ok(Rotary { fraction, base: f.or(base, Some(10_000.0))?, scaling })
}

fn scaling(f: &Fields) -> Result<RotaryScaling, ModelError> {
    let kind: Option<String> = f.or("type", Some(None))?;
    let kind = kind.map_or_else(|| f.get("rope_type"), Ok)?;
    match &*kind {
        "default" => Ok(RotaryScaling::None),
        "linear" => Ok(RotaryScaling::Linear { factor: f.get("factor")? }),
        "llama3" => Ok(RotaryScaling::Llama3 {
            factor: f.get("factor")?,
            low_frequency_factor: f.get("low_freq_factor")?,
            high_frequency_factor: f.get("high_freq_factor")?,
            trained_context: f.get("original_max_position_embeddings")?,
        }),
        _ => Err(f.refused("type", "`default`, `linear` or `llama3`")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::language_model::LanguageModel;
    use crate::ops::gradient_check::pseudo_random;
    use crate::params::Training;

    const WIDTH: usize = 12;
    const HEADS: usize = 3;
    const HIDDEN: usize = 24;
    const VOCABULARY: usize = 17;

    /// Random weights of a block or of the whole, by their shape.
    fn weights(name: &str, shape: &[usize]) -> Vec<f32> {
        let seed = name
            .bytes()
            .fold(1_u64, |seed, byte| seed.wrapping_mul(31).wrapping_add(u64::from(byte)));
        let values = pseudo_random(shape.iter().product(), seed);
        let (size, middle) = if shape.len() == 1 { (0.5, 1.0) } else { (0.4, 0.0) };
        values.iter().map(|v| size * v + middle).collect()
    }

    fn tensors() -> Tensors {
        let mut all = Tensors::default();
        let mut add = |name: String, shape: &[usize]| {
            all.insert(name.clone(), shape, weights(&name, shape));
        };
        add("transformer.wte.weight".into(), &[VOCABULARY, WIDTH]);
        add("transformer.ln_f.weight".into(), &[WIDTH]);
        for i in 0..2 {
            let at = |part: &str| format!("transformer.blocks.{i}.{part}.weight");
            for norm in ["ln_1", "ln_2", "attn.q_ln", "attn.k_ln"] {
                add(at(norm), &[WIDTH]);
            }
            add(at("attn.Wqkv"), &[3 * WIDTH, WIDTH]);
            add(at("attn.out_proj"), &[WIDTH, WIDTH]);
            add(at("mlp.mlp_up"), &[HIDDEN, WIDTH]);
            add(at("mlp.mlp_down"), &[WIDTH, HIDDEN]);
        }
        all
    }

    /// MPT-1B's own equations, number by number in f64.
    fn logits_by_definition(all: &Tensors, tokens: &[u32]) -> Vec<f64> {
        let get = |name: &str| -> Vec<f64> {
            let values = all.get(&format!("transformer.{name}.weight")).unwrap();
            values.iter().map(|v| f64::from(*v)).collect()
        };
        let norm = |x: &[f64], scale: &[f64]| -> Vec<f64> {
            let n = x.len() as f64;
            let mean = x.iter().sum::<f64>() / n;
            let variance = x.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n;
            let scaled = x.iter().zip(scale);
            scaled.map(|(v, s)| (v - mean) / (variance + 1e-5).sqrt() * s).collect()
        };
        let linear = |x: &[f64], w: &[f64]| -> Vec<f64> {
            let rows = w.chunks(x.len());
            rows.map(|row| row.iter().zip(x).map(|(a, b)| a * b).sum()).collect()
        };
        let gelu = |x: f64| 0.5 * x * libm::erfc(-x * std::f64::consts::FRAC_1_SQRT_2);
        let table = get("wte");
        let row = |token: &u32| table[*token as usize * WIDTH..][..WIDTH].to_vec();
        let mut x: Vec<Vec<f64>> = tokens.iter().map(row).collect();
        let size = WIDTH / HEADS;
        // Slopes 2^(-8 i / 4) of the next power of two, every second one first.
        let slopes = [2.0_f64.powi(-4), 2.0_f64.powi(-8), 2.0_f64.powi(-2)];
        for i in 0..2 {
            let w = |part: &str| get(&format!("blocks.{i}.{part}"));
            let qkv: Vec<Vec<f64>> =
                x.iter().map(|x| linear(&norm(x, &w("ln_1")), &w("attn.Wqkv"))).collect();
            let normed = |part: usize, scale: Vec<f64>| -> Vec<Vec<f64>> {
                qkv.iter().map(|r| norm(&r[part * WIDTH..][..WIDTH], &scale)).collect()
            };
            let (q, k) = (normed(0, w("attn.q_ln")), normed(1, w("attn.k_ln")));
            for l in 0..x.len() {
                let mut read = vec![0.0; WIDTH];
                for (h, slope) in slopes.iter().enumerate() {
                    let columns = h * size..(h + 1) * size;
                    let scores = (0..=l).map(|j| {
                        let pairs = q[l][columns.clone()].iter().zip(&k[j][columns.clone()]);
                        let dot: f64 = pairs.map(|(a, b)| a * b).sum();
                        (dot / (size as f64).sqrt() - slope * (l - j) as f64).exp()
                    });
                    let scores: Vec<f64> = scores.collect();
                    let total: f64 = scores.iter().sum();
                    for (j, score) in scores.iter().enumerate() {
                        for c in columns.clone() {
                            read[c] += score / total * qkv[j][2 * WIDTH + c];
                        }
                    }
                }
                let out = linear(&read, &w("attn.out_proj"));
                x[l].iter_mut().zip(out).for_each(|(x, o)| *x += o);
                let up = linear(&norm(&x[l], &w("ln_2")), &w("mlp.mlp_up"));
                let up: Vec<f64> = up.into_iter().map(gelu).collect();
                let down = linear(&up, &w("mlp.mlp_down"));
                x[l].iter_mut().zip(down).for_each(|(x, d)| *x += d);
            }
        }
        x.iter().flat_map(|x| linear(&norm(x, &get("ln_f")), &table)).collect()
    }

    /// No peer that is kept up implements it, so its equations are written out once more here.
    #[test]
    fn mpt_1b_normalises_queries_and_keys_over_all_heads() {
        let config = json!({
            "model_type": "mosaic_gpt", "d_model": WIDTH, "n_heads": HEADS, "n_layers": 2,
            "max_seq_len": 16, "vocab_size": VOCABULARY, "mlp_ratio": 2, "alibi": true,
            "alibi_bias_max": 8, "attn_qk_ln": true, "no_bias": true,
        });
        let path = Path::new("config.json");
        let (family, config) = Family::read(&config, path).unwrap();
        assert_eq!((Family::of(&config).unwrap(), family), (family, Family::Mpt { first: true }));
        let source = family.source(&config, tensors(), path.into()).unwrap();
        let model = LanguageModel::from_source(config, source, Training::Frozen).unwrap();
        let tokens = [3, 1, 4, 1, 5, 9, 2, 6];
        let expected = logits_by_definition(&tensors(), &tokens);
        let scale = expected.iter().fold(0.0_f64, |m, v| m.max(v.abs()));
        for (a, b) in model.logits(&tokens, 8).unwrap().iter().zip(&expected) {
            assert!((f64::from(*a) - b).abs() / scale < 1e-5, "{a} against {b}");
        }
    }

    #[test]
    fn rotary_positions_are_read_as_transformers_5_and_earlier_ones_write_them() {
        let llama = json!({
            "model_type": "llama", "vocab_size": 9, "max_position_embeddings": 8,
            "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
            "hidden_act": "silu", "intermediate_size": 8,
        });
        let neox = json!({
            "model_type": "gpt_neox", "vocab_size": 9, "max_position_embeddings": 8,
            "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
            "hidden_act": "gelu", "intermediate_size": 8,
        });
        let check = |model: &Value, old: Value, new: Value| {
            let read = |with: Value| {
                let mut all = model.clone();
                all.as_object_mut().unwrap().extend(with.as_object().unwrap().clone());
                Family::read(&all, Path::new("c.json")).unwrap().1
            };
            assert_eq!(read(old), read(json!({"rope_parameters": new})));
        };
        let stretched = json!({
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        });
        let mut with_base = stretched.clone();
        with_base["rope_theta"] = json!(5e5);
        check(&llama, json!({"rope_theta": 5e5, "rope_scaling": stretched}), with_base);
        check(
            &llama,
            json!({"rope_theta": 5e5}),
            json!({"rope_theta": 5e5, "rope_type": "default"}),
        );
        check(
            &neox,
            json!({"rotary_pct": 0.5, "rotary_emb_base": 100}),
            json!({"rope_theta": 100.0, "partial_rotary_factor": 0.5, "rope_type": "default"}),
        );
    }

    #[test]
    fn what_is_not_supported_is_named() {
        let check = |config: Value, expected: &str| {
            let error = Family::read(&config, Path::new("c.json")).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        };
        check(json!({}), "c.json: `model_type` is nothing, expected");
        check(json!({"model_type": "bert"}), "`model_type` is \"bert\", expected `gpt2`");
        check(json!({"model_type": "gpt2"}), "`vocab_size` is nothing");
        check(
            json!({"model_type": "mpt", "attn_config": {"qk_ln": true}}),
            "`qk_ln` is true, expected false",
        );
        check(
            json!({"model_type": "opt", "hidden_size": 8, "word_embed_proj_dim": 4}),
            "`word_embed_proj_dim` is 4, expected 8",
        );
        let mut llama = json!({
            "model_type": "llama", "vocab_size": 9, "max_position_embeddings": 8,
            "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
            "hidden_act": "silu", "intermediate_size": 8,
            "rope_scaling": {"type": "dynamic", "factor": 2.0},
        });
        check(llama.clone(), "`type` is \"dynamic\", expected `default`, `linear` or `llama3`");
        llama["rope_scaling"] = json!({"type": "linear", "factor": 0.5});
        check(llama.clone(), "language.architecture.rotary.scaling.factor is 0.5");
        llama["rope_scaling"] = Value::Null;
        llama["num_key_value_heads"] = json!(3);
        check(llama, "language.architecture.kv_heads is 3, expected a divisor");
    }
}
