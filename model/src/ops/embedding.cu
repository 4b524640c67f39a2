// Token and position embeddings.
#include "common.cuh"

// Row i: the row of a token + positions[place]. `at` holds of each which of the three tables its token's
// row is in, which row that is, and its place. One block a row.
template <class T>
__device__ void embed(const T* first, const T* second, const T* third, const T* positions,
                      const int* at, T* out, int width) {
  const int which = at[3 * blockIdx.x];
  const long long token = at[3 * blockIdx.x + 1], place = at[3 * blockIdx.x + 2];
  const T* row = (which == 0 ? first : which == 1 ? second : third) + token * width;
  for (int c = threadIdx.x; c < width; c += blockDim.x) {
    float v = to_float(row[c]);
    if (positions) v += to_float(positions[place * width + c]);
    out[static_cast<long long>(blockIdx.x) * width + c] = from_float<T>(v);
  }
}

// Group i adds rows `order[starts[i]]` to `order[starts[i + 1] - 1]` of the gradient to row
// `targets[i]` of a table's. One block a group.
template <class T>
__device__ void add_groups(const T* grad_out, const int* targets, const int* starts,
                           const int* order, float* grad, int width) {
  float* row = grad + static_cast<long long>(targets[blockIdx.x]) * width;
  for (int c = threadIdx.x; c < width; c += blockDim.x) {
    float sum = 0.0f;
    for (int k = starts[blockIdx.x]; k < starts[blockIdx.x + 1]; ++k)
      sum += to_float(grad_out[static_cast<long long>(order[k]) * width + c]);
    row[c] += sum;
  }
}

#define BOTH(T, S)                                                                               \
  KERNEL embed_##S(const T* first, const T* second, const T* third, const T* positions,          \
                   const int* at, T* out, int width) {                                           \
    embed(first, second, third, positions, at, out, width);                                      \
  }                                                                                              \
  REGISTER(embed_##S)                                                                            \
  KERNEL add_groups_##S(const T* grad_out, const int* targets, const int* starts,                \
                        const int* order, float* grad, int width) {                              \
    add_groups(grad_out, targets, starts, order, grad, width);                                   \
  }                                                                                              \
  REGISTER(add_groups_##S)
BOTH(float, f32)
BOTH(bf16, bf16)
#undef BOTH
