// Attention forward and backward, tile by tile: scores live in registers and are never stored; the
// backward pass makes them again from the log-sum-exp of each row (FlashAttention-2, Dao 2023).
//
// A row is one token; head h of the queries lies at column h * size, of the keys and values at column
// (h * kv_heads / heads) * size. What a query sees is a prefix of its tile's keys that grows by one with
// each query: causal, windowless attention of packed sequences, and full attention with `seen` large.
//
// Query tiles are rows of 8 ints {q_first, q_count, k_first, k_count, seen}: query i sees key j iff
// j < min(k_count, seen + i). Key tiles are {k_first, k_count, span_first, span_count}; their spans
// {q_first, q_count, seen, key_offset}: query i of the span sees key j of the tile iff
// key_offset + j < seen + i. Slopes (ALiBi) take slope * (seen + i - 1 - key) off a score.
//
// Launches: forward and backward_q on grid (query tiles, heads), backward_kv on (key tiles, kv_heads),
// delta on ceil(rows * heads / 8) blocks. Longer tiles are best listed first: blocks start in order.
//
// kernel                  rows of a tile   threads   bytes of dynamic shared memory
// attention_delta_*            -             256         0
// attention_forward_*         16             256         0
// attention_backward_q_*      16             256         0
// attention_backward_kv_*     16 keys        256         0
// attention_forward_tc32     128             128     20480
//                     64     128             128     36864
//                     80     128             128     45056
//                     96     128             128     79872
//                    128     128             128    104448
// attention_backward_q_tc32  128             128     40960
//                        64  128             128     73728
//                        80  128             128     90112
//                        96  128             128    106496
//                       128  128             128    104448
// attention_backward_kv_tc32 128 keys        128     21648
//                         64 128 keys        128     38032
//                         80  64 keys        128     46224
//                         96  64 keys        128     54416
//                        128  64 keys        128     70800
//
// Those with `tc` (tensor cores, bf16) want strides and first columns that are multiples of 8 values, and
// addresses that are multiples of 16 bytes. `Plan` below has their numbers as formulas.
#include "tensor_core.cuh"

// Named, as the emulator takes all kernels as one file.
namespace attention_tiles {
namespace {

constexpr float LOG2E = 1.4426950408889634f;
constexpr float LN2 = 0.6931471805599453f;

// A row that saw nothing has log-sum-exp -inf; its probabilities are 0, not NaN.
__device__ __forceinline__ float finite_or_high(float lse) { return lse == -INFINITY ? INFINITY : lse; }

// ---------------------------------------------------------------------------------------------------
// Plain kernels: any head size, f32 arithmetic. A block of 256 threads holds 16 rows against steps of 32;
// columns pass through shared memory 64 at a time. Of a head wider than PART columns, each part of the
// result makes the scores anew.

constexpr int ROWS = 16;
constexpr int STEP = 32;
constexpr int COLUMNS = 64;
constexpr int THREADS = 256;
constexpr int MOST_CHUNKS = 4;
constexpr int PART = MOST_CHUNKS * COLUMNS;
// One float more than the columns: rows start in different banks.
constexpr int PITCH = COLUMNS + 1;
// Columns of one chunk that a thread sums up.
constexpr int MINE = ROWS * COLUMNS / THREADS;

// Copies up to N rows and 64 columns as floats; what lies outside is 0.
template <int N, class T>
__device__ __forceinline__ void load_chunk(float* to, const T* from, int stride, int rows, int columns) {
  for (int i = threadIdx.x; i < N * COLUMNS; i += THREADS) {
    const int row = i / COLUMNS, column = i % COLUMNS;
    const bool inside = row < rows && column < columns;
    to[row * PITCH + column] = inside ? to_float(from[static_cast<size_t>(row) * stride + column]) : 0.0f;
  }
}

// Products of row `thread / 16` of a with rows `thread % 16` and 16 more of b.
__device__ __forceinline__ void dot_chunk(float sums[2], const float* a, const float* b) {
  const int row = threadIdx.x / ROWS, other = threadIdx.x % ROWS;
#pragma unroll 8
  for (int d = 0; d < COLUMNS; ++d) {
    const float x = a[row * PITCH + d];
    sums[0] += x * b[other * PITCH + d];
    sums[1] += x * b[(other + ROWS) * PITCH + d];
  }
}

// sums += weights[row][0..32] * b, for this thread's columns of a chunk.
__device__ __forceinline__ void weigh_chunk(float sums[MINE], const float* weights, const float* b) {
  const int row = threadIdx.x / ROWS, column = threadIdx.x % ROWS;
#pragma unroll 4
  for (int j = 0; j < STEP; ++j) {
    const float w = weights[row * (STEP + 1) + j];
#pragma unroll
    for (int i = 0; i < MINE; ++i) sums[i] += w * b[j * PITCH + column + i * ROWS];
  }
}

template <class T>
__device__ __forceinline__ void store_chunks(T* to, const float sums[MOST_CHUNKS][MINE], int size, float factor) {
#pragma unroll
  for (int c = 0; c < MOST_CHUNKS; ++c) {
#pragma unroll
    for (int i = 0; i < MINE; ++i) {
      const int column = c * COLUMNS + threadIdx.x % ROWS + i * ROWS;
      if (column < size) to[column] = from_float<T>(sums[c][i] * factor);
    }
  }
}

template <class T>
__device__ __forceinline__ void plain_forward(const T* q, const T* k, const T* v, T* out, float* lse,
                                              const int* tiles, const float* slopes, int heads, int kv_heads,
                                              int size, int q_stride, int kv_stride, int out_stride,
                                              int lse_rows, float scale) {
  __shared__ float rows[ROWS * PITCH];
  __shared__ float keys[STEP * PITCH];
  __shared__ float weights[ROWS * (STEP + 1)];
  const int* tile = tiles + 8 * blockIdx.x;
  const int q_first = tile[0], q_count = tile[1], k_first = tile[2], k_count = tile[3], seen = tile[4];
  const int head = blockIdx.y, kv_head = head * kv_heads / heads;
  const float slope = slopes ? slopes[head] : 0.0f;
  q += static_cast<size_t>(q_first) * q_stride + head * size;
  k += static_cast<size_t>(k_first) * kv_stride + kv_head * size;
  v += static_cast<size_t>(k_first) * kv_stride + kv_head * size;
  const int row = threadIdx.x / ROWS, other = threadIdx.x % ROWS;
  const int limit = min(k_count, seen + row);
  const int end = min(k_count, seen + q_count - 1);

  for (int part = 0; part < size; part += PART) {
    float sums[MOST_CHUNKS][MINE] = {};
    float highest = -INFINITY, total = 0.0f;
    for (int first = 0; first < end; first += STEP) {
      float s[2] = {};
      for (int c = 0; c < size; c += COLUMNS) {
        __syncthreads();
        load_chunk<ROWS>(rows, q + c, q_stride, q_count, size - c);
        load_chunk<STEP>(keys, k + static_cast<size_t>(first) * kv_stride + c, kv_stride, k_count - first, size - c);
        __syncthreads();
        dot_chunk(s, rows, keys);
      }
      float top = highest;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int key = first + other + i * ROWS;
        s[i] = key < limit ? s[i] * scale - slope * static_cast<float>(seen + row - 1 - key) : -INFINITY;
        top = fmaxf(top, s[i]);
      }
#pragma unroll
      for (int offset = ROWS / 2; offset > 0; offset /= 2)
        top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, offset));
      const float base = top == -INFINITY ? 0.0f : top;
      const float factor = expf(highest - base);
      highest = top;
      total *= factor;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float p = expf(s[i] - base);
        total += p;
        weights[row * (STEP + 1) + other + i * ROWS] = p;
      }
#pragma unroll
      for (int c = 0; c < MOST_CHUNKS; ++c) {
        const int column = part + c * COLUMNS;
        if (column >= size) break;
        __syncthreads();
        load_chunk<STEP>(keys, v + static_cast<size_t>(first) * kv_stride + column, kv_stride, k_count - first,
                         size - column);
        __syncthreads();
#pragma unroll
        for (int i = 0; i < MINE; ++i) sums[c][i] *= factor;
        weigh_chunk(sums[c], weights, keys);
      }
    }
