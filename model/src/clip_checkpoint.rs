//! CLIP as transformers and `open_clip` write it: their configurations, names and layouts.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::architecture::Architecture;
use crate::checkpoint::{read_json, save_tensors};
use crate::clip::{ClipConfig, Pool, TEXT_PREFIX, VISION_PREFIX};
use crate::config_fields::Fields;
use crate::decoder::LanguageConfig;
use crate::error::ModelError;
use crate::layers::FEED_FORWARD_WIDENING;
use crate::ops::Activation;
use crate::params::{Params, Source};
use crate::translate::{Layout, Rule, Rules};
use crate::vision::VisionConfig;
use crate::vit::{CHANNELS, PatchStates, VitConfig};
use crate::weights_file::Tensors;

/// Name of the configuration of `open_clip`'s folders.
const OPEN_CLIP_CONFIG: &str = "open_clip_config.json";

/// What stands before the names of the vision tower in transformers' CLIP.
const VISION_PART: &str = "vision_model.";

/// Who wrote a CLIP checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Writer {
    Transformers,
    OpenClip,
}

/// The names of a transformer block's parts: two norms, output, the feed-forward's two maps.
struct BlockNames {
    norms: [&'static str; 2],
    out: &'static str,
    up: &'static str,
    down: &'static str,
}

impl Writer {
    /// The vision tower that transformers' `config.json` describes: CLIP's, or its vision part
    /// alone.
    ///
    /// # Errors
    /// Names the first field that is missing or not supported.
    pub(crate) fn transformers_vision(
        config: &Value,
        path: &Path,
    ) -> Result<VitConfig, ModelError> {
        let all = Fields { path, all: config };
        let kind: String = all.get("model_type")?;
        let empty = json!({});
        let part = match &*kind {
            "clip" => config.get("vision_config").unwrap_or(&empty),
            "clip_vision_model" => config,
            _ => return Err(all.refused("model_type", "`clip` or `clip_vision_model`")),
        };
        let f = Fields { path, all: part };
        f.only("layer_norm_eps", &json!(1e-5))?;
        f.only("num_channels", &json!(3))?;
        let config = VitConfig {
            image_size: f.or("image_size", Some(224))?,
            patch_size: f.or("patch_size", Some(32))?,
            width: f.or("hidden_size", Some(768))?,
            layers: f.or("num_hidden_layers", Some(12))?,
            heads: f.or("num_attention_heads", Some(12))?,
            activation: f.activation_or("hidden_act", Activation::QuickGelu)?,
            feed_forward_width: Some(f.or("intermediate_size", Some(3072))?),
            patch_states: PatchStates::BeforeNorm,
        };
        config.validate()?;
        Ok(config)
    }

    /// The whole CLIP that transformers' `config.json` describes.
    ///
    /// # Errors
    /// Names the first field that is missing or not supported.
    pub(crate) fn transformers_clip(config: &Value, path: &Path) -> Result<ClipConfig, ModelError> {
        let empty = json!({});
        let f = Fields { path, all: config.get("text_config").unwrap_or(&empty) };
        f.only("layer_norm_eps", &json!(1e-5))?;
        let text = LanguageConfig {
            vocabulary: f.or("vocab_size", Some(49_408))?,
            context: f.or("max_position_embeddings", Some(77))?,
            width: f.or("hidden_size", Some(512))?,
            layers: f.or("num_hidden_layers", Some(12))?,
            heads: f.or("num_attention_heads", Some(8))?,
            activation: f.activation_or("hidden_act", Activation::QuickGelu)?,
            architecture: Architecture {
                feed_forward_width: Some(f.or("intermediate_size", Some(2048))?),
                ..Architecture::default()
            },
        };
        let config = ClipConfig {
            vision: Self::transformers_vision(config, path)?.into(),
            text,
            embedding: Fields { path, all: config }.or("projection_dim", Some(512))?,
            pool: Pool::Token,
        };
        config.validate()?;
        Ok(config)
    }

