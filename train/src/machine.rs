//! What a step asked of the machine: operations, memory. Not the same from run to run, as times are not.

use flamingo_model::Device;
use serde::{Deserialize, Serialize};

use crate::error::TrainError;
use crate::flop;

/// What is known of the machine. Read from `[hardware]`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HardwareConfig {
    /// Operations that the device can do at most, in 10^12 a second, for the share of them that are done
    /// (MFU). If not given: 989 on an H100 or H200 in bf16, not known on others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peak_tflops: Option<f64>,
}

/// What one step asked of the machine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// Operations of the update in 10^12 a second, as [`flop`](crate::flop) counts them, over the
    /// seconds of the whole step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tflops: Option<f64>,
    /// The same as a share of what the device can do, 0 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mfu: Option<f64>,
    /// Memory of the process after the step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// The most that it has had.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_peak_bytes: Option<u64>,
    /// Memory of the GPU in use after the step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu_memory_bytes: Option<u64>,
    /// The most that was in use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu_memory_peak_bytes: Option<u64>,
}

/// Reads what the machine does.
#[derive(Debug, Clone, Copy)]
pub struct Gauge {
    device: Device,
    peak_tflops: Option<f64>,
}

impl Gauge {
    /// Of a device, and what is known of it.
    pub fn new(device: Device, hardware: &HardwareConfig) -> Self {
        let peak_tflops = hardware.peak_tflops.or_else(|| flop::peak_tflops(device));
        Self { device, peak_tflops }
    }

    /// After a step of `flop` operations, if they are counted, which took `seconds`.
    ///
    /// # Errors
    /// When the device fails.
    pub fn read(&self, flop: Option<f64>, seconds: f64) -> Result<Machine, TrainError> {
        let tflops = flop.map(|flop| flop / seconds / 1e12).filter(|tflops| tflops.is_finite());
        let gpu = self.device.memory().map_err(TrainError::model("run"))?;
        let [memory_bytes, memory_peak_bytes] = process_memory();
        Ok(Machine {
            tflops,
            mfu: tflops.zip(self.peak_tflops).map(|(tflops, peak)| tflops / peak),
            memory_bytes,
            memory_peak_bytes,
            gpu_memory_bytes: gpu.map(|memory| memory.used),
            gpu_memory_peak_bytes: gpu.map(|memory| memory.peak),
        })
    }
}

/// Bytes of this process in memory, now and at most; none where the system is not Linux.
fn process_memory() -> [Option<u64>; 2] {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    ["VmRSS:", "VmHWM:"].map(|name| bytes_of(&status, name))
}

/// A line such as `VmRSS:    1234 kB`.
fn bytes_of(status: &str, name: &str) -> Option<u64> {
    let value = status.lines().find_map(|line| line.strip_prefix(name))?;
    let kibibytes: u64 = value.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(1024 * kibibytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_as_linux_writes_it() {
        let status = "Name:\tx\nVmHWM:\t    2048 kB\nVmRSS:\t     512 kB\nThreads:\t3\n";
        assert_eq!(bytes_of(status, "VmRSS:"), Some(512 << 10));
        assert_eq!(bytes_of(status, "VmHWM:"), Some(2 << 20));
        assert_eq!(bytes_of(status, "VmSwap:"), None);
        assert_eq!(bytes_of(status, "Threads:"), None);
    }

    #[test]
    fn a_share_of_the_peak_needs_operations_and_a_peak() {
        let read = |peak_tflops, flop| {
            let gauge = Gauge::new(Device::cpu(), &HardwareConfig { peak_tflops });
            let machine = gauge.read(flop, 2.0).unwrap();
            (machine.tflops, machine.mfu)
        };
        assert_eq!(read(Some(8.0), Some(4e12)), (Some(2.0), Some(0.25)));
        assert_eq!(read(None, Some(4e12)), (Some(2.0), None));
        assert_eq!(read(Some(8.0), None), (None, None));
    }
}
