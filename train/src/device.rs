//! Where a command runs, as command lines say it, and where a run ran.

use std::collections::BTreeMap;
use std::sync::Once;

use clap::Args;
use flamingo_model::{Device, DeviceChoice, Precision};

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
}
