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
