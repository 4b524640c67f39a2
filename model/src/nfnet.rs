//! The paper's vision encoder: `NFNet` F0 to F6 (Brock and others, 2021), a residual network of
//! convolutions without normalisation; the paper takes F6 (section 2.1). Sizes, names and layouts
//! are those of timm's `dm_nfnet_f0` to `dm_nfnet_f6`. No drop of paths, and no classifier.
//!
//! Letters: `M` images, `H` and `W` pixels, `C` channels, `P` pixels of the last stage, `V` width
//! of the features.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::checkpoint::read_json;
use crate::clip::VISION_PREFIX;
use crate::error::ModelError;
use crate::limits::{
    IMAGE_SIZE_MAX, LAYERS_MAX, PARAMETERS_MAX, PATCHES_MAX, WIDTH_MAX, check_at_most, check_size,
};
use crate::ops::{self, Activation, Convolution, Grid, KernelSize, SqueezeExcitation};
use crate::params::{Declare, ParamId, Params, Source, Start};
use crate::pixels::PixelsRef;
use crate::tensor::{DeviceError, Matrix, NotRecording, Record};
use crate::weights_file::Tensors;

/// Colours of a pixel.
const COLOURS: usize = 3;
/// Added to the variance of an output's weights (timm, `std_conv_eps`).
const EPSILON: f32 = 1e-5;
/// By which a GELU of unit normal values is multiplied to have variance 1 again (Brock and others,
/// `nonlinearities`).
const GELU_GAMMA: f64 = 1.701_504_349_708_557_1;
/// Channels come in multiples of this; timm rounds to it, and here other widths are refused.
const CHANNEL_STEP: usize = 8;
/// A block's inner channels are its outer ones divided by this.
const BOTTLENECK: usize = 2;
/// Of the stem's four convolutions: its channels are divided by this, and the stride.
const STEM: [(usize, usize); 4] = [(8, 2), (4, 1), (2, 1), (1, 2)];
/// Stride of the first block of each stage.
const STAGE_STRIDES: [usize; 4] = [1, 2, 2, 2];
/// Pixels of the image for one of the last stage, per side.
const REDUCTION: usize = 32;

/// Shape of an `NFNet`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NfnetConfig {
    /// Height and width of an image, in pixels. Paper: 320; 480 when fine-tuned.
    pub image_size: usize,
    /// Blocks of each stage. F6: 7, 14, 42, 21.
    pub depths: [usize; 4],
    /// Channels of each stage. F0 to F6: 256, 512, 1536, 1536.
    pub channels: [usize; 4],
    /// Channels that the stem puts out. F0 to F6: 128.
    pub stem_channels: usize,
    /// Channels of one group of a block's 3 x 3 convolutions. F0 to F6: 128.
    pub group_size: usize,
    /// Squeezed channels for each channel of a block. F0 to F6: 0.5.
    pub squeeze_ratio: f32,
    /// By which a block's result is multiplied before it is added. F0 to F6: 0.2.
    pub alpha: f32,
    /// By which squeeze and excitation's result is multiplied. F0 to F6: 2.
    pub attn_gain: f32,
    /// Channels of the convolution after the last stage. F0 to F6: 3072.
    pub num_features: usize,
    /// What the resampler reads. The paper does not say which.
    pub features: NfnetFeatures,
}

/// Which states of an `NFNet` are its features.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NfnetFeatures {
    /// The last stage's residual; the network has no last convolution then.
    Stage4,
    /// The convolution after it and its activation: what timm's `forward_features` returns and a
    /// classifier averages.
    FinalConv,
}

/// Sizes of one block.
#[derive(Debug, Clone, Copy)]
struct BlockSize {
    inputs: usize,
    outputs: usize,
    group_size: usize,
    squeezed: usize,
    stride: usize,
    /// Reciprocal deviation that the residual is expected to have before the block.
    beta: f64,
    /// What the branch is multiplied by beside its learnt gain.
    factor: f32,
}

