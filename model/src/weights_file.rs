//! Weights files: f32 tensors by name, from safetensors files and from checkpoints of others.
//!
//! A file is mapped into memory and a tensor's values are made when they are asked for, so opening
//! costs little more than reading a header, and a 7B model of 16-bit weights is never held twice.
//! Values of other floating-point types become f32; anything else is refused when it is taken.

use std::borrow::Cow;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::fs::File;
use std::ops::Range;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, OnceLock};

use memmap2::{Advice, Mmap};
use rayon::prelude::*;
use safetensors::tensor::TensorInfo;
use safetensors::{Dtype, SafeTensorError, SafeTensors, View};

use crate::checkpoint::read_json;
use crate::error::{Mismatches, ModelError};
use crate::pickle;
use crate::spare::Spare;
use crate::tensor::DeviceError;

/// Files that a folder of weights may hold, in the order in which they are looked for.
const FOLDER_FILES: [&str; 4] = [
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
];
/// How the name of a file that lists shards ends.
const INDEX_ENDING: &str = ".index.json";
/// Values that one thread converts at a time.
const CHUNK_VALUES: usize = 1 << 16;
/// Tensors from this size on are converted by all threads.
const PARALLEL_FROM: usize = 1 << 18;
/// Most values of a tensor that repeats its stored values, as an expanded one does. A file of a few
/// bytes could ask for any amount of memory otherwise.
const REPEATED_VALUES_MAX: usize = 1 << 24;

/// The tensors of a file, or of several, by name.
#[derive(Debug, Clone, Default)]
pub struct Tensors(BTreeMap<String, Tensor>);

#[derive(Debug, Clone)]
pub(crate) struct Tensor {
    shape: Vec<usize>,
    values: Values,
}

#[derive(Debug, Clone)]
enum Values {
    Made(Vec<f32>),
    /// Not made yet, or made for a look only.
    Stored(Stored, OnceLock<Vec<f32>>),
    /// What stands in the file where a tensor may be asked for.
    Refused(String),
}

impl Tensors {
    /// Opens a safetensors file.
    ///
    /// # Errors
    /// When the file cannot be read or is not a whole safetensors file.
    pub fn read(path: &Path) -> Result<Self, ModelError> {
        Self::from_safetensors(&map(path)?, path)
    }

