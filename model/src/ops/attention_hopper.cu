// Attention for Hopper (compute capability 9.0), head sizes 64 and 128, bf16: warpgroup products on operands
// in shared memory, after FlashAttention-3 (Shah and others 2024). What queries see, tiles, spans, slopes
// and strides are as attention.cu has them.
//
// A block is three warpgroups: one copies, two compute; they meet at barriers in shared memory. Forward: each
// of the two has 64 queries of a tile of 128; scores and probabilities stay in registers, the products of one
// step's scores run while those of the step before are weighed, and the two take turns at the tensor cores,
// so that one multiplies while the other computes exponentials. Blocks stay, and take one tile after the
// other, so that the next tile is copied while the present one is computed.
//
// Backward: each of the two has 64 keys of a tile of 128, with their gradients in registers, and goes through
// the queries that see them. The gradient of a query sums over key tiles: blocks add their parts to f32 sums
// in global memory, which a kernel of its own makes bf16. The order of these additions, and so the last bits
// of the result, may differ from run to run.
//
// kernel                        rows of a tile   blocks                     threads   dynamic shared memory
// attention_forward_wgmma64          128         multiprocessors              384        144640
//                        128         128         multiprocessors              384        197888
// attention_backward_wgmma64         128 keys    key tiles x kv_heads         384        167168
//                         128        128 keys    key tiles x kv_heads         384        166144
// attention_grad_q_wgmma64            -          rows * heads * 16 / 256      256             0
//                       128           -          rows * heads * 32 / 256      256             0
//
// Forward: arguments after those of attention_forward_tc are the number of tiles, and the address of an int
// that is 0 at the start, which counts the tiles taken. Any number of blocks will do; more than one for each
// multiprocessor are of no use.
//
// Backward: arguments are those of attention_backward_kv_tc, with `sums` before grad_k: f32 of
// [heads, lse_rows, size], 0 at the start. attention_grad_q then writes all rows of grad_q.
#include "wgmma.cuh"

// Other targets of the same build get kernels that stop at once.
#if !defined(__CUDACC__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define ON_HOPPER 1
#else
#define ON_HOPPER 0
#endif

namespace attention_hopper {
namespace {

constexpr float LOG2E = 1.4426950408889634f;
constexpr float LN2 = 0.6931471805599453f;

constexpr int WARPGROUP = 128;
constexpr int THREADS = 3 * WARPGROUP;
constexpr int COMPUTING = 2 * WARPGROUP;
// Of 504 for each lane of three warps: those that copy need few.
constexpr int COPY_REGISTERS = 40;
constexpr int COMPUTE_REGISTERS = 232;

// Numbers of barriers.
constexpr int COPYING_BARRIER = 1;
constexpr int TURN_BARRIER = 2;
constexpr int COMPUTING_BARRIER = 4;

// Sizes of the kernels of one head size.
template <int SIZE>
struct Plan {
  // Forward: queries of a tile, keys of a step (the 257 of an image are two), steps of keys and values in shared
  // memory.
  static constexpr int QUERIES = 128;
  static constexpr int STEP = SIZE == 64 ? 144 : 128;
  static constexpr int STAGES = SIZE == 64 ? 3 : 2;
  static constexpr int PART = 128 * SIZE * 2;
  static constexpr int F_PART = STEP * SIZE * 2;
  // Two tiles of queries; barriers and numbers behind; the start is a multiple of 1024.
  static constexpr int F_BYTES = 1024 + 2 * PART + 2 * STAGES * F_PART + 256;

  // Backward: keys of a tile, queries of a step; two steps, of queries, their gradients, and those of scores.
  static constexpr int KEYS = 128;
  static constexpr int Q_STEP = SIZE == 64 ? 128 : 64;
  static constexpr int Q_PART = Q_STEP * SIZE * 2;
  static constexpr int S_PART = Q_STEP * KEYS * 2;
  static constexpr int B_BYTES = 1024 + 2 * PART + 4 * Q_PART + 2 * S_PART + 2 * 2 * Q_STEP * 4 + 256;
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

// The number of this thread's warpgroup, in a way that tells the compiler that all of a warp have the same.
__device__ __forceinline__ int warpgroup_number() {
  return __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / WARPGROUP, 0);
}

// The start of the dynamic shared memory that panels can be in.
__device__ __forceinline__ unsigned char* panels_start(unsigned char* dynamic) {
  return dynamic + (0u - shared_address(dynamic)) % 1024u;
}

// A place in a ring of stages: `parity` is that of the phase in which the stage is filled.
template <int STAGES>
struct Place {
  int stage = 0;
  int parity = 0;

