//! What `flamingo-train bench` takes of a machine's memory, and whether it has it: a model of 80 billion random
//! numbers would be made for minutes before the system ends the process.
//!
//! Counted is what can be known before: weights, which are made on the host wherever the model runs; where it runs on
//! the CPU and learns, gradients and moments of what is trained; and the pixels. Activations come on top.

use flamingo_model::{Bytes, FlamingoConfig};

use crate::error::TrainError;
use crate::flop::Parts;

/// Bytes of a value: all are f32.
const VALUE_BYTES: u64 = size_of::<f32>() as u64;

/// What is done with a model, as far as it takes memory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Work {
    /// Whether it learns on the CPU.
    pub(crate) learns_here: bool,
    /// Images whose pixels are made at once.
    pub(crate) n_images: u64,
}

/// Bytes that a benchmark takes at least.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Needed {
    weights: u64,
    gradients_and_moments: u64,
    pixels: u64,
}

impl Needed {
    fn of(config: &FlamingoConfig, work: Work) -> Result<Self, TrainError> {
        let parts = Parts::of(config)?;
        let trained = if work.learns_here { parts.trained() as u64 } else { 0 };
        Ok(Self {
            weights: VALUE_BYTES * parts.total() as u64,
            gradients_and_moments: 3 * VALUE_BYTES * trained,
            pixels: VALUE_BYTES * config.vision.n_pixel_values() as u64 * work.n_images,
        })
    }

    fn sum(self) -> u64 {
        self.weights + self.gradients_and_moments + self.pixels
    }
}

/// The machine's memory does not suffice.
#[derive(Debug, thiserror::Error)]
#[error(
    "{name} takes {} of memory at least ({parts}), but {} are free; --force tries it all the same. Models \
     that fit: {fitting}",
    Bytes(*needed),
    Bytes(*free)
)]
pub struct TooLittle {
    /// The model.
    pub name: String,
    /// All bytes that are counted.
    pub needed: u64,
    /// What they are of.
    pub parts: String,
    /// Bytes that can be had.
    pub free: u64,
    /// The models by name that would fit.
    pub fitting: String,
}

/// Fails where `free` bytes of memory do not suffice for the work on a model of this name; none are taken for
/// enough.
///
/// # Errors
/// When they do not, with what each part takes and the models by name that would fit; or when the configuration
/// cannot work.
pub(crate) fn require_memory(
    name: &str,
    config: &FlamingoConfig,
    work: Work,
    free: Option<u64>,
) -> Result<(), TrainError> {
    let needed = Needed::of(config, work)?;
    let Some(free) = free.filter(|free| *free < needed.sum()) else { return Ok(()) };
    let mut fitting = Vec::new();
    for preset in FlamingoConfig::preset_names() {
        let config = FlamingoConfig::preset(preset).map_err(TrainError::model("find"))?;
        if Needed::of(&config, work)?.sum() <= free {
            fitting.push(preset);
        }
    }
    let fitting = if fitting.is_empty() { "none".to_owned() } else { fitting.join(", ") };
    let rows = [
        ("weights", needed.weights),
        ("gradients and moments", needed.gradients_and_moments),
        ("pixels", needed.pixels),
    ];
    let rows = rows.into_iter().filter(|(_, bytes)| *bytes > 0);
    let parts: Vec<String> = rows.map(|(part, bytes)| format!("{part} {}", Bytes(bytes))).collect();
    let (name, needed, parts) = (name.to_owned(), needed.sum(), parts.join(", "));
    Err(TrainError::BenchMemory(Box::new(TooLittle { name, needed, parts, free, fitting })))
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: Work = Work { learns_here: true, n_images: 6 };

    fn tiny() -> FlamingoConfig {
        FlamingoConfig::preset("tiny").unwrap()
    }

    #[test]
    fn weights_gradients_moments_and_pixels_are_counted() {
        let parts = Parts::of(&tiny()).unwrap();
        let (all, trained) = (parts.total() as u64, parts.trained() as u64);
        let pixels = 6 * tiny().vision.n_pixel_values() as u64;
        let needed = |work| Needed::of(&tiny(), work).unwrap().sum();
        assert_eq!(needed(STEP), 4 * (all + 3 * trained + pixels));
        assert_eq!(needed(Work { learns_here: false, ..STEP }), 4 * (all + pixels));
        // 74 billion weights by the sizes in the paper, which calls it 80B.
        let largest = FlamingoConfig::preset("flamingo-80b").unwrap();
        assert!(Needed::of(&largest, STEP).unwrap().weights > 290_000_000_000);
    }

    #[test]
    fn too_little_memory_is_told_of_with_the_models_that_fit() {
        let needed = Needed::of(&tiny(), STEP).unwrap().sum();
        let ask = |free| require_memory("mine", &tiny(), STEP, free);
        ask(None).unwrap();
        ask(Some(needed)).unwrap();
        let error = ask(Some(needed - 1)).unwrap_err().to_string();
        for words in ["mine takes", "weights", "moments", "pixels", "fit: none", "--force"] {
            assert!(error.contains(words), "no {words}: {error}");
        }
        let largest = FlamingoConfig::preset("flamingo-80b").unwrap();
        let error = require_memory("flamingo-80b", &largest, STEP, Some(24_000_000_000));
        let error = error.unwrap_err().to_string();
        let fitting = error.split("fit: ").nth(1).unwrap();
        assert!(fitting.contains("tiny") && !fitting.contains("flamingo-80b"), "{error}");
    }
}