    /// Opens weights in any form that others publish: a safetensors file, a checkpoint of
    /// `torch.save`, an index of several, or a folder with one of these under its usual name.
    ///
    /// Of a training checkpoint these are the model's tensors. Wrappers' parts of a name, such as
    /// `module.` in front, are left out; see [`ModelError`] for what is refused.
    ///
    /// # Errors
    /// When a file cannot be read, is damaged, or is none of these, or when two shards hold a
    /// tensor of one name.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        if path.is_dir() {
            let found = FOLDER_FILES.iter().map(|file| path.join(file)).find(|file| file.exists());
            let lacks = || ModelError::NoWeights { path: path.into(), expected: &FOLDER_FILES };
            return Self::open_file(&found.ok_or_else(lacks)?);
        }
        Self::open_file(path)
    }

    fn open_file(path: &Path) -> Result<Self, ModelError> {
        if path.file_name().is_some_and(|name| name.to_string_lossy().ends_with(INDEX_ENDING)) {
            return Self::open_index(path);
        }
        let file = map(path)?;
        if looks_like_safetensors(&file, path) {
            return Self::from_safetensors(&file, path);
        }
        pickle::state_dict(&file, path)
    }

    pub(crate) fn from_map(tensors: BTreeMap<String, Tensor>) -> Self {
        Self(tensors)
    }

    fn from_safetensors(file: &Arc<Mmap>, path: &Path) -> Result<Self, ModelError> {
        let views = SafeTensors::deserialize(file).map_err(|source| refusal(file, path, source))?;
        let mut tensors = BTreeMap::new();
        for (name, view) in views.iter() {
            let start = view.data().as_ptr().addr() - file.as_ptr().addr();
            let bytes = start..start + view.data().len();
            let stored = Stored { file: file.clone(), dtype: view.dtype(), bytes, strides: None };
            tensors.insert(name.to_owned(), Tensor::stored(view.shape().to_vec(), stored));
        }
        Ok(Self(tensors))
    }

    /// Opens every file that an index names and checks that each holds what the index says.
    fn open_index(path: &Path) -> Result<Self, ModelError> {
        #[derive(serde::Deserialize)]
        struct Index {
            weight_map: BTreeMap<String, String>,
        }
        let Index { weight_map } = read_json(path)?;
        let folder = path.parent().unwrap_or(Path::new(""));
        let mut shards: BTreeMap<String, Self> = BTreeMap::new();
        for (name, shard) in weight_map {
            let refuse = |problem| ModelError::Shard {
                path: path.into(),
                name: name.as_str().into(),
                shard: shard.as_str().into(),
                problem,
            };
            if !shards.contains_key(&shard) {
                if !stays_inside(&shard) || shard.ends_with(INDEX_ENDING) {
                    return Err(refuse("is not the name of a file of weights inside its folder"));
                }
                let file = folder.join(&shard);
                if !file.exists() {
                    return Err(refuse("is not there"));
                }
                shards.insert(shard.clone(), Self::open_file(&file)?);
            }
            // The names of checkpoints may be free of wrappers that the index still has.
            if shards[&shard].shape(&pickle::unwrapped(&name)).is_none()
                && shards[&shard].shape(&name).is_none()
            {
                return Err(refuse("does not hold it"));
            }
        }
        Self::join(shards, path)
    }

    /// The tensors of all shards; no two may share a name.
    fn join(shards: BTreeMap<String, Self>, path: &Path) -> Result<Self, ModelError> {
        let mut all = BTreeMap::new();
        let mut shard_of: BTreeMap<String, String> = BTreeMap::new();
        for (shard, tensors) in shards {
            for (name, tensor) in tensors.0 {
                if let Some(first) = shard_of.insert(name.clone(), shard.clone()) {
                    let (path, second) = (path.into(), shard);
                    return Err(ModelError::TwoTensors {
                        path,
                        name: name.into(),
                        first: first.into(),
                        second: second.into(),
                    });
                }
                all.insert(name, tensor);
            }
        }
        Ok(Self(all))
    }

    /// Takes out all tensors whose names begin with `prefix`.
    pub(crate) fn split_off(&mut self, prefix: &str) -> Self {
        Self(self.0.extract_if(.., |name, _| name.starts_with(prefix)).collect())
    }

    /// Leaves out all tensors but those that `keeps` names.
    pub(crate) fn retain(&mut self, keeps: impl Fn(&str) -> bool) {
        self.0.retain(|name, _| keeps(name));
    }

    /// All tensors by name, in order, each to be written as f32.
    ///
    /// # Errors
    /// When one is not of floating-point numbers; `path` is the file that is to be written.
    pub(crate) fn views(
        &self,
        path: &Path,
    ) -> Result<impl Iterator<Item = (&String, &Tensor)>, ModelError> {
        for (name, tensor) in &self.0 {
            if let Some(found) = tensor.refused() {
                return Err(ModelError::Type { path: path.into(), name: name.clone(), found });
            }
        }
        Ok(self.0.iter())
    }

    /// Adds a tensor.
    pub fn insert(&mut self, name: impl Into<String>, shape: &[usize], values: Vec<f32>) {
        let tensor = Tensor { shape: shape.to_vec(), values: Values::Made(values) };
        self.0.insert(name.into(), tensor);
    }

    /// Adds tensors, in the place of those of their names.
    pub(crate) fn replace(&mut self, others: Self) {
        self.0.extend(others.0);
    }

    /// All names, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// The shape of a tensor, if it is there.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.0.get(name).map(|tensor| tensor.shape.as_slice())
    }

    /// The values of a tensor, if it is there and [`Tensors::take`] would give any. Once made, they
    /// are kept until the tensor is taken.
    pub fn get(&self, name: &str) -> Option<&[f32]> {
        match &self.0.get(name)?.values {
            Values::Made(values) => Some(values),
            Values::Refused(_) => None,
            Values::Stored(stored, made) => {
                if made.get().is_none() {
                    let values = stored.to_f32(&self.0[name].shape).ok()??;
                    return Some(made.get_or_init(|| values));
                }
                made.get().map(Vec::as_slice)
            }
        }
    }

    /// All tensors by name, shape and values; what is no tensor of floating-point numbers is left
    /// out.
    pub(crate) fn into_parts(self) -> impl Iterator<Item = (String, Vec<usize>, Vec<f32>)> {
        self.0.into_iter().filter_map(|(name, tensor)| {
            let values = match tensor.values {
                Values::Made(values) => values,
                Values::Refused(_) => return None,
                Values::Stored(stored, made) => match made.into_inner() {
                    Some(values) => values,
                    None => stored.to_f32(&tensor.shape).ok()??,
                },
            };
            Some((name, tensor.shape, values))
        })
    }

    /// Moves a tensor's values out, after checking its shape.
    ///
    /// # Errors
    /// When the tensor is missing, has another shape or is not of floating-point numbers; `path`
    /// names the file in the message.
    pub fn take(
        &mut self,
        name: &str,
        shape: &[usize],
        path: &Path,
    ) -> Result<Vec<f32>, ModelError> {
        let found = self.0.remove(name).ok_or_else(|| ModelError::MissingTensor {
            path: path.to_path_buf(),
            name: name.to_owned(),
            shape: shape.to_vec(),
        })?;
        let refused = |found| ModelError::Type { path: path.into(), name: name.to_owned(), found };
        if let Some(found) = found.refused() {
            return Err(refused(found));
        }
        if found.shape != shape {
            return Err(ModelError::TensorShape {
                path: path.to_path_buf(),
                name: name.to_owned(),
                expected: shape.to_vec(),
                found: found.shape,
            });
        }
        match found.values {
            Values::Made(values) => Ok(values),
            Values::Refused(found) => Err(refused(found)),
            Values::Stored(stored, made) => match made.into_inner() {
                Some(values) => Ok(values),
                None => stored.to_f32(shape)?.ok_or_else(|| refused(stored.dtype.to_string())),
            },
        }
    }

    /// Gives every tensor the name that `new_name` makes of its own.
    ///
    /// Two that come to share a name must be equal bit by bit, as two names of one tensor are in
    /// many checkpoints; one stays.
    ///
    /// # Errors
    /// When two differ that come to share a name; `path` names the file in the message.
    pub fn rename(
        &mut self,
        new_name: impl Fn(&str) -> String,
        path: &Path,
    ) -> Result<(), ModelError> {
        let mut renamed: BTreeMap<String, (String, Tensor)> = BTreeMap::new();
        for (second, tensor) in std::mem::take(&mut self.0) {
            match renamed.entry(new_name(&second)) {
                Entry::Vacant(entry) => {
                    entry.insert((second, tensor));
                }
                Entry::Occupied(entry) if entry.get().1.equals(&tensor) => {}
                Entry::Occupied(entry) => {
                    let (path, name) = (path.into(), entry.key().clone());
                    let (first, _) = entry.remove();
                    return Err(ModelError::TwoTensors {
                        path,
                        name: name.into(),
                        first: first.into(),
                        second: second.into(),
                    });
                }
            }
        }
        self.0 = renamed.into_iter().map(|(name, (_, tensor))| (name, tensor)).collect();
        Ok(())
    }

    /// Checks that every tensor of `expected` could be taken with its shape and that there is no
    /// other, but for those that `allow_unexpected` lets pass.
    ///
    /// # Errors
    /// One error that lists everything that is wrong; `path` names the file in it.
    pub fn check_all(
        &self,
        expected: &[(String, Vec<usize>)],
        allow_unexpected: impl Fn(&str) -> bool,
        path: &Path,
    ) -> Result<(), ModelError> {
        let mut problems = Mismatches::default();
        let mut known = BTreeSet::new();
        for (name, shape) in expected {
            known.insert(name.as_str());
            match self.0.get(name).map(|tensor| (tensor, tensor.refused())) {
                None => problems.missing.push((name.clone(), shape.clone())),
                Some((_, Some(found))) => problems.mistyped.push((name.clone(), found)),
                Some((tensor, None)) if tensor.shape != *shape => {
                    let found = tensor.shape.clone();
                    problems.misshapen.push((name.clone(), shape.clone(), found));
                }
                Some(_) => {}
            }
        }
        let others = self.0.iter().filter(|(name, tensor)| {
            // What is no tensor is nobody's weight.
            !matches!(tensor.values, Values::Refused(_))
                && !known.contains(name.as_str())
                && !allow_unexpected(name)
        });
        problems.unexpected = others.map(|(name, _)| name.clone()).collect();
        if problems.is_empty() {
            return Ok(());
        }
        Err(ModelError::Tensors { path: path.into(), problems: Box::new(problems) })
    }

    /// Gives the memory of tensors that were made back.
    pub fn into_spare(self, spare: &Spare) {
        for tensor in self.0.into_values() {
            if let Values::Made(buffer) = tensor.values {
                spare.put(buffer);
            }
        }
    }

    /// Writes the tensors to a file, as f32, and waits until they are on disk. The file may be the
    /// one that they come from.
    ///
    /// # Errors
    /// When a tensor is not of floating-point numbers, or when the file cannot be written; there is
    /// none then.
    pub fn write(&self, path: &Path) -> Result<(), ModelError> {
        self.write_with(path, &[])
    }

    /// As [`Tensors::write`], with keys and values for the file's header.
    ///
    /// # Errors
    /// As [`Tensors::write`].
    pub(crate) fn write_with(
        &self,
        path: &Path,
        header: &[(&str, &str)],
    ) -> Result<(), ModelError> {
        write_tensors(path, self.views(path)?, header)
    }
}

