#include "emulator.hpp"

#include "races.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdarg>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#if defined(__x86_64__) && defined(__ELF__) && !defined(EMULATOR_UCONTEXT)
#define EMULATOR_ASSEMBLY 1
#else
#define EMULATOR_ASSEMBLY 0
#include <ucontext.h>
#endif

namespace emulator {

Builtins builtins;

}  // namespace emulator

// ---- Contexts: a stack, and the registers a call preserves ----------------------

#if EMULATOR_ASSEMBLY

// Far faster than swapcontext, which calls the kernel of the system each time.
asm(R"(
.pushsection .text
.globl emulator_switch
.hidden emulator_switch
.type emulator_switch, @function
emulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq (%rsi), %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emulator_switch, .-emulator_switch
.popsection
)");
extern "C" void emulator_switch(void** from, void** to);

#endif

namespace emulator {
namespace {

#if EMULATOR_ASSEMBLY

struct Context {
  void* stack_pointer = nullptr;

  void start_at(void (*entry)(), char* stack, size_t bytes) {
    void** top = reinterpret_cast<void**>(stack + bytes);
    // At entry the stack is as after a call: 8 bytes off a multiple of 16.
    *--top = nullptr;
    *--top = reinterpret_cast<void*>(entry);
    for (int i = 0; i < 6; ++i) *--top = nullptr;
    stack_pointer = top;
  }
  static void switch_over(Context& from, Context& to) {
    emulator_switch(&from.stack_pointer, &to.stack_pointer);
  }
};

#else

struct Context {
  ucontext_t context;

  void start_at(void (*entry)(), char* stack, size_t bytes) {
    getcontext(&context);
    context.uc_stack.ss_sp = stack;
    context.uc_stack.ss_size = bytes;
    context.uc_link = nullptr;
    makecontext(&context, entry, 0);
  }
  static void switch_over(Context& from, Context& to) {
    swapcontext(&from.context, &to.context);
  }
};

#endif

// ---- State of the running launch -------------------------------------------------

constexpr size_t stack_bytes = 64 * 1024;
using races::max_threads;
constexpr size_t max_shared_bytes = 227 * 1024;
// The system keeps what lies before it.
constexpr uint32_t shared_window = 1024;

struct Fiber {
  Context context;
  const char* stack;
  size_t stack_bytes;
};

// Data is taken at the start of a copy and delivered at the wait.
struct Copy {
  void* to;
  size_t bytes;
  unsigned char data[16];
};

// A result that products under way add to; `d` is spoiled until they are waited for.
struct Pending {
  float* d;
  std::vector<float> sums;
  // Of products, since the launch of the thread, that add to it: the last.
  size_t last;
};

struct Thread {
  Fiber* fiber;
  uint3 index;
  std::vector<Pending> pending;
  // For each group of products not yet waited for, the number of products before its end.
  std::vector<size_t> product_ends;
  size_t products = 0;
  bool fenced = false;
  std::vector<Copy> copies;
  // For each group not yet waited for, how many of `copies` lie before its end.
  std::vector<size_t> group_ends;
};

// What a product under way reads from shared memory: it must stay until the wait.
struct Factors {
  uint64_t a, b;
  bool a_along, b_along;
  // Whether the left factor is there too; it may be in registers.
  bool left;
  int columns;
  const void* where;
  size_t product;
  std::vector<uint16_t> values;
  // Of the warpgroup's warps, a bit for each that has waited for the product.
  unsigned waited = 0;
};

// Four warps, for their products.
struct Warpgroup {
  unsigned came = 0;
  struct WarpgroupProduct* operands[128];
  std::vector<Factors> factors;
  size_t products = 0;
};

struct NamedBarrier {
  unsigned came = 0;
  int threads = 0;
  std::vector<uint16_t> waiting;
  races::Clock clock;
};

// What those know that arrived in the present phase, and in those before.
struct PhaseClocks {
  races::Clock arriving, over;
};

struct PhaseWaiter {
  uint64_t* barrier;
  int parity;
  uint16_t thread;
};

struct Warp {
  unsigned live;
  unsigned waiting;
  unsigned masks[32];
  Complete completes[32];
  void* operands[32];
};

// Used under the lock of a launch only.
struct State {
  const char* kernel = nullptr;
  void (*run)(void**) = nullptr;
  void** args = nullptr;
  unsigned threads = 0;

