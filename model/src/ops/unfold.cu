// Squares of pixels as rows, which a vision tower multiplies by its first kernel.
#include "common.cuh"

__device__ __forceinline__ float number(float pixel, const float*, int) { return pixel; }

// `normal` has a factor for each channel, then what is taken off each. Product and difference are rounded one
// after the other, as the processor does it.
__device__ __forceinline__ float number(unsigned char pixel, const float* normal, int channel) {
  return __fsub_rn(__fmul_rn(static_cast<float>(pixel), normal[channel]), normal[3 + channel]);
}

// Images [images, 3, size, size] to rows [images * squares, 3 * patch * patch], lines of squares first. One
// value a thread; an image has `blocks` blocks.
template <class P, class T>
__device__ void unfold(const P* pixels, const float* normal, T* out, int size, int patch, int blocks) {
  const int n = 3 * size * size, area = patch * patch, side = size / patch;
  const int i = blockIdx.x % blocks * blockDim.x + threadIdx.x;
  if (i >= n) return;
  const long long image = static_cast<long long>(blockIdx.x / blocks) * n;
  const int square = i / (3 * area), place = i % (3 * area);
  const int channel = place / area, y = place % area / patch, x = place % patch;
  const int line = square / side * patch + y, column = square % side * patch + x;
  const P pixel = pixels[image + (channel * size + line) * size + column];
  out[image + i] = from_float<T>(number(pixel, normal, channel));
}

#define BOTH(T, S)                                                                              \
  KERNEL unfold_numbers_##S(const float* pixels, T* out, int size, int patch, int blocks) {     \
    unfold(pixels, static_cast<const float*>(nullptr), out, size, patch, blocks);               \
  }                                                                                             \
  REGISTER(unfold_numbers_##S)                                                                  \
  KERNEL unfold_bytes_##S(const unsigned char* pixels, const float* normal, T* out, int size,   \
                          int patch, int blocks) {                                              \
    unfold(pixels, normal, out, size, patch, blocks);                                           \
  }                                                                                             \
  REGISTER(unfold_bytes_##S)
BOTH(float, f32)
BOTH(bf16, bf16)
#undef BOTH
