// The state behind races.hpp: of each place who wrote it last, and who has read it since.
#include "races.hpp"

#include "emulator.hpp"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <unordered_map>

// The program, in which variables in shared memory lie, as linkers name its ends.
extern "C" const char __executable_start, _end;
// A function in the code of the kernels.
extern "C" void kernels_anchor();

namespace emulator::races {
namespace {

// The number of a block among all of the process (32 bits), a thread of it (10), whether the access is atomic (1), and the
// thread's time (21).
using Who = uint64_t;

constexpr unsigned time_bits = 21;
constexpr uint32_t under_way = (1u << time_bits) - 1;
constexpr Who atomic = Who{1} << time_bits;

uint32_t block_of(Who who) { return uint32_t(who >> 32); }
unsigned thread_of(Who who) { return unsigned(who >> 22) & 1023; }
uint32_t time_of(Who who) { return uint32_t(who) & under_way; }

// Of two bytes: the last write, and reads since then by one thread, another of its warp, and one of another warp. Of the
// reads that a later write is not ordered with, one is among these. (Kernels write no single bytes.)
struct Place {
  Who who[4];
  uint32_t where[4];
};

constexpr unsigned page_bits = 12, places_of_page = 1u << (page_bits - 1);
// Some 1.6 GB.
constexpr size_t max_pages = 16384;

struct State {
  std::unordered_map<uintptr_t, std::unique_ptr<Place[]>> pages;
  // The pages used last, by the lower bits of their numbers.
  struct Recent {
    uintptr_t page = 0;
    Place* places = nullptr;
  } recent[256];

  uint32_t first_block = 1, block = 0;
  unsigned threads = 0;
  uint32_t times[max_threads];
  // What all threads of the block know, and what each does beyond that.
  uint32_t known[max_threads];
  std::vector<Clock> more{max_threads};
  // Until when a thread's writes may be read by products.
  uint32_t fenced[max_threads];

