//! Named parameters: made from a seed or from a file, counted, updated and saved in one place.
//!
//! A module declares its parameters once and keeps their [`ParamId`]s; forward passes look the
//! weights up in a [`Params`]. So there is one walk over all parameters, and whether a tower is
//! frozen is decided where it is loaded.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use rayon::prelude::*;
use safetensors::{Dtype, View};

use crate::buffer::Buffer;
use crate::error::ModelError;
use crate::ops::{self, AdamStep, Average, Moments};
use crate::tensor::{DeviceError, Gradients, Matrix, Weight};
use crate::translate::Rules;
use crate::weights_file::{Tensors, le_bytes};

/// A parameter of one [`Params`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ParamId(usize);

/// One named parameter.
#[derive(Debug, Clone)]
pub struct Parameter {
    /// The name in checkpoints.
    pub name: String,
    /// The shape; values are row-major.
    pub shape: Vec<usize>,
    /// The values.
    pub weight: Weight,
}

impl Parameter {
    /// Number of values.
    pub fn n_values(&self) -> usize {
        self.shape.iter().product()
    }
}

impl View for &Parameter {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        le_bytes(&self.weight.values()).into()
    }

    fn data_len(&self) -> usize {
        size_of::<f32>() * self.n_values()
    }
}

/// Values that one core draws at a time.
const CHUNK_VALUES: usize = 1 << 14;

/// The parameters of one tower.
#[derive(Debug, Clone, Default)]
pub struct Params {
    /// Shared, so that operations which run again later can hold on to all of it.
    list: Arc<Vec<Parameter>>,
}

impl Params {
    /// Trained parameters of these names, shapes and values, without a model around them.
    ///
    /// # Errors
    /// When the device is out of memory.
    ///
    /// # Panics
    /// If there are not as many values as a shape says.
    pub fn trained(
        list: impl IntoIterator<Item = (String, Vec<usize>, Vec<f32>)>,
    ) -> Result<Self, ModelError> {
        let parameter = |(name, shape, values): (String, Vec<usize>, Vec<f32>)| {
            assert_eq!(values.len(), shape.iter().product::<usize>(), "{name}");
            Ok(Parameter { name, shape, weight: Weight::trained(values)? })
        };
        let list: Result<_, ModelError> = list.into_iter().map(parameter).collect();
        Ok(Self { list: Arc::new(list?) })
    }

    /// The weight behind an id.
    pub(crate) fn get(&self, id: ParamId) -> &Weight {
        &self.list[id.0].weight
    }