impl NfnetConfig {
    /// The network called `f0` to `f6`, with the features after the last convolution.
    ///
    /// # Errors
    /// When there is no network of that name.
    pub fn named(name: &str, image_size: usize) -> Result<Self, ModelError> {
        let size = name.strip_prefix('f').and_then(|n| n.parse().ok()).filter(|n| *n <= 6);
        let size: usize = size.ok_or_else(|| ModelError::Config {
            field: "nfnet".to_owned(),
            value: name.to_owned(),
            expected: "`f0` to `f6`".to_owned(),
        })?;
        Ok(Self {
            image_size,
            depths: [1, 2, 6, 3].map(|blocks| blocks * (size + 1)),
            channels: [256, 512, 1536, 1536],
            stem_channels: 128,
            group_size: 128,
            squeeze_ratio: 0.5,
            alpha: 0.2,
            attn_gain: 2.0,
            num_features: 3072,
            features: NfnetFeatures::FinalConv,
        })
    }

    /// Checks that the sizes can work.
    ///
    /// # Errors
    /// Names the first field that cannot.
    pub fn validate(&self) -> Result<(), ModelError> {
        check_size("nfnet.image_size", self.image_size, IMAGE_SIZE_MAX)?;
        check_at_most("nfnet feature rows of an image", self.n_feature_rows(), PATCHES_MAX)?;
        for depth in self.depths {
            check_size("nfnet.depths", depth, LAYERS_MAX)?;
        }
        check_channels("nfnet.group_size", self.group_size, CHANNEL_STEP)?;
        for channels in self.channels {
            check_channels("nfnet.channels", channels, BOTTLENECK * self.group_size)?;
        }
        check_channels("nfnet.stem_channels", self.stem_channels, CHANNEL_STEP)?;
        check_channels("nfnet.num_features", self.num_features, CHANNEL_STEP)?;
        check_factor("nfnet.squeeze_ratio", self.squeeze_ratio, 1.0)?;
        check_factor("nfnet.alpha", self.alpha, FACTOR_MAX)?;
        check_factor("nfnet.attn_gain", self.attn_gain, FACTOR_MAX)?;
        check_at_most("number of parameters of nfnet", self.n_parameters(), PARAMETERS_MAX)
    }

    /// Pixels of the last stage, `P`.
    pub fn n_feature_rows(&self) -> usize {
        let side = self.image_size.div_ceil(REDUCTION);
        side * side
    }

    /// Width of the features, `V`.
    pub fn feature_width(&self) -> usize {
        match self.features {
            NfnetFeatures::Stage4 => self.channels[3],
            NfnetFeatures::FinalConv => self.num_features,
        }
    }

    /// Values of one image `[3, H, W]`.
    pub fn n_pixel_values(&self) -> usize {
        COLOURS * self.image_size * self.image_size
    }

    /// Number of values in all parameters.
    pub fn n_parameters(&self) -> usize {
        let stem = self.stem().into_iter().map(|(kernel, _)| n_parameters(kernel));
        let blocks = self.stages().into_iter().flatten().map(BlockSize::n_parameters);
        let last = self.final_convolution().map(n_parameters);
        stem.chain(blocks).chain(last).sum()
    }

    /// Products of a weight and a value in a pass over one image, those of all convolutions and gates.
    pub fn n_products(&self) -> usize {
        let mut side = self.image_size;
        let mut all = 0;
        for (kernel, stride) in self.stem() {
            side = side.div_ceil(stride);
            all += n_products(kernel, side);
        }
        for block in self.stages().into_iter().flatten() {
            let out = side.div_ceil(block.stride);
            all += block.n_products(side, out);
            side = out;
        }
        all + self.final_convolution().map_or(0, |kernel| n_products(kernel, side))
    }

    /// Values that one image leaves of a training step: what each convolution makes and reads, and the
    /// blocks' results.
    pub(crate) fn n_activations(&self) -> usize {
        let mut side = self.image_size;
        let mut all = 0;
        for (kernel, stride) in self.stem() {
            side = side.div_ceil(stride);
            all += 2 * kernel.outputs * side * side;
        }
        for block in self.stages().into_iter().flatten() {
            let out = side.div_ceil(block.stride);
            let (before, after, middle) = (side * side, out * out, block.outputs / BOTTLENECK);
            all += before * (block.inputs + 2 * middle) + after * (4 * middle + 2 * block.outputs);
            all += block.downsample().map_or(0, |size| after * (size.inputs + size.outputs));
            side = out;
        }
        all + self.final_convolution().map_or(0, |kernel| 2 * kernel.outputs * side * side)
    }

