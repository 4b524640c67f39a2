// Activations of the feed-forward layers, alone and as gates.
#include "elementwise.cuh"

// In the order of the enumeration on the host.
enum { GELU, GELU_TANH, QUICK_GELU, RELU, SILU, SQUARED_RELU };

__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + __expf(-x)); }

__device__ __forceinline__ float tanh_argument(float x) {
  return 0.7978845608f * (x + 0.044715f * x * x * x);
}

__device__ __forceinline__ float activated(int kind, float x) {
  switch (kind) {
    case GELU: return 0.5f * x * (1.0f + erff(x * 0.7071067812f));
    case GELU_TANH: return x * sigmoid(2.0f * tanh_argument(x));
    case QUICK_GELU: return x * sigmoid(1.702f * x);
    case RELU: return fmaxf(x, 0.0f);
    case SILU: return x * sigmoid(x);
    default: return fmaxf(x, 0.0f) * fmaxf(x, 0.0f);
  }
}

__device__ __forceinline__ float slope(int kind, float x) {
  switch (kind) {
    case GELU:
      return 0.5f * (1.0f + erff(x * 0.7071067812f)) + x * 0.3989422804f * __expf(-0.5f * x * x);
    case GELU_TANH: {
      const float s = sigmoid(2.0f * tanh_argument(x));
      const float inner = 0.7978845608f * (1.0f + 3.0f * 0.044715f * x * x);
      return s + x * 2.0f * s * (1.0f - s) * inner;
    }
    case QUICK_GELU: {
      const float s = sigmoid(1.702f * x);
      return s + 1.702f * x * s * (1.0f - s);
    }
    case RELU: return x > 0.0f ? 1.0f : 0.0f;
    case SILU: {
      const float s = sigmoid(x);
      return s + x * s * (1.0f - s);
    }
    default: return 2.0f * fmaxf(x, 0.0f);
  }
}

template <class T>
__device__ void activate(const T* x, T* out, long long n, int kind, float factor) {
  const long long i = first_of_thread();
  if (i >= n) return;
  Eight v = Eight::load(x + i, n - i);
#pragma unroll
  for (int k = 0; k < 8; ++k) v.v[k] = factor * activated(kind, v.v[k]);
  v.store(out + i, n - i);
}

// Turns the gradient of the output into that of the input.
template <class T>
__device__ void activate_backward(const T* x, T* grad, long long n, int kind, float factor) {
  const long long i = first_of_thread();
  if (i >= n) return;
  const Eight v = Eight::load(x + i, n - i);
  Eight g = Eight::load(grad + i, n - i);
#pragma unroll
  for (int k = 0; k < 8; ++k) g.v[k] *= factor * slope(kind, v.v[k]);
  g.store(grad + i, n - i);
}

// Calls visit(row, column, count) for the eight values of this thread, or fewer, of rows of `hidden`.
template <class Visit>
__device__ __forceinline__ void eight_of_rows(int rows, int hidden, Visit visit) {
  const int pieces = (hidden + 7) / 8;
  const long long i = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= static_cast<long long>(rows) * pieces) return;
  const int column = static_cast<int>(i % pieces) * 8;
  visit(i / pieces, column, hidden - column);
}

// Eight values from `p` on, by wide loads if the rows are whole ones of eight.
template <class T>
__device__ __forceinline__ Eight eight(const T* p, int count, bool wide) {
  if (wide) return Eight::load(p, 8);
  Eight out;
#pragma unroll
  for (int k = 0; k < 8; ++k) out.v[k] = k < count ? to_float(p[k]) : 0.0f;
  return out;
}

template <class T>
__device__ __forceinline__ void put_eight(const Eight& x, T* p, int count, bool wide) {
  if (wide) return x.store(p, 8);
#pragma unroll
  for (int k = 0; k < 8; ++k)
    if (k < count) p[k] = from_float<T>(x.v[k]);
}

// Rows [a, b] of x to activation(a) * b.
template <class T>
__device__ void activate_gate(const T* x, T* out, int rows, int hidden, int kind) {
  const bool wide = hidden % 8 == 0;
  eight_of_rows(rows, hidden, [&](long long row, int column, int count) {
    const T* from = x + row * 2 * hidden + column;
    Eight a = eight(from, count, wide);
    const Eight b = eight(from + hidden, count, wide);
#pragma unroll
    for (int k = 0; k < 8; ++k) a.v[k] = activated(kind, a.v[k]) * b.v[k];
    put_eight(a, out + row * hidden + column, count, wide);
  });
}

template <class T>
__device__ void activate_gate_backward(const T* x, const T* grad_out, T* grad, int rows, int hidden,
                                       int kind) {
  const bool wide = hidden % 8 == 0;
  eight_of_rows(rows, hidden, [&](long long row, int column, int count) {
    const long long at = row * 2 * hidden + column;
    Eight a = eight(x + at, count, wide), b = eight(x + at + hidden, count, wide);
    const Eight g = eight(grad_out + row * hidden + column, count, wide);
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      const float of_a = g.v[k] * b.v[k] * slope(kind, a.v[k]);
      b.v[k] = g.v[k] * activated(kind, a.v[k]);
      a.v[k] = of_a;
    }
    put_eight(a, grad + at, count, wide);
    put_eight(b, grad + at + hidden, count, wide);
  });
}

#define BOTH(T, S)                                                                              \
  KERNEL activate_##S(const T* x, T* out, long long n, int kind, float factor) {                \
    activate(x, out, n, kind, factor);                                                          \
  }                                                                                             \
  REGISTER(activate_##S)                                                                        \
  KERNEL activate_backward_##S(const T* x, T* grad, long long n, int kind, float factor) {      \
    activate_backward(x, grad, n, kind, factor);                                                \
  }                                                                                             \
  REGISTER(activate_backward_##S)                                                               \
  KERNEL activate_gate_##S(const T* x, T* out, int rows, int hidden, int kind) {                \
    activate_gate(x, out, rows, hidden, kind);                                                     \
  }                                                                                             \
  REGISTER(activate_gate_##S)                                                                   \
  KERNEL activate_gate_backward_##S(const T* x, const T* grad_out, T* grad, int rows,           \
                                    int hidden, int kind) {                                     \
    activate_gate_backward(x, grad_out, grad, rows, hidden, kind);                                 \
  }                                                                                             \
  REGISTER(activate_gate_backward_##S)
BOTH(float, f32)
BOTH(bf16, bf16)
#undef BOTH
