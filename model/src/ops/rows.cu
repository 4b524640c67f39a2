// Rows chosen, put back, averaged, repeated and set side by side. One block a row.
#include "common.cuh"

// 16 bytes at a time where both rows allow it.
template <class T>
__device__ __forceinline__ void copy_row(const T* from, T* to, int width) {
  constexpr int n = 16 / sizeof(T);
  const uintptr_t places = reinterpret_cast<uintptr_t>(from) | reinterpret_cast<uintptr_t>(to);
  if (width % n == 0 && places % 16 == 0) {
    for (int c = threadIdx.x; c < width / n; c += blockDim.x)
      reinterpret_cast<uint4*>(to)[c] = reinterpret_cast<const uint4*>(from)[c];
  } else {
    for (int c = threadIdx.x; c < width; c += blockDim.x) to[c] = from[c];
  }
}

template <class T>
__device__ __forceinline__ T* row_of(T* x, long long row, int width) {
  return x + row * width;
}

// out[i] = x[picked[i]].
template <class T>
__device__ void pick_rows(const T* x, const int* picked, T* out, int width) {
  copy_row(row_of(x, picked[blockIdx.x], width), row_of(out, blockIdx.x, width), width);
}

// out[picked[i]] = x[i].
template <class T>
__device__ void put_rows(const T* x, const int* picked, T* out, int width) {
  copy_row(row_of(x, blockIdx.x, width), row_of(out, picked[blockIdx.x], width), width);
}

// The mean over rows spans[2 i] to spans[2 i + 1].
template <class T>
__device__ void mean_rows(const T* x, const int* spans, T* out, int width) {
  const int first = spans[2 * blockIdx.x], last = spans[2 * blockIdx.x + 1];
  const float share = 1.0f / (last - first);
  for (int c = threadIdx.x; c < width; c += blockDim.x) {
    float sum = 0.0f;
    for (int row = first; row < last; ++row) sum += to_float(row_of(x, row, width)[c]);
    row_of(out, blockIdx.x, width)[c] = from_float<T>(share * sum);
  }
}

// What row i gets from the spans that hold it: starts[i] to starts[i + 1] of `of` name them.
template <class T>
__device__ void mean_rows_backward(const T* grad_out, const int* spans, const int* starts,
                                   const int* of, T* grad, int width) {
  for (int c = threadIdx.x; c < width; c += blockDim.x) {
    float sum = 0.0f;
    for (int k = starts[blockIdx.x]; k < starts[blockIdx.x + 1]; ++k) {
      const float share = 1.0f / (spans[2 * of[k] + 1] - spans[2 * of[k]]);
      sum += share * to_float(row_of(grad_out, of[k], width)[c]);
    }
    row_of(grad, blockIdx.x, width)[c] = from_float<T>(sum);
  }
}

// The class row before each image's patches, and positions [per_image, width] added.
template <class T>
__device__ void prepend_class(const T* patches, const T* class_row, const T* positions, T* out,
                              int per_image, int width) {
  const int image = blockIdx.x / per_image, place = blockIdx.x % per_image;
  const T* from = place == 0
                      ? class_row
                      : row_of(patches, static_cast<long long>(image) * (per_image - 1) + place - 1,
                               width);
  for (int c = threadIdx.x; c < width; c += blockDim.x) {
    const float position = to_float(row_of(positions, place, width)[c]);
    row_of(out, blockIdx.x, width)[c] = from_float<T>(to_float(from[c]) + position);
  }
}

// Per image, `features` rows of one matrix and `latents` rows of another.
template <class T>
__device__ void with_latents(const T* x, const T* latent, T* out, int features, int latents,
                             int width) {
  const int all = features + latents;
  const long long image = blockIdx.x / all;
  const int place = blockIdx.x % all;
  const T* from = place < features
                      ? row_of(x, image * features + place, width)
                      : row_of(latent, image * latents + place - features, width);
  copy_row(from, row_of(out, blockIdx.x, width), width);
}

// Rows `first` to `first + n` of every `all` rows.
template <class T>
__device__ void take_part(const T* x, T* out, int all, int first, int n, int width) {
  const long long image = blockIdx.x / n;
  copy_row(row_of(x, image * all + first + blockIdx.x % n, width),
           row_of(out, blockIdx.x, width), width);
}

// Columns `column` to `column + width` of row i become row places[i].
template <class T>
__device__ void put_columns(const T* x, const int* places, T* out, int stride, int column,
                            int width) {
  copy_row(row_of(x, blockIdx.x, stride) + column, row_of(out, places[blockIdx.x], width), width);
}