    /// Kernels and strides of the stem.
    fn stem(&self) -> [(KernelSize, usize); 4] {
        let mut inputs = COLOURS;
        STEM.map(|(part, stride)| {
            let outputs = self.stem_channels / part;
            let kernel = KernelSize { inputs, outputs, side: 3, groups: 1 };
            inputs = outputs;
            (kernel, stride)
        })
    }

    fn stages(&self) -> [Vec<BlockSize>; 4] {
        let (mut inputs, mut variance) = (self.stem_channels, 1.0);
        let growth = f64::from(self.alpha) * f64::from(self.alpha);
        [0, 1, 2, 3].map(|stage| {
            let outputs = self.channels[stage];
            let block = |i: usize| {
                let first = i == 0;
                let size = BlockSize {
                    inputs,
                    outputs,
                    group_size: self.group_size,
                    squeezed: self.squeezed(outputs),
                    stride: if first { STAGE_STRIDES[stage] } else { 1 },
                    beta: f64::sqrt(variance).recip(),
                    factor: self.alpha * self.attn_gain,
                };
                // A stage's first block replaces the residual by a normal one and adds to that.
                variance = growth + if first { 1.0 } else { variance };
                inputs = outputs;
                size
            };
            (0..self.depths[stage]).map(block).collect()
        })
    }

    /// Squeezed channels, rounded as timm does.
    fn squeezed(&self, channels: usize) -> usize {
        let squeezed = channels as f64 * f64::from(self.squeeze_ratio);
        let steps = (squeezed + CHANNEL_STEP as f64 / 2.0) as usize / CHANNEL_STEP;
        steps.max(1) * CHANNEL_STEP
    }

    fn final_convolution(&self) -> Option<KernelSize> {
        let (inputs, outputs) = (self.channels[3], self.num_features);
        let size = KernelSize { inputs, outputs, side: 1, groups: 1 };
        (self.features == NfnetFeatures::FinalConv).then_some(size)
    }
}

/// Largest factor between two layers; the published ones are 0.2 and 2.
const FACTOR_MAX: f32 = 1e3;

fn check_channels(field: &str, channels: usize, step: usize) -> Result<(), ModelError> {
    check_size(field, channels, WIDTH_MAX)?;
    if channels.is_multiple_of(step) {
        return Ok(());
    }
    Err(ModelError::Config {
        field: field.to_owned(),
        value: channels.to_string(),
        expected: format!("a multiple of {step}"),
    })
}

fn check_factor(field: &str, factor: f32, max: f32) -> Result<(), ModelError> {
    if factor > 0.0 && factor <= max {
        return Ok(());
    }
    Err(ModelError::Config {
        field: field.to_owned(),
        value: factor.to_string(),
        expected: format!("more than 0 and at most {max}"),
    })
}

/// Weights, gain and bias of a convolution.
fn n_parameters(kernel: KernelSize) -> usize {
    kernel.outputs * (kernel.fan_in() + 2)
}

/// Products of a convolution that makes a square of `side` pixels.
fn n_products(kernel: KernelSize, side: usize) -> usize {
    kernel.outputs * kernel.fan_in() * side * side
}

impl BlockSize {
    /// The four convolutions of the branch; the second has the block's stride.
    fn branch(self) -> [KernelSize; 4] {
        let middle = self.outputs / BOTTLENECK;
        let pointwise = |inputs, outputs| KernelSize { inputs, outputs, side: 1, groups: 1 };
        let groups = middle / self.group_size;
        let grouped = KernelSize { inputs: middle, outputs: middle, side: 3, groups };
        [pointwise(self.inputs, middle), grouped, grouped, pointwise(middle, self.outputs)]
    }

    /// The convolution of the residual, where the block changes its shape.
    fn downsample(self) -> Option<KernelSize> {
        let (inputs, outputs) = (self.inputs, self.outputs);
        let size = KernelSize { inputs, outputs, side: 1, groups: 1 };
        (inputs != outputs || self.stride != 1).then_some(size)
    }

