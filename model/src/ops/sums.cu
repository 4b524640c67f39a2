// Sums over rows, in an order that depends on the shapes alone.
#include "common.cuh"

// Sums of 32 columns over `per_block` rows of `x` [rows, width]: `partial` [blocks of rows][n], for
// the first n columns. 32 by 8 threads in one dimension.
template <class T>
__device__ void column_sums(const T* x, float* partial, int rows, long long width, int n,
                            int per_block) {
  SHARED(float, sums, [8][32]);
  const int lane = threadIdx.x % 32, line = threadIdx.x / 32;
  const int c = blockIdx.x * 32 + lane;
  const int first = blockIdx.y * per_block;
  const int last = min(rows, first + per_block);
  float sum = 0.0f;
  if (c < n)
    for (int row = first + line; row < last; row += 8) sum += to_float(x[row * width + c]);
  sums[line][lane] = sum;
  __syncthreads();
  if (line == 0 && c < n) {
    sum = 0.0f;
    for (int i = 0; i < 8; ++i) sum += sums[i][lane];
    partial[static_cast<long long>(blockIdx.y) * n + c] = sum;
  }
}

// Adds `parts` rows of `partial`, `stride` values apart, to `sum` [n].
KERNEL add_partials(const float* partial, float* sum, int parts, long long stride, int n, int adds) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  float total = adds ? sum[i] : 0.0f;
  for (int part = 0; part < parts; ++part) total += partial[part * stride + i];
  sum[i] = total;
}
REGISTER(add_partials)

// Sums of squares of a block's part of `x`, in f64.
KERNEL square_sums(const float* x, double* partial, long long n) {
  SHARED(double, shared, [256]);
  double sum = 0.0;
  const long long step = static_cast<long long>(gridDim.x) * blockDim.x;
  for (long long i = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += step)
    sum += static_cast<double>(x[i]) * x[i];
  shared[threadIdx.x] = sum;
  __syncthreads();
  for (int half = blockDim.x / 2; half > 0; half /= 2) {
    if (threadIdx.x < half) shared[threadIdx.x] += shared[threadIdx.x + half];
    __syncthreads();
  }
  if (threadIdx.x == 0) partial[blockIdx.x] = shared[0];
}
REGISTER(square_sums)

KERNEL column_sums_f32(const float* x, float* partial, int rows, long long width, int n,
                       int per_block) {
  column_sums(x, partial, rows, width, n, per_block);
}
REGISTER(column_sums_f32)
KERNEL column_sums_bf16(const bf16* x, float* partial, int rows, long long width, int n,
                        int per_block) {
  column_sums(x, partial, rows, width, n, per_block);
}
REGISTER(column_sums_bf16)
