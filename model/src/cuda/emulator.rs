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
        let [x, y] = grid.blocks.map(|n| n as c_uint);
        // SAFETY: the name ends in 0; the kernel takes these arguments, as on a GPU.
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