#pragma unroll
    for (int offset = ROWS / 2; offset > 0; offset /= 2) total += __shfl_xor_sync(0xffffffffu, total, offset);
    if (row >= q_count) continue;
    store_chunks(out + static_cast<size_t>(q_first + row) * out_stride + head * size + part, sums, size - part,
                 total > 0.0f ? 1.0f / total : 0.0f);
    if (other == 0) lse[static_cast<size_t>(head) * lse_rows + q_first + row] = highest + logf(total);
  }
}

template <class T>
__device__ __forceinline__ void plain_backward_q(const T* q, const T* k, const T* v, const T* grad_out,
                                                 const float* lse, const float* delta, T* grad_q,
                                                 const int* tiles, const float* slopes, int heads, int kv_heads,
                                                 int size, int q_stride, int kv_stride, int out_stride,
                                                 int grad_q_stride, int lse_rows, float scale) {
  __shared__ float rows[ROWS * PITCH];
  __shared__ float grads[ROWS * PITCH];
  __shared__ float keys[STEP * PITCH];
  __shared__ float values[STEP * PITCH];
  __shared__ float weights[ROWS * (STEP + 1)];
  const int* tile = tiles + 8 * blockIdx.x;
  const int q_first = tile[0], q_count = tile[1], k_first = tile[2], k_count = tile[3], seen = tile[4];
  const int head = blockIdx.y, kv_head = head * kv_heads / heads;
  const float slope = slopes ? slopes[head] : 0.0f;
  q += static_cast<size_t>(q_first) * q_stride + head * size;
  grad_out += static_cast<size_t>(q_first) * out_stride + head * size;
  k += static_cast<size_t>(k_first) * kv_stride + kv_head * size;
  v += static_cast<size_t>(k_first) * kv_stride + kv_head * size;
  const int row = threadIdx.x / ROWS, other = threadIdx.x % ROWS;
  const int limit = min(k_count, seen + row);
  const int end = min(k_count, seen + q_count - 1);
  const size_t place = static_cast<size_t>(head) * lse_rows + q_first + row;
  const float row_lse = row < q_count ? finite_or_high(lse[place]) : INFINITY;
  const float row_delta = row < q_count ? delta[place] : 0.0f;

  for (int part = 0; part < size; part += PART) {
    float sums[MOST_CHUNKS][MINE] = {};
    for (int first = 0; first < end; first += STEP) {
      const size_t step = static_cast<size_t>(first) * kv_stride;
      float s[2] = {}, dp[2] = {};
      for (int c = 0; c < size; c += COLUMNS) {
        __syncthreads();
        load_chunk<ROWS>(rows, q + c, q_stride, q_count, size - c);
        load_chunk<ROWS>(grads, grad_out + c, out_stride, q_count, size - c);
        load_chunk<STEP>(keys, k + step + c, kv_stride, k_count - first, size - c);
        load_chunk<STEP>(values, v + step + c, kv_stride, k_count - first, size - c);
        __syncthreads();
        dot_chunk(s, rows, keys);
        dot_chunk(dp, grads, values);
      }
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int key = first + other + i * ROWS;
        const float score = s[i] * scale - slope * static_cast<float>(seen + row - 1 - key);
        const float p = key < limit ? expf(score - row_lse) : 0.0f;
        weights[row * (STEP + 1) + other + i * ROWS] = p * (dp[i] - row_delta);
      }
#pragma unroll
      for (int c = 0; c < MOST_CHUNKS; ++c) {
        const int column = part + c * COLUMNS;
        if (column >= size) break;
        __syncthreads();
        load_chunk<STEP>(keys, k + step + column, kv_stride, k_count - first, size - column);
        __syncthreads();
        weigh_chunk(sums[c], weights, keys);
      }
    }
    if (row >= q_count) continue;
    store_chunks(grad_q + static_cast<size_t>(q_first + row) * grad_q_stride + head * size + part, sums, size - part,
                 scale);
  }
}

template <class T>
__device__ __forceinline__ void plain_backward_kv(const T* q, const T* k, const T* v, const T* grad_out,
                                                  const float* lse, const float* delta, T* grad_k, T* grad_v,
                                                  const int* key_tiles, const int* spans, const float* slopes,
                                                  int heads, int kv_heads, int size, int q_stride, int kv_stride,
                                                  int out_stride, int grad_kv_stride, int lse_rows, float scale) {
  __shared__ float rows[ROWS * PITCH];
  __shared__ float values[ROWS * PITCH];
  __shared__ float queries[STEP * PITCH];
  __shared__ float grads[STEP * PITCH];
  __shared__ float p_weights[ROWS * (STEP + 1)];
  __shared__ float ds_weights[ROWS * (STEP + 1)];
  const int* tile = key_tiles + 8 * blockIdx.x;
  const int k_first = tile[0], k_count = tile[1], span_first = tile[2], span_count = tile[3];
  const int kv_head = blockIdx.y, group = heads / kv_heads;
  k += static_cast<size_t>(k_first) * kv_stride + kv_head * size;
  v += static_cast<size_t>(k_first) * kv_stride + kv_head * size;
  const int row = threadIdx.x / ROWS, other = threadIdx.x % ROWS;

  for (int part = 0; part < size; part += PART) {
    float dk[MOST_CHUNKS][MINE] = {}, dv[MOST_CHUNKS][MINE] = {};
    for (int head = kv_head * group; head < (kv_head + 1) * group; ++head) {
      const float slope = slopes ? slopes[head] : 0.0f;
      for (int n = 0; n < span_count; ++n) {
        const int* span = spans + 8 * (span_first + n);
        const int q_first = span[0], q_count = span[1], seen = span[2], key_offset = span[3];
        // Queries before this one see no key of the tile.
        for (int first = max(0, key_offset - seen + 1); first < q_count; first += STEP) {
          const size_t q_row = static_cast<size_t>(q_first + first);
          const T* q_here = q + q_row * q_stride + head * size;
          const T* g_here = grad_out + q_row * out_stride + head * size;
          float s[2] = {}, dp[2] = {};
          for (int c = 0; c < size; c += COLUMNS) {
            __syncthreads();
            load_chunk<ROWS>(rows, k + c, kv_stride, k_count, size - c);
            load_chunk<ROWS>(values, v + c, kv_stride, k_count, size - c);
            load_chunk<STEP>(queries, q_here + c, q_stride, q_count - first, size - c);
            load_chunk<STEP>(grads, g_here + c, out_stride, q_count - first, size - c);
            __syncthreads();
            dot_chunk(s, rows, queries);
            dot_chunk(dp, values, grads);
          }
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            const int query = first + other + i * ROWS;
            float p = 0.0f, ds = 0.0f;
            const int distance = seen + query - 1 - (key_offset + row);
            if (query < q_count && row < k_count && distance >= 0) {
              const size_t place = static_cast<size_t>(head) * lse_rows + q_first + query;
              p = expf(s[i] * scale - slope * static_cast<float>(distance) - finite_or_high(lse[place]));
              ds = p * (dp[i] - delta[place]);
            }
            p_weights[row * (STEP + 1) + other + i * ROWS] = p;
            ds_weights[row * (STEP + 1) + other + i * ROWS] = ds;
          }
#pragma unroll
          for (int c = 0; c < MOST_CHUNKS; ++c) {
            const int column = part + c * COLUMNS;
            if (column >= size) break;
            __syncthreads();
            load_chunk<STEP>(queries, q_here + column, q_stride, q_count - first, size - column);
            load_chunk<STEP>(grads, g_here + column, out_stride, q_count - first, size - column);
            __syncthreads();
            weigh_chunk(dk[c], ds_weights, queries);
            weigh_chunk(dv[c], p_weights, grads);
          }
        }
      }
    }
    if (row >= k_count) continue;
    const size_t to = static_cast<size_t>(k_first + row) * grad_kv_stride + kv_head * size + part;
    store_chunks(grad_k + to, dk, size - part, scale);
    store_chunks(grad_v + to, dv, size - part, 1.0f);
  }
}

