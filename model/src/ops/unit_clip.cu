// Adaptive gradient clipping of all weights at once.
#include "common.cuh"

// One weight, cut into units of `width` values.
struct ClippedWeight {
  float* gradient;
  const float* values;
  long long width;
  // The first of the blocks that clip it, one a unit.
  long long first_block;
  // The largest norm of a unit's gradient as a share of that of its values.
  double share;
};

// The least norms are those of the part for processors.
KERNEL clip_units(const ClippedWeight* all, int n_weights) {
  SHARED(double, shared, [256]);
  const ClippedWeight w = *entry_of_block(all, n_weights);
  const long long first = (blockIdx.x - w.first_block) * w.width;
  float* gradient = w.gradient + first;
  double of_values = 0.0, of_gradient = 0.0;
  for (long long i = threadIdx.x; i < w.width; i += blockDim.x) {
    const double v = w.values[first + i], g = gradient[i];
    of_values += v * v;
    of_gradient += g * g;
  }
  const double norm = sqrt(sum_of_block(of_values, shared));
  const double found = sqrt(sum_of_block(of_gradient, shared));
  const double most = w.share * (norm > 1e-3 ? norm : 1e-3);
  if (!(found > most)) return;
  const float factor = static_cast<float>(most / (found > 1e-6 ? found : 1e-6));
  for (long long i = threadIdx.x; i < w.width; i += blockDim.x) gradient[i] *= factor;
}
REGISTER(clip_units)