  // Of the running thread, and its stack.
  unsigned thread = 0;
  const uint32_t* view = known;
  uintptr_t stack = 0, stack_bytes = 0;
  uintptr_t shared = 0, shared_bytes = 0;
};

// Never destroyed: another thread of the process may be in a launch at exit.
State& s = *new State;

// What accesses of the running thread are noted as; 0 if none runs, as when the program starts.
constinit Who me = 0;

Who who_is(unsigned thread) { return Who{s.block} << 32 | Who{thread} << 22 | s.times[thread]; }

const uint32_t* view_of(unsigned thread) { return s.more[thread].empty() ? s.known : s.more[thread].data(); }

void see_anew(unsigned thread) {
  if (thread != s.thread) return;
  s.view = view_of(thread);
  me = who_is(thread);
}

// Later accesses of the thread are told apart from those before.
void tick(unsigned thread) {
  if (++s.times[thread] == under_way) fail("a thread is at too many barriers for the race check");
  see_anew(thread);
}

Place* find_places(uintptr_t page) {
  auto& places = s.pages[page];
  if (!places) places = std::make_unique<Place[]>(places_of_page);
  s.recent[page % 256] = {page, places.get()};
  return places.get();
}

inline Place& place_of(uintptr_t half) {
  const uintptr_t page = half / places_of_page;
  const State::Recent& recent = s.recent[page % 256];
  return (recent.page == page ? recent.places : find_places(page))[half % places_of_page];
}

struct Access {
  Kind kind;
  unsigned thread;
  const uint32_t* view;
  // Shared memory begins anew with each block.
  bool shared;
  Who who;
  uint32_t where;
};

inline bool ordered(const Access& access, Who before) {
  const uint32_t block = block_of(before);
  if (block < s.first_block) return true;
  if (block != s.block) return access.shared;
  const uint32_t time = time_of(before);
  if (time == under_way) return false;
  return thread_of(before) == access.thread || time <= access.view[thread_of(before)];
}

// The lines of source of two places in the kernels, by the object that they are linked from: programs have no debug
// information.
std::string lines(uint32_t first, uint32_t second) {
  char command[1024];
  const auto offset = [](uint32_t where) { return static_cast<long long>(int32_t(where)) - 1; };
  snprintf(command, sizeof command,
           "start=0x$(nm '%s' | sed -n 's/ T kernels_anchor//p') && for at in %lld %lld; do "
           "addr2line -Cfipse '%s' $(printf '%%x' $((start + at))) | sed 's/^/    /;1s/^ */  at /'; done 2>&1",
           KERNELS_OBJECT, offset(first), offset(second), KERNELS_OBJECT);
  std::string text;
  if (FILE* const pipe = popen(command, "r")) {
    char line[512];
    while (fgets(line, sizeof line, pipe)) text += line;
    pclose(pipe);
  }
  return text;
}

[[noreturn]] void report(const Access& access, const Place& place, int i) {
  static constexpr const char* doing[] = {"reads", "writes", "adds to", "starts a copy to", "copies to", "multiplies"};
  const Who before = place.who[i];
  const std::string block = block_of(before) == s.block
                                ? ""
                                : " of the block " + std::to_string(s.block - block_of(before)) + " before";
  fail("race: thread %u %s what thread %u%s %s, and nothing orders the two\n%s", access.thread, doing[int(access.kind)],
       thread_of(before), block.c_str(),
       i > 0                           ? "has read"
       : time_of(before) == under_way ? "is copying to"
       : before & atomic              ? "has added to"
                                      : "has written",
       lines(access.where, place.where[i]).c_str());
}

inline void check(const Access& access, const Place& place, int i) {
  if (ordered(access, place.who[i])) return;
  if (access.kind == Kind::ATOMIC && place.who[i] & atomic) return;
  report(access, place, i);
}

inline void put(Place& place, int i, const Access& access) {
  place.who[i] = access.who;
  place.where[i] = access.where;
}

inline bool has_read(const Place& place, Who who) {
  return place.who[1] == who || place.who[2] == who || place.who[3] == who;
}

inline void read(const Access& access, Place& place) {
  if (has_read(place, access.who)) return;
  check(access, place, 0);
  const Who writer = place.who[0], first = place.who[1];
  if (access.kind == Kind::PRODUCT && block_of(writer) == s.block && time_of(writer) > s.fenced[thread_of(writer)])
    fail("thread %u has written what a product reads, without fence_for_products\n%s", thread_of(writer),
         lines(access.where, place.where[0]).c_str());
  if (ordered(access, first)) return put(place, 1, access);
  const bool near = block_of(first) == s.block && thread_of(first) / 32 == access.thread / 32;
  put(place, near ? 2 : 3, access);
}

inline void write(const Access& access, Place& place) {
  // What a copy under way writes is its own.
  if (access.kind != Kind::COPIED)
    for (int i = 0; i < 4; ++i) check(access, place, i);
  put(place, 0, access);
  place.who[1] = place.who[2] = place.who[3] = 0;
}

bool is_shared(uintptr_t from) {
  const uintptr_t program = reinterpret_cast<uintptr_t>(&__executable_start);
  return from - s.shared < s.shared_bytes || from - program < reinterpret_cast<uintptr_t>(&_end) - program;
}

uint32_t offset_of(const void* where) {
  return uint32_t(reinterpret_cast<uintptr_t>(where) - reinterpret_cast<uintptr_t>(&kernels_anchor));
}

// What the running thread need not be told from others for.
inline bool is_its_own(uintptr_t from) {
  return me == 0 || from - s.stack < s.stack_bytes ||
         from - reinterpret_cast<uintptr_t>(&builtins) < sizeof builtins;
}

// Reads and writes of the running thread: nearly all there is.
template <Kind kind>
inline void note(const void* p, size_t bytes, const void* where) {
  const uintptr_t from = reinterpret_cast<uintptr_t>(p);
  if (is_its_own(from)) return;
  uintptr_t half = from / 2;
  const uintptr_t end = (from + bytes + 1) / 2;
  if (kind == Kind::READ) {
    // Mostly read before.
    while (half < end && has_read(place_of(half), me)) ++half;
    if (half == end) return;
  }
  const Access access{kind, s.thread, s.view, is_shared(from), me, offset_of(where)};
  for (; half < end; ++half) {
    if (kind == Kind::READ) read(access, place_of(half));
    else write(access, place_of(half));
  }
}

}  // namespace

const bool wanted = getenv("FLAMINGO_CUDA_RACES") != nullptr;

void start_launch() {
  if (!wanted) return;
  s.first_block = s.block + 1;
  // All that is known is of launches before.
  if (s.pages.size() > max_pages) {
    s.pages.clear();
    for (auto& recent : s.recent) recent = {};
  }
}

void start_block(unsigned threads, const void* shared, size_t shared_bytes) {
  if (!wanted) return;
  if (++s.block == 0) fail("more blocks than the race check can tell apart");
  s.threads = threads;
  for (unsigned thread = 0; thread < threads; ++thread) {
    s.times[thread] = 1;
    s.known[thread] = s.fenced[thread] = 0;
    s.more[thread].clear();
  }
  s.shared = reinterpret_cast<uintptr_t>(shared);
  s.shared_bytes = shared_bytes;
}

void resume(unsigned thread, const char* stack, size_t stack_bytes) {
  if (!wanted) return;
  s.thread = thread;
  see_anew(thread);
  s.stack = reinterpret_cast<uintptr_t>(stack);
  s.stack_bytes = stack_bytes;
}

void pause() { me = 0; }

void release(Clock& clock, unsigned thread) {
  if (!wanted) return;
  clock.resize(s.threads);
  const uint32_t* const view = view_of(thread);
  for (unsigned i = 0; i < s.threads; ++i) clock[i] = std::max(clock[i], view[i]);
  clock[thread] = s.times[thread];
  tick(thread);
}

void acquire(const Clock& clock, unsigned thread) {
  if (!wanted) return;
  Clock& more = s.more[thread];
  if (more.empty()) more.assign(s.known, s.known + s.threads);
  for (unsigned i = 0; i < clock.size(); ++i) more[i] = std::max(more[i], clock[i]);
  see_anew(thread);
}

void meet(const std::vector<uint16_t>& threads) {
  if (!wanted) return;
  for (const uint16_t thread : threads) {
    const Clock& more = s.more[thread];
    for (unsigned i = 0; i < more.size(); ++i) s.known[i] = std::max(s.known[i], more[i]);
  }
  for (const uint16_t thread : threads) {
    s.more[thread].clear();
    s.known[thread] = s.times[thread];
    tick(thread);
  }
}

void fence_for_products(unsigned thread) {
  if (!wanted) return;
  s.fenced[thread] = s.times[thread];
  tick(thread);
}

void access_of(unsigned thread, const void* p, size_t bytes, Kind kind, const void* where) {
  const uintptr_t from = reinterpret_cast<uintptr_t>(p);
  if (is_its_own(from)) return;
  Who who = who_is(thread);
  if (kind == Kind::ATOMIC) who |= atomic;
  if (kind == Kind::COPY) who |= under_way;
  const Access access{kind, thread, view_of(thread), is_shared(from), who, offset_of(where)};
  for (uintptr_t half = from / 2; half < (from + bytes + 1) / 2; ++half) {
    if (kind == Kind::READ || kind == Kind::PRODUCT) read(access, place_of(half));
    else write(access, place_of(half));
  }
}

void access(const void* p, size_t bytes, Kind kind, const void* where) { access_of(s.thread, p, bytes, kind, where); }

}  // namespace emulator::races

