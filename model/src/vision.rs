//! The vision tower, either of two kinds: the paper's [`Nfnet`] or CLIP's [`Vit`].
//!
//! Letters: `M` images, `P` feature rows per image, `V` width.

use std::path::Path;

use rayon::prelude::*;
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize};

use crate::buffer::Buffer;
use crate::checkpoint::{Folder, open_folder};
use crate::clip::{ClipConfig, Pool, VISION_PREFIX};
use crate::clip_checkpoint::Writer;
use crate::error::ModelError;
use crate::nfnet::{Nfnet, NfnetConfig};
use crate::ops::{self, Recompute};
use crate::params::{Declare, Params, Source, Training};
use crate::pixels::PixelsRef;
use crate::tensor::{DeviceError, Matrix, NotRecording, Record};
use crate::vit::{Vit, VitConfig};

/// Shape of the vision tower. Read from `[model.vision]`: a table with `depths` is an `NFNet`, any
/// other a vision transformer.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum VisionConfig {
    /// CLIP's vision transformer.
    Vit(VitConfig),
    /// The paper's `NFNet`.
    Nfnet(NfnetConfig),
}

impl<'de> Deserialize<'de> for VisionConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // Not serde's untagged: its error would not say which field of which kind is wrong.
        let all = serde_json::Value::deserialize(deserializer)?;
        if all.get("depths").is_some() {
            NfnetConfig::deserialize(all).map(Self::Nfnet).map_err(D::Error::custom)
        } else {
            VitConfig::deserialize(all).map(Self::Vit).map_err(D::Error::custom)
        }
    }
}

impl From<VitConfig> for VisionConfig {
    fn from(config: VitConfig) -> Self {
        Self::Vit(config)
    }
}

impl From<NfnetConfig> for VisionConfig {
    fn from(config: NfnetConfig) -> Self {
        Self::Nfnet(config)
    }
}

/// Rows of patches that go through the tower together: enough that arranging a kernel for the
/// registers is a small part of a product.
const ROWS_TOGETHER: usize = 256;

/// Whether a field may be left out.
pub(crate) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl VisionConfig {
    /// Checks that the sizes can work.
    ///
    /// # Errors
    /// Names the first field that cannot.
    pub fn validate(&self) -> Result<(), ModelError> {
        match self {
            Self::Vit(config) => config.validate(),
            Self::Nfnet(config) => config.validate(),
        }
    }

    /// Height and width of an image, in pixels.
    pub fn image_size(&self) -> usize {
        match self {
            Self::Vit(config) => config.image_size,
            Self::Nfnet(config) => config.image_size,
        }
    }

    /// Takes images of another size.
    pub fn set_image_size(&mut self, size: usize) {
        match self {
            Self::Vit(config) => config.image_size = size,
            Self::Nfnet(config) => config.image_size = size,
        }
    }

    /// Width of the features, `V`.
    pub fn width(&self) -> usize {
        match self {
            Self::Vit(config) => config.width,
            Self::Nfnet(config) => config.feature_width(),
        }
    }

    /// Feature rows of one image, `P`.
    pub fn n_feature_rows(&self) -> usize {
        match self {
            Self::Vit(config) => config.n_patches(),
            Self::Nfnet(config) => config.n_feature_rows(),
        }
    }

    /// Values of the features of one image `[P, V]`.
    pub fn n_feature_values(&self) -> usize {
        self.n_feature_rows() * self.width()
    }

    /// Values of one image `[3, H, W]`.
    pub fn n_pixel_values(&self) -> usize {
        3 * self.image_size() * self.image_size()
    }

    /// The same tower for images of another size, and with the features that `like` takes.
    pub(crate) fn as_used_by(&self, like: &Self) -> Self {
        match (self, like) {
            (Self::Vit(tower), Self::Vit(like)) => Self::Vit(VitConfig {
                image_size: like.image_size,
                patch_states: like.patch_states,
                ..tower.clone()
            }),
            (Self::Nfnet(tower), Self::Nfnet(like)) => Self::Nfnet(NfnetConfig {
                image_size: like.image_size,
                features: like.features,
                ..tower.clone()
            }),
            _ => self.clone(),
        }
    }
}