    /// Gives a parameter another shape and other values.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub(crate) fn replace(
        &mut self,
        id: ParamId,
        shape: &[usize],
        values: Vec<f32>,
    ) -> Result<(), DeviceError> {
        let parameter = &mut Arc::make_mut(&mut self.list)[id.0];
        parameter.shape = shape.to_vec();
        parameter.weight = match parameter.weight {
            Weight::Trained(_) => Weight::trained(values)?,
            Weight::Frozen(_) => Weight::Frozen(values.into()),
        };
        Ok(())
    }

    /// Whether any parameter is trained.
    pub(crate) fn is_trained(&self) -> bool {
        self.list.iter().any(|parameter| parameter.weight.is_trained())
    }

    /// All parameters, in the order of declaration.
    pub fn iter(&self) -> impl Iterator<Item = &Parameter> {
        self.list.iter()
    }

    /// Number of values in all parameters.
    pub fn n_values(&self) -> usize {
        self.list.iter().map(Parameter::n_values).sum()
    }

    /// Gives `update` every trained parameter with its values and gradient, and keeps the values
    /// that it leaves.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub fn update(
        &mut self,
        gradients: &mut Gradients,
        mut update: impl FnMut(&str, &[usize], &mut [f32], &[f32]),
    ) -> Result<(), ModelError> {
        for parameter in Arc::make_mut(&mut self.list) {
            let Weight::Trained(weight) = &mut parameter.weight else { continue };
            let gradient = weight.gradient(&mut gradients.0)?;
            let (name, shape) = (&parameter.name, &parameter.shape);
            weight.change(|values| update(name, shape, values, gradient))?;
        }
        Ok(())
    }

    /// Makes one update of every trained parameter by `AdamW` for whose name and shape `step` gives the
    /// numbers. Parameters without moments start with zeros.
    ///
    /// # Errors
    /// When the device fails.
    ///
    /// # Panics
    /// If two parameters have one name.
    pub fn adamw(
        &mut self,
        gradients: &mut Gradients,
        moments: &mut BTreeMap<String, Moments>,
        step: impl Fn(&str, &[usize]) -> Option<AdamStep>,
    ) -> Result<(), ModelError> {
        let is_updated =
            |p: &&Parameter| p.weight.is_trained() && step(&p.name, &p.shape).is_some();
        for parameter in self.list.iter().filter(is_updated) {
            let fresh = || Moments::zeros(&parameter.shape);
            moments.entry(parameter.name.clone()).or_insert_with(fresh);
        }
        let mut moments: BTreeMap<&str, &mut Moments> =
            moments.iter_mut().map(|(name, moments)| (name.as_str(), moments)).collect();
        let mut updates = Vec::new();
        for parameter in Arc::make_mut(&mut self.list) {
            let Weight::Trained(weight) = &mut parameter.weight else { continue };
            let (name, shape) = (parameter.name.as_str(), &parameter.shape);
            let Some(step) = step(name, shape) else { continue };
            let moments = moments.remove(name).expect("each updated parameter has moments");
            updates.push((weight, moments, step));
        }
        Ok(ops::adamw(updates, gradients)?)
    }

    /// Sends the values to a GPU, or home from one.
    #[cfg(feature = "cuda")]
    pub(crate) fn place(
        &mut self,
        gpu: Option<&'static crate::cuda::Gpu>,
    ) -> Result<(), DeviceError> {
        let list = Arc::make_mut(&mut self.list);
        list.iter_mut().try_for_each(|parameter| parameter.weight.place(gpu))
    }

    /// The GPU that holds the values.
    #[cfg(feature = "cuda")]
    pub(crate) fn gpu(&self) -> Option<&'static crate::cuda::Gpu> {
        Some(self.list.first()?.weight.device()?.gpu())
    }

    /// What the GPU that holds the values is called, with its number format.
    #[cfg_attr(not(feature = "cuda"), expect(clippy::unused_self, reason = "there is no GPU"))]
    pub(crate) fn gpu_name(&self) -> Option<String> {
        #[cfg(feature = "cuda")]
        return self.gpu().map(|gpu| format!("{} {:?}", gpu.name(), gpu.kind()));
        #[cfg(not(feature = "cuda"))]
        None
    }

    /// Whether a GPU holds the values.
    #[cfg_attr(not(feature = "cuda"), expect(clippy::unused_self, reason = "GPUs need it"))]
    pub(crate) fn is_on_gpu(&self) -> bool {
        #[cfg(feature = "cuda")]
        return self.gpu().is_some();
        #[cfg(not(feature = "cuda"))]
        false
    }

    /// Waits for a GPU that holds the values: one that has failed is told of here, and not by reading them.
    ///
    /// # Errors
    /// When it has failed.
    #[cfg_attr(
        not(feature = "cuda"),
        expect(clippy::unnecessary_wraps, clippy::unused_self, reason = "GPUs need it")
    )]
    pub(crate) fn ready(&self) -> Result<(), DeviceError> {
        #[cfg(feature = "cuda")]
        if let Some(gpu) = self.gpu() {
            gpu.wait()?;
        }
        Ok(())
    }

    /// A matrix, brought to where the parameters are and into the format that is used there. It is not
    /// differentiated.
    #[cfg_attr(
        not(feature = "cuda"),
        expect(clippy::unnecessary_wraps, clippy::unused_self, reason = "GPUs need it")
    )]
    pub(crate) fn bring(&self, x: Matrix) -> Result<Matrix, DeviceError> {
        #[cfg(feature = "cuda")]
        match (self.gpu(), x.array()) {
            (Some(gpu), None) => {
                let array = gpu.upload(x.values())?;
                return Ok(Matrix::on_gpu(array.into(), x.width(), false));
            }
            (Some(gpu), Some(array)) if array.kind() != gpu.kind() => {
                let array = gpu.copy(array, gpu.kind())?;
                return Ok(Matrix::on_gpu(array.into(), x.width(), false));
            }
            (None, Some(_)) => return Ok(Matrix::constant(x.to_vec()?.into(), x.width())),
            _ => {}
        }
        Ok(x)
    }

    /// A matrix of these values, where the parameters are.
    pub(crate) fn beside(&self, values: Buffer, width: usize) -> Result<Matrix, DeviceError> {
        self.bring(Matrix::constant(values, width))
    }

    /// The name and the sum of squares of the gradient of each trained parameter, in f64.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub fn gradient_squares<'a>(
        &'a self,
        gradients: &mut Gradients,
    ) -> Result<Vec<(&'a str, f64)>, ModelError> {
        let trained = self.list.iter().filter(|parameter| parameter.weight.is_trained());
        #[cfg(feature = "cuda")]
        if let Some(gpu) = self.gpu() {
            let store = gradients.0.device_ref();
            let gradient = |p: &'a Parameter| p.weight.device()?.gradient_array(store);
            let (names, arrays): (Vec<&str>, Vec<_>) =
                trained.map(|p| (p.name.as_str(), gradient(p))).unzip();
            let there: Vec<_> = arrays.iter().copied().flatten().collect();
            let mut sums = ops::square_sums(gpu, &there)?.into_iter();
            let sums = arrays.iter().map(|array| array.and_then(|_| sums.next()).unwrap_or(0.0));
            return Ok(names.into_iter().zip(sums).collect());
        }
        let mut all = Vec::new();
        for parameter in trained {
            let Weight::Trained(weight) = &parameter.weight else { continue };
            let gradient = weight.gradient(&mut gradients.0)?;
            let squares = gradient.iter().map(|g| f64::from(*g) * f64::from(*g));
            all.push((parameter.name.as_str(), squares.sum()));
        }
        Ok(all)
    }

    /// Inner product of two gradients over the trained parameters whose names `counts` chooses, in f64. From a
    /// GPU they come home one parameter at a time.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub fn gradient_dot(
        &self,
        a: &mut Gradients,
        b: &mut Gradients,
        counts: impl Fn(&str) -> bool,
    ) -> Result<f64, ModelError> {
        let mut sum = 0.0;
        for parameter in self.list.iter().filter(|parameter| counts(&parameter.name)) {
            let Weight::Trained(weight) = &parameter.weight else { continue };
            #[cfg(feature = "cuda")]
            if let Some(device) = parameter.weight.device() {
                let [a, b] = [&*a, &*b].map(|all| device.gradient_array(all.0.device_ref()));
                if let (Some(a), Some(b)) = (a, b) {
                    let [a, b] = [a, b].map(crate::cuda::Array::to_vec);
                    sum += dot(&a.map_err(DeviceError::from)?, &b.map_err(DeviceError::from)?);
                }
                continue;
            }
            sum += dot(weight.gradient(&mut a.0)?, weight.gradient(&mut b.0)?);
        }
        Ok(sum)
    }

    /// Clips the gradient of each unit of the trained parameters for which `share` says to which share of
    /// the norm of the unit's weights (adaptive gradient clipping).
    ///
    /// # Errors
    /// When the device fails.
    pub fn clip_units(
        &self,
        gradients: &mut Gradients,
        share: impl Fn(&str) -> Option<f64>,
    ) -> Result<(), ModelError> {
        let clips = self.list.iter().filter_map(|parameter| {
            let Weight::Trained(weight) = &parameter.weight else { return None };
            Some((weight, &*parameter.shape, share(&parameter.name)?))
        });
        let clips: Vec<_> = clips.collect();
        Ok(ops::clip_units(&clips, gradients)?)
    }

    /// Moves the running averages by `rate` of the way to the trained parameters of their names.
    ///
    /// # Errors
    /// When the device fails.
    pub fn average(
        &self,
        averages: &mut BTreeMap<String, Average>,
        rate: f32,
    ) -> Result<(), ModelError> {
        let mut moved = Vec::new();
        let mut all: BTreeMap<&str, &mut Average> =
            averages.iter_mut().map(|(name, average)| (name.as_str(), average)).collect();
        for parameter in &*self.list {
            let Weight::Trained(weight) = &parameter.weight else { continue };
            if let Some(average) = all.remove(parameter.name.as_str()) {
                moved.push((weight, average));
            }
        }
        Ok(ops::average(moved, rate)?)
    }

    /// Gradients of the trained parameters among some, by their places, one after the other; zeros where
    /// no loss reached one.
    ///
    /// # Errors
    /// When the device is out of memory.
    ///
    /// # Panics
    /// When there are no such places.
    pub fn gradients(
        &self,
        places: Range<usize>,
        gradients: &mut Gradients,
    ) -> Result<Vec<f32>, ModelError> {
        let list = &self.list[places];
        let trained = list.iter().filter(|parameter| parameter.weight.is_trained());
        let mut all = Vec::with_capacity(trained.map(Parameter::n_values).sum());
        for parameter in list {
            if let Weight::Trained(weight) = &parameter.weight {
                all.extend_from_slice(weight.gradient(&mut gradients.0)?);
            }
        }
        Ok(all)
    }

    /// Gives the trained parameters among some, by their places, other gradients: as
    /// [`gradients`](Self::gradients) has them.
    ///
    /// # Errors
    /// When the device is out of memory.
    ///
    /// # Panics
    /// When there are no such places, or not as many values as they have.
    pub fn set_gradients(
        &self,
        places: Range<usize>,
        gradients: &mut Gradients,
        values: &[f32],
    ) -> Result<(), ModelError> {
        let mut rest = values;
        for parameter in self.list[places].iter().filter(|p| p.weight.is_trained()) {
            let (of_this, others) = rest.split_at(parameter.n_values());
            let set = |gradient: &mut [f32]| gradient.copy_from_slice(of_this);
            parameter.weight.accumulate(&mut gradients.0, set)?;
            rest = others;
        }
        assert!(rest.is_empty(), "{} values too many", rest.len());
        Ok(())
    }

    /// Values of the trained parameters among some, by their places, one after the other.
    ///
    /// # Panics
    /// When there are no such places.
    pub fn trained_values(&self, places: Range<usize>) -> Vec<f32> {
        let trained = || self.list[places.clone()].iter().filter(|p| p.weight.is_trained());
        let mut all = Vec::with_capacity(trained().map(Parameter::n_values).sum());
        trained().for_each(|parameter| all.extend_from_slice(&parameter.weight.values()));
        all
    }

    /// Gives the trained parameters among some, by their places, other values.
    ///
    /// # Errors
    /// When the device fails.
    ///
    /// # Panics
    /// When there are no such places, or not as many values as they have.
    pub fn set_trained_values(
        &mut self,
        places: Range<usize>,
        values: &[f32],
    ) -> Result<(), ModelError> {
        let mut rest = values;
        for parameter in &mut Arc::make_mut(&mut self.list)[places] {
            let n = parameter.n_values();
            let Weight::Trained(weight) = &mut parameter.weight else { continue };
            let (of_this, others) = rest.split_at(n);
            weight.change(|values| values.copy_from_slice(of_this))?;
            rest = others;
        }
        assert!(rest.is_empty(), "{} values too many", rest.len());
        Ok(())
    }

    /// Gradient of the parameter called `name`, zeros if no loss reached it.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub fn gradient(
        &self,
        gradients: &mut Gradients,
        name: &str,
    ) -> Result<Option<Vec<f32>>, ModelError> {
        for parameter in self.list.iter().filter(|p| p.name == name) {
            if let Weight::Trained(weight) = &parameter.weight {
                return Ok(Some(weight.gradient(&mut gradients.0)?.to_vec()));
            }
        }
        Ok(None)
    }

    /// Adds to the gradient of the parameter called `name`, if there is one that is trained.
    ///
    /// # Errors
    /// When the device is out of memory.
    ///
    /// # Panics
    /// If there are not as many values as the parameter has.
    pub fn add_to_gradient(
        &self,
        gradients: &mut Gradients,
        name: &str,
        values: &[f32],
    ) -> Result<(), ModelError> {
        for parameter in self.list.iter().filter(|p| p.name == name) {
            assert_eq!(values.len(), parameter.n_values(), "{name}");
            let add = |sum: &mut [f32]| sum.iter_mut().zip(values).for_each(|(sum, v)| *sum += v);
            parameter.weight.accumulate(&mut gradients.0, add)?;
        }
        Ok(())
    }
}