impl Tensor {
    pub(crate) fn stored(shape: Vec<usize>, stored: Stored) -> Self {
        Self { shape, values: Values::Stored(stored, OnceLock::new()) }
    }

    /// Something that is not a tensor of a known kind; `found` says what, for messages.
    pub(crate) fn refused_as(found: String) -> Self {
        Self { shape: Vec::new(), values: Values::Refused(found) }
    }

    /// What the tensor is, if no f32 values can be made of it.
    fn refused(&self) -> Option<String> {
        match &self.values {
            Values::Made(_) => None,
            Values::Stored(stored, _) => (!stored.is_float()).then(|| stored.dtype.to_string()),
            Values::Refused(found) => Some(found.clone()),
        }
    }

    /// Whether both have the same shape and bits.
    fn equals(&self, other: &Self) -> bool {
        if self.shape != other.shape {
            return false;
        }
        match (&self.values, &other.values) {
            (Values::Refused(a), Values::Refused(b)) => return a == b,
            (Values::Stored(a, _), Values::Stored(b, _)) if a.dtype == b.dtype => {
                if a.is_same_place(b) {
                    return true;
                }
                if a.strides.is_none() && b.strides.is_none() {
                    return a.bytes() == b.bytes();
                }
            }
            _ => {}
        }
        match (self.to_f32(), other.to_f32()) {
            (Some(a), Some(b)) => a.iter().map(|v| v.to_bits()).eq(b.iter().map(|v| v.to_bits())),
            _ => false,
        }
    }