/// The vision tower.
#[derive(Debug, Clone)]
pub(crate) enum Vision {
    Vit(Box<Vit>),
    Nfnet(Box<Nfnet>),
}

impl Vision {
    /// Declares the tower under `name`, which ends in a dot. `tower` is the configuration that its
    /// weights were made with; `config`, that of the same tower for images of another size.
    ///
    /// # Errors
    /// When a weight is missing or misshapen, or memory is out.
    pub(crate) fn new(
        mut declare: Declare,
        name: &str,
        tower: &VisionConfig,
        config: &VisionConfig,
    ) -> Result<(Self, Params), ModelError> {
        match (tower, config) {
            (VisionConfig::Nfnet(_), VisionConfig::Nfnet(config)) => {
                let nfnet = Nfnet::new(&mut declare, name, config)?;
                Ok((Self::Nfnet(Box::new(nfnet)), declare.finish()))
            }
            (VisionConfig::Vit(tower), config) => {
                let mut vit = Vit::new(&mut declare, name, tower)?;
                let mut params = declare.finish();
                vit.resize(&mut params, config.image_size())?;
                Ok((Self::Vit(Box::new(vit)), params))
            }
            (VisionConfig::Nfnet(_), VisionConfig::Vit(_)) => Err(ModelError::Config {
                field: "vision".to_owned(),
                value: "a vision transformer".to_owned(),
                expected: "an NFNet, as its weights are".to_owned(),
            }),
        }
    }

    /// As [`Vision::new`] under the usual name, after checking that the source has every weight.
    ///
    /// # Errors
    /// When weights are missing or misshapen, which are all named, or memory is out.
    pub(crate) fn from_source(
        source: Source,
        training: Training,
        tower: &VisionConfig,
        config: &VisionConfig,
    ) -> Result<(Self, Params), ModelError> {
        let outline = Declare::new(Source::Shapes, Training::Frozen);
        source.check(&[&Self::new(outline, VISION_PREFIX, tower, tower)?.1])?;
        Self::new(Declare::new(source, training), VISION_PREFIX, tower, config)
    }

    /// Pixels `[M, 3, H, W]` to what the resampler reads: `[M * P, V]`.
    ///
    /// # Errors
    /// When the device fails.
    pub(crate) fn features<T: Record>(
        &self,
        p: &Params,
        pixels: PixelsRef,
        tape: T,
        recompute: Recompute,
    ) -> Result<Matrix<T>, DeviceError> {
        match self {
            Self::Vit(vit) => vit.features(p, pixels, tape, recompute),
            Self::Nfnet(nfnet) => nfnet.forward(p, pixels, tape),
        }
    }

    /// As [`Vision::features`], never recorded. What is kept of an image must be what it would be
    /// beside any others, so images go through the tower together only where their products are
    /// large enough alone, see [`ops::adds_in_one_order`].
    ///
    /// # Errors
    /// When the device fails.
    pub(crate) fn features_of_each(
        &self,
        p: &Params,
        pixels: PixelsRef,
        config: &VisionConfig,
    ) -> Result<Matrix, DeviceError> {
        let rows = config.n_feature_rows();
        let together = match self {
            Self::Vit(_) if ops::adds_in_one_order(rows, config.width()) => {
                ROWS_TOGETHER.div_ceil(rows)
            }
            _ => 1,
        };
        #[cfg(feature = "cuda")]
        if p.gpu().is_some() {
            let groups =
                pixels.chunks(config.n_pixel_values() * IMAGES_TOGETHER_ON_GPU).into_iter();
            let group =
                |pixels| self.features(p, pixels, NotRecording::default(), Recompute::Nothing);
            let parts = groups.map(group).collect::<Result<Vec<Matrix>, _>>()?;
            return ops::join_rows(&parts, config.width());
        }
        let n_images = pixels.len() / config.n_pixel_values();
        let mut out = Buffer::unset(n_images * config.n_feature_values());
        let groups = pixels.chunks(config.n_pixel_values() * together).into_par_iter();
        let group = |(pixels, out): (PixelsRef, &mut [f32])| {
            let x = self.features(p, pixels, NotRecording::default(), Recompute::Nothing)?;
            out.copy_from_slice(x.values());
            Ok::<(), DeviceError>(())
        };
        let outs = out.par_chunks_mut(config.n_feature_values() * together);
        groups.zip(outs).try_for_each(group)?;
        Ok(Matrix::constant(out, config.width()))
    }