// One warp for each row and head.
template <class T>
__device__ __forceinline__ void plain_delta(const T* grad_out, const T* out, float* delta, int rows, int heads,
                                            int size, int stride_g, int stride_o, int lse_rows) {
  const long long unit = static_cast<long long>(blockIdx.x) * (THREADS / 32) + threadIdx.x / 32;
  if (unit >= static_cast<long long>(rows) * heads) return;
  const int row = static_cast<int>(unit / heads), head = static_cast<int>(unit % heads);
  const T* g = grad_out + static_cast<size_t>(row) * stride_g + head * size;
  const T* o = out + static_cast<size_t>(row) * stride_o + head * size;
  const int lane = threadIdx.x % 32;
  float sum = 0.0f;
  // The same for all rows and heads, so a warp takes one way.
  constexpr int N = Pack<T>::n;
  const bool wide = size % N == 0 && stride_g % N == 0 && stride_o % N == 0 &&
                    (reinterpret_cast<size_t>(grad_out) | reinterpret_cast<size_t>(out)) % 16 == 0;
  if (wide) {
#pragma unroll 1
    for (int d = lane * N; d < size; d += 32 * N) {
      const Pack<T> a = Pack<T>::load(g + d), b = Pack<T>::load(o + d);
#pragma unroll
      for (int i = 0; i < N; ++i) sum += a.v[i] * b.v[i];
    }
  } else {
#pragma unroll 1
    for (int d = lane; d < size; d += 32) sum += to_float(g[d]) * to_float(o[d]);
  }
  sum = warp_sum(sum);
  if (lane == 0) delta[static_cast<size_t>(head) * lse_rows + row] = sum;
}

}  // namespace
}  // namespace attention_tiles

