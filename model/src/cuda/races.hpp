// Finds accesses of two threads of a kernel to one place that nothing orders, at least one of them a write: where the
// environment has FLAMINGO_CUDA_RACES. Kernels that are compiled with -fsanitize=thread call a hook at each access; the
// hooks are in races.cpp, and no other runtime is linked.
//
// What orders: a barrier, those that came to it (__syncthreads, __syncwarp, barriers by number, phases of barriers in
// shared memory); the end of a launch, all. Blocks of a launch are not ordered, nor are the lanes of a warp, by shuffles,
// votes or products: CUDA promises no more. Copies under way write from their start to the wait for them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace emulator::races {

constexpr unsigned max_threads = 1024;

// Without it nothing below does anything.
extern const bool wanted;

// What is known, of each thread: all it did before this time.
using Clock = std::vector<uint32_t>;

void start_launch();
// `shared` is its dynamic shared memory.
void start_block(unsigned threads, const void* shared, size_t shared_bytes);
// From here on accesses are those of this thread; what lies on its stack is its own.
void resume(unsigned thread, const char* stack, size_t stack_bytes);
// No thread runs.
void pause();

// What the thread has done is known to those that take the clock.
void release(Clock& clock, unsigned thread);
void acquire(const Clock& clock, unsigned thread);
// All threads of a block meet.
void meet(const std::vector<uint16_t>& threads);
// What the thread has written may be read by products.
void fence_for_products(unsigned thread);

enum class Kind { READ, WRITE, ATOMIC, COPY, COPIED, PRODUCT };
// `where` is in the code of a kernel.
void access(const void* p, size_t bytes, Kind kind, const void* where);
// As above, of a thread that may not be the running one.
void access_of(unsigned thread, const void* p, size_t bytes, Kind kind, const void* where);

}  // namespace emulator::races