// ---- The hooks, as compilers call them ----------------------------------------------

using emulator::races::Kind;
using emulator::races::note;

#define HOOK(name, kind, bytes) \
  extern "C" void __tsan_##name(const void* p) { note<kind>(p, bytes, __builtin_return_address(0)); }
#define HOOKS(bytes)                                \
  HOOK(read##bytes, Kind::READ, bytes)              \
  HOOK(write##bytes, Kind::WRITE, bytes)            \
  HOOK(unaligned_read##bytes, Kind::READ, bytes)    \
  HOOK(unaligned_write##bytes, Kind::WRITE, bytes)
HOOKS(1)
HOOKS(2)
HOOKS(4)
HOOKS(8)
HOOKS(16)

extern "C" void __tsan_read_range(const void* p, unsigned long bytes) {
  note<Kind::READ>(p, bytes, __builtin_return_address(0));
}
extern "C" void __tsan_write_range(const void* p, unsigned long bytes) {
  note<Kind::WRITE>(p, bytes, __builtin_return_address(0));
}
extern "C" void* __tsan_memcpy(void* to, const void* from, unsigned long bytes) {
  note<Kind::READ>(from, bytes, __builtin_return_address(0));
  note<Kind::WRITE>(to, bytes, __builtin_return_address(0));
  return memcpy(to, from, bytes);
}
extern "C" void* __tsan_memset(void* to, int value, unsigned long bytes) {
  note<Kind::WRITE>(to, bytes, __builtin_return_address(0));
  return memset(to, value, bytes);
}
// Of what says whether a variable in shared memory is there.
extern "C" unsigned char __tsan_atomic8_load(const volatile unsigned char* p, int) { return *p; }
extern "C" void __tsan_init() {}
extern "C" void __tsan_func_entry(void*) {}
extern "C" void __tsan_func_exit() {}
