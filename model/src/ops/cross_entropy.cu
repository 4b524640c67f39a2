// Losses of rows of logits, and their gradient. One block a row.
#include "common.cuh"

// loss = log Z - logits[target], Z being the sum of exp(logits); if `squares` is there, it gets log(Z)^2; if
// `grad` is there, it gets (softmax(logits) * (1 + 2 * z * log Z) - one_hot(target)) * scale.
template <class T>
__device__ void row_losses(const float* logits, const int* targets, float* losses, float* squares,
                           T* grad, int vocabulary, float scale, float z) {
  SHARED(float, shared, [32]);
  const float* row = logits + static_cast<long long>(blockIdx.x) * vocabulary;
  // The running sum is kept relative to the running maximum, so that the row is read once.
  float top = -INFINITY, sum = 0.0f;
  for (int c = threadIdx.x; c < vocabulary; c += blockDim.x) {
    const float v = row[c];
    if (v > top) {
      sum *= __expf(top - v);
      top = v;
    }
    sum += __expf(v - top);
  }
  const float highest = block_max(top, shared);
  sum = block_sum(top == -INFINITY ? 0.0f : sum * __expf(top - highest), shared);
  const int target = targets[blockIdx.x];
  const float log_z = logf(sum) + highest;
  if (threadIdx.x == 0) {
    losses[blockIdx.x] = log_z - row[target];
    if (squares) squares[blockIdx.x] = log_z * log_z;
  }
  if (!grad) return;
  T* out = grad + static_cast<long long>(blockIdx.x) * vocabulary;
  const float share = z > 0.0f ? scale * (1.0f + 2.0f * z * log_z) / sum : scale / sum;
  for (int c = threadIdx.x; c < vocabulary; c += blockDim.x) {
    const float p = share * __expf(row[c] - highest);
    out[c] = from_float<T>(c == target ? p - scale : p);
  }
}

// The number of the largest logit, the first among equals; -1 if any is not finite.
KERNEL row_likeliest(const float* logits, int* out, int vocabulary) {
  SHARED(float, best_of, [256]);
  SHARED(int, place_of, [256]);
  const float* row = logits + static_cast<long long>(blockIdx.x) * vocabulary;
  float best = -INFINITY;
  int place = 0x7fffffff;
  for (int c = threadIdx.x; c < vocabulary; c += blockDim.x) {
    const float v = row[c];
    // The difference of what is not finite to itself is no number.
    if (!(v - v == 0.0f)) {
      best = INFINITY;
      place = -1;
    } else if (v > best || (v == best && c < place)) {
      best = v;
      place = c;
    }
  }
  best_of[threadIdx.x] = best;
  place_of[threadIdx.x] = place;
  __syncthreads();
  for (int half = blockDim.x / 2; half > 0; half /= 2) {
    if (threadIdx.x < half) {
      const float other = best_of[threadIdx.x + half];
      const int there = place_of[threadIdx.x + half];
      if (other > best_of[threadIdx.x] ||
          (other == best_of[threadIdx.x] && there < place_of[threadIdx.x])) {
        best_of[threadIdx.x] = other;
        place_of[threadIdx.x] = there;
      }
    }
    __syncthreads();
  }
  if (threadIdx.x == 0) out[blockIdx.x] = place_of[0];
}
REGISTER(row_likeliest)

// One block: adds n losses to `total`, in f64.
KERNEL add_losses(const float* losses, double* total, int n) {
  SHARED(double, shared, [256]);
  double sum = 0.0;
  for (int i = threadIdx.x; i < n; i += blockDim.x) sum += losses[i];
  sum = sum_of_block(sum, shared);
  if (threadIdx.x == 0) *total += sum;
}
REGISTER(add_losses)

// Times a factor; `out` may be `x`.
template <class T>
__device__ void scale_to(const float* x, T* out, long long n, float factor) {
  const long long i = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < n) out[i] = from_float<T>(factor * x[i]);
}

KERNEL row_losses_f32(const float* logits, const int* targets, float* losses, float* squares,
                      float* grad, int vocabulary, float scale, float z) {
  row_losses(logits, targets, losses, squares, grad, vocabulary, scale, z);
}
REGISTER(row_losses_f32)
KERNEL row_losses_bf16(const float* logits, const int* targets, float* losses, float* squares,
                       bf16* grad, int vocabulary, float scale, float z) {
  row_losses(logits, targets, losses, squares, grad, vocabulary, scale, z);
}
REGISTER(row_losses_bf16)
KERNEL scale_to_f32(const float* x, float* out, long long n, float factor) {
  scale_to(x, out, n, factor);
}
REGISTER(scale_to_f32)
KERNEL scale_to_bf16(const float* x, bf16* out, long long n, float factor) {
  scale_to(x, out, n, factor);
}
REGISTER(scale_to_bf16)