  Thread all[max_threads];
  Warp warps[max_threads / 32];
  Warpgroup warpgroups[max_threads / 128];
  NamedBarrier barriers[16];
  std::vector<PhaseWaiter> phase_waiters;
  std::map<const uint64_t*, PhaseClocks> phase_clocks;
  unsigned started = 0;
  unsigned current = 0;
  bool in_thread = false;
  bool reversed = false;
  unsigned live = 0;
  std::vector<uint16_t> at_barrier;

  // Threads which wait no more, oldest first; each is here at most once.
  uint16_t ready[max_threads];
  unsigned ready_first = 0, ready_count = 0;

  Context scheduler;
  Fiber* running = nullptr;
  std::vector<Fiber*> idle;
  std::vector<std::unique_ptr<Fiber>> fibers;

  char* shared_end = nullptr;
  char* shared = nullptr;
  size_t shared_bytes = 0;
  std::vector<SharedStorage*> used_variables;
};

State& state() {
  // Never destroyed: another thread of the process may be in a launch at exit.
  static State& it = *new State;
  return it;
}

// Of the kernels that check for races, or of those that do not.
std::map<std::string, Kernel>& table(bool checks_races) {
  static auto* const both = new std::map<std::string, Kernel>[2];
  return both[checks_races];
}

// Memory with a page behind it, and one before it, that no one may touch.
char* guarded(size_t bytes) {
  const size_t page = size_t(sysconf(_SC_PAGESIZE));
  bytes = (bytes + page - 1) / page * page;
  void* p = mmap(nullptr, bytes + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (p == MAP_FAILED || mprotect(static_cast<char*>(p) + page, bytes, PROT_READ | PROT_WRITE) != 0)
    fail("no memory for a stack or for shared memory");
  return static_cast<char*>(p) + page + bytes;
}

// What an unwritten float or index in shared memory reads as: NaN, or -1.
void spoil_shared(State& s) {
  memset(s.shared, 0xff, s.shared_bytes);
  for (SharedStorage* variable : s.used_variables) {
    memset(variable->start, 0xff, variable->bytes);
    variable->used = false;
  }
  s.used_variables.clear();
}

void check_shared(const void* p, size_t bytes) {
  const State& s = state();
  const char* from = static_cast<const char*>(p);
  const auto inside = [&](const void* start, size_t size) {
    return from >= start && from + bytes <= static_cast<const char*>(start) + size;
  };
  if (inside(s.shared, s.shared_bytes)) return;
  for (const SharedStorage* variable : s.used_variables)
    if (inside(variable->start, variable->bytes)) return;
  fail("address %p is not in memory of SHARED or DYNAMIC_SHARED", p);
}

// ---- Turns -------------------------------------------------------------------------

void make_ready(State& s, unsigned thread) {
  s.ready[(s.ready_first + s.ready_count++) % max_threads] = uint16_t(thread);
}

void set_current(State& s, unsigned thread) {
  s.current = thread;
  builtins.thread_index = s.all[thread].index;
  builtins.lane = thread % 32;
  races::resume(thread, s.running->stack, s.running->stack_bytes);
}

// Gives the turn away; comes back once another thread has made this one ready.
void wait(State& s) {
  Fiber* fiber = s.running;
  s.all[s.current].fiber = fiber;
  Context::switch_over(fiber->context, s.scheduler);
}

bool complete_if_all_came(State& s, unsigned warp_index, unsigned mask) {
  Warp& warp = s.warps[warp_index];
  const unsigned need = mask & warp.live;
  if (need == 0 || (warp.waiting & need) != need) return false;
  const unsigned first = unsigned(__builtin_ctz(need));
  void* operands[32] = {};
  for (unsigned i = first; i < 32; ++i) {
    if (!(need >> i & 1)) continue;
    if (warp.masks[i] != mask) return false;
    if (warp.completes[i] != warp.completes[first])
      fail("lanes %u and %u of a warp are at different operations", first, i);
    operands[i] = warp.operands[i];
  }
  warp.completes[first](operands);
  warp.waiting &= ~need;
  for (unsigned i = first; i < 32; ++i) {
    const unsigned thread = warp_index * 32 + i;
    if ((need >> i & 1) && thread != s.current) make_ready(s, thread);
  }
  return true;
}

void release_barrier(State& s) {
  for (const uint16_t thread : s.at_barrier) make_ready(s, thread);
  s.at_barrier.clear();
}

void leave(State& s) {
  Thread& thread = s.all[s.current];
  thread.copies.clear();
  thread.group_ends.clear();
  if (!thread.pending.empty()) fail("a thread ends before it has waited for its products");
  thread.product_ends.clear();
  thread.products = 0;
  thread.fenced = false;
  Warp& warp = s.warps[s.current / 32];
  warp.live &= ~(1u << s.current % 32);
  --s.live;
  // This thread may have been the last the others waited for.
  for (unsigned i = 0; warp.waiting && i < 32; ++i)
    if (warp.waiting >> i & 1) complete_if_all_came(s, s.current / 32, warp.masks[i]);
  if (s.live > 0 && s.at_barrier.size() == s.live) {
    races::meet(s.at_barrier);
    release_barrier(s);
  }
}

// Runs threads one after another, as long as none waits: a kernel without
// barriers needs a single fiber.
void fiber_main() {
  State& s = state();
  Fiber* self = s.running;
  for (;;) {
    while (s.started < s.threads && s.ready_count == 0) {
      const unsigned next = s.started++;
      set_current(s, s.reversed ? s.threads - 1 - next : next);
      s.run(s.args);
      leave(s);
    }
    s.idle.push_back(self);
    Context::switch_over(self->context, s.scheduler);
  }
}

Fiber* idle_fiber(State& s) {
  if (s.idle.empty()) {
    s.fibers.push_back(std::make_unique<Fiber>());
    Fiber* fiber = s.fibers.back().get();
    // Tops at one offset within a page would all compete for the same few lines
    // of the cache.
    const size_t bytes = stack_bytes + 4096 - s.fibers.size() % 32 * 128;
    fiber->stack_bytes = stack_bytes + 4096;
    fiber->stack = guarded(fiber->stack_bytes) - fiber->stack_bytes;
    fiber->context.start_at(fiber_main, const_cast<char*>(fiber->stack), bytes);
    return fiber;
  }
  Fiber* fiber = s.idle.back();
  s.idle.pop_back();
  return fiber;
}

void run_block(State& s) {
  spoil_shared(s);
  races::start_block(s.threads, s.shared, s.shared_bytes);
  s.started = 0;
  s.live = s.threads;
  for (unsigned w = 0; w * 32 < s.threads; ++w) {
    const unsigned lanes = s.threads - w * 32;
    s.warps[w].live = lanes >= 32 ? ~0u : (1u << lanes) - 1;
    s.warps[w].waiting = 0;
  }
  for (Warpgroup& warpgroup : s.warpgroups) warpgroup = {};
  for (NamedBarrier& barrier : s.barriers) barrier = {};
  s.phase_waiters.clear();
  s.phase_clocks.clear();
  for (;;) {
    if (s.ready_count > 0) {
      const unsigned thread = s.ready[s.ready_first];
      s.ready_first = (s.ready_first + 1) % max_threads;
      --s.ready_count;
      s.running = s.all[thread].fiber;
      set_current(s, thread);
    } else if (s.started < s.threads) {
      s.running = idle_fiber(s);
    } else {
      break;
    }
    s.in_thread = true;
    Context::switch_over(s.scheduler, s.running->context);
    s.in_thread = false;
    races::pause();
  }
  if (s.live > 0)
    fail("deadlock: %zu threads wait at __syncthreads and %zu at another barrier or an operation of a warp",
         s.at_barrier.size(), s.live - s.at_barrier.size());
}

struct MatrixProduct {
  float* d;
  const uint32_t* a;
  const uint32_t* b;
};

struct MatrixLoad {
  uint32_t* r;
  const void* row;
  int matrices;
  bool transposed;
  unsigned thread;
  const void* where;
};

void check_whole_warp(void* const operands[32], const char* name) {
  for (int i = 0; i < 32; ++i)
    if (!operands[i]) fail("%s without lane %d of the warp", name, i);
}

float half_as_float(uint32_t bits, int upper) {
  return emulator_bits<float>(upper ? bits & 0xffff0000u : bits << 16);
}

void complete_product(void* const operands[32]) {
  check_whole_warp(operands, "mma");
  float a[16][16], b[16][8], product[16][8] = {};
  for (int lane = 0; lane < 32; ++lane) {
    const auto& op = *static_cast<const MatrixProduct*>(operands[lane]);
    const int g = lane / 4, t = lane % 4;
    for (int i = 0; i < 4; ++i)
      for (int half = 0; half < 2; ++half)
        a[g + 8 * (i % 2)][2 * t + 8 * (i / 2) + half] = half_as_float(op.a[i], half);
    for (int i = 0; i < 2; ++i)
      for (int half = 0; half < 2; ++half)
        b[2 * t + 8 * i + half][g] = half_as_float(op.b[i], half);
  }
  for (int i = 0; i < 16; ++i)
    for (int k = 0; k < 16; ++k)
      for (int j = 0; j < 8; ++j) product[i][j] += a[i][k] * b[k][j];
  for (int lane = 0; lane < 32; ++lane) {
    const auto& op = *static_cast<const MatrixProduct*>(operands[lane]);
    const int g = lane / 4, t = lane % 4;
    for (int i = 0; i < 4; ++i) op.d[i] += product[g + 8 * (i / 2)][2 * t + i % 2];
  }
}

void complete_load(void* const operands[32]) {
  check_whole_warp(operands, "ldmatrix");
  const auto& first = *static_cast<const MatrixLoad*>(operands[0]);
  uint16_t rows[32][8];
  for (int i = 0; i < 8 * first.matrices; ++i) {
    const auto& op = *static_cast<const MatrixLoad*>(operands[i]);
    check_aligned(op.row, 16);
    check_shared(op.row, 16);
    races::access_of(op.thread, op.row, 16, races::Kind::READ, op.where);
    memcpy(rows[i], op.row, 16);
  }
  for (int lane = 0; lane < 32; ++lane) {
    const auto& op = *static_cast<const MatrixLoad*>(operands[lane]);
    if (op.matrices != first.matrices || op.transposed != first.transposed)
      fail("lanes of a warp are at different forms of ldmatrix");
    const int g = lane / 4, t = lane % 4;
    for (int i = 0; i < op.matrices; ++i) {
      const auto* matrix = rows + 8 * i;
      const uint32_t lower = op.transposed ? matrix[2 * t][g] : matrix[g][2 * t];
      const uint32_t upper = op.transposed ? matrix[2 * t + 1][g] : matrix[g][2 * t + 1];
      op.r[i] = lower | upper << 16;
    }
  }
}

struct WarpgroupProduct {
  float* d;
  const uint32_t* a;
  uint64_t a_descriptor, b_descriptor;
  int columns;
  bool a_along, b_along, add;
  const void* where;
};

// Where a value lies of a factor of `k` 16 that a descriptor names: `outer` is its row in the result, or its column.
const char* factor_place(uint64_t descriptor, bool along, int outer, int k) {
  const State& s = state();
  const uint32_t start = uint32_t(descriptor & 0x3fff) << 4;
  const uint32_t leading = uint32_t(descriptor >> 16 & 0x3fff) << 4, stride = uint32_t(descriptor >> 32 & 0x3fff) << 4;
  const unsigned mode = unsigned(descriptor >> 62);
  // Bits of the address that the swizzle changes; a row of an atom has as many 16 byte pieces.
  const unsigned bits = mode == 0 ? 0 : 4 - mode, pieces = 1u << bits;
  uint32_t address = start;
  if (along) {
    const uint32_t piece = uint32_t(outer) / 8, group = uint32_t(k) / 8;
    address += outer % 8 * 2 + k % 8 * (16 * pieces);
    address += mode == 0 ? piece * stride + group * leading
                         : piece % pieces * 16 + piece / pieces * leading + group * stride;
  } else {
    address += outer % 8 * (16 * pieces) + outer / 8 * stride + k % 8 * 2;
    address += k / 8 * (mode == 0 ? leading : 16);
  }
  address ^= (address >> 7 & (pieces - 1)) << 4;
  if (address < shared_window || address + 2 > shared_window + s.shared_bytes)
    fail("a matrix reaches out of shared memory, to byte %d", int(address - shared_window));
  return s.shared + (address - shared_window);
}

void check_descriptor(uint64_t descriptor) {
  if (descriptor & 0x3fff'c000'c000'c000ull & ~(7ull << 49)) fail("a matrix descriptor has bits set that mean nothing");
  if (descriptor >> 49 & 7) fail("a matrix descriptor has a base offset, which the emulator does not know");
  // Where atoms start at multiples of their size, these bits of any operand's start are 0.
  const unsigned mode = unsigned(descriptor >> 62), bits = mode == 0 ? 0 : 4 - mode;
  if ((descriptor << 4 >> 7) & ((1u << bits) - 1)) fail("a matrix starts within a pattern of its swizzle");
}

// Calls visit(address) for the values of a product's factors in shared memory.
template <class Visit>
void each_factor_value(const Factors& f, Visit visit) {
  for (int k = 0; k < 16; ++k)
    for (int j = 0; j < f.columns; ++j) visit(factor_place(f.b, f.b_along, j, k));
  for (int i = 0; f.left && i < 64; ++i)
    for (int k = 0; k < 16; ++k) visit(factor_place(f.a, f.a_along, i, k));
}

std::vector<uint16_t> factor_values(const Factors& f) {
  std::vector<uint16_t> values;
  values.reserve(size_t(f.columns + 64) * 16);
  each_factor_value(f, [&](const char* p) {
    uint16_t value;
    memcpy(&value, p, 2);
    values.push_back(value);
  });
  return values;
}

// One thread reads for its warp.
void note_factors(const Factors& f, unsigned thread) {
  if (!races::wanted) return;
  each_factor_value(f, [&](const char* p) { races::access_of(thread, p, 2, races::Kind::PRODUCT, f.where); });
}

// Runs once all threads of the warpgroup came.
void complete_warpgroup_product(State& s, Warpgroup& warpgroup, unsigned first_thread) {
  const WarpgroupProduct& all = *warpgroup.operands[0];
  const int columns = all.columns;
  const bool in_registers = all.a != nullptr;
  for (const WarpgroupProduct* op : warpgroup.operands)
    if (op->columns != columns || (op->a != nullptr) != in_registers || op->a_descriptor != all.a_descriptor ||
        op->b_descriptor != all.b_descriptor || op->a_along != all.a_along || op->b_along != all.b_along ||
        op->add != all.add)
      fail("threads of a warpgroup are at different products");
  check_descriptor(all.b_descriptor);
  if (!in_registers) check_descriptor(all.a_descriptor);
  Factors f{all.a_descriptor, all.b_descriptor, all.a_along, all.b_along,      !in_registers,
            columns,          all.where,        warpgroup.products++, {}};
  f.values = factor_values(f);
  for (unsigned warp = 0; warp < 4; ++warp) note_factors(f, first_thread + warp * 32);
  static float a[64][16], b[16][256], product[64][256];
  for (int k = 0; k < 16; ++k)
    for (int j = 0; j < columns; ++j) b[k][j] = half_as_float(f.values[size_t(k * columns + j)], 0);
  for (int i = 0; !in_registers && i < 64; ++i)
    for (int k = 0; k < 16; ++k) a[i][k] = half_as_float(f.values[size_t(16 * columns + i * 16 + k)], 0);
  for (int thread = 0; in_registers && thread < 128; ++thread) {
    const int row = thread / 32 * 16 + thread % 32 / 4, t = thread % 4;
    for (int i = 0; i < 4; ++i)
      for (int half = 0; half < 2; ++half)
        a[row + 8 * (i % 2)][2 * t + 8 * (i / 2) + half] = half_as_float(warpgroup.operands[thread]->a[i], half);
  }
  memset(product, 0, sizeof product);
  for (int i = 0; i < 64; ++i)
    for (int k = 0; k < 16; ++k)
      for (int j = 0; j < columns; ++j) product[i][j] += a[i][k] * b[k][j];
  warpgroup.factors.push_back(std::move(f));
  for (unsigned n = 0; n < 128; ++n) {
    Thread& thread = s.all[first_thread + n];
    float* d = warpgroup.operands[n]->d;
    const size_t values = size_t(columns) / 2;
    if (!thread.fenced) fail("thread %u starts a product without wgmma_fence", first_thread + n);
    Pending* pending = nullptr;
    for (Pending& other : thread.pending)
      if (other.d == d) pending = &other;
    if (!pending) {
      thread.pending.push_back({d, std::vector<float>(d, d + values), 0});
      pending = &thread.pending.back();
      // A read before the wait gives NaN.
      memset(d, 0xff, values * sizeof(float));
    }
    if (pending->sums.size() != values) fail("products under way take one result for two sizes");
    pending->last = ++thread.products;
    const int row = int(n) / 32 * 16 + int(n) % 32 / 4, t = int(n) % 4;
    for (size_t i = 0; i < values; ++i) {
      const float x = product[row + int(i) / 2 % 2 * 8][i / 4 * 8 + size_t(2 * t) + i % 2];
      pending->sums[i] = all.add ? pending->sums[i] + x : x;
    }
  }
}

void complete_barrier(void* const operands[32]) {
  races::Clock clock;
  for (int i = 0; i < 32; ++i)
    if (operands[i]) races::release(clock, *static_cast<const unsigned*>(operands[i]));
  for (int i = 0; i < 32; ++i)
    if (operands[i]) races::acquire(clock, *static_cast<const unsigned*>(operands[i]));
}

void complete_ballot(void* const operands[32]) {
  unsigned votes = 0;
  for (int i = 0; i < 32; ++i)
    if (operands[i] && *static_cast<const unsigned*>(operands[i])) votes |= 1u << i;
  for (int i = 0; i < 32; ++i)
    if (operands[i]) *static_cast<unsigned*>(operands[i]) = votes;
}

}  // namespace

void fail(const char* format, ...) {
  const State& s = state();
  fprintf(stderr, "CUDA emulator: kernel %s", s.kernel ? s.kernel : "(none)");
  if (s.kernel)
    fprintf(stderr, ", block (%u, %u, %u)", builtins.block_index.x, builtins.block_index.y, builtins.block_index.z);
  if (s.in_thread)
    fprintf(stderr, ", thread (%u, %u, %u)", builtins.thread_index.x, builtins.thread_index.y, builtins.thread_index.z);
  fprintf(stderr, ": ");
  va_list arguments;
  va_start(arguments, format);
  vfprintf(stderr, format, arguments);
  va_end(arguments);
  fprintf(stderr, "\n");
  fflush(stderr);
  abort();
}

Registration::Registration(const char* name, Kernel kernel, bool checks_races) {
  if (!table(checks_races).emplace(name, kernel).second) fail("two kernels are named %s", name);
}

void* dynamic_shared() { return state().shared; }

SharedStorage::SharedStorage(void* start, size_t bytes) : start(start), bytes(bytes) {
  memset(start, 0xff, bytes);
}

void SharedStorage::mark_used() {
  used = true;
  state().used_variables.push_back(this);
}

void block_barrier() {
  State& s = state();
  s.at_barrier.push_back(uint16_t(s.current));
  if (s.at_barrier.size() < s.live) return wait(s);
  races::meet(s.at_barrier);
  s.at_barrier.pop_back();
  release_barrier(s);
}

void warp_collective(unsigned mask, Complete complete, void* operand) {
  State& s = state();
  Warp& warp = s.warps[s.current / 32];
  const unsigned me = s.current % 32;
  if (!(mask >> me & 1)) fail("a thread is not in the mask 0x%08x it names", mask);
  warp.masks[me] = mask;
  warp.completes[me] = complete;
  warp.operands[me] = operand;
  warp.waiting |= 1u << me;
  if (!complete_if_all_came(s, s.current / 32, mask)) wait(s);
}

void complete_exchange(void* const operands[32]) {
  for (int i = 0; i < 32; ++i) {
    if (!operands[i]) continue;
    auto& to = *static_cast<Exchange*>(operands[i]);
    const auto* from = static_cast<const Exchange*>(operands[to.source % 32]);
    // CUDA leaves undefined what comes from a lane that is not there.
    to.result = from ? from->bits : ~uint64_t{0};
  }
}

void warp_barrier(unsigned mask) {
  unsigned thread = state().current;
  warp_collective(mask, complete_barrier, &thread);
}

void note_atomic(const void* p, size_t bytes, const void* where) {
  races::access(p, bytes, races::Kind::ATOMIC, where);
}

unsigned ballot(unsigned mask, bool predicate) {
  unsigned operand = predicate;
  warp_collective(mask, complete_ballot, &operand);
  return operand;
}

void check_aligned(const void* p, size_t bytes) {
  if (reinterpret_cast<uintptr_t>(p) % bytes != 0)
    fail("address %p is not aligned to %zu bytes", p, bytes);
}

void mma_bf16_m16n8k16(float d[4], const uint32_t a[4], const uint32_t b[2]) {
  MatrixProduct operand{d, a, b};
  warp_collective(~0u, complete_product, &operand);
}

void ldmatrix(uint32_t* r, const void* shared_row, int matrices, bool transposed) {
  MatrixLoad operand{r, shared_row, matrices, transposed, state().current, __builtin_return_address(0)};
  warp_collective(~0u, complete_load, &operand);
}

void cp_async(void* shared, const void* global, size_t bytes, bool valid) {
  check_aligned(shared, bytes);
  check_shared(shared, bytes);
  const void* const where = __builtin_return_address(0);
  Copy copy{shared, bytes, {}};
  if (valid) {
    check_aligned(global, bytes);
    races::access(global, bytes, races::Kind::READ, where);
    memcpy(copy.data, global, bytes);
  }
  races::access(shared, bytes, races::Kind::COPY, where);
  State& s = state();
  s.all[s.current].copies.push_back(copy);
}

void cp_async_commit() {
  State& s = state();
  Thread& thread = s.all[s.current];
  thread.group_ends.push_back(thread.copies.size());
}

void cp_async_wait(size_t groups_left) {
  State& s = state();
  auto& copies = s.all[s.current].copies;
  auto& ends = s.all[s.current].group_ends;
  if (ends.size() <= groups_left) return;
  const auto last = ends.end() - ptrdiff_t(groups_left);
  const size_t done = last[-1];
  for (size_t i = 0; i < done; ++i) {
    races::access(copies[i].to, copies[i].bytes, races::Kind::COPIED, __builtin_return_address(0));
    memcpy(copies[i].to, copies[i].data, copies[i].bytes);
  }
  copies.erase(copies.begin(), copies.begin() + ptrdiff_t(done));
  ends.erase(ends.begin(), last);
  for (size_t& end : ends) end -= done;
}

uint32_t shared_address(const void* p) {
  return shared_window + uint32_t(static_cast<const char*>(p) - state().shared);
}

void wgmma(float* d, int columns, const uint32_t* a, uint64_t a_descriptor, bool a_along, uint64_t b_descriptor,
           bool b_along, bool add) {
  State& s = state();
  const unsigned first = s.current / 128 * 128;
  Warpgroup& warpgroup = s.warpgroups[s.current / 128];
  WarpgroupProduct operand{d,       a,       a_descriptor, b_descriptor, columns,
                           a_along, b_along, add,          __builtin_return_address(0)};
  warpgroup.operands[s.current % 128] = &operand;
  if (++warpgroup.came < 128) return wait(s);
  warpgroup.came = 0;
  complete_warpgroup_product(s, warpgroup, first);
  for (unsigned thread = first; thread < first + 128; ++thread)
    if (thread != s.current) make_ready(s, thread);
}

void wgmma_fence() { state().all[state().current].fenced = true; }

void wgmma_commit() {
  State& s = state();
  Thread& thread = s.all[s.current];
  thread.product_ends.push_back(thread.products);
}

void wgmma_wait(size_t groups_left) {
  State& s = state();
  Thread& thread = s.all[s.current];
  auto& ends = thread.product_ends;
  if (ends.size() <= groups_left) return;
  const auto last = ends.end() - ptrdiff_t(groups_left);
  const size_t done = last[-1];
  ends.erase(ends.begin(), last);
  for (size_t i = 0; i < thread.pending.size();) {
    Pending& pending = thread.pending[i];
    if (pending.last > done) {
      ++i;
      continue;
    }
    memcpy(pending.d, pending.sums.data(), pending.sums.size() * sizeof(float));
    thread.pending.erase(thread.pending.begin() + ptrdiff_t(i));
  }
  thread.fenced = false;
  auto& factors = s.warpgroups[s.current / 128].factors;
  for (Factors& f : factors) {
    if (f.product >= done) break;
    // The first thread to wait looks whether the factors are still there.
    if (!f.values.empty() && factor_values(f) != f.values) fail("shared memory was written while a product read it");
    f.values.clear();
    if (s.current % 32 != 0) continue;
    // Read until now, by this warp.
    if (!(f.waited >> s.current / 32 % 4 & 1)) note_factors(f, s.current);
    f.waited |= 1u << s.current / 32 % 4;
  }
  while (!factors.empty() && factors.front().waited == 15) factors.erase(factors.begin());
}

void fence_for_products() { races::fence_for_products(state().current); }

void named_barrier(int number, int threads, bool waits) {
  State& s = state();
  NamedBarrier& barrier = s.barriers[number];
  if (barrier.came > 0 && barrier.threads != threads) fail("barrier %d has two numbers of threads", number);
  barrier.threads = threads;
  races::release(barrier.clock, s.current);
  if (waits) barrier.waiting.push_back(uint16_t(s.current));
  if (++barrier.came < unsigned(threads)) {
    if (waits) wait(s);
    return;
  }
  for (const uint16_t thread : barrier.waiting) {
    races::acquire(barrier.clock, thread);
    if (thread != s.current) make_ready(s, thread);
  }
  barrier = {};
}

// Kept in the barrier itself: arrivals of a phase, those still to come, and the number of the phase.
struct Phase {
  uint16_t count, left;
  uint32_t number;
};

void phase_start(uint64_t* barrier, int count) {
  check_shared(barrier, 8);
  races::access(barrier, 8, races::Kind::WRITE, __builtin_return_address(0));
  const Phase phase{uint16_t(count), uint16_t(count), 0};
  memcpy(barrier, &phase, 8);
}

void phase_arrive(uint64_t* barrier) {
  State& s = state();
  check_shared(barrier, 8);
  races::access(barrier, 8, races::Kind::ATOMIC, __builtin_return_address(0));
  Phase phase;
  memcpy(&phase, barrier, 8);
  if (phase.count == 0xffff) fail("a thread arrives at a barrier that was not started");
  PhaseClocks& clocks = s.phase_clocks[barrier];
  races::release(clocks.arriving, s.current);
  if (--phase.left == 0) {
    phase.left = phase.count;
    ++phase.number;
    clocks.over = clocks.arriving;
    auto& waiters = s.phase_waiters;
    for (size_t i = 0; i < waiters.size();) {
      if (waiters[i].barrier != barrier) {
        ++i;
        continue;
      }
      if (unsigned(waiters[i].parity) == phase.number % 2) fail("a thread waits for a phase long over");
      make_ready(s, waiters[i].thread);
      waiters.erase(waiters.begin() + ptrdiff_t(i));
    }
  }
  memcpy(barrier, &phase, 8);
}

bool phase_over(const uint64_t* barrier, int parity) {
  State& s = state();
  check_shared(barrier, 8);
  races::access(barrier, 8, races::Kind::ATOMIC, __builtin_return_address(0));
  Phase phase;
  memcpy(&phase, barrier, 8);
  if (phase.count == 0xffff) fail("a thread waits at a barrier that was not started");
  if (phase.number % 2 == unsigned(parity)) return false;
  races::acquire(s.phase_clocks[barrier].over, s.current);
  return true;
}

void phase_wait(uint64_t* barrier, int parity) {
  if (phase_over(barrier, parity)) return;
  State& s = state();
  s.phase_waiters.push_back({barrier, parity, uint16_t(s.current)});
  wait(s);
  races::acquire(s.phase_clocks[barrier].over, s.current);
}

}  // namespace emulator

// ---- For the host ------------------------------------------------------------------

static std::mutex& emulator_lock() {
  static auto& it = *new std::mutex;
  return it;
}

// Whether a kernel of that name is there.
extern "C" int emulated_has(const char* name) {
  return emulator::table(false).count(name) != 0;
}

// Runs a kernel to its end, with arguments of the kinds that `given` has a letter for. Returns 1 where there is none of that name, and 2
// where a GPU would refuse the size of the block or of its shared memory.
extern "C" int emulated_launch(const char* name, unsigned gx, unsigned gy, unsigned gz,
                               unsigned bx, unsigned by, unsigned bz, unsigned shared_bytes,
                               const char* given, void** args) {
  using namespace emulator;
  auto& kernels = table(races::wanted);
  const auto found = kernels.find(name);
  if (found == kernels.end()) return 1;
  const uint64_t threads = uint64_t{bx} * by * bz;
  if (bx > max_threads || by > max_threads || bz > 64 || threads > max_threads ||
      shared_bytes > max_shared_bytes)
    return 2;

  // Fibers, shared memory and the built-in variables are there once.
  const std::lock_guard guard(emulator_lock());
  State& s = state();
  s.kernel = found->first.c_str();
  s.run = found->second.run;
  s.args = args;
  s.threads = unsigned(threads);
  races::start_launch();
  builtins.block_index = {0, 0, 0};
  if (gx == 0 || gy == 0 || gz == 0 || threads == 0 || gx > 0x7fffffffu || gy > 65535 || gz > 65535)
    fail("launched with a grid of %ux%ux%u blocks of %ux%ux%u threads", gx, gy, gz, bx, by, bz);
  // A GPU would take what lies behind a value that is too short.
  if (strcmp(given, found->second.parameters) != 0)
    fail("launched with arguments %s, not %s (p: address, i and l: whole number of 4 and 8 bytes, f: float)", given,
         found->second.parameters);
  builtins.grid_size = {gx, gy, gz};
  builtins.block_size = {bx, by, bz};
  for (unsigned i = 0; i < s.threads; ++i) s.all[i].index = {i % bx, i / bx % by, i / bx / by};

  // The end of shared memory lies at a page which faults, so that overruns show.
  if (!s.shared_end) s.shared_end = guarded(max_shared_bytes);
  s.shared_bytes = (shared_bytes + 127) / 128 * 128;
  s.shared = s.shared_end - s.shared_bytes;

  // Blocks take turns in the order of their threads: a missing barrier shows in
  // one of the two.
  s.reversed = false;
  for (unsigned z = 0; z < gz; ++z)
    for (unsigned y = 0; y < gy; ++y)
      for (unsigned x = 0; x < gx; ++x) {
        builtins.block_index = {x, y, z};
        s.reversed = !s.reversed;
        run_block(s);
      }
  s.kernel = nullptr;
  return 0;
}
