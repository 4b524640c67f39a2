// Copies, sums, and sums behind a tanh gate.
#include "elementwise.cuh"

template <class From, class To>
__device__ void copy(const From* from, To* to, long long n) {
  const long long i = first_of_thread();
  if (i < n) Eight::load(from + i, n - i).store(to + i, n - i);
}

template <class T>
__device__ void add_to(T* sum, const T* delta, long long n) {
  const long long i = first_of_thread();
  if (i >= n) return;
  Eight a = Eight::load(sum + i, n - i);
  const Eight b = Eight::load(delta + i, n - i);
#pragma unroll
  for (int k = 0; k < 8; ++k) a.v[k] += b.v[k];
  a.store(sum + i, n - i);
}

template <class T>
__device__ void add_gated(const T* y, const T* x, const float* gate, T* out, long long n) {
  const long long i = first_of_thread();
  if (i >= n) return;
  const float opening = tanhf(*gate);
  const Eight a = Eight::load(y + i, n - i);
  Eight b = Eight::load(x + i, n - i);
#pragma unroll
  for (int k = 0; k < 8; ++k) b.v[k] += opening * a.v[k];
  b.store(out + i, n - i);
}

// The gradient of y, and this block's part of the gate's before its slope.
template <class T>
__device__ void add_gated_backward(const T* grad_out, const T* y, const float* gate, T* grad_y,
                                   float* partial, long long n) {
  SHARED(float, shared, [32]);
  const float opening = tanhf(*gate);
  float dot = 0.0f;
  const long long step = 8LL * gridDim.x * blockDim.x;
  for (long long i = first_of_thread(); i < n; i += step) {
    Eight g = Eight::load(grad_out + i, n - i);
    const Eight v = Eight::load(y + i, n - i);
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      dot += g.v[k] * v.v[k];
      g.v[k] *= opening;
    }
    if (grad_y) g.store(grad_y + i, n - i);
  }
  dot = block_sum(dot, shared);
  if (threadIdx.x == 0) partial[blockIdx.x] = dot;
}

// One block: adds the parts of the gate's gradient.
KERNEL gate_gradient(const float* partial, const float* gate, float* grad_gate, int parts) {
  SHARED(float, shared, [32]);
  float sum = 0.0f;
  for (int i = threadIdx.x; i < parts; i += blockDim.x) sum += partial[i];
  sum = block_sum(sum, shared);
  const float opening = tanhf(*gate);
  if (threadIdx.x == 0) *grad_gate += sum * (1.0f - opening * opening);
}
REGISTER(gate_gradient)

KERNEL copy_f32_to_f32(const float* from, float* to, long long n) { copy(from, to, n); }
KERNEL copy_f32_to_bf16(const float* from, bf16* to, long long n) { copy(from, to, n); }
KERNEL copy_bf16_to_f32(const bf16* from, float* to, long long n) { copy(from, to, n); }
KERNEL copy_bf16_to_bf16(const bf16* from, bf16* to, long long n) { copy(from, to, n); }
REGISTER(copy_f32_to_f32)
REGISTER(copy_f32_to_bf16)
REGISTER(copy_bf16_to_f32)
REGISTER(copy_bf16_to_bf16)

#define BOTH(T, S)                                                                              \
  KERNEL add_to_##S(T* sum, const T* delta, long long n) { add_to(sum, delta, n); }             \
  REGISTER(add_to_##S)                                                                          \
  KERNEL add_gated_##S(const T* y, const T* x, const float* gate, T* out, long long n) {        \
    add_gated(y, x, gate, out, n);                                                              \
  }                                                                                             \
  REGISTER(add_gated_##S)                                                                       \
  KERNEL add_gated_backward_##S(const T* grad_out, const T* y, const float* gate, T* grad_y,    \
                                float* partial, long long n) {                                  \
    add_gated_backward(grad_out, y, gate, grad_y, partial, n);                                  \
  }                                                                                             \
  REGISTER(add_gated_backward_##S)
BOTH(float, f32)
BOTH(bf16, bf16)
#undef BOTH
