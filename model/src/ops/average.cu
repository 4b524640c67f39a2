// Running averages of all weights at once.
#include "common.cuh"

// One weight and its average.
struct AveragedWeight {
  float* average;
  const float* values;
  long long n;
  // The first of the blocks that move it.
  long long first_block;
};

// A block takes `per_block` values.
KERNEL average_weights(const AveragedWeight* all, int n_weights, int per_block, float rate) {
  const AveragedWeight w = *entry_of_block(all, n_weights);
  const long long begin = (blockIdx.x - w.first_block) * per_block;
  const long long end = begin + per_block < w.n ? begin + per_block : w.n;
  for (long long i = begin + threadIdx.x; i < end; i += blockDim.x)
    w.average[i] += rate * (w.values[i] - w.average[i]);
}
REGISTER(average_weights)
