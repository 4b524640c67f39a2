// Rotary position embeddings. One block a row.
#include "common.cuh"

// Turns the pairs of the first `heads` heads of a row, which lie `half` apart, by the row's position.
template <class T>
__device__ void rotate(T* x, const int* positions, const float* speeds, int width, int heads,
                       int size, int half, float sign) {
  T* row = x + static_cast<long long>(blockIdx.x) * width;
  const float position = static_cast<float>(positions[blockIdx.x]);
  for (int i = threadIdx.x; i < heads * half; i += blockDim.x) {
    T* pair = row + i / half * size + i % half;
    float sine, cosine;
    sincosf(position * speeds[i % half], &sine, &cosine);
    sine *= sign;
    const float a = to_float(pair[0]), b = to_float(pair[half]);
    pair[0] = from_float<T>(a * cosine - b * sine);
    pair[half] = from_float<T>(b * cosine + a * sine);
  }
}

KERNEL rotate_f32(float* x, const int* positions, const float* speeds, int width, int heads,
                  int size, int half, float sign) {
  rotate(x, positions, speeds, width, heads, size, half, sign);
}
REGISTER(rotate_f32)
KERNEL rotate_bf16(bf16* x, const int* positions, const float* speeds, int width, int heads,
                   int size, int half, float sign) {
  rotate(x, positions, speeds, width, heads, size, half, sign);
}
REGISTER(rotate_bf16)
