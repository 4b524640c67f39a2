// Convolutions of images with standardised weights, and what stands around them in an NFNet. Images are
// rows of pixels, line by line, with channels as columns.
#include "common.cuh"

// Values of a row of `n`, `apart` apart, that this thread visits.
template <class Visit>
__device__ __forceinline__ void each_of(int n, Visit visit) {
  for (int i = threadIdx.x; i < n; i += blockDim.x) visit(i);
}

// Mean and reciprocal deviation of the weights of one output, to every thread.
__device__ __forceinline__ float2 moments_of(const float* row, int n, float epsilon, float* shared) {
  float sum = 0.0f;
  each_of(n, [&](int i) { sum += row[i]; });
  const float mean = block_sum(sum, shared) / n;
  float squares = 0.0f;
  each_of(n, [&](int i) { squares += (row[i] - mean) * (row[i] - mean); });
  return make_float2(mean, rsqrtf(block_sum(squares, shared) / n + epsilon));
}

// Weights [G * O, I, T] to gain * (w - mean) / deviation * scale as [G * T * I, O]. A block an output.
template <class T>
__device__ void standardize(const float* weight, const float* gain, T* out, int inputs, int taps,
                            int outputs, float epsilon, float scale) {
  SHARED(float, shared, [32]);
  const int n = inputs * taps, group = blockIdx.x / outputs, column = blockIdx.x % outputs;
  const float* row = weight + static_cast<long long>(blockIdx.x) * n;
  const float2 m = moments_of(row, n, epsilon, shared);
  const float factor = m.y * gain[blockIdx.x] * scale;
  each_of(n, [&](int i) {
    const long long to = (static_cast<long long>(group) * taps + i % taps) * inputs + i / taps;
    out[to * outputs + column] = from_float<T>((row[i] - m.x) * factor);
  });
}

// Adds to the gradients of weight and gain, from that of the standardised weights.
template <class T>
__device__ void standardize_backward(const float* weight, const float* gain, const T* grad_out,
                                     float* grad, float* grad_gain, int inputs, int taps,
                                     int outputs, float epsilon, float scale) {
  SHARED(float, shared, [32]);
  const int n = inputs * taps, group = blockIdx.x / outputs, column = blockIdx.x % outputs;
  const long long at = static_cast<long long>(blockIdx.x) * n;
  const float* row = weight + at;
  const float2 m = moments_of(row, n, epsilon, shared);
  auto gradient = [&](int i) {
    const long long from = (static_cast<long long>(group) * taps + i % taps) * inputs + i / taps;
    return to_float(grad_out[from * outputs + column]);
  };
  float sum = 0.0f, along = 0.0f;
  each_of(n, [&](int i) {
    sum += gradient(i);
    along += gradient(i) * (row[i] - m.x) * m.y;
  });
  sum = block_sum(sum, shared) / n;
  along = block_sum(along, shared);
  const float factor = gain[blockIdx.x] * scale * m.y;
  if (grad)
    each_of(n, [&](int i) {
      grad[at + i] += (gradient(i) - sum - (row[i] - m.x) * m.y * along / n) * factor;
    });
  if (grad_gain && threadIdx.x == 0) grad_gain[blockIdx.x] += along * scale;
}

// How a kernel passes over images.
struct Passage {
  int height, width, out_height, out_width, side, stride, above, before;
};

// The pixel of its image under a tap at a position, -1 in the padding.
__device__ __forceinline__ int pixel_of(const Passage& p, int position, int tap) {
  const int y = position / p.out_width * p.stride + tap / p.side - p.above;
  const int x = position % p.out_width * p.stride + tap % p.side - p.before;
  return y >= 0 && y < p.height && x >= 0 && x < p.width ? y * p.width + x : -1;
}

// What the taps see of `channels` channels from `channel` on: rows [T * channels] of positions from
// `first` on. A block a position.
template <class T>
__device__ void see(const T* x, T* out, Passage p, long long first, int width, int channel,
                    int channels) {
  const long long position = first + blockIdx.x;
  const int positions = p.out_height * p.out_width;
  const long long image = position / positions * (p.height * p.width);
  const int taps = p.side * p.side;
  each_of(taps * channels, [&](int i) {
    const int pixel = pixel_of(p, position % positions, i / channels);
    const T zero = from_float<T>(0.0f);
    out[static_cast<long long>(blockIdx.x) * taps * channels + i] =
        pixel < 0 ? zero : x[(image + pixel) * width + channel + i % channels];
  });
}

