//! Kernels on the CPU, for tests: the same source, compiled for the host (`emulator.hpp`).
#![allow(unsafe_code, reason = "calls C++ and reads memory by its address")]

use std::ffi::{c_char, c_int, c_uint, c_void};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use rayon::prelude::*;

use super::{Arg, CudaError, Factor, Grid, Kind, Product, to_bf16};

unsafe extern "C" {
    fn emulated_launch(
        name: *const c_char,
        gx: c_uint,
        gy: c_uint,
        gz: c_uint,
        bx: c_uint,
        by: c_uint,
        bz: c_uint,
        shared_bytes: c_uint,
        given: *const c_char,
        args: *mut *mut c_void,
    ) -> c_int;
}

/// Memory and kernels of no GPU.
#[derive(Debug, Default)]
pub(super) struct Emulator {
    /// Bytes in use, and most at one time.
    memory: Mutex<(u64, u64)>,
    /// Bytes that there are; 0 for as many as the machine has.
    room: AtomicU64,
}

impl Emulator {
    #[expect(clippy::unused_self, reason = "as the driver has it")]
    pub(super) fn launch(
        &self,
        name: &'static str,
        grid: Grid,
        args: &[Arg],
    ) -> Result<(), CudaError> {
        let mut pointers: Vec<*mut c_void> = args.iter().map(Arg::pointer).collect();
        let given: Vec<u8> = args.iter().map(letter).chain([0]).collect();
        let [x, y] = grid.blocks.map(|n| n as c_uint);
        // SAFETY: the name and the letters end in 0; that the kernel takes these arguments is looked at.
        let answer = unsafe {
            emulated_launch(
                name.as_ptr().cast(),
                x,
                y,
                1,
                grid.threads as c_uint,
                1,
                1,
                grid.shared as c_uint,
                given.as_ptr().cast(),
                pointers.as_mut_ptr(),
            )
        };
        if answer == 0 {
            return Ok(());
        }
        Err(CudaError::Call { call: "an emulated launch", answer: format!("{name}: {answer}") })
    }

    #[expect(clippy::unused_self, reason = "as the driver has it")]
    pub(super) fn multiply(&self, p: &Product) {
        (0..p.rows).into_par_iter().with_min_len(16).for_each(|row| {
            for column in 0..p.columns {
                // SAFETY: addresses are those of arrays that are long enough, and each value is written once.
                unsafe {
                    let mut sum = 0.0_f64;
                    for i in 0..p.inner {
                        let a = value_at(&p.left, row, i);
                        sum += f64::from(a) * f64::from(value_at(&p.right, i, column));
                    }
                    let place = row * p.out_stride + column;
                    let mut value = p.alpha * sum as f32;
                    value += p.add.map_or(0.0, |add| read(add, place, p.out_kind));
                    value += p.bias.map_or(0.0, |bias| read(bias, column, p.out_kind));
                    write(p.out, place, p.out_kind, value);
                }
            }
        });
    }

    /// Has so many bytes from here on.
    pub(super) fn set_room(&self, bytes: u64) {
        self.room.store(bytes, Ordering::Relaxed);
    }

    pub(super) fn allocate(&self, bytes: usize) -> Result<u64, CudaError> {
        let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        let (used, room) = (memory.0, self.room.load(Ordering::Relaxed));
        if room > 0 && used + bytes as u64 > room {
            let free = room.saturating_sub(used) as usize;
            let (used, total) = (used as usize, room as usize);
            return Err(CudaError::Memory { asked: bytes, used, free, total });
        }
        memory.0 += bytes as u64;
        memory.1 = memory.1.max(memory.0);
        // Of 16 bytes, as wide reads need; what nothing has written is no number.
        let values = vec![u128::MAX; bytes.div_ceil(16)].into_boxed_slice();
        Ok(Box::into_raw(values).cast::<u128>() as u64)
    }

    pub(super) fn free(&self, address: u64, bytes: usize) {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner).0 -= bytes as u64;
        let values = std::ptr::slice_from_raw_parts_mut(address as *mut u128, bytes.div_ceil(16));
        // SAFETY: made so in `allocate`, and freed once.
        drop(unsafe { Box::from_raw(values) });
    }

    pub(super) fn memory(&self, reset: bool) -> (u64, u64) {
        let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        let found = *memory;
        if reset {
            memory.1 = memory.0;
        }
        found
    }

    #[expect(clippy::unused_self, reason = "as the driver has it")]
    pub(super) fn clear(&self, address: u64, bytes: usize) {
        // SAFETY: within an array.
        unsafe { std::ptr::write_bytes(address as *mut u8, 0, bytes) }
    }

    #[expect(clippy::unused_self, reason = "as the driver has it")]
    pub(super) fn copy(&self, to: u64, from: u64, bytes: usize) {
        // SAFETY: within two arrays.
        unsafe { std::ptr::copy(from as *const u8, to as *mut u8, bytes) }
    }

    #[expect(clippy::unused_self, reason = "as the driver has it")]
    pub(super) fn upload(&self, address: u64, bytes: &[u8]) {
        // SAFETY: within an array, of which no one else holds a reference.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), address as *mut u8, bytes.len()) }
    }

    #[expect(clippy::unused_self, reason = "as the driver has it")]
    pub(super) fn download(&self, bytes: &mut [u8], address: u64) {
        // SAFETY: within an array.
        unsafe {
            std::ptr::copy_nonoverlapping(address as *const u8, bytes.as_mut_ptr(), bytes.len());
        }
    }
}