    /// The vision tower that `open_clip_config.json` describes.
    ///
    /// # Errors
    /// Names the first field that is missing or not supported.
    fn open_clip_vision(config: &Value, path: &Path) -> Result<VitConfig, ModelError> {
        let model = config.get("model_cfg").unwrap_or(config);
        let quick: bool = Fields { path, all: model }.or("quick_gelu", Some(false))?;
        let all = model.get("vision_cfg").cloned().unwrap_or_default();
        let f = Fields { path, all: &all };
        for field in ["timm_model_name", "attentional_pool", "no_ln_pre", "ls_init_value"] {
            let value = all.get(field).unwrap_or(&Value::Null);
            if !(value.is_null() || value == &json!(false)) {
                return Err(f.refused(field, "nothing: a plain vision transformer"));
            }
        }
        let width: usize = f.get("width")?;
        let head_width: usize = f.or("head_width", Some(64))?;
        let widening: f64 = f.or("mlp_ratio", Some(FEED_FORWARD_WIDENING as f64))?;
        let config = VitConfig {
            image_size: f.or("image_size", Some(224))?,
            patch_size: f.get("patch_size")?,
            width,
            layers: f.get("layers")?,
            heads: width.checked_div(head_width).unwrap_or(0),
            activation: if quick { Activation::QuickGelu } else { Activation::Gelu },
            feed_forward_width: Some((width as f64 * widening) as usize),
            patch_states: PatchStates::BeforeNorm,
        };
        config.validate()?;
        Ok(config)
    }

    /// The vision tower in a folder of `open_clip`, if it is one.
    ///
    /// # Errors
    /// When the folder is one of `open_clip` and does not hold a supported tower.
    pub(crate) fn open_clip_folder(
        folder: &Path,
    ) -> Result<Option<(VitConfig, Source)>, ModelError> {
        let path = folder.join(OPEN_CLIP_CONFIG);
        if !path.is_file() {
            return Ok(None);
        }
        let config = Self::open_clip_vision(&read_json(&path)?, &path)?;
        let safe = folder.join("open_clip_model.safetensors");
        let weights =
            if safe.is_file() { safe } else { folder.join("open_clip_pytorch_model.bin") };
        let tensors = Tensors::open(&weights)?;
        let source = Self::OpenClip.vision_source(&config, tensors, weights);
        Ok(Some((config, source)))
    }

    /// The parameters of a vision tower, found in `tensors`.
    pub(crate) fn vision_source(
        self,
        config: &VitConfig,
        tensors: Tensors,
        path: PathBuf,
    ) -> Source {
        let mut rules = Rules::default();
        self.add_vision(&mut rules, config);
        Source::Foreign { tensors, rules, path }
    }

    /// Gives a vision tower's tensors the names that they have as part of CLIP. From version 5 on
    /// transformers writes one that stands alone under shorter names; it reads both.
    ///
    /// # Errors
    /// When two tensors come to share a name.
    pub(crate) fn name_as_part(tensors: &mut Tensors, path: &Path) -> Result<(), ModelError> {
        if tensors.names().any(|name| name.starts_with(VISION_PART)) {
            return Ok(());
        }
        tensors.rename(|name| format!("{VISION_PART}{name}"), path)
    }

    /// Writes a vision tower as transformers' `CLIPVisionModel` into an existing folder.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub(crate) fn save_transformers_vision(
        folder: &Path,
        config: &VitConfig,
        params: &Params,
    ) -> Result<(), ModelError> {
        let mut rules = Rules::default();
        Self::Transformers.add_vision(&mut rules, config);
        let ours = params.iter().map(|p| (p.name.as_str(), p.weight.values()));
        let written = json!({
            "model_type": "clip_vision_model", "architectures": ["CLIPVisionModel"],
            "image_size": config.image_size, "patch_size": config.patch_size, "num_channels": CHANNELS,
            "hidden_size": config.width, "num_hidden_layers": config.layers,
            "num_attention_heads": config.heads, "intermediate_size": config.hidden(),
            "hidden_act": config.activation, "layer_norm_eps": 1e-5, "torch_dtype": "float32",
        });
        save_tensors(folder, &written, &rules.translate(ours)?)
    }

    /// The rules of the whole model, of which `open_clip`'s are known for the vision tower alone.
    pub(crate) fn clip_rules(config: &ClipConfig) -> Rules {
        let mut rules = Rules::default();
        let writer = Self::Transformers;
        if let VisionConfig::Vit(vision) = &config.vision {
            writer.add_vision(&mut rules, vision);
        }
        let (text, names) = (&config.text, writer.block());
        let width = text.width;
        for (ours, theirs, rows) in [
            ("tokens", "token_embedding", text.vocabulary),
            ("positions", "position_embedding", text.context),
        ] {
            let rule = Rule::same(format!("text_model.embeddings.{theirs}.weight"), &[rows, width]);
            rules.add(format!("{TEXT_PREFIX}{ours}.weight"), rule);
        }
        let hidden = text.architecture.feed_forward_width;
        for i in 0..text.layers {
            let ours = format!("{TEXT_PREFIX}blocks.{i}.");
            let theirs = format!("text_model.encoder.layers.{i}.");
            let hidden = hidden.unwrap_or(FEED_FORWARD_WIDENING * width);
            writer.add_block(&mut rules, &names, (width, hidden), &ours, &theirs);
        }
        let norm = format!("{TEXT_PREFIX}norm");
        add_pair(&mut rules, &norm, "text_model.final_layer_norm", &[width]);
        for (ours, theirs, from) in [
            ("vision_projection", "visual_projection", config.vision.width()),
            ("text_projection", "text_projection", width),
        ] {
            let rule = Rule::same(format!("{theirs}.weight"), &[config.embedding, from]);
            rules.add(format!("{ours}.weight"), rule);
        }
        rules.add("log_beta", Rule::reshaped("logit_scale", &[1], &[]));
        rules
    }