// The gradient of pixels from that of what the taps saw: a block a pixel, of images from `image` on.
template <class T>
__device__ void unsee(const T* seen, T* grad, Passage p, int width, int channel, int channels) {
  const int pixels = p.height * p.width, positions = p.out_height * p.out_width;
  const int taps = p.side * p.side;
  const long long image = blockIdx.x / pixels;
  const int y = blockIdx.x % pixels / p.width, x = blockIdx.x % pixels % p.width;
  each_of(channels, [&](int c) {
    float sum = 0.0f;
    for (int tap = 0; tap < taps; ++tap) {
      const int top = y + p.above - tap / p.side, left = x + p.before - tap % p.side;
      if (top < 0 || left < 0 || top % p.stride || left % p.stride) continue;
      const int line = top / p.stride, column = left / p.stride;
      if (line >= p.out_height || column >= p.out_width) continue;
      const long long position = image * positions + line * p.out_width + column;
      sum += to_float(seen[(position * taps + tap) * channels + c]);
    }
    grad[static_cast<long long>(blockIdx.x) * width + channel + c] = from_float<T>(sum);
  });
}

// Averages of squares of two by two pixels; at an odd border of the pixels that there are. A block a
// pixel that comes out.
template <class T>
__device__ void halve(const T* x, T* out, int height, int width, int channels) {
  const int small_height = (height + 1) / 2, small_width = (width + 1) / 2;
  const long long image = blockIdx.x / (small_height * small_width);
  const int place = blockIdx.x % (small_height * small_width);
  const int top = place / small_width * 2, left = place % small_width * 2;
  const int bottom = min(top + 2, height), right = min(left + 2, width);
  const float share = 1.0f / ((bottom - top) * (right - left));
  each_of(channels, [&](int c) {
    float sum = 0.0f;
    for (int i = top; i < bottom; ++i)
      for (int j = left; j < right; ++j)
        sum += to_float(x[((image * height + i) * width + j) * channels + c]);
    out[static_cast<long long>(blockIdx.x) * channels + c] = from_float<T>(share * sum);
  });
}

// A block a pixel that came in.
template <class T>
__device__ void halve_backward(const T* grad_out, T* grad, int height, int width, int channels) {
  const int small_height = (height + 1) / 2, small_width = (width + 1) / 2;
  const long long image = blockIdx.x / (height * width);
  const int place = blockIdx.x % (height * width);
  const int top = place / width / 2 * 2, left = place % width / 2 * 2;
  const float share = 1.0f / ((min(top + 2, height) - top) * (min(left + 2, width) - left));
  const long long from = (image * small_height + top / 2) * small_width + left / 2;
  each_of(channels, [&](int c) {
    grad[static_cast<long long>(blockIdx.x) * channels + c] =
        from_float<T>(share * to_float(grad_out[from * channels + c]));
  });
}

__device__ __forceinline__ float opening(float logit) { return 1.0f / (1.0f + __expf(-logit)); }

// residual + factor * gain * sigmoid(logits of the image) * x. A block a pixel.
template <class T>
__device__ void excite(const T* x, const T* residual, const float* logits, const float* gain, T* out,
                       int pixels, int channels, float factor) {
  const long long image = blockIdx.x / pixels;
  const long long at = static_cast<long long>(blockIdx.x) * channels;
  const float times = factor * *gain;
  each_of(channels, [&](int c) {
    const float open = opening(logits[image * channels + c]);
    out[at + c] = from_float<T>(to_float(residual[at + c]) + times * open * to_float(x[at + c]));
  });
}

// The gradient of x: as what is excited, and by the mean over the pixels of its image.
template <class T>
__device__ void excite_backward(const T* grad_out, const float* logits, const float* gain,
                                const float* grad_means, T* grad, int pixels, int channels,
                                float factor) {
  const long long image = blockIdx.x / pixels;
  const long long at = static_cast<long long>(blockIdx.x) * channels;
  const float times = factor * *gain, share = 1.0f / pixels;
  each_of(channels, [&](int c) {
    const float open = opening(logits[image * channels + c]);
    grad[at + c] = from_float<T>(times * open * to_float(grad_out[at + c]) +
                                 share * grad_means[image * channels + c]);
  });
}

// Calls put(c, sum of value(place) over the pixels of the image) for 32 channels. 32 by 8 threads in one
// dimension; grid (channels / 32, images).
template <class Value, class Put>
__device__ __forceinline__ void sum_image(int pixels, int channels, Value value, Put put) {
  SHARED(float, sums, [8][32]);
  const int lane = threadIdx.x % 32, line = threadIdx.x / 32, c = blockIdx.x * 32 + lane;
  float sum = 0.0f;
  if (c < channels)
    for (int pixel = line; pixel < pixels; pixel += 8)
      sum += value((static_cast<long long>(blockIdx.y) * pixels + pixel) * channels + c);
  sums[line][lane] = sum;
  __syncthreads();
  if (line == 0 && c < channels) {
    sum = 0.0f;
    for (int i = 0; i < 8; ++i) sum += sums[i][lane];
    put(static_cast<long long>(blockIdx.y) * channels + c, sum);
  }
}