    fn n_parameters(self) -> usize {
        let convolutions = self.branch().into_iter().chain(self.downsample()).map(n_parameters);
        let gates = 2 * self.squeezed * self.outputs + self.squeezed + self.outputs;
        convolutions.sum::<usize>() + gates + 1
    }

    /// Products of the block, which makes a square of `out` pixels a side of one of `side`.
    fn n_products(self, side: usize, out: usize) -> usize {
        let sides = [side, out, out, out];
        let branch =
            self.branch().into_iter().zip(sides).map(|(size, side)| n_products(size, side));
        let residual = self.downsample().map_or(0, |size| n_products(size, out));
        branch.sum::<usize>() + residual + 2 * self.squeezed * self.outputs
    }
}

/// A convolution whose weights are standardised: `NAME.weight` `[O, I / groups, side, side]`,
/// `NAME.gain` `[O, 1, 1, 1]`, `NAME.bias` `[O]`.
#[derive(Debug, Clone)]
struct StandardConvolution {
    weight: ParamId,
    gain: ParamId,
    bias: ParamId,
    /// The kernel of frozen weights, made once; that of trained weights is made for every pass.
    kernel: Option<Matrix>,
    size: KernelSize,
    stride: usize,
}

impl StandardConvolution {
    fn new(
        declare: &mut Declare,
        name: &str,
        size: KernelSize,
        stride: usize,
    ) -> Result<Self, ModelError> {
        let shape = [size.outputs, size.group_inputs(), size.side, size.side];
        let start = Start::Normal((size.fan_in() as f32).sqrt().recip());
        let weight = declare.add(format!("{name}.weight"), &shape, start)?;
        let ones = Start::Constant(1.0);
        let gain = declare.add(format!("{name}.gain"), &[size.outputs, 1, 1, 1], ones)?;
        let zeros = Start::Constant(0.0);
        let bias = declare.add(format!("{name}.bias"), &[size.outputs], zeros)?;
        let (weights, gains) = (declare.weight(weight), declare.weight(gain));
        let frozen = !(weights.is_trained() || gains.is_trained() || declare.is_outline());
        let make = || ops::standardize(weights, gains, size, EPSILON, NotRecording::default());
        let kernel = frozen.then(make).transpose()?;
        Ok(Self { weight, gain, bias, kernel, size, stride })
    }

    /// Images `[M * H * W, I]` to `[M * H' * W', O]` and the size that they have then.
    fn forward<T: Record>(
        &self,
        p: &Params,
        x: Matrix<T>,
        grid: Grid,
    ) -> Result<(Matrix<T>, Grid), DeviceError> {
        let (x, tape) = x.split();
        let kept = self.kernel.as_ref().filter(|_| !p.is_on_gpu());
        let (kernel, tape) = if let Some(kernel) = kept {
            (kernel.clone(), tape)
        } else {
            let (weight, gain) = (p.get(self.weight), p.get(self.gain));
            ops::standardize(weight, gain, self.size, EPSILON, tape)?.split()
        };
        let KernelSize { side, groups, .. } = self.size;
        let shape = Convolution { grid, side, stride: self.stride, groups };
        let out = ops::convolve(x.with(tape), kernel, p.get(self.bias), shape)?;
        Ok((out, shape.out_grid()))
    }
}

/// GELU, times what makes its variance 1 and `beta`.
fn gelu<T: Record>(x: Matrix<T>, beta: f64) -> Result<Matrix<T>, DeviceError> {
    ops::activate_times(x, Activation::Gelu, (GELU_GAMMA * beta) as f32)
}

/// A block: activation, bottleneck of four convolutions, squeeze and excitation, onto a residual.
#[derive(Debug, Clone)]
struct Block {
    size: BlockSize,
    downsample: Option<StandardConvolution>,
    branch: [StandardConvolution; 4],
    squeeze: (ParamId, ParamId),
    excite: (ParamId, ParamId),
    skip_gain: ParamId,
}