    /// The values, made anew unless they are there.
    fn to_f32(&self) -> Option<Cow<'_, [f32]>> {
        match &self.values {
            Values::Made(values) => Some(values.into()),
            Values::Refused(_) => None,
            Values::Stored(stored, made) => match made.get() {
                Some(values) => Some(values.into()),
                None => stored.to_f32(&self.shape).ok()?.map(Cow::Owned),
            },
        }
    }
}

/// Values of a mapped file.
#[derive(Debug, Clone)]
pub(crate) struct Stored {
    file: Arc<Mmap>,
    dtype: Dtype,
    /// From the first value on, to the last or beyond.
    bytes: Range<usize>,
    /// How many values lie between neighbours of each axis; without, the values are row-major.
    strides: Option<Vec<usize>>,
}

impl Stored {
    /// Values of type `dtype` at `bytes` of the file, laid out by `strides`.
    ///
    /// # Errors
    /// The number of bytes that there would have to be, when there are fewer or the values repeat
    /// without end. Zero-sized tensors need none.
    pub(crate) fn new(
        file: &Arc<Mmap>,
        dtype: Dtype,
        bytes: Range<usize>,
        shape: &[usize],
        strides: &[usize],
    ) -> Result<Self, u64> {
        let size = dtype.bitsize() / 8;
        let there = bytes.len() / size;
        let empty = shape.contains(&0);
        let product = |product: usize, axis: &usize| product.checked_mul(*axis);
        let n = if empty { Some(0) } else { shape.iter().try_fold(1, product) };
        let n = n.ok_or(u64::MAX)?;
        let reach = |sum: usize, (axis, stride): (&usize, &usize)| {
            (axis - 1).checked_mul(*stride).and_then(|reach| sum.checked_add(reach))
        };
        let mut axes = shape.iter().zip(strides);
        let reached = if empty { Some(0) } else { axes.try_fold(1, reach) };
        let reached = reached.ok_or(u64::MAX)?;
        if reached > there || n > there.max(REPEATED_VALUES_MAX) {
            return Err((reached.max(n) as u64).saturating_mul(size as u64));
        }
        let strides = (!empty && !is_row_major(shape, strides)).then(|| strides.to_vec());
        let bytes = bytes.start..bytes.start + reached * size;
        Ok(Self { file: file.clone(), dtype, bytes, strides })
    }

    fn bytes(&self) -> &[u8] {
        &self.file[self.bytes.clone()]
    }

    fn is_float(&self) -> bool {
        matches!(self.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16 | Dtype::F64)
    }

    fn is_same_place(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.file, &other.file)
            && self.bytes == other.bytes
            && self.strides == other.strides
    }

    /// The values in row-major order, if they are floating-point numbers. All are exact but those
    /// of f64, which are rounded to the nearest.
    fn to_f32(&self, shape: &[usize]) -> Result<Option<Vec<f32>>, DeviceError> {
        if !self.is_float() {
            return Ok(None);
        }
        let mut values = zeros(shape.iter().product())?;
        // Advice only: what is not in memory yet is read while the first values are converted.
        let _ = self.file.advise_range(Advice::WillNeed, self.bytes.start, self.bytes.len());
        match self.dtype {
            Dtype::F32 => self.fill(shape, &mut values, f32::from_le_bytes),
            Dtype::F16 => self.fill(shape, &mut values, |b| f16_to_f32(u16::from_le_bytes(b))),
            Dtype::BF16 => self.fill(shape, &mut values, |b| {
                f32::from_bits(u32::from(u16::from_le_bytes(b)) << 16)
            }),
            _ => self.fill(shape, &mut values, |b| f64::from_le_bytes(b) as f32),
        }
        self.leave_memory();
        Ok(Some(values))
    }

    /// Lets the system take the mapped pages away, so that weights are not in memory twice while the
    /// rest is read; they would be read again if they were needed.
    #[cfg(unix)]
    fn leave_memory(&self) {
        let (start, n) = (self.bytes.start, self.bytes.len());
        #[expect(unsafe_code, reason = "of other maps such advice would lose what was written")]
        // SAFETY: the map is read-only and of a file, so its pages hold nothing that is not there.
        let _ = unsafe {
            self.file.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start, n)
        };
    }

    #[cfg(not(unix))]
    fn leave_memory(&self) {}

    /// Makes every value of `out`, row-major, from its bytes.
    fn fill<const N: usize>(
        &self,
        shape: &[usize],
        out: &mut [f32],
        value: impl Fn([u8; N]) -> f32 + Sync,
    ) {
        let (stored, _) = self.bytes().as_chunks::<N>();
        let Some(strides) = &self.strides else {
            let fill = |(out, stored): (&mut [f32], &[[u8; N]])| {
                out.iter_mut().zip(stored).for_each(|(out, bytes)| *out = value(*bytes));
            };
            if out.len() < PARALLEL_FROM {
                return fill((out, stored));
            }
            let chunks = out.par_chunks_mut(CHUNK_VALUES);
            return chunks.zip(stored.par_chunks(CHUNK_VALUES)).for_each(fill);
        };
        // Strides are kept of tensors with at least one axis and one value only.
        let (Some((width, outer)), Some((step, jumps))) =
            (shape.split_last(), strides.split_last())
        else {
            return;
        };
        let fill_row = |(row, out): (usize, &mut [f32])| {
            let mut rest = row;
            let axes = outer.iter().zip(jumps).rev();
            let start: usize = axes
                .map(|(axis, jump)| {
                    let i = rest % axis;
                    rest /= axis;
                    i * jump
                })
                .sum();
            out.iter_mut().enumerate().for_each(|(i, out)| *out = value(stored[start + i * step]));
        };
        let rows = out.par_chunks_mut(*width).enumerate();
        rows.with_min_len(CHUNK_VALUES.div_ceil(*width)).for_each(fill_row);
    }
}

