// The two-term contrastive loss of rows of cosines, `n` of them with all others of a batch. Logits are beta times
// the cosines. All in f32, sums over the batch in f64.
#include "common.cuh"

// Rows to length 1, and their lengths before. One block a row.
template <class T>
__device__ void unit_rows(const T* x, float* unit, float* norms, int width) {
  SHARED(float, shared, [32]);
  const long long at = static_cast<long long>(blockIdx.x) * width;
  float squares = 0.0f;
  for (int c = threadIdx.x; c < width; c += blockDim.x) {
    const float v = to_float(x[at + c]);
    squares += v * v;
  }
  // At least the smallest normal number, so that a row of zeros stays one.
  const float norm = fmaxf(sqrtf(block_sum(squares, shared)), 1.17549435e-38f);
  for (int c = threadIdx.x; c < width; c += blockDim.x) unit[at + c] = to_float(x[at + c]) / norm;
  if (threadIdx.x == 0) norms[blockIdx.x] = norm;
}

// The gradient of rows from that of their unit rows. One block a row.
template <class T>
__device__ void unit_rows_backward(const float* grad_unit, const float* unit, const float* norms,
                                   T* grad, int width) {
  SHARED(float, shared, [32]);
  const long long at = static_cast<long long>(blockIdx.x) * width;
  float along = 0.0f;
  for (int c = threadIdx.x; c < width; c += blockDim.x) along += grad_unit[at + c] * unit[at + c];
  along = block_sum(along, shared);
  const float norm = norms[blockIdx.x];
  for (int c = threadIdx.x; c < width; c += blockDim.x)
    grad[at + c] = from_float<T>((grad_unit[at + c] - unit[at + c] * along) / norm);
}

// Of rows `first` and on: the logarithm of the sum of exp of their logits, the logit of their pair, and the sum of
// all. One block a row.
KERNEL contrastive_rows(const float* cosines, const float* log_beta, float* log_sums, float* paired,
                        float* totals, int first, int n) {
  SHARED(float, shared, [32]);
  const float* row = cosines + static_cast<long long>(blockIdx.x) * n;
  const float beta = expf(*log_beta);
  const int i = first + blockIdx.x;
  float top = -INFINITY, sum = 0.0f, total = 0.0f;
  for (int c = threadIdx.x; c < n; c += blockDim.x) {
    const float v = beta * row[c];
    if (v > top) {
      sum *= expf(top - v);
      top = v;
    }
    sum += expf(v - top);
    total += v;
  }
  const float highest = block_max(top, shared);
  sum = block_sum(top == -INFINITY ? 0.0f : sum * expf(top - highest), shared);
  total = block_sum(total, shared);
  if (threadIdx.x == 0) {
    log_sums[i] = logf(sum) + highest;
    paired[i] = beta * row[i];
    totals[i] = total;
  }
}
REGISTER(contrastive_rows)

// Of each column the highest logit so far and the sum of exp relative to it, over `rows` more rows. One thread a
// column.
KERNEL contrastive_columns(const float* cosines, const float* log_beta, float* highest, float* sums,
                           int rows, int n, int begins) {
  const int c = blockIdx.x * blockDim.x + threadIdx.x;
  if (c >= n) return;
  const float beta = expf(*log_beta);
  float top = begins ? -INFINITY : highest[c], sum = begins ? 0.0f : sums[c];
#pragma unroll 8
  for (int row = 0; row < rows; ++row) {
    const float v = beta * cosines[static_cast<long long>(row) * n + c];
    if (v > top) {
      sum *= expf(top - v);
      top = v;
    }
    sum += expf(v - top);
  }
  highest[c] = top;
  sums[c] = sum;
}
REGISTER(contrastive_columns)

// One block: the logarithms of the columns' sums, in the place of the sums, and the loss.
KERNEL contrastive_loss(const float* row_log_sums, const float* paired, const float* totals,
                        const float* highest, float* sums, double* loss, float smoothing, int n) {
  SHARED(double, shared, [256]);
  const double of_pair = 2.0 * (1.0 - static_cast<double>(smoothing));
  const double of_all = 2.0 * static_cast<double>(smoothing) / n;
  double sum = 0.0;
  for (int i = threadIdx.x; i < n; i += blockDim.x) {
    const float log_sum = logf(sums[i]) + highest[i];
    sums[i] = log_sum;
    sum += static_cast<double>(row_log_sums[i]) + log_sum - of_pair * paired[i] - of_all * totals[i];
  }
  sum = sum_of_block(sum, shared);
  if (threadIdx.x == 0) *loss = sum / n;
}
REGISTER(contrastive_loss)

// Puts `scale` times the gradient by the cosines in their place, of rows `first` and on, and gives what each row has of
// the product of cosines and gradients of logits. One block a row.
KERNEL contrastive_gradient(float* cosines, const float* log_beta, const float* log_sums,
                            const float* of_others, float* products, float scale, float smoothing,
                            int first, int n) {
  SHARED(float, shared, [32]);
  float* row = cosines + static_cast<long long>(blockIdx.x) * n;
  const float beta = expf(*log_beta), share = 1.0f / n, spread = smoothing / n;
  const int i = first + blockIdx.x;
  const float log_sum = log_sums[i];
  float product = 0.0f;
  for (int c = threadIdx.x; c < n; c += blockDim.x) {
    const float cosine = row[c], logit = beta * cosine;
    float g = (expf(logit - log_sum) + expf(logit - of_others[c]) - 2.0f * spread) * share;
    if (c == i) g -= 2.0f * (1.0f - smoothing) * share;
    product += g * cosine;
    row[c] = scale * beta * g;
  }
  product = block_sum(product, shared);
  if (threadIdx.x == 0) products[blockIdx.x] = product;
}
REGISTER(contrastive_gradient)

// One block: adds `scale` times the gradient by the logarithm of beta.
KERNEL contrastive_temperature(const float* products, const float* log_beta, float* grad, float scale,
                               int n) {
  SHARED(double, shared, [256]);
  double sum = 0.0;
  for (int i = threadIdx.x; i < n; i += blockDim.x) sum += products[i];
  sum = sum_of_block(sum, shared);
  if (threadIdx.x == 0) *grad += scale * expf(*log_beta) * static_cast<float>(sum);
}
REGISTER(contrastive_temperature)

#define BOTH(T, S)                                                                               \
  KERNEL unit_rows_##S(const T* x, float* unit, float* norms, int width) {                       \
    unit_rows(x, unit, norms, width);                                                            \
  }                                                                                              \
  REGISTER(unit_rows_##S)                                                                        \
  KERNEL unit_rows_backward_##S(const float* grad_unit, const float* unit, const float* norms,   \
                                T* grad, int width) {                                            \
    unit_rows_backward(grad_unit, unit, norms, grad, width);                                     \
  }                                                                                              \
  REGISTER(unit_rows_backward_##S)
BOTH(float, f32)
BOTH(bf16, bf16)
#undef BOTH