#define ATTENTION_PLAIN(T, suffix)                                                                                  \
  KERNEL __launch_bounds__(256, 2) attention_delta_##suffix(                                                        \
      const T* grad_out, const T* out, float* delta, int rows, int heads, int size, int stride_g, int stride_o,     \
      int lse_rows) {                                                                                               \
    attention_tiles::plain_delta(grad_out, out, delta, rows, heads, size, stride_g, stride_o, lse_rows);            \
  }                                                                                                                 \
  KERNEL __launch_bounds__(256, 2) attention_forward_##suffix(                                                      \
      const T* q, const T* k, const T* v, T* out, float* lse, const int* tiles, const float* slopes, int heads,     \
      int kv_heads, int size, int q_stride, int kv_stride, int out_stride, int lse_rows, float scale) {             \
    attention_tiles::plain_forward(q, k, v, out, lse, tiles, slopes, heads, kv_heads, size, q_stride, kv_stride,    \
                                   out_stride, lse_rows, scale);                                                    \
  }                                                                                                                 \
  KERNEL __launch_bounds__(256, 2) attention_backward_q_##suffix(                                                   \
      const T* q, const T* k, const T* v, const T* grad_out, const float* lse, const float* delta, T* grad_q,       \
      const int* tiles, const float* slopes, int heads, int kv_heads, int size, int q_stride, int kv_stride,        \
      int out_stride, int grad_q_stride, int lse_rows, float scale) {                                               \
    attention_tiles::plain_backward_q(q, k, v, grad_out, lse, delta, grad_q, tiles, slopes, heads, kv_heads, size,  \
                                      q_stride, kv_stride, out_stride, grad_q_stride, lse_rows, scale);             \
  }                                                                                                                 \
  KERNEL __launch_bounds__(256, 2) attention_backward_kv_##suffix(                                                  \
      const T* q, const T* k, const T* v, const T* grad_out, const float* lse, const float* delta, T* grad_k,       \
      T* grad_v, const int* key_tiles, const int* spans, const float* slopes, int heads, int kv_heads, int size,    \
      int q_stride, int kv_stride, int out_stride, int grad_kv_stride, int lse_rows, float scale) {                 \
    attention_tiles::plain_backward_kv(q, k, v, grad_out, lse, delta, grad_k, grad_v, key_tiles, spans, slopes,     \
                                       heads, kv_heads, size, q_stride, kv_stride, out_stride, grad_kv_stride,      \
                                       lse_rows, scale);                                                            \
  }                                                                                                                 \
  REGISTER(attention_delta_##suffix)                                                                                \
  REGISTER(attention_forward_##suffix)                                                                              \
  REGISTER(attention_backward_q_##suffix)                                                                           \
  REGISTER(attention_backward_kv_##suffix)

namespace attention_tiles {
namespace {

// ---------------------------------------------------------------------------------------------------
// Tensor-core kernels: bf16 in and out, sums in f32. A warp owns TILES * 16 rows (queries, or keys for
// their gradients) with everything that is summed up for them; the other side streams through shared
// memory in two stages, one of which is copied while the other is computed with. One barrier a step.

// Rows in shared memory are 16 bytes longer than their values. Then a row is an odd number of 16 byte
// pieces, and the eight rows that a matrix load reads lie in different banks.
template <int SIZE>
constexpr int PADDED = SIZE + 8;

// Sizes of the kernels of one head size. The accumulators set them: 255 registers a thread.
template <int SIZE>
struct Plan {
  static constexpr int PITCH = PADDED<SIZE>;
  // Queries of a tile, forward and backward_q.
  static constexpr int QUERIES = 128;
  // Keys, or queries for backward_kv, of one step.
  static constexpr int STEP = 64;

  // Forward: 4 warps of 32 rows, so that a matrix of keys or values, once loaded, serves two products.
  static constexpr int F_TILES = 2;
  static constexpr int F_THREADS = QUERIES / (16 * F_TILES) * 32;
  // Larger heads leave no registers for the queries: they are read from shared memory each step.
  static constexpr bool F_HOLD = SIZE <= 80;
  static constexpr int F_BYTES = 2 * PITCH * (4 * STEP + (F_HOLD ? 0 : QUERIES));

  // Gradient of queries: 4 warps of 32 rows.
  static constexpr int Q_TILES = 2;
  static constexpr int Q_THREADS = QUERIES / (16 * Q_TILES) * 32;
  static constexpr bool Q_HOLD = SIZE <= 64;
  // Two blocks must fit in the shared memory of a multiprocessor.
  static constexpr int Q_STEP = SIZE <= 96 ? 64 : 32;
  // Keys whose scores are in registers at one time.
  static constexpr int Q_CHUNK = 32;
  static constexpr int Q_BYTES = 2 * PITCH * (4 * Q_STEP + 2 * QUERIES);

  // Gradient of keys and values: 4 warps.
  static constexpr int KV_TILES = SIZE <= 64 ? 2 : 1;
  static constexpr int KV_THREADS = 128;
  static constexpr int KEYS = KV_THREADS / 32 * KV_TILES * 16;
  // Queries whose scores are in registers at one time.
  static constexpr int KV_CHUNK = SIZE == 64 ? 16 : 32;
  static constexpr int KV_BYTES = 2 * PITCH * (4 * STEP) + 2 * (2 * STEP * 4) + 4 * 32 + 16;
};

// A condition that is known when a kernel is compiled.
template <bool VALUE>
struct Flag {
  static constexpr bool value = VALUE;
};

__device__ __forceinline__ float exp2_fast(float x) {
#ifdef __CUDA_ARCH__
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return exp2f(x);
#endif
}

// Numbers of the thread and its block, read anew: what is derived from them then holds no registers from
// one use to the next, of which there are none to spare.
#ifdef __CUDACC__
#define READ_ANEW(name, source)                              \
  __device__ __forceinline__ unsigned name() {               \
    unsigned value;                                          \
    asm volatile("mov.u32 %0, %%" source ";" : "=r"(value)); \
    return value;                                            \
  }
READ_ANEW(thread_anew, "tid.x")
READ_ANEW(block_x_anew, "ctaid.x")
READ_ANEW(block_y_anew, "ctaid.y")
#undef READ_ANEW
#else
inline unsigned thread_anew() { return threadIdx.x; }
inline unsigned block_x_anew() { return blockIdx.x; }
inline unsigned block_y_anew() { return blockIdx.y; }
#endif

// To the same end: the compiler forgets what it has derived from x.
__device__ __forceinline__ void derive_anew(unsigned& x) {
#ifdef __CUDACC__
  asm volatile("" : "+r"(x));
#endif
}

// Starts a copy of one float; writes 0 where `valid` is false.
__device__ __forceinline__ void cp_async_float(float* shared, const float* global, bool valid) {
#ifdef __CUDACC__
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared_address(shared)),
               "l"(__cvta_generic_to_global(global)), "r"(valid ? 4 : 0)
               : "memory");
#else
  ::emulator::cp_async(shared, global, 4, valid);
#endif
}

// Starts copies of N rows of SIZE values; rows from `rows` on become zeros. (Their addresses may lie
// outside of the array: nothing is read.)
template <int SIZE, int N, int BLOCK>
__device__ __forceinline__ void load_rows(bf16* to, const bf16* from, int stride, int rows) {
  const unsigned thread = thread_anew();
  constexpr int PIECES = SIZE / 8;
  if constexpr (BLOCK % PIECES == 0) {
    constexpr int APART = BLOCK / PIECES;
    static_assert(N % APART == 0, "each thread copies as much");
    const int row = thread / PIECES, column = thread % PIECES * 8;
    from += static_cast<ptrdiff_t>(row) * stride + column;
    to += row * PADDED<SIZE> + column;
#pragma unroll
    for (int i = 0; i < N; i += APART) {
      cp_async_16(to + i * PADDED<SIZE>, from, row + i < rows);
      from += static_cast<ptrdiff_t>(APART) * stride;
    }
  } else {
    static_assert(N * PIECES % BLOCK == 0, "each thread copies as much");
#pragma unroll
    for (int i = 0; i < N * PIECES; i += BLOCK) {
      const unsigned piece = thread + i;
      const int row = piece / PIECES, column = piece % PIECES * 8;
      cp_async_16(to + row * PADDED<SIZE> + column, from + static_cast<ptrdiff_t>(row) * stride + column,
                  row < rows);
    }
  }
}

// Where a lane points for matrix loads of 16 x 16 values: as a left factor, or (transposed) as a right
// factor whose rows are summed over ...
template <int SIZE>
__device__ __forceinline__ int lane_along() {
  const unsigned lane = thread_anew() % 32;
  return lane % 16 * PADDED<SIZE> + lane / 16 * 8;
}

// ... and as a right factor whose columns are summed over.
template <int SIZE>
__device__ __forceinline__ int lane_across() {
  const unsigned lane = thread_anew() % 32;
  return (lane % 8 + lane / 16 * 8) * PADDED<SIZE> + lane / 8 % 2 * 8;
}

// The left factor made of two neighbouring results.
__device__ __forceinline__ void as_left(uint32_t a[4], const float lower[4], const float upper[4]) {
  a[0] = pack_bf16(lower[0], lower[1]);
  a[1] = pack_bf16(lower[2], lower[3]);
  a[2] = pack_bf16(upper[0], upper[1]);
  a[3] = pack_bf16(upper[2], upper[3]);
}

// Stores one row of results, times a factor: `half` is 0 for row lane / 4 and 1 for the row 8 below.
// Neighbouring lanes swap, so that four lanes write 32 bytes in a row. All lanes must come.
template <int SIZE>
__device__ __forceinline__ void store_row(bf16* row, const float sums[SIZE / 8][4], int half, float factor,
                                          bool wanted) {
  const unsigned lane = thread_anew() % 32;
  const bool odd = lane % 2;
  uint2 pieces[SIZE / 16];
#pragma unroll
  for (int n = 0; n < SIZE / 16; ++n) {
    const float* const a = sums[2 * n] + 2 * half;
    const float* const b = sums[2 * n + 1] + 2 * half;
    const uint32_t first = pack_bf16(a[0] * factor, a[1] * factor);
    const uint32_t second = pack_bf16(b[0] * factor, b[1] * factor);
    const uint32_t other = __shfl_xor_sync(0xffffffffu, odd ? first : second, 1);
    pieces[n] = odd ? make_uint2(other, second) : make_uint2(first, other);
  }
  if (!wanted) return;
  row += odd * 8 + lane % 4 / 2 * 4;
#pragma unroll
  for (int n = 0; n < SIZE / 16; ++n) *reinterpret_cast<uint2*>(row + n * 16) = pieces[n];
}

// Left factors of TILES * 16 rows, in registers or read again from shared memory at each use.
template <int SIZE, int TILES, bool HOLD>
struct Left {
  uint32_t held[TILES][HOLD ? SIZE / 16 : 1][4];
  const bf16* rows;

  __device__ __forceinline__ void start(const bf16* from) {
    rows = from + lane_along<SIZE>();
    if constexpr (HOLD) {
#pragma unroll
      for (int m = 0; m < TILES; ++m) {
#pragma unroll
        for (int d = 0; d < SIZE / 16; ++d) ldmatrix_x4(held[m][d], rows + m * 16 * PADDED<SIZE> + d * 16);
      }
    }
  }

  // The factors of columns 16 d and on.
  __device__ __forceinline__ void get(uint32_t a[TILES][4], int d) const {
#pragma unroll
    for (int m = 0; m < TILES; ++m) {
      if constexpr (HOLD) {
#pragma unroll
        for (int i = 0; i < 4; ++i) a[m][i] = held[m][d][i];
      } else {
        ldmatrix_x4(a[m], rows + m * 16 * PADDED<SIZE> + d * 16);
      }
    }
  }
};

// sums += left * rows^T, for N rows and 16 columns from `column` on; the lane's place in the rows.
template <int SIZE, int TILES, int N>
__device__ __forceinline__ void multiply_across(float sums[TILES][N / 8][4], const uint32_t a[TILES][4],
                                                const bf16* lane_rows, int column) {
#pragma unroll
  for (int n = 0; n < N / 16; ++n) {
    uint32_t b[4];
    ldmatrix_x4(b, lane_rows + n * 16 * PADDED<SIZE> + column);
#pragma unroll
    for (int m = 0; m < TILES; ++m) {
      mma_bf16_m16n8k16(sums[m][2 * n], a[m], b);
      mma_bf16_m16n8k16(sums[m][2 * n + 1], a[m], b + 2);
    }
  }
}

// sums += weights * rows, for N rows.
template <int SIZE, int TILES, int N>
__device__ __forceinline__ void multiply_along(float sums[TILES][SIZE / 8][4], const float weights[TILES][N / 8][4],
                                               const bf16* rows) {
  rows += lane_along<SIZE>();
#pragma unroll
  for (int n = 0; n < N / 16; ++n) {
    uint32_t a[TILES][4];
#pragma unroll
    for (int m = 0; m < TILES; ++m) as_left(a[m], weights[m][2 * n], weights[m][2 * n + 1]);
#pragma unroll
    for (int d = 0; d < SIZE / 16; ++d) {
      uint32_t b[4];
      ldmatrix_x4_trans(b, rows + n * 16 * PADDED<SIZE> + d * 16);
#pragma unroll
      for (int m = 0; m < TILES; ++m) {
        mma_bf16_m16n8k16(sums[m][2 * d], a[m], b);
        mma_bf16_m16n8k16(sums[m][2 * d + 1], a[m], b + 2);
      }
    }
  }
}

template <int SIZE>
__device__ __forceinline__ void forward_tc(const bf16* q, const bf16* k, const bf16* v, bf16* out, float* lse,
                                           const int* tiles, const float* slopes, int heads, int kv_heads,
                                           int q_stride, int kv_stride, int out_stride, int lse_rows, float scale) {
  using P = Plan<SIZE>;
  constexpr int TILES = P::F_TILES, BLOCK = P::F_THREADS, STEP = P::STEP, PITCH = P::PITCH;
  constexpr int STAGE = 2 * STEP * PITCH;
  // Before the score of a row may grow by this many powers of two, its sums are not scaled again: the
  // result is the same, and nearly every step goes without.
  constexpr float SLACK = 8.0f;
  DYNAMIC_SHARED(bf16, shared);
  bf16* const stages = shared;
  // Queries in registers pass through the second stage, before it is first used.
  bf16* const queries = P::F_HOLD ? stages + STAGE : stages + 2 * STAGE;
  static_assert(P::F_BYTES == 2 * (2 * STAGE + (P::F_HOLD ? 0 : P::QUERIES * PITCH)), "as the host has it");
  static_assert(!P::F_HOLD || P::QUERIES <= 2 * STEP, "queries fit in a stage");

  const int* tile = tiles + 8 * blockIdx.x;
  const int q_first = tile[0], q_count = tile[1], k_first = tile[2], k_count = tile[3], seen = tile[4];
  const int head = blockIdx.y, kv_column = head * kv_heads / heads * SIZE;
  const float slope = slopes ? __fdividef(slopes[head], scale) : 0.0f;
  const float scale2 = scale * LOG2E;
  q += static_cast<size_t>(q_first) * q_stride + head * SIZE;
  k += static_cast<size_t>(k_first) * kv_stride + kv_column;
  v += static_cast<size_t>(k_first) * kv_stride + kv_column;
  const int end = min(k_count, seen + q_count - 1);

  load_rows<SIZE, P::QUERIES, BLOCK>(queries, q, q_stride, q_count);
  load_rows<SIZE, STEP, BLOCK>(stages, k, kv_stride, end);
  load_rows<SIZE, STEP, BLOCK>(stages + STEP * PITCH, v, kv_stride, end);
  cp_async_commit();

  if constexpr (P::F_HOLD) {
    cp_async_wait<0>();
    __syncthreads();
  }
  Left<SIZE, TILES, P::F_HOLD> left;
  left.start(queries + threadIdx.x / 32 * (16 * TILES) * PITCH);

  float sums[TILES][SIZE / 8][4] = {};
  float base[TILES][2], total[TILES][2];
#pragma unroll
  for (int m = 0; m < TILES; ++m) {
    base[m][0] = base[m][1] = -INFINITY;
    total[m][0] = total[m][1] = 0.0f;
  }

  int stage = 0;
  for (int first = 0; first < end; first += STEP, stage ^= 1) {
    cp_async_wait<0>();
    __syncthreads();
    if (first + STEP < end) {
      bf16* const to = stages + (stage ^ 1) * STAGE;
      const size_t next = static_cast<size_t>(first + STEP) * kv_stride;
      load_rows<SIZE, STEP, BLOCK>(to, k + next, kv_stride, end - first - STEP);
      load_rows<SIZE, STEP, BLOCK>(to + STEP * PITCH, v + next, kv_stride, end - first - STEP);
      cp_async_commit();
    }
    const unsigned thread = thread_anew();
    // Queries of this warp, and of this lane; the lane's first key.
    const int warp_row = thread / 32 * (16 * TILES), row = warp_row + thread % 32 / 4, pair = thread % 4 * 2;
    // No query of this warp sees a key of this step.
    if (first >= seen + warp_row + 16 * TILES - 1) continue;

    const bf16* const keys = stages + stage * STAGE;
    const bf16* const lane_keys = keys + lane_across<SIZE>();
    float s[TILES][STEP / 8][4] = {};
#pragma unroll
    for (int d = 0; d < SIZE / 16; ++d) {
      uint32_t a[TILES][4];
      left.get(a, d);
      multiply_across<SIZE, TILES, STEP>(s, a, lane_keys, d * 16);
    }

    if (slope != 0.0f) {
#pragma unroll
      for (int m = 0; m < TILES; ++m) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float distance = static_cast<float>(seen - 1 + row + m * 16 + i / 2 * 8 - first - pair - i % 2);
#pragma unroll
          for (int n = 0; n < STEP / 8; ++n) s[m][n][i] -= slope * (distance - static_cast<float>(n * 8));
        }
      }
    }
    if (first + STEP > min(k_count, seen + warp_row)) {
#pragma unroll
      for (int m = 0; m < TILES; ++m) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int visible = min(k_count, seen + row + m * 16 + i / 2 * 8) - first - pair - i % 2;
#pragma unroll
          for (int n = 0; n < STEP / 8; ++n)
            if (n * 8 >= visible) s[m][n][i] = -INFINITY;
        }
      }
    }

    float top[TILES][2];
    bool grown = false;
#pragma unroll
    for (int m = 0; m < TILES; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float most = -INFINITY;
#pragma unroll
        for (int n = 0; n < STEP / 8; ++n) most = fmaxf(most, fmaxf(s[m][n][2 * half], s[m][n][2 * half + 1]));
        most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 1));
        most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 2));
        top[m][half] = most * scale2;
        grown |= top[m][half] - base[m][half] > SLACK;
      }
    }
    if (grown) {
#pragma unroll
      for (int m = 0; m < TILES; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          if (!(top[m][half] > base[m][half])) continue;
          const float factor = exp2_fast(base[m][half] - top[m][half]);
          base[m][half] = top[m][half];
          total[m][half] *= factor;
#pragma unroll
          for (int n = 0; n < SIZE / 8; ++n) {
            sums[m][n][2 * half] *= factor;
            sums[m][n][2 * half + 1] *= factor;
          }
        }
      }
    }
