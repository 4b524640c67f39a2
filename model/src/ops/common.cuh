// What every kernel file includes. The same source is built by nvcc for a GPU
// and by a C++ compiler for the emulator, which runs kernels on the CPU.
#pragma once

#ifdef __CUDACC__

#include <cuda_bf16.h>
#include <stdint.h>

using bf16 = __nv_bfloat16;

// One array for all kernels of a file: declarations of different types under
// one name would clash.
#define DYNAMIC_SHARED(type, name)                                   \
  extern __shared__ __align__(128) unsigned char dynamic_shared[];   \
  type* const name = reinterpret_cast<type*>(dynamic_shared)

// A variable or array in shared memory: SHARED(float, sums, [8][32]).
#define SHARED(type, name, ...) __shared__ __align__(16) type name __VA_ARGS__

// Unmangled, so that the host finds the kernel by its plain name.
#define KERNEL extern "C" __global__ void
#define REGISTER(name)

__device__ __forceinline__ void check_aligned_16(const void*) {}

#else

#include "../cuda/emulator.hpp"

#define DYNAMIC_SHARED(type, name) \
  type* const name = static_cast<type*>(::emulator::dynamic_shared())

#define SHARED(type, name, ...)                               \
  static ::emulator::Shared<type __VA_ARGS__> name##_storage; \
  [[maybe_unused]] auto& name = name##_storage.use()

// Static, so that a kernel cannot clash with a C function of its name.
#define KERNEL static void
#define REGISTER(name)                                      \
  static const ::emulator::Registration registration_##name \
      {#name, {&::emulator::Thunk<name>::run, ::emulator::Thunk<name>::parameters}};

inline void check_aligned_16(const void* p) { ::emulator::check_aligned(p, 16); }

#endif

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(bf16 x) { return __bfloat162float(x); }

// Rounds to nearest, ties to even.
template <class T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ bf16 from_float<bf16>(float x) {
  return __float2bfloat16_rn(x);
}

// 16 bytes of T, held as floats: one load or store instruction per thread.
template <class T>
struct Pack {
  static constexpr int n = 16 / sizeof(T);
  float v[n];

  // `p` must be aligned to 16 bytes.
  static __device__ __forceinline__ Pack load(const T* p) {
    check_aligned_16(p);
    const uint4 raw = *reinterpret_cast<const uint4*>(p);
    T t[n];
    memcpy(t, &raw, 16);
    Pack pack;
#pragma unroll
    for (int i = 0; i < n; ++i) pack.v[i] = to_float(t[i]);
    return pack;
  }

  __device__ __forceinline__ void store(T* p) const {
    check_aligned_16(p);
    T t[n];
#pragma unroll
    for (int i = 0; i < n; ++i) t[i] = from_float<T>(v[i]);
    uint4 raw;
    memcpy(&raw, t, 16);
    *reinterpret_cast<uint4*>(p) = raw;
  }
};

// The reductions below give their result to every thread. Each thread of the
// warp or block must call them, and a block must hold whole warps.

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) x += __shfl_xor_sync(0xffffffffu, x, offset);
  return x;
}

__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2)
    x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, offset));
  return x;
}

// Gives every thread the warps' values, one to each lane, and `rest` to the
// lanes for which there is no warp. `shared` holds 32 floats.
__device__ __forceinline__ float across_warps(float x, float rest, float* shared) {
  const int thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  const int warps = blockDim.x * blockDim.y * blockDim.z / 32;
  const int lane = thread % 32;
  // An earlier reduction may still be reading `shared`.
  __syncthreads();
  if (lane == 0) shared[thread / 32] = x;
  __syncthreads();
  return lane < warps ? shared[lane] : rest;
}

__device__ __forceinline__ float block_sum(float x, float* shared) {
  return warp_sum(across_warps(warp_sum(x), 0.0f, shared));
}

__device__ __forceinline__ float block_max(float x, float* shared) {
  return warp_max(across_warps(warp_max(x), -INFINITY, shared));
}

// The sum of the numbers of all threads, for all of them, with room for as many.
__device__ __forceinline__ double sum_of_block(double sum, double* shared) {
  shared[threadIdx.x] = sum;
  __syncthreads();
  for (int half = blockDim.x / 2; half > 0; half /= 2) {
    if (threadIdx.x < half) shared[threadIdx.x] += shared[threadIdx.x + half];
    __syncthreads();
  }
  const double all = shared[0];
  __syncthreads();
  return all;
}

// The last of `n` entries whose first block is not after this one.
template <class Entry>
__device__ __forceinline__ const Entry* entry_of_block(const Entry* all, int n) {
  int low = 0, high = n;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if (all[middle].first_block <= static_cast<long long>(blockIdx.x)) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return all + low;
}