impl Block {
    /// Declares a block under `name`, which ends in a dot.
    fn new(declare: &mut Declare, name: &str, size: BlockSize) -> Result<Self, ModelError> {
        let at = |part: &str| format!("{name}{part}");
        let downsample = size
            .downsample()
            .map(|kernel| StandardConvolution::new(declare, &at("downsample.conv"), kernel, 1))
            .transpose()?;
        let [first, second, third, last] = size.branch();
        let branch = [
            StandardConvolution::new(declare, &at("conv1"), first, 1)?,
            StandardConvolution::new(declare, &at("conv2"), second, size.stride)?,
            StandardConvolution::new(declare, &at("conv2b"), third, 1)?,
            StandardConvolution::new(declare, &at("conv3"), last, 1)?,
        ];
        let mut pointwise = |part: &str, inputs: usize, outputs: usize| {
            let start = Start::Normal((inputs as f32).sqrt().recip());
            let name = at(part);
            Ok::<_, ModelError>((
                declare.add(format!("{name}.weight"), &[outputs, inputs, 1, 1], start)?,
                declare.add(format!("{name}.bias"), &[outputs], Start::Constant(0.0))?,
            ))
        };
        let squeeze = pointwise("attn_last.fc1", size.outputs, size.squeezed)?;
        let excite = pointwise("attn_last.fc2", size.squeezed, size.outputs)?;
        let skip_gain = declare.add(at("skipinit_gain"), &[], Start::Constant(0.0))?;
        Ok(Self { size, downsample, branch, squeeze, excite, skip_gain })
    }

    /// The residual `[M * H * W, C]` to the next `[M * H' * W', C']` and the size of its images.
    fn forward<T: Record>(
        &self,
        p: &Params,
        x: Matrix<T>,
        grid: Grid,
    ) -> Result<(Matrix<T>, Grid), DeviceError> {
        let (x, tape) = x.split();
        let (active, tape) = gelu(x.clone().with(tape), self.size.beta)?.split();
        let (residual, tape) = match &self.downsample {
            None => (x, tape),
            Some(convolution) => {
                let active = active.clone().with(tape);
                let (small, grid) = match self.size.stride {
                    1 => (active, grid),
                    stride => (ops::halve(active, grid)?, grid.strided(stride)),
                };
                convolution.forward(p, small, grid)?.0.split()
            }
        };
        let [first, rest @ ..] = &self.branch;
        let (mut x, mut grid) = first.forward(p, active.with(tape), grid)?;
        for convolution in rest {
            (x, grid) = convolution.forward(p, gelu(x, 1.0)?, grid)?;
        }
        let gates = SqueezeExcitation {
            squeeze: p.get(self.squeeze.0).clone(),
            squeeze_bias: p.get(self.squeeze.1).clone(),
            excite: p.get(self.excite.0).clone(),
            excite_bias: p.get(self.excite.1).clone(),
            gain: p.get(self.skip_gain).clone(),
            factor: self.size.factor,
        };
        Ok((ops::squeeze_excite_onto(x, residual, grid.n_pixels(), gates)?, grid))
    }
}

/// The network.
#[derive(Debug, Clone)]
pub(crate) struct Nfnet {
    stem: Vec<StandardConvolution>,
    stages: Vec<Vec<Block>>,
    final_convolution: Option<StandardConvolution>,
    image_size: usize,
}

impl Nfnet {
    /// Declares the network under `name`, which is empty or ends in a dot.
    ///
    /// Weights start normal with deviation `1 / sqrt(fan in)`, and every branch with gain 0.
    pub(crate) fn new(
        declare: &mut Declare,
        name: &str,
        config: &NfnetConfig,
    ) -> Result<Self, ModelError> {
        let stem = config.stem().into_iter().enumerate().map(|(i, (kernel, stride))| {
            let name = format!("{name}stem.conv{}", i + 1);
            StandardConvolution::new(declare, &name, kernel, stride)
        });
        let stem = stem.collect::<Result<_, _>>()?;
        let stages = config.stages().into_iter().enumerate().map(|(stage, blocks)| {
            let blocks = blocks.into_iter().enumerate();
            blocks
                .map(|(i, size)| Block::new(declare, &format!("{name}stages.{stage}.{i}."), size))
                .collect::<Result<_, _>>()
        });
        let stages = stages.collect::<Result<_, _>>()?;
        let final_convolution = config
            .final_convolution()
            .map(|kernel| {
                StandardConvolution::new(declare, &format!("{name}final_conv"), kernel, 1)
            })
            .transpose()?;
        Ok(Self { stem, stages, final_convolution, image_size: config.image_size })
    }