#pragma unroll
    for (int m = 0; m < TILES; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        // A row that has seen nothing yet would give -inf - -inf.
        const float shift = base[m][half] == -INFINITY ? 0.0f : base[m][half];
#pragma unroll
        for (int n = 0; n < STEP / 8; ++n) {
#pragma unroll
          for (int i = 2 * half; i < 2 * half + 2; ++i) {
            s[m][n][i] = exp2_fast(s[m][n][i] * scale2 - shift);
            total[m][half] += s[m][n][i];
          }
        }
      }
    }
    multiply_along<SIZE, TILES, STEP>(sums, s, keys + STEP * PITCH);
  }

  const unsigned thread = thread_anew(), block = block_y_anew();
  tile = tiles + 8 * block_x_anew();
#pragma unroll
  for (int m = 0; m < TILES; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float sum = total[m][half];
      sum += __shfl_xor_sync(0xffffffffu, sum, 1);
      sum += __shfl_xor_sync(0xffffffffu, sum, 2);
      const int here = thread / 32 * (16 * TILES) + thread % 32 / 4 + m * 16 + half * 8;
      const bool wanted = here < tile[1];
      store_row<SIZE>(out + static_cast<size_t>(tile[0] + here) * out_stride + block * SIZE, sums[m], half,
                      sum > 0.0f ? 1.0f / sum : 0.0f, wanted);
      if (wanted && thread % 4 == 0)
        lse[static_cast<size_t>(block) * lse_rows + tile[0] + here] = (base[m][half] + log2f(sum)) * LN2;
    }
  }
}