/// Whether values with these strides lie as row-major ones do; axes of one element never step.
fn is_row_major(shape: &[usize], strides: &[usize]) -> bool {
    let mut expected = 1;
    shape.iter().zip(strides).rev().all(|(axis, stride)| {
        let fits = *axis == 1 || *stride == expected;
        expected *= axis;
        fits
    })
}

/// The f32 of a 16-bit float: every one has its own, infinities and subnormals too; a NaN keeps its
/// bits. Free of branches, so that the compiler makes wide instructions of it.
fn f16_to_f32(half: u16) -> f32 {
    /// What the exponent lacks once a half's bits stand where a float's do: biases 127 and 15.
    const REBIAS: f32 = f32::from_bits((127 + 127 - 15) << 23);
    /// Infinity and NaN, once moved.
    const NOT_FINITE: u32 = 0x7c00 << 13;
    let sign = u32::from(half & 0x8000) << 16;
    let moved = u32::from(half & 0x7fff) << 13;
    let finite = (f32::from_bits(moved) * REBIAS).to_bits();
    let bits = if moved >= NOT_FINITE { moved | 0x7f80_0000 } else { finite };
    f32::from_bits(bits | sign)
}

/// `n` zeros that the system hands out as they are touched.
fn zeros(n: usize) -> Result<Vec<f32>, DeviceError> {
    // `vec!` ends the process where there is no room, so room is asked for first.
    let mut room = Vec::<f32>::new();
    room.try_reserve_exact(n).map_err(|_| DeviceError::OutOfMemory)?;
    drop(std::hint::black_box(room));
    Ok(vec![0.0; n])
}

/// Maps a file into memory.
pub(crate) fn map(path: &Path) -> Result<Arc<Mmap>, ModelError> {
    let error = |source| ModelError::File { action: "read", path: path.into(), source };
    let file = File::open(path).map_err(error)?;
    #[expect(unsafe_code, reason = "a map changes when its file does")]
    // SAFETY: the bytes are only ever read, and every pattern of bits is a value of what is read.
    // Nothing in this crate changes a file of weights in place: it writes another and renames it.
    // A file that someone else cuts short while it is mapped ends the process with a bus error, as
    // in every program that maps weights.
    let map = unsafe { Mmap::map(&file) };
    map.map(Arc::new).map_err(error)
}

/// Whether a file begins as safetensors do, with the length of a JSON object, or at least says so.
fn looks_like_safetensors(file: &[u8], path: &Path) -> bool {
    let begins = file.get(4..9).is_some_and(|bytes| bytes == [0, 0, 0, 0, b'{']);
    begins
        || !pickle::is_checkpoint(file) && path.extension().is_some_and(|end| end == "safetensors")
}

/// Why a safetensors file is refused: names the tensor where it is one tensor's fault.
fn refusal(file: &[u8], path: &Path, source: SafeTensorError) -> ModelError {
    match misplaced(file) {
        Some((name, at, needed)) => ModelError::TensorBytes {
            path: path.into(),
            name: name.into(),
            start: at.start as u64,
            end: at.end as u64,
            needed,
            available: file.len() as u64,
        },
        None => ModelError::Weights { path: path.into(), source },
    }
}