  __device__ __forceinline__ void advance() {
    if (++stage == STAGES) {
      stage = 0;
      parity ^= 1;
    }
  }
};

// A warpgroup starts copies of ROWS rows of SIZE values into panels; rows from `rows` on become zeros. (Their
// addresses may lie outside of the array: nothing is read.)
template <int SIZE, int ROWS>
__device__ __forceinline__ void copy_rows(unsigned char* to, const bf16* from, int stride, int rows) {
  constexpr int PIECES = SIZE / 8, APART = WARPGROUP / PIECES;
  static_assert(APART % 8 == 0 && ROWS % APART == 0, "a thread's rows lie alike in the swizzle");
  const int thread = threadIdx.x % WARPGROUP, row = thread / PIECES, piece = thread % PIECES;
  from += static_cast<ptrdiff_t>(row) * stride + piece * 8;
  to += piece / 8 * (ROWS * 128) + in_panel(row, piece % 8);
  const ptrdiff_t apart = static_cast<ptrdiff_t>(APART) * stride;
#pragma unroll
  for (int i = 0; i < ROWS; i += APART) {
    cp_async_16(to + i * 128, from, row + i < rows);
    from += apart;
  }
}

// d = left * right^T: 64 rows of `left` with N of `right`, SIZE columns; panels of LEFT and RIGHT rows.
template <int SIZE, int N, int LEFT, int RIGHT>
__device__ __forceinline__ void multiply_across(float (&d)[N / 2], uint32_t left, uint32_t right) {
  const uint64_t a = matrix_descriptor(left), b = matrix_descriptor(right);
#pragma unroll
  for (int k = 0; k < SIZE / 16; ++k) {
    const int column = k % 4 * 32;
    Wgmma<N, false, false>::shared(d, a + descriptor_step(k / 4 * (LEFT * 128) + column),
                                   b + descriptor_step(k / 4 * (RIGHT * 128) + column), k > 0);
  }
}

// d += weights * rows, for ROWS rows of SIZE columns; panels of PANEL rows.
template <int SIZE, int ROWS, int PANEL>
__device__ __forceinline__ void multiply_along(float (&d)[SIZE / 2], const uint32_t (&weights)[ROWS / 16][4],
                                               uint32_t rows) {
  const uint64_t b = matrix_descriptor(rows, PANEL * 128);
#pragma unroll
  for (int k = 0; k < ROWS / 16; ++k)
    Wgmma<SIZE, false, true>::registers(d, weights[k], b + descriptor_step(k * 2048), 1);
}

// Results as a left factor.
template <int N>
__device__ __forceinline__ void as_left(uint32_t (&a)[N / 16][4], const float (&d)[N / 2]) {
#pragma unroll
  for (int k = 0; k < N / 16; ++k) {
#pragma unroll
    for (int i = 0; i < 4; ++i) a[k][i] = pack_bf16(d[8 * k + 2 * i], d[8 * k + 2 * i + 1]);
  }
}

// Stores one row of results, times a factor: `half` is 0 for row lane / 4 and 1 for the row 8 below.
// Neighbouring lanes swap, so that four lanes write 32 bytes in a row. All lanes must come.
template <int SIZE>
__device__ __forceinline__ void store_row(bf16* row, const float (&sums)[SIZE / 2], int half, float factor,
                                          bool wanted) {
  const unsigned lane = threadIdx.x % 32;
  const bool odd = lane % 2;
  row += odd * 8 + lane % 4 / 2 * 4;
#pragma unroll
  for (int n = 0; n < SIZE / 16; ++n) {
    const int i = 8 * n + 2 * half;
    const uint32_t first = pack_bf16(sums[i] * factor, sums[i + 1] * factor);
    const uint32_t second = pack_bf16(sums[i + 4] * factor, sums[i + 5] * factor);
    const uint32_t other = __shfl_xor_sync(0xffffffffu, odd ? first : second, 1);
    if (wanted) *reinterpret_cast<uint2*>(row + n * 16) = odd ? make_uint2(other, second) : make_uint2(first, other);
  }
}

// A warp leaves what it has read: all of its lanes.
__device__ __forceinline__ void leave(uint64_t* empty) {
  __syncwarp();
  if (threadIdx.x % 32 == 0) phase_arrive(empty);
}

// The side of a warpgroup that copies: places are filled in turn, two at a time.
struct Sender {
  // Arrives for the place that was filled last, once the copies have.
  uint64_t* pending = nullptr;

  __device__ __forceinline__ void arrive() {
    // Products read what copies wrote.
    fence_for_products();
    phase_arrive(pending);
  }

  __device__ __forceinline__ void flush() {
    if (!pending) return;
    cp_async_wait<0>();
    arrive();
    pending = nullptr;
  }

  __device__ __forceinline__ void wait_empty(uint64_t* empty, int parity) {
    if (__all_sync(0xffffffffu, phase_over(empty, parity ^ 1))) return;
    // Those that compute may wait for the copies before they leave.
    flush();
    phase_wait(empty, parity ^ 1);
  }

  __device__ __forceinline__ void filled(uint64_t* full) {
    cp_async_commit();
    if (pending) {
      cp_async_wait<1>();
      arrive();
    }
    pending = full;
  }
};

// ---------------------------------------------------------------------------------------------------
// Forward

template <int SIZE>
struct Forward {
  using P = Plan<SIZE>;
  static constexpr int STEP = P::STEP, PART = P::PART, F_PART = P::F_PART, STAGES = P::STAGES;

