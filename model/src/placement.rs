//! What weights take of a GPU's memory, and what can be done where they find no room.

use std::fmt::{self, Display, Formatter};

use crate::device::Precision;
#[cfg(feature = "cuda")]
use crate::params::Params;
use crate::params::Training;

/// Weights of up to so many values are kept in f32 as well: norms and biases are read so.
const SMALL: usize = 1 << 16;
/// Bytes that a trained value takes while it is trained, beside its own: of its gradient and of two moments.
const TRAINING_BYTES: u64 = 3 * size_of::<f32>() as u64;

/// In which formats a GPU keeps a weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Kept {
    /// In f32.
    pub(crate) full: bool,
    /// In bf16.
    pub(crate) low: bool,
}

impl Kept {
    /// Those of a weight of `n` values where activations are of this precision.
    pub(crate) fn of(n: usize, precision: Precision, training: Training) -> Self {
        let low = precision == Precision::Bf16;
        Self { full: !low || training == Training::Trained || n <= SMALL, low }
    }

    fn bytes(self, n: usize) -> u64 {
        let of_value = 4 * u64::from(self.full) + 2 * u64::from(self.low);
        of_value * n as u64
    }
}

/// Weights for which a GPU has no room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoRoom {
    weights: Vec<Weight>,
    /// How activations and frozen weights are kept.
    pub precision: Precision,
    /// Bytes that were free for them.
    pub free: u64,
    /// Bytes of the GPU's memory.
    pub total: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Weight {
    /// The first word of its name, such as `vision`.
    part: String,
    n: usize,
    training: Training,
}

impl NoRoom {
    /// Of the weights of a model.
    #[cfg(feature = "cuda")]
    pub(crate) fn of(model: &[&Params], precision: Precision, [free, total]: [u64; 2]) -> Self {
        let weight = |parameter: &crate::params::Parameter| Weight {
            part: parameter.name.split('.').next().unwrap_or_default().to_owned(),
            n: parameter.shape.iter().product(),
            training: Training::of(parameter.weight.is_trained()),
        };
        let weights = model.iter().flat_map(|params| params.iter()).map(weight).collect();
        Self { weights, precision, free, total }
    }

    /// Bytes of the weights in a precision, if the parts of these names were frozen beside those that are.
    pub fn weight_bytes(&self, precision: Precision, frozen: &[&str]) -> u64 {
        let bytes = |weight: &Weight| {
            Kept::of(weight.n, precision, weight.training_without(frozen)).bytes(weight.n)
        };
        self.weights.iter().map(bytes).sum()
    }

    /// Bytes of gradients and moments of the weights that are trained, but for those of parts of these names.
    pub fn training_bytes(&self, frozen: &[&str]) -> u64 {
        let trained = |w: &&Weight| w.training_without(frozen) == Training::Trained;
        self.weights.iter().filter(trained).map(|w| TRAINING_BYTES * w.n as u64).sum()
    }

    /// Whether anything of the part of this name is trained.
    pub fn trains(&self, part: &str) -> bool {
        self.weights.iter().any(|w| w.part == part && w.training == Training::Trained)
    }

    /// The parts, whether they are trained, and their bytes, the largest first.
    fn parts(&self) -> Vec<(&str, Training, u64)> {
        let mut parts: Vec<(&str, Training, u64)> = Vec::new();
        for weight in &self.weights {
            let bytes = Kept::of(weight.n, self.precision, weight.training).bytes(weight.n);
            let same = |(part, training, _): &&mut (&str, Training, u64)| {
                *part == weight.part && *training == weight.training
            };
            match parts.iter_mut().find(same) {
                Some(sum) => sum.2 += bytes,
                None => parts.push((&weight.part, weight.training, bytes)),
            }
        }
        parts.sort_by_key(|(_, _, bytes)| std::cmp::Reverse(*bytes));
        parts
    }
}

impl Weight {
    fn training_without(&self, frozen: &[&str]) -> Training {
        if frozen.contains(&self.part.as_str()) { Training::Frozen } else { self.training }
    }
}

/// Parts that are named; the rest is one.
const PARTS_MAX: usize = 4;