/// In an order that does not depend on the number of threads.
fn dot(a: &[f32], b: &[f32]) -> f64 {
    let chunks = a.par_chunks(CHUNK_VALUES).zip(b.par_chunks(CHUNK_VALUES));
    let product = |(a, b): (&f32, &f32)| f64::from(*a) * f64::from(*b);
    let sums: Vec<f64> = chunks.map(|(a, b)| a.iter().zip(b).map(product).sum()).collect();
    sums.iter().sum()
}

/// A model as an optimizer sees it.
pub trait Trainable {
    /// All parameters, trained and frozen; names are unique within a model and stable.
    fn params(&self) -> Vec<&Params>;
    /// All parameters, to be updated.
    fn params_mut(&mut self) -> Vec<&mut Params>;
}

impl Trainable for Params {
    fn params(&self) -> Vec<&Params> {
        vec![self]
    }

    fn params_mut(&mut self) -> Vec<&mut Params> {
        vec![self]
    }
}

/// Where values come from when parameters are declared.
#[derive(Debug, Clone)]
pub(crate) enum Source {
    /// Drawn anew; the same seed and names give the same values.
    Random {
        /// Seed of the draw.
        seed: u64,
    },
    /// Read from a weights file.
    Stored {
        /// The file's tensors.
        tensors: Tensors,
        /// Where they came from, for messages.
        path: PathBuf,
    },
    /// Read from a weights file that others wrote.
    Foreign {
        /// The file's tensors.
        tensors: Tensors,
        /// Where our parameters are found in it.
        rules: Rules,
        /// Where they came from, for messages.
        path: PathBuf,
    },
    /// Nowhere: names and shapes alone, without values and without memory for them. What is made of
    /// it can be counted and compared, not run.
    Shapes,
}