  // In shared memory, behind the panels.
  struct Meeting {
    // Each is full at the arrival of the threads that copy, empty at that of the warps that compute.
    uint64_t q_full[2], q_empty[2];
    uint64_t k_full[STAGES], k_empty[STAGES], v_full[STAGES], v_empty[STAGES];
    // What the tile of queries in each place is: a head's number times the tiles, and a tile; -1 at the end.
    int tile[2];
  };
  static_assert(sizeof(Meeting) <= 256, "as Plan has it");

  const bf16 *q, *k, *v;
  bf16* out;
  float* lse;
  const int* tiles;
  const float* slopes;
  int heads, kv_heads, q_stride, kv_stride, out_stride, lse_rows;
  float scale;
  int tile_count;
  int* taken;
  // Queries, keys, values.
  unsigned char* panels;
  Meeting* meeting;

  // Of a tile, the keys that any of its queries sees.
  static __device__ __forceinline__ int keys_of(const int* tile) { return min(tile[3], tile[4] + tile[1] - 1); }

  __device__ __forceinline__ unsigned char* q_place(int slot) const { return panels + slot * PART; }
  __device__ __forceinline__ unsigned char* k_place(int stage) const { return panels + 2 * PART + stage * F_PART; }
  __device__ __forceinline__ unsigned char* v_place(int stage) const { return k_place(STAGES + stage); }

  __device__ __forceinline__ void start() const {
    for (int i = 0; i < 2; ++i) {
      phase_start(&meeting->q_full[i], WARPGROUP);
      phase_start(&meeting->q_empty[i], COMPUTING / 32);
    }
    for (int i = 0; i < STAGES; ++i) {
      phase_start(&meeting->k_full[i], WARPGROUP);
      phase_start(&meeting->k_empty[i], COMPUTING / 32);
      phase_start(&meeting->v_full[i], WARPGROUP);
      phase_start(&meeting->v_empty[i], COMPUTING / 32);
    }
  }

  __device__ __forceinline__ void copy() const {
    Place<2> at_q;
    Place<STAGES> at_kv;
    Sender sender;
    const int all = tile_count * heads;
    for (;; at_q.advance()) {
      sender.wait_empty(&meeting->q_empty[at_q.stage], at_q.parity);
      if (threadIdx.x % WARPGROUP == 0) {
        const int number = atomicAdd(taken, 1);
        meeting->tile[at_q.stage] = number < all ? number : -1;
      }
      named_barrier_sync(COPYING_BARRIER, WARPGROUP);
      const int number = meeting->tile[at_q.stage];
      if (number < 0) {
        sender.filled(&meeting->q_full[at_q.stage]);
        sender.flush();
        return;
      }
      const int head = number / tile_count;
      const int* const tile = tiles + 8 * (number - head * tile_count);
      copy_rows<SIZE, P::QUERIES>(q_place(at_q.stage), q + static_cast<size_t>(tile[0]) * q_stride + head * SIZE,
                                  q_stride, tile[1]);
      sender.filled(&meeting->q_full[at_q.stage]);

      const int end = keys_of(tile);
      size_t from = static_cast<size_t>(tile[2]) * kv_stride + head * kv_heads / heads * SIZE;
      for (int first = 0; first < end; first += STEP) {
        sender.wait_empty(&meeting->k_empty[at_kv.stage], at_kv.parity);
        copy_rows<SIZE, STEP>(k_place(at_kv.stage), k + from, kv_stride, end - first);
        sender.filled(&meeting->k_full[at_kv.stage]);
        sender.wait_empty(&meeting->v_empty[at_kv.stage], at_kv.parity);
        copy_rows<SIZE, STEP>(v_place(at_kv.stage), v + from, kv_stride, end - first);
        sender.filled(&meeting->v_full[at_kv.stage]);
        at_kv.advance();
        from += static_cast<size_t>(STEP) * kv_stride;
      }
    }
  }

  // Weights of a step's keys, in place of their scores. Before the score of a row may grow by SLACK powers of
  // two over `base`, its sums are not scaled again: the result is the same, and nearly every step goes
  // without. `seen` is by the warpgroup's first row and the step's first key. Returns whether a row of the
  // warp has a factor other than 1.
  static __device__ __forceinline__ bool weigh(float (&s)[STEP / 2], float (&base)[2], float (&total)[2],
                                               float (&factor)[2], int seen, int k_count, float slope, float scale2) {
    constexpr float SLACK = 8.0f;
    const int warp_row = threadIdx.x % WARPGROUP / 32 * 16;
    const int row = warp_row + threadIdx.x % 32 / 4, pair = threadIdx.x % 4 * 2;
    if (slope != 0.0f) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float distance = static_cast<float>(seen - 1 + row + i / 2 * 8 - pair - i % 2);
#pragma unroll
        for (int n = 0; n < STEP / 8; ++n) s[4 * n + i] -= slope * (distance - static_cast<float>(n * 8));
      }
    }
    if (STEP > min(k_count, seen + warp_row)) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int visible = min(k_count, seen + row + i / 2 * 8) - pair - i % 2;
#pragma unroll
        for (int n = 0; n < STEP / 8; ++n)
          if (n * 8 >= visible) s[4 * n + i] = -INFINITY;
      }
    }
    bool grown = false;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float most = s[2 * half];