    /// Pixels `[M, 3, H, W]` to features `[M * P, V]`, line by line.
    pub(crate) fn forward<T: Record>(
        &self,
        p: &Params,
        pixels: PixelsRef,
        tape: T,
    ) -> Result<Matrix<T>, DeviceError> {
        let colours = ops::unfold(p, pixels, self.image_size, 1)?; // [M * H * W, 3]
        self.features(p, colours.with(tape))
    }

    /// The `NFNet` in a folder of timm, if it is one: its `config.json` names the architecture
    /// `dm_nfnet_f0` to `dm_nfnet_f6`, for images of the size that it was tested with.
    ///
    /// # Errors
    /// When the folder is one of timm and does not hold such a network.
    pub(crate) fn timm_folder(folder: &Path) -> Result<Option<(NfnetConfig, Source)>, ModelError> {
        let path = folder.join("config.json");
        if !path.is_file() {
            return Ok(None);
        }
        let all: serde_json::Value = read_json(&path)?;
        let Some(name) = all.get("architecture").and_then(serde_json::Value::as_str) else {
            return Ok(None);
        };
        let image_size = all
            .pointer("/pretrained_cfg/test_input_size/1")
            .or_else(|| all.pointer("/pretrained_cfg/input_size/1"))
            .and_then(serde_json::Value::as_u64)
            .map_or(REDUCTION, |size| usize::try_from(size).unwrap_or(IMAGE_SIZE_MAX));
        let name = name.strip_prefix("dm_nfnet_").unwrap_or(name);
        let config = NfnetConfig::named(name, image_size)?;
        config.validate()?;
        let mut tensors = Tensors::open(folder)?;
        tensors.split_off("head.");
        tensors.rename(|name| format!("{VISION_PREFIX}{name}"), folder)?;
        Ok(Some((config, Source::Stored { tensors, path: folder.to_path_buf() })))
    }

    /// Feature rows of one image.
    pub(crate) fn n_feature_rows(&self) -> usize {
        let side = self.image_size.div_ceil(REDUCTION);
        side * side
    }

    /// Images `[M * H * W, 3]` to features `[M * P, V]`.
    fn features<T: Record>(&self, p: &Params, x: Matrix<T>) -> Result<Matrix<T>, DeviceError> {
        let (mut x, mut grid) = self.after_stem(p, x)?;
        for block in self.stages.iter().flatten() {
            (x, grid) = block.forward(p, x, grid)?;
        }
        self.after_stages(p, x, grid)
    }

    fn after_stages<T: Record>(
        &self,
        p: &Params,
        x: Matrix<T>,
        grid: Grid,
    ) -> Result<Matrix<T>, DeviceError> {
        match &self.final_convolution {
            Some(convolution) => gelu(convolution.forward(p, x, grid)?.0, 1.0),
            None => Ok(x),
        }
    }

