// Kernels with and without races, for tests of races.cpp: two blocks of 64 threads, 256 numbers in global memory.
#include "../ops/tensor_core.cuh"

namespace {

unsigned me() { return blockIdx.x * 64 + threadIdx.x; }

}  // namespace

KERNEL race_none_block(int* out) {
  SHARED(int, shared, [64]);
  for (int i = 0; i < 2; ++i) {
    shared[threadIdx.x] = i;
    __syncthreads();
    out[me()] = shared[63 - threadIdx.x];
    __syncthreads();
  }
}
REGISTER(race_none_block)

// Without the first barrier.
KERNEL race_block(int* out) {
  SHARED(int, shared, [64]);
  shared[threadIdx.x] = 1;
  out[me()] = shared[63 - threadIdx.x];
}
REGISTER(race_block)

// Without the second.
KERNEL race_again(int* out) {
  SHARED(int, shared, [64]);
  for (int i = 0; i < 2; ++i) {
    shared[threadIdx.x] = i;
    __syncthreads();
    out[me()] = shared[63 - threadIdx.x];
  }
}
REGISTER(race_again)

KERNEL race_none_warp(int* out) {
  SHARED(int, shared, [64]);
  shared[threadIdx.x] = 1;
  __syncwarp();
  out[me()] = shared[threadIdx.x ^ 1];
}
REGISTER(race_none_warp)

// A shuffle orders nothing.
KERNEL race_warp(int* out) {
  SHARED(int, shared, [64]);
  shared[threadIdx.x] = 1;
  const int other = __shfl_xor_sync(0xffffffffu, 1, 1);
  out[me()] = shared[threadIdx.x ^ other];
}
REGISTER(race_warp)

KERNEL race_none_copy(int* out) {
  DYNAMIC_SHARED(int, shared);
  for (int i = 0; i < 2; ++i) {
    cp_async_16(shared + 4 * threadIdx.x, out + 128, true);
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();
    out[me()] = shared[4 * (63 - threadIdx.x)];
    __syncthreads();
  }
}
REGISTER(race_none_copy)

// Not even the thread that copies sees anything before its wait.
KERNEL race_copy(int* out) {
  DYNAMIC_SHARED(int, shared);
  cp_async_16(shared + 4 * threadIdx.x, out + 128, true);
  cp_async_commit();
  out[me()] = shared[4 * threadIdx.x];
  cp_async_wait<0>();
}
REGISTER(race_copy)

// A wait is for copies of the thread itself.
KERNEL race_copy_of_others(int* out) {
  DYNAMIC_SHARED(int, shared);
  cp_async_16(shared + 4 * threadIdx.x, out + 128, true);
  cp_async_commit();
  cp_async_wait<0>();
  out[me()] = shared[4 * (threadIdx.x ^ 1)];
}
REGISTER(race_copy_of_others)

KERNEL race_copy_again(int* out) {
  DYNAMIC_SHARED(int, shared);
  for (int i = 0; i < 2; ++i) {
    cp_async_16(shared + 4 * threadIdx.x, out + 128, true);
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();
    out[me()] = shared[4 * (63 - threadIdx.x)];
  }
}
REGISTER(race_copy_again)

// Blocks are not ordered.
KERNEL race_blocks(int* out) { out[threadIdx.x] = 1; }
REGISTER(race_blocks)

KERNEL race_none_atomic(int* out) { atomicAdd(out, 1); }
REGISTER(race_none_atomic)

KERNEL race_atomic(int* out) {
  atomicAdd(out, 1);
  if (threadIdx.x == 63) *out = 0;
}
REGISTER(race_atomic)

KERNEL race_arguments(int* out, long long n) { out[me()] = int(n); }
REGISTER(race_arguments)