    /// Pixels `[M, 3, H, W]` to one row for each image: `[M, V]`.
    ///
    /// # Errors
    /// When the device fails.
    pub(crate) fn pooled<T: Record>(
        &self,
        p: &Params,
        pixels: PixelsRef,
        tape: T,
        recompute: Recompute,
        pool: Pool,
    ) -> Result<Matrix<T>, DeviceError> {
        match self {
            Self::Vit(vit) => {
                let x = vit.forward(p, pixels, tape, recompute)?; // [M * (1 + P), V]
                vit.pool(p, x, pool)
            }
            Self::Nfnet(nfnet) => {
                // Without a class row there is but the mean.
                let x = nfnet.forward(p, pixels, tape)?;
                let rows = nfnet.n_feature_rows();
                let spans = (0..x.rows() / rows).map(|i| i * rows..(i + 1) * rows).collect();
                ops::mean_rows(x, spans)
            }
        }
    }
}

/// Most images that go through a tower on a GPU at one time.
#[cfg(feature = "cuda")]
const IMAGES_TOGETHER_ON_GPU: usize = 256;

/// The vision tower in a folder: of a contrastive model or run of ours, of CLIP as transformers or
/// `open_clip` write it, or an `NFNet` of timm.
///
/// # Errors
/// When the folder does not hold a vision tower, or one that is not supported.
pub(crate) fn vision_folder(folder: &Path) -> Result<(VisionConfig, Source), ModelError> {
    if let Some((config, source)) = Writer::open_clip_folder(folder)? {
        return Ok((config.into(), source));
    }
    if let Some((config, source)) = Nfnet::timm_folder(folder)? {
        return Ok((config.into(), source));
    }
    match open_folder::<ClipConfig>(folder)? {
        Folder::Ours(config, mut source) => Ok((config.vision, source.split_off(VISION_PREFIX))),
        Folder::HuggingFace { config, mut tensors, path } => {
            let config = Writer::transformers_vision(&config, &path)?;
            Writer::name_as_part(&mut tensors, &path)?;
            let source = Writer::Transformers.vision_source(&config, tensors, path);
            Ok((config.into(), source))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::Activation;
    use crate::params::Training;
    use crate::vit::PatchStates;

    #[test]
    fn an_image_is_the_same_alone_and_beside_others() {
        let config: VisionConfig = VitConfig {
            image_size: 10,
            patch_size: 2,
            width: 24,
            layers: 2,
            heads: 2,
            activation: Activation::QuickGelu,
            feed_forward_width: None,
            patch_states: PatchStates::AfterNorm,
        }
        .into();
        assert!(ops::adds_in_one_order(config.n_feature_rows(), config.width()));
        let declare = Declare::new(Source::Random { seed: 1 }, Training::Frozen);
        let (vision, params) = Vision::new(declare, VISION_PREFIX, &config, &config).unwrap();
        let one = config.n_pixel_values();
        let pixels = ops::gradient_check::pseudo_random(15 * one, 2);
        let bits = |pixels: &[f32]| -> Vec<u32> {
            let features = vision.features_of_each(&params, pixels.into(), &config).unwrap();
            features.values().iter().map(|v| v.to_bits()).collect()
        };
        let alone: Vec<u32> = pixels.chunks(one).flat_map(bits).collect();
        assert_eq!(bits(&pixels), alone);
    }
}