/// The first tensor of a header whose bytes are too few for its shape or lie beyond the file.
fn misplaced(file: &[u8]) -> Option<(String, Range<usize>, u64)> {
    let length = u64::from_le_bytes(*file.first_chunk()?);
    let data = usize::try_from(length).ok()?.checked_add(size_of::<u64>())?;
    let header = file.get(size_of::<u64>()..data)?;
    let entries: BTreeMap<String, serde_json::Value> = serde_json::from_slice(header).ok()?;
    let infos = entries.into_iter().filter_map(|(name, entry)| {
        let info: TensorInfo = serde_json::from_value(entry).ok()?;
        let bits = info.dtype.bitsize();
        let bits =
            info.shape.iter().fold(bits as u64, |bits, axis| bits.saturating_mul(*axis as u64));
        let (start, end) = info.data_offsets;
        Some((name, data.saturating_add(start)..data.saturating_add(end), bits.div_ceil(8)))
    });
    let mut wrong = infos.filter(|(_, at, needed)| {
        at.end > file.len() || at.end.checked_sub(at.start).is_none_or(|n| n as u64 != *needed)
    });
    wrong.next()
}

/// Whether a path of an index stays inside the folder of the index.
fn stays_inside(shard: &str) -> bool {
    let path = PathBuf::from(shard);
    let mut parts = path.components().peekable();
    parts.peek().is_some() && parts.all(|part| matches!(part, Component::Normal(_)))
}

impl View for &Tensor {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        match &self.values {
            Values::Stored(stored, _) if stored.dtype == Dtype::F32 && stored.strides.is_none() => {
                stored.bytes().into()
            }
            _ => {
                let values = self.to_f32();
                le_bytes(&values.expect("checked to be floats, one tensor fits in memory")).into()
            }
        }
    }

    fn data_len(&self) -> usize {
        match &self.values {
            Values::Made(values) => size_of_val(values.as_slice()),
            _ => size_of::<f32>() * self.shape.iter().product::<usize>(),
        }
    }
}

