//! Where a command runs, as command lines say it, and where a run ran.

use std::collections::BTreeMap;
use std::sync::Once;

use clap::Args;
use flamingo_model::{Bytes, Device, DeviceChoice, NoRoom, Precision};

use crate::error::TrainError;

/// A choice of device.
#[derive(Debug, Clone, Copy, Default, Args)]
pub struct DeviceArgs {
    /// Where the model runs: `cpu`, `cuda:0`, `cuda:1` and so on, or `auto`: the first GPU, or the CPU
    /// where there is none or the program was built without CUDA.
    #[arg(long, value_name = "DEVICE", default_value_t)]
    pub device: DeviceChoice,
    /// How a GPU keeps activations and frozen weights, and multiplies: `bf16` or `f32`. Trained weights,
    /// their gradients, and sums within an operation, are f32 in either; a CPU computes in f32.
    #[arg(long, value_name = "FORMAT", default_value = "bf16")]
    pub precision: Precision,
    /// A device that is ready, in place of the choice.
    #[arg(skip)]
    pub ready: Option<Device>,
}

impl DeviceArgs {
    /// The device, ready. Where `auto` finds no GPU, that is said on standard error, once.
    ///
    /// # Errors
    /// When a GPU was asked for by its number and cannot be used.
    pub fn open(&self) -> Result<Device, TrainError> {
        static NOTE: Once = Once::new();
        if let Some(device) = self.ready {
            return Ok(device);
        }
        let note = |text: &str| NOTE.call_once(|| eprintln!("{text}"));
        Device::open(self.device, self.precision, note).map_err(TrainError::Device)
    }
}

/// A part of a model that a key freezes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Freezable {
    /// The first word of the names of its weights.
    pub(crate) name: &'static str,
    /// The key, which is then `frozen`.
    pub(crate) key: &'static str,
}

/// What to change so that a GPU has room for the weights of a model and for training them, by the fewest changes;
/// where nothing would do, what else there is.
pub(crate) fn what_fits(no_room: &NoRoom, towers: &[Freezable]) -> String {
    let trained: Vec<&Freezable> =
        towers.iter().filter(|tower| no_room.trains(tower.name)).collect();
    let bits = 0..1_usize << trained.len();
    let picked = |bits: usize| {
        trained.iter().enumerate().filter(move |(i, _)| bits >> i & 1 == 1).map(|(_, t)| **t)
    };
    let choices = bits.flat_map(|bits| [no_room.precision, Precision::Bf16].map(|p| (p, bits)));
    let needed = |(precision, bits): &(Precision, usize)| {
        let frozen: Vec<&str> = picked(*bits).map(|tower| tower.name).collect();
        no_room.weight_bytes(*precision, &frozen) + no_room.training_bytes(&frozen)
    };
    let changes = |(precision, bits): &(Precision, usize)| {
        bits.count_ones() + u32::from(*precision != no_room.precision)
    };
    let fits = choices.filter(|choice| changes(choice) > 0 && needed(choice) <= no_room.free);
    let Some(best) = fits.min_by_key(|choice| (changes(choice), needed(choice))) else {
        return "no precision and no frozen tower makes it fit; a GPU with more memory has room for it, \
                and `--device cpu` takes that of the machine"
            .to_owned();
    };
    let mut how = Vec::new();
    if best.0 != no_room.precision {
        how.push(format!("`--precision {}`", best.0));
    }
    how.extend(
        picked(best.1).map(|tower| format!("`--set {}=\"frozen\"` in a new run", tower.key)),
    );
    let bytes = Bytes(needed(&best));
    format!("with {} weights, gradients and moments take {bytes}", how.join(" and "))
}

/// The devices that a run was made on, each under the step after which it began there.
pub type Devices = BTreeMap<u64, String>;

/// Notes that a run goes on after `step` on a device.
pub fn note(devices: &mut Devices, step: u64, device: Device) {
    let device = device.to_string();
    if devices.last_key_value().is_none_or(|(_, last)| *last != device) {
        devices.insert(step, device);
    }
}

/// The devices in words, such as "CPU (f32), after step 100 NVIDIA H200 (bf16)".
pub fn text(devices: &Devices) -> String {
    let one = |(step, device): (&u64, &String)| match step {
        0 => device.clone(),
        step => format!("after step {step} {device}"),
    };
    devices.iter().map(one).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_on_one_device_notes_it_once() {
        let mut devices = Devices::from([(0, "emulated (f32)".to_owned())]);
        for step in [4, 6] {
            note(&mut devices, step, Device::cpu());
        }
        assert_eq!(text(&devices), "emulated (f32), after step 4 CPU (f32)");
    }

    /// A language model of 3 layers that is trained, on a GPU with so many bytes.
    #[cfg(feature = "cuda-emulator")]
    fn without_room(precision: Precision, bytes: u64) -> NoRoom {
        use flamingo_model::{Activation, Architecture, LanguageConfig, LanguageModel, ModelError};
        let config = LanguageConfig {
            vocabulary: 16,
            context: 8,
            width: 16,
            layers: 3,
            heads: 2,
            activation: Activation::GeluTanh,
            architecture: Architecture::default(),
        };
        let mut model = LanguageModel::new(&config, 1).unwrap();
        let device = Device::emulated_with_room(precision, bytes);
        match device.place(&mut model).unwrap_err() {
            ModelError::NoRoom(no_room) => *no_room,
            error => panic!("{error}"),
        }
    }

    #[cfg(feature = "cuda-emulator")]
    #[test]
    fn what_is_advised_without_room_has_room_in_emulated_memory() {
        let language = Freezable { name: "language", key: "model.language_weights" };
        let mut no_room = without_room(Precision::Bf16, 1000);
        let n = no_room.training_bytes(&[]) / 12;
        assert_eq!(no_room.free, 1000);
        assert_eq!(no_room.weight_bytes(Precision::F32, &[]), 4 * n);
        assert_eq!(no_room.weight_bytes(Precision::Bf16, &[]), 6 * n);
        assert!(what_fits(&no_room, &[language]).starts_with("no precision"));
        // Small weights are kept in both formats, frozen or not; their gradients and moments are saved.
        no_room.free = 6 * n;
        let advice = what_fits(&no_room, &[language]);
        let key = "with `--set model.language_weights=\"frozen\"` in a new run weights";
        assert!(advice.starts_with(key), "{advice}");
        assert!(what_fits(&no_room, &[]).starts_with("no precision"));
    }
}