impl Display for NoRoom {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let all = self.weight_bytes(self.precision, &[]);
        write!(f, "the weights take {} of a GPU in {} (", Bytes(all), self.precision)?;
        let parts = self.parts();
        let (named, rest) = parts.split_at(parts.len().min(PARTS_MAX));
        for (i, (part, training, bytes)) in named.iter().enumerate() {
            let how = if *training == Training::Trained { "trained" } else { "frozen" };
            let comma = if i > 0 { ", " } else { "" };
            write!(f, "{comma}{part} {}, {how}", Bytes(*bytes))?;
        }
        if !rest.is_empty() {
            write!(f, ", the rest {}", Bytes(rest.iter().map(|(_, _, bytes)| bytes).sum()))?;
        }
        write!(f, "), which has {} free of {}", Bytes(self.free), Bytes(self.total))?;
        let low = self.weight_bytes(Precision::Bf16, &[]);
        if low < all {
            write!(f, "; with `--precision bf16` they take {}", Bytes(low))?;
        }
        f.write_str("; with `--device cpu` they lie in the memory of the machine")
    }
}

/// A number of bytes, to be read.
#[derive(Debug, Clone, Copy)]
pub struct Bytes(pub u64);

impl Display for Bytes {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let n = self.0 as f64;
        match self.0 {
            0..0x10_0000 => write!(f, "{} bytes", self.0),
            0x10_0000..0x4000_0000 => write!(f, "{:.1} MiB", n / f64::from(1 << 20)),
            _ => write!(f, "{:.1} GiB", n / f64::from(1 << 30)),
        }
    }
}

#[cfg(test)]
#[cfg(feature = "cuda-emulator")]
mod tests {
    use super::*;
    use crate::params::Source;
    use crate::{Activation, Architecture, Device, LanguageConfig, LanguageModel, ModelError};

    fn model(training: Training) -> LanguageModel {
        let config = LanguageConfig {
            vocabulary: 48,
            context: 8,
            width: 256,
            layers: 2,
            heads: 2,
            activation: Activation::GeluTanh,
            architecture: Architecture::default(),
        };
        LanguageModel::from_source(config, Source::Random { seed: 1 }, training).unwrap()
    }

    /// The error of a GPU with so many bytes.
    fn no_room(model: &mut LanguageModel, precision: Precision, bytes: u64) -> NoRoom {
        let device = Device::emulated_with_room(precision, bytes);
        match device.place(model).unwrap_err() {
            ModelError::NoRoom(no_room) => *no_room,
            error => panic!("{error}"),
        }
    }

    /// The oracle is what a GPU with room has in use.
    #[test]
    fn bytes_that_are_told_are_those_that_are_taken_when_emulated() {
        // With weights above the size up to which f32 is kept beside bf16.
        let (model, frozen) = (|| model(Training::Trained), || model(Training::Frozen));
        for precision in [Precision::F32, Precision::Bf16] {
            let taken = |mut model: LanguageModel| {
                let device = Device::emulated_with_room(precision, 1 << 40);
                device.place(&mut model).unwrap();
                device.memory().unwrap().unwrap().used
            };
            let (of_trained, of_frozen) = (taken(model()), taken(frozen()));
            // Not even the first weight, and all but the last.
            for room in [100, of_trained - 1] {
                let error = no_room(&mut model(), precision, room);
                assert_eq!((error.free, error.total, error.precision), (room, room, precision));
                assert_eq!(error.weight_bytes(precision, &[]), of_trained);
                assert_eq!(error.weight_bytes(precision, &["language"]), of_frozen);
                assert!(error.trains("language") && !error.trains("vision"));
                assert_eq!(error.training_bytes(&["language"]), 0);
            }
            assert_eq!(of_frozen < of_trained, precision == Precision::Bf16);
            let error = no_room(&mut frozen(), precision, of_frozen - 1);
            assert_eq!(error.weight_bytes(precision, &[]), of_frozen);
        }
    }

    #[test]
    fn the_error_names_parts_room_and_ways_out_when_emulated() {
        let text = no_room(&mut model(Training::Trained), Precision::Bf16, 1 << 20).to_string();
        let all = "the weights take 9.1 MiB of a GPU in bf16 (language 9.1 MiB, trained), which has 1.0 MiB \
                   free of 1.0 MiB; with `--device cpu`";
        assert!(text.starts_with(all), "{text}");
        let text = no_room(&mut model(Training::Frozen), Precision::F32, 1 << 20).to_string();
        assert!(
            text.contains("frozen)") && text.contains("; with `--precision bf16` they"),
            "{text}"
        );
    }
}