#pragma unroll
      for (int n = 0; n < STEP / 8; ++n) most = fmaxf(most, fmaxf(s[4 * n + 2 * half], s[4 * n + 2 * half + 1]));
      most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 1));
      most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 2));
      most *= scale2;
      factor[half] = 1.0f;
      if (most - base[half] > SLACK) {
        factor[half] = exp2_fast(base[half] - most);
        base[half] = most;
        grown = true;
      }
    }
    grown = __any_sync(0xffffffffu, grown);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      // A row that has seen nothing yet would give -inf - -inf.
      const float shift = base[half] == -INFINITY ? 0.0f : base[half];
      float sum = 0.0f;
#pragma unroll
      for (int n = 0; n < STEP / 8; ++n) {
#pragma unroll
        for (int i = 4 * n + 2 * half; i < 4 * n + 2 * half + 2; ++i) {
          s[i] = exp2_fast(s[i] * scale2 - shift);
          sum += s[i];
        }
      }
      total[half] = total[half] * factor[half] + sum;
    }
    return grown;
  }

  __device__ __forceinline__ void compute() const {
    // Of the two that compute: 0 or 1.
    const int part = warpgroup_number() - 1;
    const float scale2 = scale * LOG2E;
    Place<2> at_q;
    // The keys of the next step, and the values of the step before.
    Place<STAGES> at_k, at_v;
    if (part == 1) named_barrier_arrive(TURN_BARRIER, COMPUTING);
    for (;; at_q.advance()) {
      phase_wait(&meeting->q_full[at_q.stage], at_q.parity);
      const int number = __shfl_sync(0xffffffffu, meeting->tile[at_q.stage], 0);
      if (number < 0) return;
      const int head = number / tile_count;
      const int* const tile = tiles + 8 * (number - head * tile_count);
      const int end = keys_of(tile), k_count = tile[3], seen = tile[4] + part * 64;
      const float slope = slopes ? __fdividef(slopes[head], scale) : 0.0f;
      const uint32_t queries = shared_address(q_place(at_q.stage)) + part * (64 * 128);
      const int steps = __shfl_sync(0xffffffffu, (end + STEP - 1) / STEP, 0);

      if (part * 64 >= tile[1]) {
        // No queries: the barriers are all there is to do.
        leave(&meeting->q_empty[at_q.stage]);
        for (int step = 0; step < steps; ++step) {
          if (step > 0) {
            named_barrier_sync(TURN_BARRIER + part, COMPUTING);
            named_barrier_arrive(TURN_BARRIER + (part ^ 1), COMPUTING);
          }
          phase_wait(&meeting->k_full[at_k.stage], at_k.parity);
          leave(&meeting->k_empty[at_k.stage]);
          at_k.advance();
          phase_wait(&meeting->v_full[at_v.stage], at_v.parity);
          leave(&meeting->v_empty[at_v.stage]);
          at_v.advance();
        }
        continue;
      }

      float sums[SIZE / 2], s[STEP / 2];
      uint32_t weights[STEP / 16][4];
      float base[2] = {-INFINITY, -INFINITY}, total[2] = {}, factor[2];
#pragma unroll
      for (int i = 0; i < SIZE / 2; ++i) sums[i] = 0.0f;

      if (steps > 0) {
        phase_wait(&meeting->k_full[at_k.stage], at_k.parity);
        wgmma_fence();
        multiply_across<SIZE, STEP, P::QUERIES, STEP>(s, queries, shared_address(k_place(at_k.stage)));
        wgmma_commit();
        wgmma_wait<0>();
        hold(s);
        leave(&meeting->k_empty[at_k.stage]);
        if (steps == 1) leave(&meeting->q_empty[at_q.stage]);
        at_k.advance();
        weigh(s, base, total, factor, seen, k_count, slope, scale2);
        as_left<STEP>(weights, s);

        for (int step = 1; step < steps; ++step) {
          phase_wait(&meeting->k_full[at_k.stage], at_k.parity);
          named_barrier_sync(TURN_BARRIER + part, COMPUTING);
          hold(sums);
          hold(weights);
          wgmma_fence();
          multiply_across<SIZE, STEP, P::QUERIES, STEP>(s, queries, shared_address(k_place(at_k.stage)));
          wgmma_commit();
          phase_wait(&meeting->v_full[at_v.stage], at_v.parity);
          multiply_along<SIZE, STEP, STEP>(sums, weights, shared_address(v_place(at_v.stage)));
          wgmma_commit();
          named_barrier_arrive(TURN_BARRIER + (part ^ 1), COMPUTING);
          wgmma_wait<1>();
          hold(s);
          leave(&meeting->k_empty[at_k.stage]);
          if (step + 1 == steps) leave(&meeting->q_empty[at_q.stage]);
          at_k.advance();
          const bool grown =
              weigh(s, base, total, factor, seen - step * STEP, k_count - step * STEP, slope, scale2);
          wait_only_after(total);
          wgmma_wait<0>();
          hold(sums);
          hold(weights);
          leave(&meeting->v_empty[at_v.stage]);
          at_v.advance();
          if (grown) {
#pragma unroll
            for (int i = 0; i < SIZE / 2; ++i) sums[i] *= factor[i / 2 % 2];
          }
          as_left<STEP>(weights, s);
        }

        phase_wait(&meeting->v_full[at_v.stage], at_v.parity);
        hold(sums);
        hold(weights);
        wgmma_fence();
        multiply_along<SIZE, STEP, STEP>(sums, weights, shared_address(v_place(at_v.stage)));
        wgmma_commit();
        wgmma_wait<0>();
        hold(sums);
        hold(weights);
        leave(&meeting->v_empty[at_v.stage]);
        at_v.advance();
      } else {
        leave(&meeting->q_empty[at_q.stage]);
      }

#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float sum = total[half];
        sum += __shfl_xor_sync(0xffffffffu, sum, 1);
        sum += __shfl_xor_sync(0xffffffffu, sum, 2);
        const int here = part * 64 + threadIdx.x % WARPGROUP / 32 * 16 + threadIdx.x % 32 / 4 + half * 8;
        const bool wanted = here < tile[1];
        store_row<SIZE>(out + static_cast<size_t>(tile[0] + here) * out_stride + head * SIZE, sums, half,
                        sum > 0.0f ? 1.0f / sum : 0.0f, wanted);
        if (wanted && threadIdx.x % 4 == 0)
          lse[static_cast<size_t>(head) * lse_rows + tile[0] + here] = (base[half] + log2f(sum)) * LN2;
      }
    }
  }

  __device__ __forceinline__ void run() {
    DYNAMIC_SHARED(unsigned char, dynamic);
    panels = panels_start(dynamic);
    meeting = reinterpret_cast<Meeting*>(k_place(2 * STAGES));
    if (threadIdx.x == 0) start();
    __syncthreads();
    if (warpgroup_number() == 0) {
      give_registers<COPY_REGISTERS>();
      copy();
    } else {
      take_registers<COMPUTE_REGISTERS>();
      compute();
    }
  }
};