// The mean over the pixels of each image.
template <class T>
__device__ void mean_pixels(const T* x, float* means, int pixels, int channels) {
  sum_image(
      pixels, channels, [&](long long at) { return to_float(x[at]); },
      [&](long long at, float sum) { means[at] = sum / pixels; });
}

// Of each image, from the sums of grad_out * x: the gradient of the logits, and in `along` what the gain gets
// from each channel.
template <class T>
__device__ void excite_sums(const T* grad_out, const T* x, const float* logits, const float* gain,
                            float* grad_logits, float* along, int pixels, int channels,
                            float factor) {
  sum_image(
      pixels, channels, [&](long long at) { return to_float(grad_out[at]) * to_float(x[at]); },
      [&](long long at, float sum) {
        const float open = opening(logits[at]);
        grad_logits[at] = factor * *gain * open * (1.0f - open) * sum;
        along[at] = factor * open * sum;
      });
}

#define BOTH(T, S)                                                                               \
  KERNEL standardize_##S(const float* weight, const float* gain, T* out, int inputs, int taps,   \
                         int outputs, float epsilon, float scale) {                              \
    standardize(weight, gain, out, inputs, taps, outputs, epsilon, scale);                       \
  }                                                                                              \
  REGISTER(standardize_##S)                                                                      \
  KERNEL standardize_backward_##S(const float* weight, const float* gain, const T* grad_out,     \
                                  float* grad, float* grad_gain, int inputs, int taps,           \
                                  int outputs, float epsilon, float scale) {                     \
    standardize_backward(weight, gain, grad_out, grad, grad_gain, inputs, taps, outputs,         \
                         epsilon, scale);                                                        \
  }                                                                                              \
  REGISTER(standardize_backward_##S)                                                             \
  KERNEL see_##S(const T* x, T* out, int height, int width, int out_height, int out_width,       \
                 int side, int stride, int above, int before, long long first, int row,          \
                 int channel, int channels) {                                                    \
    const Passage p = {height, width, out_height, out_width, side, stride, above, before};       \
    see(x, out, p, first, row, channel, channels);                                               \
  }                                                                                              \
  REGISTER(see_##S)                                                                              \
  KERNEL unsee_##S(const T* seen, T* grad, int height, int width, int out_height, int out_width, \
                   int side, int stride, int above, int before, int row, int channel,            \
                   int channels) {                                                               \
    const Passage p = {height, width, out_height, out_width, side, stride, above, before};       \
    unsee(seen, grad, p, row, channel, channels);                                                \
  }                                                                                              \
  REGISTER(unsee_##S)                                                                            \
  KERNEL halve_##S(const T* x, T* out, int height, int width, int channels) {                    \
    halve(x, out, height, width, channels);                                                      \
  }                                                                                              \
  REGISTER(halve_##S)                                                                            \
  KERNEL halve_backward_##S(const T* grad_out, T* grad, int height, int width, int channels) {   \
    halve_backward(grad_out, grad, height, width, channels);                                     \
  }                                                                                              \
  REGISTER(halve_backward_##S)                                                                   \
  KERNEL excite_##S(const T* x, const T* residual, const float* logits, const float* gain,       \
                    T* out, int pixels, int channels, float factor) {                            \
    excite(x, residual, logits, gain, out, pixels, channels, factor);                            \
  }                                                                                              \
  REGISTER(excite_##S)                                                                           \
  KERNEL excite_backward_##S(const T* grad_out, const float* logits, const float* gain,          \
                             const float* grad_means, T* grad, int pixels, int channels,         \
                             float factor) {                                                     \
    excite_backward(grad_out, logits, gain, grad_means, grad, pixels, channels, factor);         \
  }                                                                                              \
  REGISTER(excite_backward_##S)                                                                  \
  KERNEL mean_pixels_##S(const T* x, float* means, int pixels, int channels) {                   \
    mean_pixels(x, means, pixels, channels);                                                     \
  }                                                                                              \
  REGISTER(mean_pixels_##S)                                                                      \
  KERNEL excite_sums_##S(const T* grad_out, const T* x, const float* logits, const float* gain,  \
                         float* grad_logits, float* along, int pixels, int channels,             \
                         float factor) {                                                         \
    excite_sums(grad_out, x, logits, gain, grad_logits, along, pixels, channels, factor);        \
  }                                                                                              \
  REGISTER(excite_sums_##S)
BOTH(float, f32)
BOTH(bf16, bf16)
#undef BOTH