/// What `emulator.hpp` calls an argument of this kind.
fn letter(arg: &Arg) -> u8 {
    match arg {
        Arg::Pointer(_) => b'p',
        Arg::I32(_) => b'i',
        Arg::I64(_) => b'l',
        Arg::F32(_) => b'f',
    }
}

unsafe fn value_at(factor: &Factor, row: usize, column: usize) -> f32 {
    let (row, column) = if factor.transposed { (column, row) } else { (row, column) };
    // SAFETY: as promised by the caller.
    unsafe { read(factor.address, row * factor.stride + column, factor.kind) }
}

unsafe fn read(address: u64, i: usize, kind: Kind) -> f32 {
    // SAFETY: as promised by the caller.
    unsafe {
        if kind == Kind::Bf16 {
            f32::from_bits(u32::from(*(address as *const u16).add(i)) << 16)
        } else {
            *(address as *const f32).add(i)
        }
    }
}

unsafe fn write(address: u64, i: usize, kind: Kind, value: f32) {
    // SAFETY: as promised by the caller.
    unsafe {
        if kind == Kind::Bf16 {
            *(address as *mut u16).add(i) = to_bf16(value);
        } else {
            *(address as *mut f32).add(i) = value;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// Runs a kernel of `races_kernels.cpp` in a process of its own, and gives what that says at its end.
    fn said_of(kernel: &str) -> String {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "cuda::emulator::tests::a_kernel_of_this_name_runs", "--nocapture"])
            .envs([("FLAMINGO_CUDA_RACES", "1"), (KERNEL, kernel)])
            .output()
            .unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.success(), !said.contains("CUDA emulator"), "{said}");
        said
    }

    /// Has the name of the kernel that a process of a test runs.
    const KERNEL: &str = "FLAMINGO_TEST_KERNEL";

    /// Runs nothing unless `said_of` has started the process.
    #[test]
    fn a_kernel_of_this_name_runs() {
        let Ok(kernel) = std::env::var(KERNEL) else { return };
        let name: &'static str = Box::leak(format!("{kernel}\0").into_boxed_str());
        let emulator = Emulator::default();
        let address = emulator.allocate(4 * 256).unwrap();
        emulator.clear(address, 4 * 256);
        let grid = Grid { blocks: [2, 1], threads: 64, shared: 1024 };
        emulator.launch(name, grid, &[Arg::Pointer(address)]).unwrap();
        emulator.free(address, 4 * 256);
    }

    #[test]
    fn kernels_with_all_their_barriers_have_no_races() {
        for kernel in ["race_none_block", "race_none_warp", "race_none_copy", "race_none_atomic"] {
            assert_eq!(said_of(kernel), "", "{kernel}");
        }
    }

    #[test]
    fn what_no_barrier_orders_is_a_race_with_its_lines() {
        // Threads of the first block run in reversed order.
        for (kernel, now, before) in [
            ("race_block", "writes what", "has read"),
            ("race_again", "reads what", "has written"),
            ("race_warp", "reads what", "has written"),
            ("race_copy", "reads what", "is copying to"),
            ("race_copy_of_others", "starts a copy to what", "has read"),
            ("race_copy_again", "reads what", "has written"),
            ("race_blocks", "writes what", "of the block 1 before has written"),
            ("race_atomic", "adds to what", "has written"),
        ] {
            let said = said_of(kernel);
            assert!(said.contains("race: thread"), "{kernel}: {said}");
            assert!(said.contains(now) && said.contains(before), "{kernel}: {said}");
            let lines = said.lines().filter(|line| line.contains("races_kernels.cpp:")).count();
            assert!(lines >= 2, "{kernel}: {said}");
        }
    }

    #[test]
    fn arguments_of_another_kind_are_refused() {
        let said = said_of("race_arguments");
        assert!(said.contains("launched with arguments p, not pl"), "{said}");
    }
}