    fn after_stem<T: Record>(
        &self,
        p: &Params,
        mut x: Matrix<T>,
    ) -> Result<(Matrix<T>, Grid), DeviceError> {
        let mut grid = Grid { height: self.image_size, width: self.image_size };
        for (i, convolution) in self.stem.iter().enumerate() {
            x = if i == 0 { x } else { gelu(x, 1.0)? };
            (x, grid) = convolution.forward(p, x, grid)?;
        }
        Ok((x, grid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Device;
    use crate::golden::{Case, compare};
    use crate::params::{Source, Training};
    use crate::tensor::{Recording, differentiate, record_loss};

    /// The golden case's sizes.
    fn tiny(features: NfnetFeatures) -> NfnetConfig {
        NfnetConfig {
            image_size: 64,
            depths: [1, 2, 1, 1],
            channels: [16, 32, 48, 48],
            stem_channels: 16,
            group_size: 8,
            squeeze_ratio: 0.5,
            alpha: 0.2,
            attn_gain: 2.0,
            num_features: 96,
            features,
        }
    }

    #[test]
    fn the_networks_have_the_published_numbers_of_parameters() {
        // timm's `dm_nfnet_f0` to `f6` without their heads; F6 is the paper's 435 million.
        let millions = [68.4, 129.6, 190.7, 251.9, 313.0, 374.1, 435.3];
        for (i, expected) in millions.into_iter().enumerate() {
            let config = NfnetConfig::named(&format!("f{i}"), 288).unwrap();
            config.validate().unwrap();
            let found = config.n_parameters() as f64 / 1e6;
            assert!((found - expected).abs() < 0.1, "f{i}: {found} million, expected {expected}");
            assert_eq!((config.n_feature_rows(), config.feature_width()), (81, 3072));
        }
        for name in ["f7", "f", "6", "F6"] {
            assert!(NfnetConfig::named(name, 288).is_err());
        }
    }

    /// Table 3 of Brock and others (2021): multiply-adds at the resolutions of the tests, with a classifier
    /// of 3 million.
    #[test]
    fn the_networks_have_the_published_numbers_of_products() {
        let billions = [12.38, 35.54, 62.59, 114.76, 215.24, 289.76, 377.28];
        let sizes = [256, 320, 352, 416, 512, 544, 576];
        for (i, (expected, size)) in billions.into_iter().zip(sizes).enumerate() {
            let config = NfnetConfig::named(&format!("f{i}"), size).unwrap();
            let found = (config.n_products() + 3072 * 1000) as f64 / 1e9;
            assert!((found / expected - 1.0).abs() < 5e-3, "f{i}: {found}, expected {expected}");
        }
    }

    #[test]
    fn sizes_that_cannot_work_are_refused_by_name() {
        let check = |field: &str, change: fn(&mut NfnetConfig)| {
            let mut config = NfnetConfig::named("f0", 192).unwrap();
            change(&mut config);
            let message = config.validate().unwrap_err().to_string();
            assert!(message.contains(field), "{message} does not name {field}");
        };
        check("nfnet.image_size", |c| c.image_size = 0);
        check("nfnet.depths", |c| c.depths[2] = 1 << 20);
        check("nfnet.channels", |c| c.channels[1] = 384);
        check("nfnet.group_size", |c| c.group_size = 12);
        check("nfnet.stem_channels", |c| c.stem_channels = 100);
        check("nfnet.num_features", |c| c.num_features = 0);
        check("nfnet.squeeze_ratio", |c| c.squeeze_ratio = 2.0);
        check("nfnet.alpha", |c| c.alpha = f32::NAN);
        check("number of parameters", |c| {
            (c.channels, c.depths) = ([1 << 16; 4], [1 << 10; 4]);
        });
    }

    #[test]
    fn the_number_of_parameters_is_counted_from_the_sizes() {
        for features in [NfnetFeatures::Stage4, NfnetFeatures::FinalConv] {
            let config = tiny(features);
            let mut declare = Declare::new(Source::Random { seed: 1 }, Training::Frozen);
            let network = Nfnet::new(&mut declare, "a.", &config).unwrap();
            let p = declare.finish();
            assert_eq!(p.n_values(), config.n_parameters());
            assert!(p.iter().all(|parameter| parameter.name.starts_with("a.")));
            let pixels = vec![0.5; 2 * config.n_pixel_values()];
            let out = network.forward(&p, (&pixels).into(), NotRecording::default()).unwrap();
            assert_eq!(out.rows(), 2 * config.n_feature_rows());
            assert_eq!(out.width(), config.feature_width());
        }
    }

    /// `[M * P, C]` as `[M, C, P]`.
    fn channels_first(x: &[f32], channels: usize) -> Vec<f32> {
        let image = |x: &[f32]| -> Vec<f32> {
            (0..channels).flat_map(|c| x[c..].iter().step_by(channels).copied()).collect()
        };
        x.chunks(x.len() / 2).flat_map(image).collect()
    }

    /// Norm of the difference of two gradients by the expected one's norm.
    fn distance(got: &[f32], expected: &[f32]) -> f32 {
        assert_eq!(got.len(), expected.len());
        let norm = |x: &mut dyn Iterator<Item = f32>| x.map(|v| v * v).sum::<f32>().sqrt();
        let difference = norm(&mut got.iter().zip(expected).map(|(a, b)| a - b));
        difference / norm(&mut expected.iter().copied())
    }

    #[test]
    fn the_network_and_its_gradients_equal_timms() {
        let Some(case) = Case::open("nfnet") else { return };
        for device in Device::to_compare() {
            check_against_timm(&case, device);
        }
    }

    fn check_against_timm(case: &Case, device: Device) {
        let mut declare = Declare::new(case.source(), Training::Trained);
        let network = Nfnet::new(&mut declare, "", &tiny(NfnetFeatures::FinalConv)).unwrap();
        let p = device.with(declare.finish());
        let outputs = case.tensors("outputs");
        let check = |name: &str, x: &Matrix| {
            let got = channels_first(&x.to_vec().unwrap(), x.width());
            let error = compare(name, &got, outputs.get(name).unwrap());
            eprintln!("nfnet {name}, {device}: {error:.1e}");
        };

        let pixels = case.input("pixels"); // [2, 3, 64, 64]
        let images = device.variable(ops::unfold_here((&pixels).into(), 64, 1).values(), 3);
        let taped = images.clone().with(Recording::default());
        let (mut x, mut grid) = network.after_stem(&p, taped).unwrap();
        let mut name = "stem".to_owned();
        for (i, stage) in network.stages.iter().enumerate() {
            let (value, tape) = x.split();
            check(&name, &value);
            x = value.with(tape);
            for block in stage {
                (x, grid) = block.forward(&p, x, grid).unwrap();
            }
            name = format!("stage{}", i + 1);
        }
        let (value, tape) = x.split();
        check(&name, &value);
        let (out, tape) = network.after_stages(&p, value.with(tape), grid).unwrap().split();
        check("final_conv", &out);

        // Evenly spaced weights in the order [M, C, P], turned to ours.
        let seeded = out.clone();
        let loss = record_loss(0.0, tape, move |_, store| {
            let (n, c) = (seeded.rows() * seeded.width(), seeded.width());
            let pixels = n / 2 / c;
            let weight = |i: usize| {
                let (image, pixel, channel) = (i / c / pixels, i / c % pixels, i % c);
                let place = (image * c + channel) * pixels + pixel;
                -1.0 + 2.0 * place as f32 / (n - 1) as f32
            };
            seeded.give_values(store, (0..n).map(weight).collect())
        });
        let (_, mut grads) = differentiate(loss.unwrap(), 1.0).unwrap();
        let expected = case.tensors("grads");
        let mut errors = Vec::new();
        for parameter in p.iter() {
            let ours = p.gradient(&mut grads, &parameter.name).unwrap().unwrap();
            let error = distance(&ours, expected.get(&parameter.name).unwrap());
            errors.push((error, parameter.name.clone()));
        }
        let ours = images.take_gradient(&mut grads.0).unwrap().unwrap();
        let ours = channels_first(&ours, COLOURS);
        errors.push((distance(&ours, expected.get("pixels").unwrap()), "pixels".to_owned()));
        errors.sort_by(|a, b| b.0.total_cmp(&a.0));
        assert_eq!(errors.len(), 110);
        eprintln!(
            "nfnet gradients, {device}: {} compared, the worst {:?}",
            errors.len(),
            &errors[..3]
        );
        assert!(errors.iter().all(|(error, _)| *error < 1e-3), "{:?}", &errors[..3]);

        // A frozen network keeps its kernels and computes the same.
        let mut declare = Declare::new(case.source(), Training::Frozen);
        let network = Nfnet::new(&mut declare, "", &tiny(NfnetFeatures::FinalConv)).unwrap();
        let p = device.with(declare.finish());
        let frozen = network.forward(&p, (&pixels).into(), NotRecording::default()).unwrap();
        assert_eq!(frozen.to_vec().unwrap(), out.to_vec().unwrap());
    }
}