// ---------------------------------------------------------------------------------------------------
// Backward

// The queries that see a key tile, a step at a time: by the heads of the group, the spans of a head, the rows
// of a span.
struct Walk {
  const int* tile;
  const int* spans;
  // The present head, the end of its group, and the span after the present one.
  int head, head_end, span;
  // First row, how many the span has left (0: at the end), and how many keys of the tile the first row sees.
  int row = 0, left = 0, visible = 0;

  // Goes to the next span that sees the tile.
  __device__ __forceinline__ void settle() {
    left = 0;
    const int span_end = tile[2] + tile[3];
    while (head < head_end && tile[3] > 0) {
      if (span == span_end) {
        span = tile[2];
        ++head;
        continue;
      }
      const int* const here = spans + 8 * static_cast<size_t>(span++);
      // Queries before this one see no key of the tile.
      const int skipped = max(0, here[3] - here[2] + 1);
      if (here[1] <= skipped) continue;
      row = here[0] + skipped;
      left = here[1] - skipped;
      visible = here[2] + skipped - here[3];
      return;
    }
  }

  __device__ __forceinline__ void advance(int rows) {
    row += rows;
    left -= rows;
    visible += rows;
    if (left <= 0) settle();
  }
};

template <int SIZE>
struct Backward {
  using P = Plan<SIZE>;
  static constexpr int KEYS = P::KEYS, STEP = P::Q_STEP;
  // Queries whose scores are in registers at one time.
  static constexpr int PIECE = 64, PIECES = STEP / PIECE;

  // In shared memory, behind the panels.
  struct Meeting {
    // Of a step's queries.
    float lse[2][STEP], delta[2][STEP];
    // What Walk has.
    struct Step {
      int row, left, visible, head;
    } steps[2];
    uint64_t kv_full, q_full[2], q_empty[2], g_full[2], g_empty[2];
  };
  static_assert(sizeof(Meeting) <= 2 * 2 * STEP * 4 + 256, "as Plan has it");

  const bf16 *q, *k, *v, *grad_out;
  const float *lse, *delta;
  float* sums;
  bf16 *grad_k, *grad_v;
  const int *key_tiles, *spans;
  const float* slopes;
  int heads, kv_heads, q_stride, kv_stride, out_stride, grad_kv_stride, lse_rows;
  float scale;
  // Keys, values, queries, gradients of the output, gradients of scores.
  unsigned char* panels;
  Meeting* meeting;

  __device__ __forceinline__ unsigned char* k_place() const { return panels; }
  __device__ __forceinline__ unsigned char* v_place() const { return panels + P::PART; }
  __device__ __forceinline__ unsigned char* q_place(int stage) const {
    return panels + 2 * P::PART + stage * P::Q_PART;
  }
  __device__ __forceinline__ unsigned char* g_place(int stage) const {
    return panels + 2 * P::PART + (2 + stage) * P::Q_PART;
  }
  __device__ __forceinline__ unsigned char* s_place(int stage) const {
    return panels + 2 * P::PART + 4 * P::Q_PART + stage * P::S_PART;
  }