impl Source {
    /// Checks that everything an outline declares can be had from here: tensors of these names and
    /// shapes. Others may lie beside them.
    ///
    /// # Errors
    /// One error that lists all that is missing or different.
    pub(crate) fn check(&self, outline: &[&Params]) -> Result<(), ModelError> {
        let declared = outline.iter().flat_map(|params| params.iter());
        match self {
            Self::Random { .. } | Self::Shapes => Ok(()),
            Self::Stored { tensors, path } => {
                let same = |p: &Parameter| (p.name.clone(), p.shape.clone());
                let expected: Vec<_> = declared.map(same).collect();
                tensors.check_all(&expected, |_| true, path)
            }
            Self::Foreign { tensors, rules, path } => {
                let theirs = |p: &Parameter| rules.theirs(&p.name);
                let expected: Vec<_> = declared.flat_map(theirs).collect();
                tensors.check_all(&expected, |_| true, path)
            }
        }
    }

    /// What this source has of the parameters whose names begin with `prefix`. The rest stays.
    pub(crate) fn split_off(&mut self, prefix: &str) -> Self {
        match self {
            Self::Random { seed } => Self::Random { seed: *seed },
            Self::Stored { tensors, path } => {
                Self::Stored { tensors: tensors.split_off(prefix), path: path.clone() }
            }
            // Their names tell nothing; both find what they need.
            Self::Foreign { .. } | Self::Shapes => self.clone(),
        }
    }
}

