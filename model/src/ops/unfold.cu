// Squares of pixels as rows, which a vision tower multiplies by its first kernel; values of 256 are augmented and
// normalised on the way. Products and sums are rounded one after the other, as the processor does it
// (`../pixels.rs`): what the compiler contracts would be other numbers.
#include "common.cuh"

// What is done with an image, as `FrameAugment` in Rust: the rectangle that it takes, and how it changes there.
struct Frame {
  int left, top, width, height, flip;
  float brightness, contrast, saturation;
};

struct Colours {
  float red, green, blue;
};

__device__ __forceinline__ float clamped(float x) { return x < 0.0f ? 0.0f : x > 255.0f ? 255.0f : x; }

__device__ __forceinline__ bool is_a_change(float factor) {
  return fabsf(__fsub_rn(factor, 1.0f)) > 1.1920929e-7f;
}

__device__ __forceinline__ float luma(Colours c) {
  const float red_green = __fadd_rn(__fmul_rn(0.299f, c.red), __fmul_rn(0.587f, c.green));
  return __fadd_rn(red_green, __fmul_rn(0.114f, c.blue));
}

// Red, green and blue of place `i` of an image whose planes have `plane` values.
__device__ __forceinline__ Colours bright(const unsigned char* image, int plane, int i, float factor) {
  const unsigned char* const p = image + i;
  return {clamped(__fmul_rn(p[0], factor)), clamped(__fmul_rn(p[plane], factor)),
          clamped(__fmul_rn(p[2 * plane], factor))};
}

__device__ __forceinline__ float spread(float value, float grey, float factor) {
  return clamped(__fadd_rn(grey, __fmul_rn(__fsub_rn(value, grey), factor)));
}

__device__ __forceinline__ Colours spread(Colours c, float grey, float factor) {
  return {spread(c.red, grey, factor), spread(c.green, grey, factor), spread(c.blue, grey, factor)};
}

// `normal` has a factor for each channel, then what is taken off each.
__device__ __forceinline__ float normalised(float value, const float* normal, int channel) {
  return __fsub_rn(__fmul_rn(value, normal[channel]), normal[3 + channel]);
}

// Numbers, as they are.
struct Numbers {
  const float* pixels;
  __device__ __forceinline__ float operator()(int image, int size, int channel, int place) const {
    const int plane = size * size;
    return pixels[static_cast<long long>(image) * 3 * plane + channel * plane + place];
  }
};

// Values of 256 of images that do not change.
struct Bytes {
  const unsigned char* values;
  const float* normal;
  __device__ __forceinline__ float operator()(int image, int size, int channel, int place) const {
    const int plane = size * size;
    const float value = values[static_cast<long long>(image) * 3 * plane + channel * plane + place];
    return normalised(value, normal, channel);
  }
};

// Values of 256 of images that change; `greys` has the mean grey of those whose contrast does.
struct Augmented {
  const unsigned char* values;
  const float* normal;
  const Frame* frames;
  const float* greys;
  __device__ __forceinline__ float operator()(int image, int size, int channel, int place) const {
    const Frame frame = frames[image];
    const int x = place % size - frame.left, y = place / size - frame.top;
    if (x < 0 || y < 0 || x >= frame.width || y >= frame.height) return 0.0f;
    const int from = place - x + (frame.flip ? frame.width - 1 - x : x), plane = size * size;
    const unsigned char* const pixels = values + static_cast<long long>(image) * 3 * plane;
    Colours colours = bright(pixels, plane, from, frame.brightness);
    if (is_a_change(frame.contrast)) colours = spread(colours, greys[image], frame.contrast);
    if (is_a_change(frame.saturation)) colours = spread(colours, luma(colours), frame.saturation);
    const float value = channel == 0 ? colours.red : channel == 1 ? colours.green : colours.blue;
    return normalised(value, normal, channel);
  }
};

// The mean grey of each image whose contrast changes, after its brightness did: a block of 256 threads an image.
// Greys are whole numbers of steps of 2^-18, whose sum in f64 is exact whatever its order: at most 2^26 each of
// at most 2^26 pixels.
KERNEL mean_greys(const unsigned char* values, const Frame* frames, float* greys, int size) {
  SHARED(double, sums, [256]);
  const float steps = 262144.0f;
  const Frame frame = frames[blockIdx.x];
  if (!is_a_change(frame.contrast)) return;
  const int plane = size * size, n = frame.width * frame.height;
  const unsigned char* const pixels = values + static_cast<long long>(blockIdx.x) * 3 * plane;
  long long sum = 0;
  for (int i = threadIdx.x; i < n; i += blockDim.x) {
    const int place = (frame.top + i / frame.width) * size + frame.left + i % frame.width;
    sum += static_cast<int>(__fmul_rn(luma(bright(pixels, plane, place, frame.brightness)), steps));
  }
  const double all = sum_of_block(static_cast<double>(sum), sums);
  if (threadIdx.x == 0) {
    greys[blockIdx.x] = static_cast<float>(all / (static_cast<double>(n) * steps));
  }
}
REGISTER(mean_greys)

// Images [images, 3, size, size] to rows [images * squares, 3 * patch * patch], lines of squares first. One
// value a thread; an image has `blocks` blocks.
template <class Source, class T>
__device__ void unfold(Source source, T* out, int size, int patch, int blocks) {
  const int n = 3 * size * size, area = patch * patch, side = size / patch;
  const int image = blockIdx.x / blocks, i = blockIdx.x % blocks * blockDim.x + threadIdx.x;
  if (i >= n) return;
  const int square = i / (3 * area), rest = i % (3 * area);
  const int channel = rest / area, y = rest % area / patch, x = rest % patch;
  const int line = square / side * patch + y, column = square % side * patch + x;
  const float number = source(image, size, channel, line * size + column);
  out[static_cast<long long>(image) * n + i] = from_float<T>(number);
}

#define BOTH(T, S)                                                                                \
  KERNEL unfold_numbers_##S(const float* pixels, T* out, int size, int patch, int blocks) {       \
    unfold(Numbers{pixels}, out, size, patch, blocks);                                            \
  }                                                                                               \
  REGISTER(unfold_numbers_##S)                                                                    \
  KERNEL unfold_bytes_##S(const unsigned char* values, const float* normal, T* out, int size,     \
                          int patch, int blocks) {                                                \
    unfold(Bytes{values, normal}, out, size, patch, blocks);                                      \
  }                                                                                               \
  REGISTER(unfold_bytes_##S)                                                                      \
  KERNEL unfold_augmented_##S(const unsigned char* values, const float* normal,                   \
                              const Frame* frames, const float* greys, T* out, int size,          \
                              int patch, int blocks) {                                            \
    unfold(Augmented{values, normal, frames, greys}, out, size, patch, blocks);                   \
  }                                                                                               \
  REGISTER(unfold_augmented_##S)
BOTH(float, f32)
BOTH(bf16, bf16)
#undef BOTH
