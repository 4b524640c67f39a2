// Eight values a thread, for kernels that walk over flat arrays.
#pragma once

#include "common.cuh"

struct Eight {
  float v[8];

  // The values from `p` on, of which `count` are left; the others are 0. `p` is aligned to 16 bytes
  // where at least 8 are left.
  template <class T>
  static __device__ __forceinline__ Eight load(const T* p, long long count) {
    Eight out;
    if (count >= 8) {
#pragma unroll
      for (int i = 0; i < 8; i += Pack<T>::n) {
        const Pack<T> pack = Pack<T>::load(p + i);
#pragma unroll
        for (int j = 0; j < Pack<T>::n; ++j) out.v[i + j] = pack.v[j];
      }
    } else {
#pragma unroll
      for (int i = 0; i < 8; ++i) out.v[i] = i < count ? to_float(p[i]) : 0.0f;
    }
    return out;
  }

  template <class T>
  __device__ __forceinline__ void store(T* p, long long count) const {
    if (count >= 8) {
#pragma unroll
      for (int i = 0; i < 8; i += Pack<T>::n) {
        Pack<T> pack;
#pragma unroll
        for (int j = 0; j < Pack<T>::n; ++j) pack.v[j] = v[i + j];
        pack.store(p + i);
      }
    } else {
#pragma unroll
      for (int i = 0; i < 8; ++i)
        if (i < count) p[i] = from_float<T>(v[i]);
    }
  }
};

// The first value of this thread.
__device__ __forceinline__ long long first_of_thread() {
  return 8 * (static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x);
}