/// Whether gradients are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Training {
    /// The tape knows the weights.
    Trained,
    /// Weights are plain buffers; no gradient of them is ever computed.
    Frozen,
}

impl Training {
    /// Trained or not.
    pub(crate) fn of(trained: bool) -> Self {
        if trained { Self::Trained } else { Self::Frozen }
    }
}

/// How a fresh parameter starts.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Start {
    /// Every value the same.
    Constant(f32),
    /// Normal with mean 0 and this standard deviation.
    Normal(f32),
}

/// Collects declarations into a [`Params`].
#[derive(Debug)]
pub(crate) struct Declare {
    source: Source,
    training: Training,
    list: Vec<Parameter>,
}

impl Declare {
    pub(crate) fn new(source: Source, training: Training) -> Self {
        Self { source, training, list: Vec::new() }
    }

    /// Declares one parameter.
    pub(crate) fn add(
        &mut self,
        name: impl Into<String>,
        shape: &[usize],
        start: Start,
    ) -> Result<ParamId, ModelError> {
        let name = name.into();
        let values = match &mut self.source {
            Source::Random { seed } => draw(*seed, &name, shape.iter().product(), start)?,
            Source::Stored { tensors, path } => tensors.take(&name, shape, path)?,
            Source::Foreign { tensors, rules, path } => rules.take(&name, shape, tensors, path)?,
            Source::Shapes => Vec::new(),
        };
        let weight = match self.training {
            Training::Trained if !self.is_outline() => Weight::trained(values)?,
            _ => Weight::Frozen(values.into()),
        };
        self.list.push(Parameter { name, shape: shape.to_vec(), weight });
        Ok(ParamId(self.list.len() - 1))
    }

    /// Whether parameters have no values.
    pub(crate) fn is_outline(&self) -> bool {
        matches!(self.source, Source::Shapes)
    }

    /// The weight behind an id declared before.
    pub(crate) fn weight(&self, id: ParamId) -> &Weight {
        &self.list[id.0].weight
    }

