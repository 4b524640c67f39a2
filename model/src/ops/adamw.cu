// AdamW, in the order of operations of its part for processors.
#include "common.cuh"

// `low`, if it is there, gets the new values in bf16.
KERNEL adamw(float* values, const float* gradient, float* first, float* second, bf16* low,
             long long n, float clip, float keep, float first_rate, float second_keep,
             float second_rate, float step_size, float second_correction_sqrt, float epsilon) {
  const long long step = static_cast<long long>(gridDim.x) * blockDim.x;
  for (long long i = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x; i < n;
       i += step) {
    const float g = gradient ? gradient[i] * clip : 0.0f;
    float value = values[i] * keep;
    const float m = first[i] + (g - first[i]) * first_rate;
    const float s = second[i] * second_keep + second_rate * g * g;
    first[i] = m;
    second[i] = s;
    value -= step_size * m / (sqrtf(s) / second_correction_sqrt + epsilon);
    values[i] = value;
    if (low) low[i] = from_float<bf16>(value);
  }
}
REGISTER(adamw)
