// The part of CUDA C++ that the kernels use, for a C++ compiler: kernels run on
// the CPU, so that tests check them where there is no GPU. Blocks run one after
// another; the threads of a block are fibers that take turns at barriers and at
// the collectives of a warp.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <type_traits>
#include <utility>

#include <math.h>
#include <stdint.h>
#include <string.h>

// ---- Words of the language --------------------------------------------------

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __constant__ static
// Keeps its values from block to block, which SHARED of `common.cuh` does not.
#define __shared__ static

// ---- Vectors ----------------------------------------------------------------

// Kernels load arrays of other types through these.
#define EMULATOR_VECTOR(bytes) __attribute__((may_alias, aligned(bytes)))

struct EMULATOR_VECTOR(8) int2 { int x, y; };
struct EMULATOR_VECTOR(8) uint2 { unsigned x, y; };
struct EMULATOR_VECTOR(8) float2 { float x, y; };
struct EMULATOR_VECTOR(16) int4 { int x, y, z, w; };
struct EMULATOR_VECTOR(16) uint4 { unsigned x, y, z, w; };
struct EMULATOR_VECTOR(16) float4 { float x, y, z, w; };
struct float3 { float x, y, z; };
struct uint3 { unsigned x, y, z; };
struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};

#undef EMULATOR_VECTOR

inline int2 make_int2(int x, int y) { return {x, y}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float3 make_float3(float x, float y, float z) { return {x, y, z}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

// ---- The emulator -----------------------------------------------------------

namespace emulator {

// Reports a fault of the running kernel, and aborts.
[[noreturn]] __attribute__((format(printf, 1, 2))) void fail(const char* format, ...);

// Of the running thread.
struct Builtins {
  uint3 thread_index;
  uint3 block_index;
  dim3 block_size;
  dim3 grid_size;
  unsigned lane;
};
extern Builtins builtins;

// Kernels are compiled twice: as they are, and with calls at each access by which races are found (races.hpp).
#ifndef EMULATOR_CHECKS_RACES
#define EMULATOR_CHECKS_RACES 0
#endif

// A kernel, and its parameters, a letter each: see `letter`.
struct Kernel {
  void (*run)(void** args);
  const char* parameters;
};

struct Registration {
  Registration(const char* name, Kernel kernel, bool checks_races = EMULATOR_CHECKS_RACES);
};

// What the host says it gives.
template <class T>
constexpr char letter() {
  if constexpr (std::is_pointer_v<T>) return 'p';
  if constexpr (std::is_floating_point_v<T>) return sizeof(T) == 4 ? 'f' : 'd';
  return sizeof(T) == 8 ? 'l' : 'i';
}

// Runs a kernel for one thread, with arguments as cuLaunchKernel takes them: an
// array of pointers to the values.
template <auto kernel>
struct Thunk;
template <class... Args, void (*kernel)(Args...)>
struct Thunk<kernel> {
  static constexpr char parameters[] = {letter<Args>()..., 0};

  static void run(void** args) { run(args, std::index_sequence_for<Args...>{}); }

 private:
  template <size_t... i>
  static void run([[maybe_unused]] void** args, std::index_sequence<i...>) {
    kernel(*static_cast<std::remove_cv_t<Args>*>(args[i])...);
  }
};

void* dynamic_shared();

// Storage of a variable in shared memory, spoiled before each block which
// comes after one that used it.
struct SharedStorage {
  SharedStorage(void* start, size_t bytes);
  void mark_used();

  void* start;
  size_t bytes;
  bool used = false;
};

template <class T>
struct Shared {
  alignas(16) T value;
  SharedStorage storage;

  Shared() : storage(&value, sizeof value) {}
  T& use() {
    if (!storage.used) storage.mark_used();
    return value;
  }
};

void block_barrier();

// Waits for all live lanes of `mask`; the last to come calls `complete` once
// for all of them, with each lane's operand, or null for lanes not there.
using Complete = void (*)(void* const operands[32]);
void warp_collective(unsigned mask, Complete complete, void* operand);

struct Exchange {
  uint64_t bits;
  unsigned source;
  uint64_t result;
};
void complete_exchange(void* const operands[32]);

template <class T>
T exchange(unsigned mask, T value, unsigned source) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= 8);
  Exchange operand{0, source, 0};
  memcpy(&operand.bits, &value, sizeof(T));
  warp_collective(mask, complete_exchange, &operand);
  memcpy(&value, &operand.result, sizeof(T));
  return value;
}

unsigned ballot(unsigned mask, bool predicate);
void warp_barrier(unsigned mask);
// Before an atomic change; `where` is in the kernel.
void note_atomic(const void* p, size_t bytes, const void* where);

void check_aligned(const void* p, size_t bytes);
void mma_bf16_m16n8k16(float d[4], const uint32_t a[4], const uint32_t b[2]);
void ldmatrix(uint32_t* r, const void* shared_row, int matrices, bool transposed);
// `bytes` are 4 or 16.
void cp_async(void* shared, const void* global, size_t bytes, bool valid);
void cp_async_commit();
void cp_async_wait(size_t groups_left);

// Where in the window of shared memory, as descriptors of matrices name it.
uint32_t shared_address(const void* p);
// `a` is null where the left factor is in shared memory.
void wgmma(float* d, int columns, const uint32_t* a, uint64_t a_descriptor, bool a_along, uint64_t b_descriptor,
           bool b_along, bool add);
void wgmma_fence();
void fence_for_products();
void wgmma_commit();
void wgmma_wait(size_t groups_left);
// Counts the threads that came to a barrier of part of a block; waits for the others or goes on.
void named_barrier(int barrier, int threads, bool wait);
void phase_start(uint64_t* barrier, int count);
void phase_arrive(uint64_t* barrier);
bool phase_over(const uint64_t* barrier, int parity);
void phase_wait(uint64_t* barrier, int parity);

}  // namespace emulator