    fn add_vision(self, rules: &mut Rules, config: &VitConfig) {
        let (width, patch) = (config.width, config.patch_size);
        let [kernel, class, positions, before, after, blocks] = match self {
            Self::Transformers => [
                "vision_model.embeddings.patch_embedding.weight",
                "vision_model.embeddings.class_embedding",
                "vision_model.embeddings.position_embedding.weight",
                "vision_model.pre_layrnorm",
                "vision_model.post_layernorm",
                "vision_model.encoder.layers",
            ],
            Self::OpenClip => [
                "visual.conv1.weight",
                "visual.class_embedding",
                "visual.positional_embedding",
                "visual.ln_pre",
                "visual.ln_post",
                "visual.transformer.resblocks",
            ],
        };
        let at = |part: &str| format!("{VISION_PREFIX}{part}");
        let ours = [width, CHANNELS * patch * patch];
        let rule = Rule::reshaped(kernel, &ours, &[width, CHANNELS, patch, patch]);
        rules.add(at("patch_embedding.weight"), rule);
        rules.add(at("class_embedding"), Rule::same(class, &[width]));
        let rows = config.n_patches() + 1;
        rules.add(at("position_embedding"), Rule::same(positions, &[rows, width]));
        add_pair(rules, &at("ln_pre"), before, &[width]);
        add_pair(rules, &at("ln_post"), after, &[width]);
        let names = self.block();
        for i in 0..config.layers {
            let (ours, theirs) = (at(&format!("blocks.{i}.")), format!("{blocks}.{i}."));
            self.add_block(rules, &names, (width, config.hidden()), &ours, &theirs);
        }
    }

    fn block(self) -> BlockNames {
        match self {
            Self::Transformers => BlockNames {
                norms: ["layer_norm1", "layer_norm2"],
                out: "self_attn.out_proj",
                up: "mlp.fc1",
                down: "mlp.fc2",
            },
            Self::OpenClip => BlockNames {
                norms: ["ln_1", "ln_2"],
                out: "attn.out_proj",
                up: "mlp.c_fc",
                down: "mlp.c_proj",
            },
        }
    }

    fn add_block(
        self,
        rules: &mut Rules,
        names: &BlockNames,
        (width, hidden): (usize, usize),
        ours: &str,
        theirs: &str,
    ) {
        for (to, from, shape) in [
            ("norm_1", names.norms[0], &[width][..]),
            ("norm_2", names.norms[1], &[width]),
            ("attn.out", names.out, &[width, width]),
            ("mlp.up", names.up, &[hidden, width]),
            ("mlp.down", names.down, &[width, hidden]),
        ] {
            add_pair(rules, &format!("{ours}{to}"), &format!("{theirs}{from}"), shape);
        }
        for (part, columns) in [("weight", &[width][..]), ("bias", &[])] {
            let rule = match self {
                Self::Transformers => {
                    let name = |x: &str| (format!("{theirs}self_attn.{x}_proj.{part}"), width);
                    Rule::rows(["q", "k", "v"].map(name).to_vec(), columns)
                }
                Self::OpenClip => {
                    let shape = [&[3 * width], columns].concat();
                    Rule::of(format!("{theirs}attn.in_proj_{part}"), &shape, Layout::Same)
                }
            };
            rules.add(format!("{ours}attn.qkv.{part}"), rule);
        }
    }
}

/// The rules of a weight of this shape and its bias.
fn add_pair(rules: &mut Rules, ours: &str, theirs: &str, shape: &[usize]) {
    rules.add(format!("{ours}.weight"), Rule::same(format!("{theirs}.weight"), shape));
    rules.add(format!("{ours}.bias"), Rule::same(format!("{theirs}.bias"), &shape[..1]));
}