  __device__ __forceinline__ void start() const {
    phase_start(&meeting->kv_full, WARPGROUP);
    for (int i = 0; i < 2; ++i) {
      phase_start(&meeting->q_full[i], WARPGROUP);
      phase_start(&meeting->g_full[i], WARPGROUP);
      phase_start(&meeting->q_empty[i], COMPUTING / 32);
      phase_start(&meeting->g_empty[i], COMPUTING / 32);
    }
  }

  // One value for each query of a step; 0 for those that are not there.
  static __device__ __forceinline__ void copy_side(float* to, const float* from, int left) {
    const int here = threadIdx.x % WARPGROUP;
    if (here < STEP) cp_async_4(to + here, from + (here < left ? here : 0), here < left);
  }

  __device__ __forceinline__ void copy() const {
    const int* const tile = key_tiles + 8 * blockIdx.x;
    const size_t from = static_cast<size_t>(tile[0]) * kv_stride + blockIdx.y * SIZE;
    copy_rows<SIZE, KEYS>(k_place(), k + from, kv_stride, tile[1]);
    copy_rows<SIZE, KEYS>(v_place(), v + from, kv_stride, tile[1]);
    Sender sender;
    sender.filled(&meeting->kv_full);

    const int group = heads / kv_heads, first_head = blockIdx.y * group;
    Walk walk{tile, spans, first_head, first_head + group, tile[2]};
    walk.settle();
    for (Place<2> at;; at.advance()) {
      sender.wait_empty(&meeting->q_empty[at.stage], at.parity);
      if (threadIdx.x % WARPGROUP == 0) meeting->steps[at.stage] = {walk.row, walk.left, walk.visible, walk.head};
      // Rows that are not there have probability 1 and gradient 0.
      const size_t row = walk.row, side = static_cast<size_t>(walk.head) * lse_rows + row;
      if (walk.left > 0) {
        copy_rows<SIZE, STEP>(q_place(at.stage), q + row * q_stride + walk.head * SIZE, q_stride, walk.left);
        copy_side(meeting->lse[at.stage], lse + side, walk.left);
      }
      sender.filled(&meeting->q_full[at.stage]);
      if (walk.left <= 0) {
        sender.flush();
        return;
      }
      sender.wait_empty(&meeting->g_empty[at.stage], at.parity);
      copy_rows<SIZE, STEP>(g_place(at.stage), grad_out + row * out_stride + walk.head * SIZE, out_stride, walk.left);
      copy_side(meeting->delta[at.stage], delta + side, walk.left);
      sender.filled(&meeting->g_full[at.stage]);
      walk.advance(STEP);
    }
  }

  // Probabilities in place of scores; rows are keys, columns queries.
  __device__ __forceinline__ void weigh(float (&s)[PIECE / 2], const float* row_lse, int visible, int k_count,
                                        int warp_key, float slope, float scale2) const {
    const int key = warp_key + threadIdx.x % 32 / 4, pair = threadIdx.x % 4 * 2;
    // From the lane's first query to its first key.
    const int first_distance = visible - 1 + pair - key;
    if (slope != 0.0f) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float distance = static_cast<float>(first_distance + i % 2 - i / 2 * 8);
#pragma unroll
        for (int n = 0; n < PIECE / 8; ++n) s[4 * n + i] -= slope * (distance + static_cast<float>(n * 8));
      }
    }
#pragma unroll
    for (int n = 0; n < PIECE / 8; ++n) {
      const float2 here = *reinterpret_cast<const float2*>(row_lse + n * 8 + pair);
      const float shift[2] = {here.x * LOG2E, here.y * LOG2E};
#pragma unroll
      for (int i = 0; i < 4; ++i) s[4 * n + i] = exp2_fast(s[4 * n + i] * scale2 - shift[i % 2]);
    }
    if (min(visible, k_count) < warp_key + 16) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int distance = first_distance + i % 2 - i / 2 * 8;
        const bool there = key + i / 2 * 8 < k_count;