#define threadIdx (::emulator::builtins.thread_index)
#define blockIdx (::emulator::builtins.block_index)
#define blockDim (::emulator::builtins.block_size)
#define gridDim (::emulator::builtins.grid_size)

constexpr int warpSize = 32;

// ---- Barriers and collectives -----------------------------------------------

inline void __syncthreads() { ::emulator::block_barrier(); }
inline void __threadfence() {}
inline void __threadfence_block() {}

inline void __syncwarp(unsigned mask = 0xffffffffu) {
  ::emulator::warp_barrier(mask);
}

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  const unsigned first = ::emulator::builtins.lane & ~unsigned(width - 1);
  return ::emulator::exchange(mask, value, first + (source & (width - 1)));
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32) {
  const unsigned lane = ::emulator::builtins.lane, first = lane & ~unsigned(width - 1);
  const unsigned source = lane ^ unsigned(lane_mask);
  return ::emulator::exchange(mask, value, source < first + width ? source : lane);
}

template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  const unsigned lane = ::emulator::builtins.lane, first = lane & ~unsigned(width - 1);
  const unsigned source = lane + delta;
  return ::emulator::exchange(mask, value, source < first + width ? source : lane);
}

template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  const unsigned lane = ::emulator::builtins.lane, first = lane & ~unsigned(width - 1);
  return ::emulator::exchange(mask, value, lane >= first + delta ? lane - delta : lane);
}

inline unsigned __ballot_sync(unsigned mask, int predicate) {
  return ::emulator::ballot(mask, predicate != 0);
}
inline int __any_sync(unsigned mask, int predicate) {
  return ::emulator::ballot(mask, predicate != 0) != 0;
}
inline int __all_sync(unsigned mask, int predicate) {
  return ::emulator::ballot(mask, predicate == 0) == 0;
}

// ---- Atomics: the old value, as in CUDA --------------------------------------

// One thread runs at a time, so plain reads and writes will do. The check for races learns of them apart, with the place
// in the kernel that calls these, which are not inlined where it is on.
#define EMULATOR_NO_HOOKS __attribute__((no_sanitize("thread")))

#define EMULATOR_ATOMIC(name, type, updated)                             \
  EMULATOR_NO_HOOKS inline type name(type* p, type value) {              \
    ::emulator::note_atomic(p, sizeof *p, __builtin_return_address(0));  \
    const type old = *p;                                                 \
    *p = updated;                                                        \
    return old;                                                          \
  }
EMULATOR_ATOMIC(atomicAdd, float, old + value)
EMULATOR_ATOMIC(atomicAdd, double, old + value)
EMULATOR_ATOMIC(atomicAdd, int, int(unsigned(old) + unsigned(value)))
EMULATOR_ATOMIC(atomicAdd, unsigned, old + value)
EMULATOR_ATOMIC(atomicAdd, unsigned long long, old + value)
EMULATOR_ATOMIC(atomicMax, int, old < value ? value : old)
EMULATOR_ATOMIC(atomicMax, unsigned, old < value ? value : old)
EMULATOR_ATOMIC(atomicMin, int, value < old ? value : old)
EMULATOR_ATOMIC(atomicMin, unsigned, value < old ? value : old)
EMULATOR_ATOMIC(atomicOr, int, old | value)
EMULATOR_ATOMIC(atomicOr, unsigned, old | value)
EMULATOR_ATOMIC(atomicExch, int, value)
EMULATOR_ATOMIC(atomicExch, unsigned, value)
EMULATOR_ATOMIC(atomicExch, float, value)
#undef EMULATOR_ATOMIC