template <int SIZE>
__device__ __forceinline__ void backward_q_tc(const bf16* q, const bf16* k, const bf16* v, const bf16* grad_out,
                                              const float* lse, const float* delta, bf16* grad_q, const int* tiles,
                                              const float* slopes, int heads, int kv_heads, int q_stride,
                                              int kv_stride, int out_stride, int grad_q_stride, int lse_rows,
                                              float scale) {
  using P = Plan<SIZE>;
  constexpr int TILES = P::Q_TILES, BLOCK = P::Q_THREADS, STEP = P::Q_STEP, PITCH = P::PITCH;
  constexpr int CHUNK = P::Q_CHUNK;
  constexpr int STAGE = 2 * STEP * PITCH;
  DYNAMIC_SHARED(bf16, stages);
  bf16* const queries = stages + 2 * STAGE;
  static_assert(P::Q_BYTES == 2 * (2 * STAGE + 2 * P::QUERIES * PITCH), "as the host has it");

  const int* tile = tiles + 8 * blockIdx.x;
  const int q_first = tile[0], q_count = tile[1], k_first = tile[2], k_count = tile[3], seen = tile[4];
  const int head = blockIdx.y, kv_column = head * kv_heads / heads * SIZE;
  const float slope = slopes ? slopes[head] * LOG2E : 0.0f;
  const float scale2 = scale * LOG2E;
  k += static_cast<size_t>(k_first) * kv_stride + kv_column;
  v += static_cast<size_t>(k_first) * kv_stride + kv_column;
  const int end = min(k_count, seen + q_count - 1);
  const int warp_row = threadIdx.x / 32 * (16 * TILES), lane_row = warp_row + threadIdx.x % 32 / 4;

  load_rows<SIZE, P::QUERIES, BLOCK>(queries, q + static_cast<size_t>(q_first) * q_stride + head * SIZE, q_stride,
                                     q_count);
  load_rows<SIZE, P::QUERIES, BLOCK>(queries + P::QUERIES * PITCH,
                                     grad_out + static_cast<size_t>(q_first) * out_stride + head * SIZE,
                                     out_stride, q_count);
  load_rows<SIZE, STEP, BLOCK>(stages, k, kv_stride, end);
  load_rows<SIZE, STEP, BLOCK>(stages + STEP * PITCH, v, kv_stride, end);
  cp_async_commit();

  float row_lse[TILES][2], row_delta[TILES][2];
#pragma unroll
  for (int m = 0; m < TILES; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int here = lane_row + m * 16 + half * 8;
      const size_t place = static_cast<size_t>(head) * lse_rows + q_first + here;
      row_lse[m][half] = here < q_count ? finite_or_high(lse[place]) * LOG2E : INFINITY;
      row_delta[m][half] = here < q_count ? delta[place] : 0.0f;
    }
  }
  cp_async_wait<0>();
  __syncthreads();
  Left<SIZE, TILES, P::Q_HOLD> q_left, g_left;
  q_left.start(queries + warp_row * PITCH);
  g_left.start(queries + (P::QUERIES + warp_row) * PITCH);

  float sums[TILES][SIZE / 8][4] = {};
  // What keys from `from` on give; `partly` where some of this warp's queries do not see some of them.
  const auto add_keys = [&](const bf16* keys, int from, auto partly) {
    const unsigned thread = thread_anew();
    const int row = thread / 32 * (16 * TILES) + thread % 32 / 4, pair = thread % 4 * 2;
    const bf16* const lane_keys = keys + lane_across<SIZE>();
    float s[TILES][CHUNK / 8][4] = {}, dp[TILES][CHUNK / 8][4] = {};
#pragma unroll
    for (int d = 0; d < SIZE / 16; ++d) {
      uint32_t a[TILES][4];
      q_left.get(a, d);
      multiply_across<SIZE, TILES, CHUNK>(s, a, lane_keys, d * 16);
    }
#pragma unroll
    for (int d = 0; d < SIZE / 16; ++d) {
      uint32_t a[TILES][4];
      g_left.get(a, d);
      multiply_across<SIZE, TILES, CHUNK>(dp, a, lane_keys + STEP * PITCH, d * 16);
    }
#pragma unroll
    for (int m = 0; m < TILES; ++m) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        // From the query to the first key of this lane.
        const int distance = seen - 1 + row + m * 16 + i / 2 * 8 - from - pair - i % 2;
        const int visible = min(k_count - from - pair - i % 2, distance + 1);
        const float shift = row_lse[m][i / 2] + slope * static_cast<float>(distance);
#pragma unroll
        for (int n = 0; n < CHUNK / 8; ++n) {
          float p = exp2_fast(s[m][n][i] * scale2 + (slope * static_cast<float>(n * 8) - shift));
          if (partly.value && n * 8 >= visible) p = 0.0f;
          s[m][n][i] = p * (dp[m][n][i] - row_delta[m][i / 2]);
        }
      }
    }
    multiply_along<SIZE, TILES, CHUNK>(sums, s, keys);
  };

  int stage = 0;
  for (int first = 0; first < end; first += STEP, stage ^= 1) {
    cp_async_wait<0>();
    __syncthreads();
    if (first + STEP < end) {
      bf16* const to = stages + (stage ^ 1) * STAGE;
      const size_t next = static_cast<size_t>(first + STEP) * kv_stride;
      load_rows<SIZE, STEP, BLOCK>(to, k + next, kv_stride, end - first - STEP);
      load_rows<SIZE, STEP, BLOCK>(to + STEP * PITCH, v + next, kv_stride, end - first - STEP);
      cp_async_commit();
    }
#pragma unroll 1
    for (int from = first; from < first + STEP; from += CHUNK) {
      if (from >= min(k_count, seen + warp_row + 16 * TILES - 1)) break;
      const bf16* const keys = stages + stage * STAGE + (from - first) * PITCH;
      if (from + CHUNK > min(k_count, seen + warp_row)) {
        add_keys(keys, from, Flag<true>{});
      } else {
        add_keys(keys, from, Flag<false>{});
      }
    }
  }

  const unsigned thread = thread_anew(), column = block_y_anew() * SIZE;
  tile = tiles + 8 * block_x_anew();