#pragma unroll
        for (int n = 0; n < PIECE / 8; ++n)
          if (!there || distance + n * 8 < 0) s[4 * n + i] = 0.0f;
      }
    }
  }

  // Gradients of scores, for the product that sums them over the keys of both warpgroups.
  static __device__ __forceinline__ void share(unsigned char* to, const uint32_t (&ds)[PIECE / 16][4], int key) {
    to += key * 128 + threadIdx.x % 4 * 4;
    const int swizzle = (key & 7) << 4;
#pragma unroll
    for (int n = 0; n < PIECE / 8; ++n) {
#pragma unroll
      for (int half = 0; half < 2; ++half)
        *reinterpret_cast<uint32_t*>(to + half * (8 * 128) + (n << 4 ^ swizzle)) =
            ds[n / 2][n % 2 * 2 + half];
    }
  }

  // Adds 64 queries' gradients by 64 columns. Of each 16 columns, a lane has 4, which lie together in the sums:
  // column 2 t + 8 i + j, for i and j of 0 and 1, lies at 4 t + 2 i + j.
  static __device__ __forceinline__ void add_sums(float* to, const float (&dq)[32], int left) {
    const int row = threadIdx.x % WARPGROUP / 32 * 16 + threadIdx.x % 32 / 4;
    to += row * SIZE + threadIdx.x % 4 * 4;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (row + half * 8 >= left) continue;
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        const int i = 8 * n + 2 * half;
        add_to_global(to + half * 8 * SIZE + n * 16, dq[i], dq[i + 1], dq[i + 4], dq[i + 5]);
      }
    }
  }

  __device__ __forceinline__ void compute() const {
    // Of the two that compute: 0 or 1.
    const int part = warpgroup_number() - 1;
    const float scale2 = scale * LOG2E;
    const int* const tile = key_tiles + 8 * blockIdx.x;
    const int k_count = tile[1];
    const int warp_key = part * 64 + threadIdx.x % WARPGROUP / 32 * 16;
    // What the warpgroup makes of the gradient of queries: all queries of a step by some columns, or all columns
    // of some queries.
    constexpr bool BY_COLUMNS = SIZE == 128;
    static_assert(BY_COLUMNS ? STEP == 64 : STEP == 128 && SIZE == 64, "64 x 64 for each warpgroup");
    const int q_part = BY_COLUMNS ? 0 : part * 64, column = BY_COLUMNS ? part * 64 : 0;
    const uint32_t keys = shared_address(k_place()), values = shared_address(v_place());

    float dk[SIZE / 2], dv[SIZE / 2];
#pragma unroll
    for (int i = 0; i < SIZE / 2; ++i) dk[i] = dv[i] = 0.0f;

    phase_wait(&meeting->kv_full, 0);
    for (Place<2> at;; at.advance()) {
      phase_wait(&meeting->q_full[at.stage], at.parity);
      const int left = __shfl_sync(0xffffffffu, meeting->steps[at.stage].left, 0);
      if (left <= 0) break;
      const int visible = meeting->steps[at.stage].visible;
      const float slope = slopes ? __fdividef(slopes[meeting->steps[at.stage].head], scale) : 0.0f;
      const uint32_t queries = shared_address(q_place(at.stage)), grads = shared_address(g_place(at.stage));

      uint32_t weights[PIECES][PIECE / 16][4], score_grads[PIECES][PIECE / 16][4];
#pragma unroll
      for (int piece = 0; piece < PIECES; ++piece) {
        float s[PIECE / 2], ds[PIECE / 2];
        const int first = piece * PIECE;
        wgmma_fence();
        multiply_across<SIZE, PIECE, KEYS, STEP>(s, keys + part * (64 * 128), queries + first * 128);
        wgmma_commit();
        if (piece == 0) phase_wait(&meeting->g_full[at.stage], at.parity);
        multiply_across<SIZE, PIECE, KEYS, STEP>(ds, values + part * (64 * 128), grads + first * 128);
        wgmma_commit();
        wgmma_wait<1>();
        hold(s);
        weigh(s, meeting->lse[at.stage] + first, visible + first, k_count, warp_key, slope, scale2);
        wait_only_after(s);
        wgmma_wait<0>();
        hold(ds);
        hold(dv);
        as_left<PIECE>(weights[piece], s);
        hold(weights[piece]);
        hold(dv);
        wgmma_fence();
        multiply_along<SIZE, PIECE, STEP>(dv, weights[piece], grads + first * 128);
        wgmma_commit();
        const int pair = threadIdx.x % 4 * 2;
#pragma unroll
        for (int n = 0; n < PIECE / 8; ++n) {
          const float2 less = *reinterpret_cast<const float2*>(meeting->delta[at.stage] + first + n * 8 + pair);
#pragma unroll
          for (int i = 0; i < 4; ++i) ds[4 * n + i] = s[4 * n + i] * (ds[4 * n + i] - (i % 2 ? less.y : less.x));
        }
        as_left<PIECE>(score_grads[piece], ds);
        // One barrier a step is enough for two places: nobody writes a place before all have read it, a step
        // later.
        share(s_place(at.stage) + piece * (KEYS * 128), score_grads[piece], warp_key + threadIdx.x % 32 / 4);
      }
      fence_for_products();
      named_barrier_sync(COMPUTING_BARRIER, COMPUTING);

      float dq[32];
#pragma unroll
      for (int piece = 0; piece < PIECES; ++piece) hold(score_grads[piece]);
      hold(dk);
      wgmma_fence();
      {
        const uint64_t a = matrix_descriptor(shared_address(s_place(at.stage)) + q_part / 64 * (KEYS * 128));
        const uint64_t b = matrix_descriptor(keys + column / 64 * (KEYS * 128));
#pragma unroll
        for (int i = 0; i < KEYS / 16; ++i)
          Wgmma<64, true, true>::shared(dq, a + descriptor_step(i * 2048), b + descriptor_step(i * 2048), i > 0);
      }
      wgmma_commit();
#pragma unroll
      for (int piece = 0; piece < PIECES; ++piece)
        multiply_along<SIZE, PIECE, STEP>(dk, score_grads[piece], queries + piece * (PIECE * 128));
      wgmma_commit();
      wgmma_wait<1>();
      hold(dq);
      hold(dv);
#pragma unroll
      for (int piece = 0; piece < PIECES; ++piece) hold(weights[piece]);
      leave(&meeting->g_empty[at.stage]);
      // Read again, as there are no registers for them.
      const volatile typename Meeting::Step& step = meeting->steps[at.stage];
      const size_t row = static_cast<size_t>(step.head) * lse_rows + step.row;
      add_sums(sums + (row + q_part) * SIZE + column, dq, step.left - q_part);
      wgmma_wait<0>();
      hold(dk);
#pragma unroll
      for (int piece = 0; piece < PIECES; ++piece) hold(score_grads[piece]);
      leave(&meeting->q_empty[at.stage]);
    }

#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int here = warp_key + threadIdx.x % 32 / 4 + half * 8;
      const size_t to = static_cast<size_t>(tile[0] + here) * grad_kv_stride + blockIdx.y * SIZE;
      store_row<SIZE>(grad_k + to, dk, half, scale, here < k_count);
      store_row<SIZE>(grad_v + to, dv, half, 1.0f, here < k_count);
    }
  }

  __device__ __forceinline__ void run() {
    DYNAMIC_SHARED(unsigned char, dynamic);
    panels = panels_start(dynamic);
    meeting = reinterpret_cast<Meeting*>(s_place(2));
    if (threadIdx.x == 0) start();
    __syncthreads();
    if (warpgroup_number() == 0) {
      give_registers<COPY_REGISTERS>();
      copy();
    } else {
      take_registers<COMPUTE_REGISTERS>();
      compute();
    }
  }
};