// `rows` [n, width] again and again.
template <class T>
__device__ void repeat_rows(const T* rows, T* out, int n, int width) {
  copy_row(row_of(rows, blockIdx.x % n, width), row_of(out, blockIdx.x, width), width);
}

// Adds to the rows of frame f a mix of two rows of `time`: mixes [frames][2] rows and their shares.
template <class T>
__device__ void add_time(const T* x, const T* time, const int* rows, const float* shares, T* out,
                         int frames, int tokens, int width) {
  const int f = blockIdx.x / tokens % frames;
  for (int c = threadIdx.x; c < width; c += blockDim.x) {
    const float low = to_float(row_of(time, rows[2 * f], width)[c]);
    const float high = to_float(row_of(time, rows[2 * f + 1], width)[c]);
    const float v = to_float(row_of(x, blockIdx.x, width)[c]);
    row_of(out, blockIdx.x, width)[c] =
        from_float<T>(v + shares[2 * f] * low + shares[2 * f + 1] * high);
  }
}

// Adds to row t of the gradient of `time`: each of `frames` sums [frames][width] by its share in it.
KERNEL add_time_backward(const float* sums, const int* rows, const float* shares, float* grad,
                         int frames, int width) {
  for (int c = threadIdx.x; c < width; c += blockDim.x) {
    float sum = 0.0f;
    for (int f = 0; f < frames; ++f)
      for (int k = 0; k < 2; ++k)
        if (rows[2 * f + k] == static_cast<int>(blockIdx.x))
          sum += shares[2 * f + k] * row_of(sums, f, width)[c];
    row_of(grad, blockIdx.x, width)[c] += sum;
  }
}
REGISTER(add_time_backward)

#define BOTH(T, S)                                                                               \
  KERNEL pick_rows_##S(const T* x, const int* picked, T* out, int width) {                       \
    pick_rows(x, picked, out, width);                                                            \
  }                                                                                              \
  REGISTER(pick_rows_##S)                                                                        \
  KERNEL put_rows_##S(const T* x, const int* picked, T* out, int width) {                        \
    put_rows(x, picked, out, width);                                                             \
  }                                                                                              \
  REGISTER(put_rows_##S)                                                                         \
  KERNEL mean_rows_##S(const T* x, const int* spans, T* out, int width) {                        \
    mean_rows(x, spans, out, width);                                                             \
  }                                                                                              \
  REGISTER(mean_rows_##S)                                                                        \
  KERNEL mean_rows_backward_##S(const T* grad_out, const int* spans, const int* starts,          \
                                const int* of, T* grad, int width) {                             \
    mean_rows_backward(grad_out, spans, starts, of, grad, width);                                \
  }                                                                                              \
  REGISTER(mean_rows_backward_##S)                                                               \
  KERNEL prepend_class_##S(const T* patches, const T* class_row, const T* positions, T* out,     \
                           int per_image, int width) {                                           \
    prepend_class(patches, class_row, positions, out, per_image, width);                         \
  }                                                                                              \
  REGISTER(prepend_class_##S)                                                                    \
  KERNEL with_latents_##S(const T* x, const T* latent, T* out, int features, int latents,        \
                          int width) {                                                           \
    with_latents(x, latent, out, features, latents, width);                                      \
  }                                                                                              \
  REGISTER(with_latents_##S)                                                                     \
  KERNEL take_part_##S(const T* x, T* out, int all, int first, int n, int width) {               \
    take_part(x, out, all, first, n, width);                                                     \
  }                                                                                              \
  REGISTER(take_part_##S)                                                                        \
  KERNEL put_columns_##S(const T* x, const int* places, T* out, int stride, int column,          \
                         int width) {                                                            \
    put_columns(x, places, out, stride, column, width);                                          \
  }                                                                                              \
  REGISTER(put_columns_##S)                                                                      \
  KERNEL repeat_rows_##S(const T* rows, T* out, int n, int width) {                              \
    repeat_rows(rows, out, n, width);                                                            \
  }                                                                                              \
  REGISTER(repeat_rows_##S)                                                                      \
  KERNEL add_time_##S(const T* x, const T* time, const int* rows, const float* shares, T* out,   \
                      int frames, int tokens, int width) {                                       \
    add_time(x, time, rows, shares, out, frames, tokens, width);                                 \
  }                                                                                              \
  REGISTER(add_time_##S)
BOTH(float, f32)
BOTH(bf16, bf16)
#undef BOTH