#pragma unroll
  for (int m = 0; m < TILES; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int here = thread / 32 * (16 * TILES) + thread % 32 / 4 + m * 16 + half * 8;
      store_row<SIZE>(grad_q + static_cast<size_t>(tile[0] + here) * grad_q_stride + column, sums[m], half,
                      scale, here < tile[1]);
    }
  }
}

// One step of the queries that see a key tile: they go by the heads of the group, the spans of a head, the
// rows of a span.
struct Step {
  // First row, how many the span has left (0: the walk is at its end), and how many keys of the tile the
  // first row sees.
  int row, left, visible;
  // The present head, the end of its group, and the span after the present one.
  int head, head_end, span;
  // Of the head, for powers of two.
  float slope;
  int unused;

  // Goes to the next span that sees the tile.
  __device__ __forceinline__ void settle(const int* tile, const int* spans, const float* slopes) {
    left = 0;
    const int span_end = tile[2] + tile[3];
    while (head < head_end && tile[3] > 0) {
      if (span == span_end) {
        span = tile[2];
        ++head;
        continue;
      }
      const int* here = spans + 8 * static_cast<size_t>(span++);
      // Queries before this one see no key of the tile.
      const int skipped = max(0, here[3] - here[2] + 1);
      if (here[1] <= skipped) continue;
      row = here[0] + skipped;
      left = here[1] - skipped;
      visible = here[2] + skipped - here[3];
      slope = slopes ? slopes[head] * LOG2E : 0.0f;
      return;
    }
  }

  __device__ __forceinline__ void advance(int rows, const int* tile, const int* spans, const float* slopes) {
    row += rows;
    left -= rows;
    visible += rows;
    if (left <= 0) settle(tile, spans, slopes);
  }
};

template <int SIZE>
__device__ __forceinline__ void backward_kv_tc(const bf16* q, const bf16* k, const bf16* v, const bf16* grad_out,
                                               const float* lse, const float* delta, bf16* grad_k, bf16* grad_v,
                                               const int* key_tiles, const int* spans, const float* slopes,
                                               int heads, int kv_heads, int q_stride, int kv_stride, int out_stride,
                                               int grad_kv_stride, int lse_rows, float scale) {
  using P = Plan<SIZE>;
  constexpr int TILES = P::KV_TILES, BLOCK = P::KV_THREADS, STEP = P::STEP, PITCH = P::PITCH;
  constexpr int CHUNK = P::KV_CHUNK;
  constexpr int STAGE = 2 * STEP * PITCH;
  // Of each query of a stage.
  struct Side {
    float lse[STEP];
    float delta[STEP];
  };
  static_assert(P::KV_BYTES == 2 * 2 * STAGE + 2 * sizeof(Side) + 4 * sizeof(Step) + 16, "as the host has it");
  static_assert(BLOCK == 2 * STEP, "a thread for each value of a side");
  DYNAMIC_SHARED(bf16, stages);
  Side* const sides = reinterpret_cast<Side*>(stages + 2 * STAGE);
  // Steps n to n + 2 are in use while step n is computed with.
  Step* const steps = reinterpret_cast<Step*>(sides + 2);

  // {k_first, k_count, span_first, span_count}: there are no registers for them.
  int* const tile = reinterpret_cast<int*>(steps + 4);
  const float scale2 = scale * LOG2E;

  // Keys and values pass through the stages into registers.
  static_assert(P::KEYS <= 2 * STEP, "keys fit in the stages");
  {
    const int* const given = key_tiles + 8 * blockIdx.x;
    const size_t from = static_cast<size_t>(given[0]) * kv_stride + blockIdx.y * SIZE;
    load_rows<SIZE, P::KEYS, BLOCK>(stages, k + from, kv_stride, given[1]);
    load_rows<SIZE, P::KEYS, BLOCK>(stages + STAGE, v + from, kv_stride, given[1]);
    cp_async_commit();
    if (threadIdx.x < 4) tile[threadIdx.x] = given[threadIdx.x];
    __syncwarp();
  }
  if (threadIdx.x == 0) {
    Step step{};
    step.head = blockIdx.y * (heads / kv_heads);
    step.head_end = step.head + heads / kv_heads;
    step.span = tile[2];
    step.settle(tile, spans, slopes);
    steps[0] = step;
    if (step.left > 0) step.advance(STEP, tile, spans, slopes);
    steps[1] = step;
  }
  cp_async_wait<0>();
  __syncthreads();
  Left<SIZE, TILES, true> k_left, v_left;
  const bf16* const warp_rows = stages + threadIdx.x / 32 * (16 * TILES) * PITCH;
  k_left.start(warp_rows);
  v_left.start(warp_rows + STAGE);
  __syncthreads();

  const auto copy_step = [&](const Step& step, int stage) {
    bf16* const to = stages + stage * STAGE;
    const int left = step.left, head = step.head;
    const size_t row = step.row;
    load_rows<SIZE, STEP, BLOCK>(to, q + row * q_stride + head * SIZE, q_stride, left);
    load_rows<SIZE, STEP, BLOCK>(to + STEP * PITCH, grad_out + row * out_stride + head * SIZE, out_stride, left);
    // Rows that are not there have probability 1 and gradient 0.
    const unsigned thread = thread_anew();
    const int here = thread % STEP;
    const float* const from = (thread < STEP ? lse : delta) + static_cast<size_t>(head) * lse_rows + row;
    cp_async_float((thread < STEP ? sides[stage].lse : sides[stage].delta) + here,
                   from + (here < left ? here : 0), here < left);
    cp_async_commit();
  };

  float dk[TILES][SIZE / 8][4] = {}, dv[TILES][SIZE / 8][4] = {};
  // What queries give of which the first sees `visible` keys of the tile; `partly` where some do not see
  // some keys of this warp.
  const auto add_queries = [&](const bf16* queries, const Side& here, int c, int visible, float slope, auto partly) {
    const bf16* const grads = queries + STEP * PITCH;
    const bf16* const lane_queries = queries + lane_across<SIZE>();
    float p[TILES][CHUNK / 8][4] = {}, ds[TILES][CHUNK / 8][4] = {};
#pragma unroll
    for (int d = 0; d < SIZE / 16; ++d) {
      uint32_t a[TILES][4];
      k_left.get(a, d);
      multiply_across<SIZE, TILES, CHUNK>(p, a, lane_queries, d * 16);
      v_left.get(a, d);
      multiply_across<SIZE, TILES, CHUNK>(ds, a, lane_queries + STEP * PITCH, d * 16);
    }
    const unsigned thread = thread_anew();
    const int pair = thread % 4 * 2;
    // From the first query and first key of this lane.
    const int first_distance = visible - 1 + pair - static_cast<int>(thread / 32 * (16 * TILES) + thread % 32 / 4);
#pragma unroll
    for (int n = 0; n < CHUNK / 8; ++n) {
      const float2 row_lse = *reinterpret_cast<const float2*>(here.lse + c + n * 8 + pair);
      const float shift[2] = {row_lse.x * LOG2E, row_lse.y * LOG2E};
#pragma unroll
      for (int m = 0; m < TILES; ++m) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int distance = first_distance + n * 8 + i % 2 - m * 16 - i / 2 * 8;
          float score = p[m][n][i] * scale2 - shift[i % 2];
          if (slope != 0.0f) score -= slope * static_cast<float>(distance);
          float weight = exp2_fast(score);
          if (partly.value && distance < 0) weight = 0.0f;
          p[m][n][i] = weight;
        }
      }
    }
    multiply_along<SIZE, TILES, CHUNK>(dv, p, grads);