    /// The parameters declared.
    pub(crate) fn finish(self) -> Params {
        Params { list: Arc::new(self.list) }
    }
}

/// The values that a parameter starts with; an error where memory cannot hold them.
fn draw(seed: u64, name: &str, n: usize, start: Start) -> Result<Vec<f32>, DeviceError> {
    let mut values = Vec::new();
    values.try_reserve_exact(n).map_err(|_| DeviceError::OutOfMemory)?;
    match start {
        Start::Constant(value) => values.resize(n, value),
        Start::Normal(deviation) => {
            let key = name.bytes().fold(seed, |key, byte| mix(key ^ u64::from(byte)));
            let drawn = (0..n).into_par_iter().with_min_len(CHUNK_VALUES);
            drawn.map(|i| deviation * normal(key, i as u64)).collect_into_vec(&mut values);
        }
    }
    Ok(values)
}

/// `SplitMix64`'s output function: a bijection that looks random.
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// The `i`-th uniform draw in [0, 1) of a key: counter-based, so draws need no state.
pub(crate) fn uniform(key: u64, i: u64) -> f32 {
    (mix(key.wrapping_add(mix(i))) >> 40) as f32 / (1_u64 << 24) as f32
}

/// The `i`-th standard normal draw of a key (Box and Muller).
fn normal(key: u64, i: u64) -> f32 {
    let radius = (-2.0 * (1.0 - uniform(key, 2 * i)).ln()).sqrt();
    radius * (2.0 * std::f32::consts::PI * uniform(key, 2 * i + 1)).cos()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read_and_written_without_their_neighbours() {
        let parameter = |i: usize| (format!("{i}"), vec![i + 1], vec![i as f32; i + 1]);
        let mut params = Params::trained((0..4).map(parameter)).unwrap();
        let mut gradients = Gradients::default();
        params.add_to_gradient(&mut gradients, "1", &[5.0, 6.0]).unwrap();
        assert_eq!(params.gradients(1..3, &mut gradients).unwrap(), [5.0, 6.0, 0.0, 0.0, 0.0]);
        params.set_gradients(2..4, &mut gradients, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]).unwrap();
        let all = params.gradients(0..4, &mut gradients).unwrap();
        assert_eq!(all, [0.0, 5.0, 6.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]);
        params.set_trained_values(1..2, &[8.0, 9.0]).unwrap();
        assert_eq!(params.trained_values(0..3), [0.0, 8.0, 9.0, 2.0, 2.0, 2.0]);
    }

    #[test]
    fn draws_are_normal_and_depend_on_the_name_only() {
        let draw = |name, n| draw(7, name, n, Start::Normal(2.0)).unwrap();
        let draws = draw("a.weight", 20_000);
        let mean = draws.iter().sum::<f32>() / 20_000.0;
        let variance = draws.iter().map(|v| (v - mean) * (v - mean)).sum::<f32>() / 20_000.0;
        assert!(mean.abs() < 0.05, "{mean}");
        assert!((variance - 4.0).abs() < 0.15, "{variance}");
        assert_eq!(draws[..10], draw("a.weight", 10));
        assert_ne!(draws[..10], draw("b.weight", 10));
    }

    #[test]
    fn inner_products_of_gradients_are_over_what_both_have() {
        let n = CHUNK_VALUES + 7;
        let zeros = |name: &str, n| (name.to_owned(), vec![n], vec![0.0; n]);
        let params = Params::trained([zeros("a", n), zeros("b", 2), zeros("c", 1)]).unwrap();
        let wave: Vec<f32> = (0..n).map(|i| (i as f32 * 0.37).sin()).collect();
        let gradients = |parts: &[(&str, &[f32])]| {
            let mut gradients = Gradients::default();
            for (name, values) in parts {
                params.add_to_gradient(&mut gradients, name, values).unwrap();
            }
            gradients
        };
        let mut x = gradients(&[("a", &wave), ("b", &[3.0, -1.0])]);
        let mut y = gradients(&[("a", &wave), ("b", &[0.5, 4.0]), ("c", &[9.0])]);
        let square: f64 = wave.iter().map(|v| f64::from(*v).powi(2)).sum();
        let found = params.gradient_dot(&mut x, &mut y, |_| true).unwrap();
        assert!((found - (square + 1.5 - 4.0)).abs() < 1e-9, "{found}, {square}");
    }
}