/// The bytes of values as weights files hold them.
pub(crate) fn le_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// Writes tensors to a file and waits until they are on disk. Bytes are made of one tensor at a
/// time.
///
/// # Errors
/// When the file cannot be written; there is none then.
pub(crate) fn write_tensors<S: AsRef<str> + Ord + Display>(
    path: &Path,
    tensors: impl IntoIterator<Item = (S, impl View)>,
    header: &[(&str, &str)],
) -> Result<(), ModelError> {
    let file = |source| ModelError::File { action: "write", path: path.into(), source };
    // The library's file would be for its owner alone. It takes the place of this one, which must
    // keep its bytes until then: the tensors may be mapped from it.
    let made = File::options().append(true).create(true).open(path);
    let made = made.and_then(|file| file.metadata()).map_err(file)?;
    let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
    let header = (!header.is_empty()).then(|| header.iter().map(owned).collect());
    let written = safetensors::serialize_to_file(tensors, header, path)
        .map_err(|source| match source {
            SafeTensorError::IoError(source) => file(source),
            source => ModelError::Weights { path: path.into(), source },
        })
        .and_then(|()| {
            std::fs::set_permissions(path, made.permissions())
                .and_then(|()| File::open(path)?.sync_all())
                .map_err(file)
        });
    if written.is_err() {
        // The error that matters is the first one.
        let _ = std::fs::remove_file(path);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_written_file_reads_back_bit_by_bit_and_misuse_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("w.safetensors");
        let mut tensors = Tensors::default();
        tensors.insert("a", &[2, 2], vec![1.0, -0.0, f32::MIN_POSITIVE, 3.5]);
        tensors.write(&path).unwrap();
        let mut back = Tensors::read(&path).unwrap();
        assert_eq!(back.get("a").unwrap()[1].to_bits(), (-0.0_f32).to_bits());

        let error = back.clone().take("a", &[4], &path).unwrap_err().to_string();
        assert!(error.contains("`a` has shape [2, 2], expected [4]"), "{error}");
        let error = back.take("b", &[1], &path).unwrap_err().to_string();
        assert!(error.contains("lacks tensor `b`"), "{error}");
        std::fs::write(&path, b"not weights").unwrap();
        let error = Tensors::read(&path).unwrap_err().to_string();
        assert!(error.contains("is not a safetensors file"), "{error}");
    }

    #[test]
    fn a_file_that_cannot_be_written_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let nowhere = folder.path().join("nowhere").join("w.safetensors");
        let error = Tensors::default().write(&nowhere).unwrap_err();
        assert!(matches!(error, ModelError::File { action: "write", .. }), "{error}");
        let mut tensors = Tensors::default();
        tensors.insert("a", &[3], vec![1.0]);
        let path = folder.path().join("w.safetensors");
        assert!(tensors.write(&path).is_err(), "shape and values differ");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    /// A safetensors file by hand; `pad` spaces end its header.
    fn safetensors(tensors: &[(&str, &str, &[usize], &[u8])], pad: usize) -> Vec<u8> {
        let mut data = Vec::new();
        let mut entries = Vec::new();
        for (name, dtype, shape, bytes) in tensors {
            let (start, end) = (data.len(), data.len() + bytes.len());
            entries.push(format!(
                r#""{name}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{start},{end}]}}"#
            ));
            data.extend_from_slice(bytes);
        }
        let header = format!("{{{}}}{}", entries.join(","), " ".repeat(pad));
        [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat()
    }

    fn bits(tensors: &Tensors, name: &str) -> Vec<u32> {
        tensors.get(name).unwrap().iter().map(|v| v.to_bits()).collect()
    }

    /// A half's value by the definition of its format.
    fn half_by_definition(half: u16) -> f64 {
        let (exponent, fraction) = (i32::from(half >> 10 & 31), f64::from(half % 1024) / 1024.0);
        let size = match exponent {
            31 if half.is_multiple_of(1024) => f64::INFINITY,
            31 => f64::NAN,
            0 => fraction * 2.0_f64.powi(-14),
            _ => (1.0 + fraction) * 2.0_f64.powi(exponent - 15),
        };
        if half & 0x8000 == 0 { size } else { -size }
    }

    #[test]
    fn every_16_bit_float_becomes_the_f32_of_its_value() {
        for half in 0..=u16::MAX {
            let (ours, expected) = (f16_to_f32(half), half_by_definition(half));
            let same = f64::from(ours).to_bits() == expected.to_bits();
            assert!(same || ours.is_nan() && expected.is_nan(), "{half:#x}: {ours} {expected}");
            assert_eq!(ours.is_sign_negative(), half & 0x8000 != 0);
        }
    }

    #[test]
    fn types_become_f32_when_taken_at_any_alignment_and_whole_numbers_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("w.safetensors");
        let words =
            |words: &[u16]| -> Vec<u8> { words.iter().flat_map(|w| w.to_le_bytes()).collect() };
        let (half, bf16) =
            (words(&[0x3c00, 0x0001, 0xfc00, 0x7e01]), words(&[0x3f80, 0x0001, 0x7f80, 0xffc1]));
        let single: Vec<u8> =
            [1.5_f32, f32::MIN_POSITIVE].iter().flat_map(|v| v.to_le_bytes()).collect();
        for pad in 0..4 {
            let file = safetensors(
                &[
                    ("odd", "U8", &[1], &[7]),
                    ("single", "F32", &[2], &single),
                    ("half", "F16", &[2, 2], &half),
                    ("bf16", "BF16", &[4], &bf16),
                    ("double", "F64", &[], &(1.0_f64 / 3.0).to_le_bytes()),
                ],
                pad,
            );
            std::fs::write(&path, file).unwrap();
            let mut tensors = Tensors::read(&path).unwrap();
            assert_eq!(bits(&tensors, "single"), [1.5_f32.to_bits(), 0x0080_0000]);
            assert_eq!(
                bits(&tensors, "half"),
                [0x3f80_0000, 0x3380_0000, 0xff80_0000, 0x7fc0_2000]
            );
            assert_eq!(
                bits(&tensors, "bf16"),
                [0x3f80_0000, 0x0001_0000, 0x7f80_0000, 0xffc1_0000]
            );
            assert_eq!(tensors.take("double", &[], &path).unwrap(), [1.0 / 3.0]);
            assert!(tensors.get("odd").is_none());
            let error = tensors.write(&folder.path().join("no")).unwrap_err().to_string();
            assert!(error.contains("tensor `odd` is U8"), "{error}");
            let error = tensors.take("odd", &[1], &path).unwrap_err().to_string();
            assert!(error.contains("tensor `odd` is U8, expected F32, F16"), "{error}");
        }
    }

    #[test]
    fn large_tensors_are_the_same_made_by_all_threads() {
        let n = PARALLEL_FROM + CHUNK_VALUES + 3;
        let bytes: Vec<u8> = (0..n).flat_map(|i| (i as u16).to_le_bytes()).collect();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("w.safetensors");
        std::fs::write(&path, safetensors(&[("w", "BF16", &[n], &bytes)], 1)).unwrap();
        let expected: Vec<u32> = (0..n).map(|i| u32::from(i as u16) << 16).collect();
        assert!(bits(&Tensors::read(&path).unwrap(), "w") == expected);
    }

    #[test]
    fn every_truncation_is_an_error_and_names_the_tensor_where_it_can() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("w.safetensors");
        let file = safetensors(&[("a", "F32", &[1], &[0; 4]), ("b", "F32", &[2], &[0; 8])], 0);
        for n in 0..file.len() {
            std::fs::write(&path, &file[..n]).unwrap();
            let error = Tensors::open(&path).unwrap_err().to_string();
            let in_data = n + 12 >= file.len();
            assert_eq!(in_data, error.contains("lies at bytes"), "{error}");
        }
        std::fs::write(&path, &file[..file.len() - 1]).unwrap();
        let error = Tensors::open(&path).unwrap_err().to_string();
        assert!(error.contains("w.safetensors: tensor `b` lies at bytes"), "{error}");
        let wrong = safetensors(&[("a", "F32", &[3, usize::MAX], &[0; 4])], 0);
        std::fs::write(&path, wrong).unwrap();
        let error = Tensors::open(&path).unwrap_err().to_string();
        assert!(error.contains("tensor `a` lies at bytes"), "{error}");
    }

    #[test]
    fn shards_are_read_as_one_and_an_index_that_does_not_fit_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        assert!(Tensors::open(path).unwrap_err().to_string().contains("holds none of model.saf"));
        let write = |name: &str, bytes: &[u8]| std::fs::write(path.join(name), bytes).unwrap();
        write("1.safetensors", &safetensors(&[("a", "BF16", &[2], &[0x80, 0x3f, 1, 0])], 0));
        write("2.safetensors", &safetensors(&[("b", "F16", &[2], &[0, 0x7c, 1, 0])], 3));
        let open = |map: &str| {
            let index = format!(r#"{{"metadata":{{"total_size":8}},"weight_map":{{{map}}}}}"#);
            write("model.safetensors.index.json", index.as_bytes());
            Tensors::open(path)
        };
        let tensors = open(r#""a":"1.safetensors","b":"2.safetensors""#).unwrap();
        assert_eq!(bits(&tensors, "a"), [0x3f80_0000, 0x0001_0000]);
        assert_eq!(tensors.get("b").unwrap(), [f32::INFINITY, 2.0_f32.powi(-24)]);

        let refusal = |map: &str| open(map).unwrap_err().to_string();
        let check = |map: &str, expected: &str| {
            let error = refusal(map);
            assert!(error.contains(expected), "{error}, expected {expected}");
        };
        check(r#""a":"3.safetensors""#, "tensor `a` into `3.safetensors`, which is not there");
        check(r#""c":"1.safetensors""#, "tensor `c` into `1.safetensors`, which does not hold it");
        for name in ["../1.safetensors", "/1.safetensors", "", ".", "model.safetensors.index.json"]
        {
            check(&format!(r#""a":"{name}""#), "is not the name of a file of weights inside");
        }
        write(
            "4.safetensors",
            &safetensors(&[("a", "F32", &[1], &[0; 4]), ("d", "F32", &[0], &[])], 0),
        );
        check(
            r#""a":"1.safetensors","d":"4.safetensors""#,
            "`1.safetensors` and `4.safetensors` both give tensor `a`",
        );
        let whole = safetensors(&[("e", "F32", &[1], &[0; 4])], 0);
        write("5.safetensors", &whole[..whole.len() - 1]);
        check(r#""e":"5.safetensors""#, "5.safetensors: tensor `e` lies at bytes");
    }

    #[test]
    fn all_that_is_wrong_is_said_at_once() {
        let path = Path::new("w.safetensors");
        let mut tensors = Tensors::default();
        tensors.insert("a", &[2], vec![0.0; 2]);
        tensors.insert("b", &[1], vec![0.0]);
        for i in 0..30 {
            tensors.insert(format!("more.{i:02}"), &[0], Vec::new());
        }
        let expected =
            [("a".to_owned(), vec![3]), ("b".to_owned(), vec![1]), ("c".to_owned(), vec![4, 5])];
        let fits = |name: &str| name.starts_with("more.");
        let error = tensors.check_all(&expected, fits, path).unwrap_err().to_string();
        assert_eq!(
            error,
            "w.safetensors does not hold the model's tensors: 1 missing: `c` [4, 5]; \
             1 misshapen: `a` [2] instead of [3]"
        );
        let error = tensors.check_all(&expected, |_| false, path).unwrap_err().to_string();
        assert!(error.contains("30 unexpected: `more.00`, "), "{error}");
        assert!(error.contains("`more.19` and 10 more; "), "{error}");
        tensors.check_all(&expected[1..2], |name| name != "b", path).unwrap();
    }

    #[test]
    fn tensors_can_be_written_over_the_file_that_they_are_mapped_from() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("w.safetensors");
        std::fs::write(&path, safetensors(&[("a", "BF16", &[2], &[0x80, 0x3f, 1, 0])], 1)).unwrap();
        let tensors = Tensors::read(&path).unwrap();
        tensors.write(&path).unwrap();
        let expected = [0x3f80_0000, 0x0001_0000];
        assert_eq!(bits(&tensors, "a"), expected);
        assert_eq!(bits(&Tensors::read(&path).unwrap(), "a"), expected);
    }

    #[test]
    fn renaming_keeps_one_of_two_equal_tensors() {
        let path = Path::new("w");
        let mut tensors = Tensors::default();
        tensors.insert("x.a", &[1], vec![1.0]);
        tensors.insert("y.a", &[1], vec![1.0]);
        tensors.rename(|name| name[2..].to_owned(), path).unwrap();
        assert_eq!(tensors.names().collect::<Vec<_>>(), ["a"]);
        tensors.insert("b", &[1], vec![2.0]);
        let error = tensors.rename(|_| "c".to_owned(), path).unwrap_err().to_string();
        assert_eq!(error, "w: `a` and `b` both give tensor `c`");
    }
}