#define EMULATOR_CAS(type)                                                     \
  EMULATOR_NO_HOOKS inline type atomicCAS(type* p, type compare, type value) { \
    ::emulator::note_atomic(p, sizeof *p, __builtin_return_address(0));        \
    const type old = *p;                                                       \
    if (old == compare) *p = value;                                            \
    return old;                                                                \
  }
EMULATOR_CAS(int)
EMULATOR_CAS(unsigned)
EMULATOR_CAS(unsigned long long)
#undef EMULATOR_CAS
#undef EMULATOR_NO_HOOKS

// ---- Loads and stores with a cache hint --------------------------------------

template <class T>
T __ldg(const T* p) { return *p; }
template <class T>
T __ldcg(const T* p) { return *p; }
template <class T>
T __ldcs(const T* p) { return *p; }
template <class T>
void __stcg(T* p, T value) { *p = value; }
template <class T>
void __stcs(T* p, T value) { *p = value; }

// ---- Mathematics --------------------------------------------------------------

using std::isfinite;
using std::isinf;
using std::isnan;

template <class A, class B>
constexpr std::common_type_t<A, B> min(A a, B b) {
  using T = std::common_type_t<A, B>;
  if constexpr (std::is_floating_point_v<T>) return std::fmin(T(a), T(b));
  else return T(b) < T(a) ? T(b) : T(a);
}
template <class A, class B>
constexpr std::common_type_t<A, B> max(A a, B b) {
  using T = std::common_type_t<A, B>;
  if constexpr (std::is_floating_point_v<T>) return std::fmax(T(a), T(b));
  else return T(a) < T(b) ? T(b) : T(a);
}

// Macros, as the C library keeps some of these names for itself.
#define __expf(x) (::expf(x))
#define __exp10f(x) (::powf(10.0f, x))
#define __logf(x) (::logf(x))
#define __log2f(x) (::log2f(x))
#define __log10f(x) (::log10f(x))
#define __powf(x, y) (::powf(x, y))
#define __sinf(x) (::sinf(x))
#define __cosf(x) (::cosf(x))
#define __tanf(x) (::tanf(x))
#define __sincosf(x, s, c) (*(s) = ::sinf(x), (void)(*(c) = ::cosf(x)))
#define __fdividef(x, y) (float(x) / float(y))
#define __fdiv_rn(x, y) (float(x) / float(y))
#define __frcp_rn(x) (1.0f / float(x))
#define __fsqrt_rn(x) (::sqrtf(x))
#define __frsqrt_rn(x) (1.0f / ::sqrtf(x))
#define rsqrtf(x) (1.0f / ::sqrtf(x))
#define __fmaf_rn(x, y, z) (::fmaf(x, y, z))
#define __fadd_rn(x, y) (float(x) + float(y))
#define __fmul_rn(x, y) (float(x) * float(y))
#define __fsub_rn(x, y) (float(x) - float(y))
#define __saturatef(x) (::fminf(::fmaxf(x, 0.0f), 1.0f))

template <class To, class From>
To emulator_bits(From x) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &x, sizeof to);
  return to;
}
inline unsigned __float_as_uint(float x) { return emulator_bits<unsigned>(x); }
inline int __float_as_int(float x) { return emulator_bits<int>(x); }
inline float __uint_as_float(unsigned x) { return emulator_bits<float>(x); }
inline float __int_as_float(int x) { return emulator_bits<float>(x); }
inline int __float2int_rn(float x) { return int(::rintf(x)); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(unsigned(x)); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline unsigned __umulhi(unsigned x, unsigned y) { return unsigned(uint64_t{x} * y >> 32); }

// ---- bf16 ----------------------------------------------------------------------

// Without operators and implicit conversions: those of CUDA round each result,
// which is seldom meant.
struct bf16 {
  uint16_t bits;

  bf16() = default;
  explicit bf16(float x) {
    const uint32_t b = emulator_bits<uint32_t>(x);
    // Rounding could turn a NaN into an infinity.
    bits = x != x ? 0x7fff : uint16_t((b + 0x7fff + (b >> 16 & 1)) >> 16);
  }
  explicit operator float() const { return emulator_bits<float>(uint32_t{bits} << 16); }
};

using __nv_bfloat16 = bf16;

inline float __bfloat162float(bf16 x) { return float(x); }
inline bf16 __float2bfloat16_rn(float x) { return bf16(x); }
inline bf16 __float2bfloat16(float x) { return bf16(x); }