// A thread makes 4 values of what lies together in the sums.
template <int SIZE>
__device__ __forceinline__ void grad_q_of(const float* sums, bf16* grad_q, int rows, int heads, int stride,
                                          int lse_rows, float scale) {
  const size_t unit = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int part = static_cast<int>(unit % (SIZE / 4));
  const size_t place = unit / (SIZE / 4);
  // By head, as the sums lie.
  const int head = static_cast<int>(place / rows);
  const size_t row = place % rows;
  if (head >= heads) return;
  const float4 x = *reinterpret_cast<const float4*>(sums + (static_cast<size_t>(head) * lse_rows + row) * SIZE + part * 4);
  bf16* const to = grad_q + row * stride + head * SIZE + part / 4 * 16 + part % 4 * 2;
  *reinterpret_cast<uint32_t*>(to) = pack_bf16(x.x * scale, x.y * scale);
  *reinterpret_cast<uint32_t*>(to + 8) = pack_bf16(x.z * scale, x.w * scale);
}

}  // namespace
}  // namespace attention_hopper

#if ON_HOPPER
#define HOPPER_ONLY(...) __VA_ARGS__
#else
#define HOPPER_ONLY(...) __trap()
#endif

// `size` is there so that all kernels take the same arguments.
#define ATTENTION_HOPPER(SIZE)                                                                                      \
  KERNEL __launch_bounds__(attention_hopper::THREADS, 1) attention_forward_wgmma##SIZE(                             \
      const bf16* q, const bf16* k, const bf16* v, bf16* out, float* lse, const int* tiles, const float* slopes,    \
      int heads, int kv_heads, int size, int q_stride, int kv_stride, int out_stride, int lse_rows, float scale,    \
      int tile_count, int* taken) {                                                                                 \
    HOPPER_ONLY(attention_hopper::Forward<SIZE>{q, k, v, out, lse, tiles, slopes, heads, kv_heads, q_stride,        \
                                                kv_stride, out_stride, lse_rows, scale, tile_count, taken, nullptr, \
                                                nullptr}                                                            \
                    .run());                                                                                        \
  }                                                                                                                 \
  KERNEL __launch_bounds__(attention_hopper::THREADS, 1) attention_backward_wgmma##SIZE(                            \
      const bf16* q, const bf16* k, const bf16* v, const bf16* grad_out, const float* lse, const float* delta,      \
      float* sums, bf16* grad_k, bf16* grad_v, const int* key_tiles, const int* spans, const float* slopes,         \
      int heads, int kv_heads, int size, int q_stride, int kv_stride, int out_stride, int grad_kv_stride,           \
      int lse_rows, float scale) {                                                                                  \
    HOPPER_ONLY(attention_hopper::Backward<SIZE>{q, k, v, grad_out, lse, delta, sums, grad_k, grad_v, key_tiles,    \
                                                 spans, slopes, heads, kv_heads, q_stride, kv_stride, out_stride,   \
                                                 grad_kv_stride, lse_rows, scale, nullptr, nullptr}                 \
                    .run());                                                                                        \
  }                                                                                                                 \
  KERNEL __launch_bounds__(256) attention_grad_q_wgmma##SIZE(const float* sums, bf16* grad_q, int rows, int heads,  \
                                                             int size, int grad_q_stride, int lse_rows,             \
                                                             float scale) {                                         \
    HOPPER_ONLY(                                                                                                    \
        attention_hopper::grad_q_of<SIZE>(sums, grad_q, rows, heads, grad_q_stride, lse_rows, scale));              \
  }                                                                                                                 \
  REGISTER(attention_forward_wgmma##SIZE)                                                                           \
  REGISTER(attention_backward_wgmma##SIZE)                                                                          \
  REGISTER(attention_grad_q_wgmma##SIZE)

ATTENTION_HOPPER(64)
ATTENTION_HOPPER(128)