#pragma unroll
    for (int n = 0; n < CHUNK / 8; ++n) {
      const float2 less = *reinterpret_cast<const float2*>(here.delta + c + n * 8 + pair);
#pragma unroll
      for (int m = 0; m < TILES; ++m) {
#pragma unroll
        for (int i = 0; i < 4; ++i) ds[m][n][i] = p[m][n][i] * (ds[m][n][i] - (i % 2 ? less.y : less.x));
      }
    }
    multiply_along<SIZE, TILES, CHUNK>(dk, ds, queries);
  };

  if (steps[0].left > 0) copy_step(steps[0], 0);
  // One count of queries for steps and chunks: there are no registers for two.
  for (unsigned count = 0;; count += CHUNK) {
    if (count % STEP == 0) {
      const unsigned n = count / STEP;
      if (steps[n % 4].left <= 0) break;
      cp_async_wait<0>();
      __syncthreads();
      const Step& next = steps[(n + 1) % 4];
      if (next.left > 0) copy_step(next, (n + 1) % 2);
      if (thread_anew() == 0) {
        Step after = next;
        if (after.left > 0) after.advance(STEP, tile, spans, slopes);
        steps[(n + 2) % 4] = after;
      }
    }
    derive_anew(count);
    const unsigned n = count / STEP, c = count % STEP;
    const volatile Step& step = steps[n % 4];
    const int visible = step.visible + static_cast<int>(c), left = step.left - static_cast<int>(c);
    const int warp_key = thread_anew() / 32 * (16 * TILES);
    if (left <= 0 || visible + min(CHUNK, left) - 1 <= warp_key) continue;
    const bf16* const queries = stages + n % 2 * STAGE + c * PITCH;
    if (visible < warp_key + 16 * TILES) {
      add_queries(queries, sides[n % 2], c, visible, step.slope, Flag<true>{});
    } else {
      add_queries(queries, sides[n % 2], c, visible, step.slope, Flag<false>{});
    }
  }

  const unsigned thread = thread_anew(), column = block_y_anew() * SIZE;
#pragma unroll
  for (int m = 0; m < TILES; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int here = thread / 32 * (16 * TILES) + thread % 32 / 4 + m * 16 + half * 8;
      const size_t to = static_cast<size_t>(tile[0] + here) * grad_kv_stride + column;
      store_row<SIZE>(grad_k + to, dk[m], half, scale, here < tile[1]);
      store_row<SIZE>(grad_v + to, dv[m], half, 1.0f, here < tile[1]);
    }
  }
}

}  // namespace
}  // namespace attention_tiles

// `size` is there so that all kernels take the same arguments.
#define ATTENTION_TC(SIZE)                                                                                          \
  KERNEL __launch_bounds__(attention_tiles::Plan<SIZE>::F_THREADS, 2) attention_forward_tc##SIZE(                   \
      const bf16* q, const bf16* k, const bf16* v, bf16* out, float* lse, const int* tiles, const float* slopes,    \
      int heads, int kv_heads, int size, int q_stride, int kv_stride, int out_stride, int lse_rows, float scale) {  \
    attention_tiles::forward_tc<SIZE>(q, k, v, out, lse, tiles, slopes, heads, kv_heads, q_stride, kv_stride,       \
                                      out_stride, lse_rows, scale);                                                 \
  }                                                                                                                 \
  KERNEL __launch_bounds__(attention_tiles::Plan<SIZE>::Q_THREADS, 2) attention_backward_q_tc##SIZE(                \
      const bf16* q, const bf16* k, const bf16* v, const bf16* grad_out, const float* lse, const float* delta,      \
      bf16* grad_q, const int* tiles, const float* slopes, int heads, int kv_heads, int size, int q_stride,         \
      int kv_stride, int out_stride, int grad_q_stride, int lse_rows, float scale) {                                \
    attention_tiles::backward_q_tc<SIZE>(q, k, v, grad_out, lse, delta, grad_q, tiles, slopes, heads, kv_heads,     \
                                         q_stride, kv_stride, out_stride, grad_q_stride, lse_rows, scale);          \
  }                                                                                                                 \
  KERNEL __launch_bounds__(attention_tiles::Plan<SIZE>::KV_THREADS, 2) attention_backward_kv_tc##SIZE(              \
      const bf16* q, const bf16* k, const bf16* v, const bf16* grad_out, const float* lse, const float* delta,      \
      bf16* grad_k, bf16* grad_v, const int* key_tiles, const int* spans, const float* slopes, int heads,           \
      int kv_heads, int size, int q_stride, int kv_stride, int out_stride, int grad_kv_stride, int lse_rows,        \
      float scale) {                                                                                                \
    attention_tiles::backward_kv_tc<SIZE>(q, k, v, grad_out, lse, delta, grad_k, grad_v, key_tiles, spans, slopes,  \
                                          heads, kv_heads, q_stride, kv_stride, out_stride, grad_kv_stride,         \
                                          lse_rows, scale);                                                         \
  }                                                                                                                 \
  REGISTER(attention_forward_tc##SIZE)                                                                              \
  REGISTER(attention_backward_q_tc##SIZE)                                                                           \
  REGISTER(attention_backward_kv_tc##SIZE)

ATTENTION_PLAIN(float, f32)
ATTENTION_PLAIN(bf16, bf16)
ATTENTION_TC(32)
ATTENTION_TC(64)
ATTENTION_TC(80)
ATTENTION_TC(96)
ATTENTION_TC(128)
