// AdamW on all weights at once, in the order of operations of its part for processors.
#include "common.cuh"

// One weight. `low`, if it is there, gets the new values in bf16; without `gradient` it is zero.
struct AdamWeight {
  float* values;
  const float* gradient;
  float* first;
  float* second;
  bf16* low;
  long long n;
  // The first of the blocks that update it.
  long long first_block;
  float clip, keep, first_rate, second_keep, second_rate, step_size, second_correction_sqrt, epsilon;
};

// An array whose values are summed up.
struct Summand {
  const float* values;
  long long n;
  long long first_block;
};

// A block takes `per_block` values.
KERNEL adamw(const AdamWeight* all, int n_weights, int per_block) {
  const AdamWeight w = *entry_of_block(all, n_weights);
  const long long begin = (blockIdx.x - w.first_block) * per_block;
  const long long end = begin + per_block < w.n ? begin + per_block : w.n;
  for (long long i = begin + threadIdx.x; i < end; i += blockDim.x) {
    const float g = w.gradient ? w.gradient[i] * w.clip : 0.0f;
    float value = w.values[i] * w.keep;
    const float m = w.first[i] + w.first_rate * (g - w.first[i]);
    const float s = w.second[i] * w.second_keep + w.second_rate * g * g;
    w.first[i] = m;
    w.second[i] = s;
    value -= w.step_size * (m / (sqrtf(s) / w.second_correction_sqrt + w.epsilon));
    w.values[i] = value;
    if (w.low) w.low[i] = from_float<bf16>(value);
  }
}
REGISTER(adamw)

// The sum of the squares of a block's values, in f64.
KERNEL square_sums(const Summand* all, int n_arrays, int per_block, double* sums) {
  SHARED(double, shared, [256]);
  const Summand x = *entry_of_block(all, n_arrays);
  const long long begin = (blockIdx.x - x.first_block) * per_block;
  const long long end = begin + per_block < x.n ? begin + per_block : x.n;
  double sum = 0.0;
  for (long long i = begin + threadIdx.x; i < end; i += blockDim.x)
    sum += static_cast<double>(x.values[i]) * x.values[i];
  sum = sum_of_block(sum, shared);
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}
REGISTER(square_sums)
