// Layer norm and root-mean-square norm. One block a row.
#include "common.cuh"

// Calls visit(column, x) for all columns of this thread, in vectors where the row allows it.
template <class T, class Visit>
__device__ __forceinline__ void each_value(const T* row, int n, bool wide, Visit visit) {
  if (wide) {
    for (int c = threadIdx.x * Pack<T>::n; c < n; c += blockDim.x * Pack<T>::n) {
      const Pack<T> pack = Pack<T>::load(row + c);
#pragma unroll
      for (int k = 0; k < Pack<T>::n; ++k) visit(c + k, pack.v[k]);
    }
  } else {
    for (int c = threadIdx.x; c < n; c += blockDim.x) visit(c, to_float(row[c]));
  }
}

// Writes make(column, x) over the row.
template <class T, class Make>
__device__ __forceinline__ void map_row(const T* row, T* out, int n, bool wide, Make make) {
  if (wide) {
    for (int c = threadIdx.x * Pack<T>::n; c < n; c += blockDim.x * Pack<T>::n) {
      Pack<T> pack = Pack<T>::load(row + c);
#pragma unroll
      for (int k = 0; k < Pack<T>::n; ++k) pack.v[k] = make(c + k, pack.v[k]);
      pack.store(out + c);
    }
  } else {
    for (int c = threadIdx.x; c < n; c += blockDim.x)
      out[c] = from_float<T>(make(c, to_float(row[c])));
  }
}

// Columns `column` to `column + n` of rows of `width` values, normalised; `stats` gets mean and
// reciprocal deviation of each row, if it is there.
template <class T>
__device__ void norm_forward(const T* x, T* out, const float* gain, const float* bias, float* stats,
                             int width, int column, int n, int centred, float epsilon) {
  SHARED(float, shared, [32]);
  const long long at = static_cast<long long>(blockIdx.x) * width + column;
  const T* row = x + at;
  const bool wide = width % Pack<T>::n == 0 && column % Pack<T>::n == 0 && n % Pack<T>::n == 0;
  float mean = 0.0f;
  if (centred) {
    float sum = 0.0f;
    each_value(row, n, wide, [&](int, float v) { sum += v; });
    mean = block_sum(sum, shared) / n;
  }
  float squares = 0.0f;
  each_value(row, n, wide, [&](int, float v) { squares += (v - mean) * (v - mean); });
  const float inverse = rsqrtf(block_sum(squares, shared) / n + epsilon);
  map_row(row, out + at, n, wide, [&](int c, float v) {
    return (v - mean) * inverse * gain[c] + (bias ? bias[c] : 0.0f);
  });
  if (stats && threadIdx.x == 0) {
    stats[2 * blockIdx.x] = mean;
    stats[2 * blockIdx.x + 1] = inverse;
  }
}

// Turns the gradient of the output into that of the input. With normal = (x - mean) / deviation and
// h = grad * gain: (h - mean(h) - normal * mean(h * normal)) / deviation, without mean(h) where not
// centred.
template <class T>
__device__ void norm_backward(const T* x, T* grad, const float* gain, const float* stats, int width,
                              int column, int n, int centred) {
  SHARED(float, shared, [32]);
  const long long at = static_cast<long long>(blockIdx.x) * width + column;
  const T* row = x + at;
  const float mean = stats[2 * blockIdx.x], inverse = stats[2 * blockIdx.x + 1];
  const bool wide = width % Pack<T>::n == 0 && column % Pack<T>::n == 0 && n % Pack<T>::n == 0;
  float sum = 0.0f, product = 0.0f;
  if (wide) {
    for (int c = threadIdx.x * Pack<T>::n; c < n; c += blockDim.x * Pack<T>::n) {
      const Pack<T> a = Pack<T>::load(row + c), g = Pack<T>::load(grad + at + c);
#pragma unroll
      for (int k = 0; k < Pack<T>::n; ++k) {
        const float h = g.v[k] * gain[c + k];
        sum += h;
        product += h * (a.v[k] - mean) * inverse;
      }
    }
  } else {
    for (int c = threadIdx.x; c < n; c += blockDim.x) {
      const float h = to_float(grad[at + c]) * gain[c];
      sum += h;
      product += h * (to_float(row[c]) - mean) * inverse;
    }
  }
  sum = centred ? block_sum(sum, shared) / n : 0.0f;
  product = block_sum(product, shared) / n;
  if (wide) {
    for (int c = threadIdx.x * Pack<T>::n; c < n; c += blockDim.x * Pack<T>::n) {
      const Pack<T> a = Pack<T>::load(row + c);
      Pack<T> g = Pack<T>::load(grad + at + c);
#pragma unroll
      for (int k = 0; k < Pack<T>::n; ++k)
        g.v[k] = (g.v[k] * gain[c + k] - sum - (a.v[k] - mean) * inverse * product) * inverse;
      g.store(grad + at + c);
    }
  } else {
    for (int c = threadIdx.x; c < n; c += blockDim.x) {
      const float normal = (to_float(row[c]) - mean) * inverse;
      const float h = to_float(grad[at + c]) * gain[c];
      grad[at + c] = from_float<T>((h - sum - normal * product) * inverse);
    }
  }
}

// Sums for gain and bias over `per_block` rows, in 32 columns: `partial` [blocks of rows][2][n].
// 32 by 8 threads in one dimension.
template <class T>
__device__ void norm_sums(const T* x, const T* grad, const float* stats, float* partial, int rows,
                          int width, int column, int n, int per_block) {
  SHARED(float, sums, [2][8][32]);
  const int lane = threadIdx.x % 32, line = threadIdx.x / 32;
  const int c = blockIdx.x * 32 + lane;
  const int first = blockIdx.y * per_block;
  const int last = min(rows, first + per_block);
  float gain = 0.0f, bias = 0.0f;
  if (c < n)
    for (int row = first + line; row < last; row += 8) {
      const long long at = static_cast<long long>(row) * width + column + c;
      const float g = to_float(grad[at]);
      gain += g * (to_float(x[at]) - stats[2 * row]) * stats[2 * row + 1];
      bias += g;
    }
  sums[0][line][lane] = gain;
  sums[1][line][lane] = bias;
  __syncthreads();
  if (line < 2 && c < n) {
    float sum = 0.0f;
    for (int i = 0; i < 8; ++i) sum += sums[line][i][lane];
    partial[(static_cast<long long>(blockIdx.y) * 2 + line) * n + c] = sum;
  }
}

#define BOTH(T, S)                                                                              \
  KERNEL norm_forward_##S(const T* x, T* out, const float* gain, const float* bias,             \
                          float* stats, int width, int column, int n, int centred,              \
                          float epsilon) {                                                      \
    norm_forward(x, out, gain, bias, stats, width, column, n, centred, epsilon);                \
  }                                                                                             \
  REGISTER(norm_forward_##S)                                                                    \
  KERNEL norm_backward_##S(const T* x, T* grad, const float* gain, const float* stats,          \
                           int width, int column, int n, int centred) {                         \
    norm_backward(x, grad, gain, stats, width, column, n, centred);                             \
  }                                                                                             \
  REGISTER(norm_backward_##S)                                                                   \
  KERNEL norm_sums_##S(const T* x, const T* grad, const float* stats, float* partial, int rows, \
                       int width, int column, int n, int per_block) {                           \
    norm_sums(x, grad, stats, partial, rows, width, column, n, per_block);                      \
  }                                                                                             \
  REGISTER(norm_sums_##S)
BOTH(float, f32)
BOTH(bf16, bf16)
#undef BOTH
