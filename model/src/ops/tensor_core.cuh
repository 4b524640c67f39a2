// Warp-level matrix products and asynchronous copies, for sm_80 and later. All
// 32 lanes of a warp call each of the matrix functions together. The emulator
// keeps the layouts which the PTX ISA gives for the registers of each lane.
//
// With g = lane / 4 and t = lane % 4, each register of two bf16 holds the lower
// column (or k) in its lower half:
//   a[0]: row g,     k 2t, 2t+1     a[2]: row g,     k 2t+8, 2t+9
//   a[1]: row g + 8, k 2t, 2t+1     a[3]: row g + 8, k 2t+8, 2t+9
//   b[0]: k 2t, 2t+1, column g      b[1]: k 2t+8, 2t+9, column g
//   d[0], d[1]: row g, columns 2t, 2t+1      d[2], d[3]: row g + 8, the same
#pragma once

#include "common.cuh"

#ifdef __CUDACC__

__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// d += a * b, for a of 16x16, b of 16x8 and d of 16x8.
__device__ __forceinline__ void mma_bf16_m16n8k16(float d[4], const uint32_t a[4],
                                                  const uint32_t b[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Loads four 8x8 matrices of bf16 from shared memory: lanes 8i to 8i+7 name the
// rows of matrix i, each 16 bytes and aligned to 16. r[i] then holds row
// lane / 4, columns 2 * (lane % 4) and the next, of matrix i.
__device__ __forceinline__ void ldmatrix_x4(uint32_t r[4], const void* shared_row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(shared_row))
               : "memory");
}

// As above, of the transposed matrices: r[i] holds rows 2 * (lane % 4) and the
// next, column lane / 4.
__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t r[4], const void* shared_row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(shared_row))
               : "memory");
}

// Two matrices: only the addresses of lanes 0 to 15 count.
__device__ __forceinline__ void ldmatrix_x2(uint32_t r[2], const void* shared_row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(shared_address(shared_row))
               : "memory");
}

__device__ __forceinline__ void ldmatrix_x2_trans(uint32_t r[2], const void* shared_row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(shared_address(shared_row))
               : "memory");
}

// Starts a copy of 16 bytes, both ends aligned to 16; writes zeros and reads
// nothing where `valid` is false.
__device__ __forceinline__ void cp_async_16(void* shared, const void* global, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)),
               "l"(__cvta_generic_to_global(global)), "r"(valid ? 16 : 0)
               : "memory");
}

// Closes a group of the copies this thread has started.
__device__ __forceinline__ void cp_async_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

// Waits until at most N of this thread's latest groups are under way. Other
// threads see the data after a __syncthreads that follows.
template <int N>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// Rounds to nearest, ties to even.
__device__ __forceinline__ uint32_t pack_bf16(float lo, float hi) {
  uint32_t packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(hi), "f"(lo));
  return packed;
}

#else

inline void mma_bf16_m16n8k16(float d[4], const uint32_t a[4], const uint32_t b[2]) {
  ::emulator::mma_bf16_m16n8k16(d, a, b);
}

inline void ldmatrix_x4(uint32_t r[4], const void* shared_row) {
  ::emulator::ldmatrix(r, shared_row, 4, false);
}

inline void ldmatrix_x4_trans(uint32_t r[4], const void* shared_row) {
  ::emulator::ldmatrix(r, shared_row, 4, true);
}

inline void ldmatrix_x2(uint32_t r[2], const void* shared_row) {
  ::emulator::ldmatrix(r, shared_row, 2, false);
}

inline void ldmatrix_x2_trans(uint32_t r[2], const void* shared_row) {
  ::emulator::ldmatrix(r, shared_row, 2, true);
}

// The data arrives only at the wait for it, so a missing wait shows.
inline void cp_async_16(void* shared, const void* global, bool valid) {
  ::emulator::cp_async(shared, global, 16, valid);
}

inline void cp_async_commit() { ::emulator::cp_async_commit(); }

template <int N>
inline void cp_async_wait() {
  ::emulator::cp_async_wait(N);
}

inline uint32_t pack_bf16(float lo, float hi) {
  return uint32_t{from_float<bf16>(lo).bits} | uint32_t{from_float<bf16>(hi).bits} << 16;
}

#endif
