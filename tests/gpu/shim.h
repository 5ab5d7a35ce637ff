// The parts of CUDA that src/gpu/kernel.cu uses, for C++: a block of threads on one CPU thread.
//
// Each GPU thread is a fibre that runs until it meets the other threads of its warp or block. If a
// barrier is missing before a read of shared memory, the read finds the old value in one of the two
// orders of the threads. Threads of a warp that meet in different places, which would hang or worse
// on a GPU, end the program.

#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ucontext.h>
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#else
inline void __sanitizer_start_switch_fiber(void**, const void*, size_t) {}
inline void __sanitizer_finish_switch_fiber(void*, const void**, size_t*) {}
#endif

#define __global__
#define __device__
#define __shared__
#define __constant__ static
#define __align__(n) __attribute__((aligned(n)))
#define __launch_bounds__(...)

struct uint2 {
    alignas(8) unsigned x;
    unsigned y;
};
struct uint4 {
    alignas(16) unsigned x;
    unsigned y, z, w;
};
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

struct Index {
    unsigned x;
};
// The state of the running fibre.
inline Index threadIdx, blockIdx;

namespace shim {

constexpr unsigned WARP = 32;
constexpr unsigned THREADS = 128;
constexpr size_t STACK = 256 << 10;

// Threads that meet, and the values that they bring.
struct Meeting {
    unsigned size = 0, arrived = 0, generation = 0;
    const char* place = nullptr;
    // Two meetings alternate: a thread may reach the next one before all have left this one.
    unsigned brought[2][WARP] = {};
};

struct Fibre {
    ucontext_t context = {};
    char* stack = nullptr;
    void* fake_stack = nullptr;
    bool done = false;
};

struct Block {
    Fibre fibres[THREADS];
    Meeting warps[THREADS / WARP];
    Meeting all;
    ucontext_t scheduler = {};
    const void* scheduler_stack = nullptr;
    size_t scheduler_stack_len = 0;
    void* scheduler_fake_stack = nullptr;
    unsigned running = 0;
    bool progress = false;
    void (*body)(void*) = nullptr;
    void* argument = nullptr;
};

inline Block* block;

[[noreturn]] inline void fail(const char* why, const char* place) {
    fprintf(stderr, "thread %u of block %u, %s: %s\n", threadIdx.x, blockIdx.x, place, why);
    abort();
}

// Let the other threads run.
inline void yield() {
    Fibre& f = block->fibres[block->running];
    __sanitizer_start_switch_fiber(f.done ? nullptr : &f.fake_stack, block->scheduler_stack,
                                   block->scheduler_stack_len);
    swapcontext(&f.context, &block->scheduler);
    __sanitizer_finish_switch_fiber(f.fake_stack, nullptr, nullptr);
}

// Wait for the others; returns the value that each brought.
inline const unsigned* meet(Meeting& m, unsigned lane, unsigned brings, const char* place) {
    if (m.arrived > 0 && strcmp(m.place, place) != 0) {
        fail("the other threads of the warp are elsewhere", place);
    }
    unsigned generation = m.generation;
    unsigned* brought = m.brought[generation % 2];
    m.place = place;
    if (lane < WARP) brought[lane] = brings;
    block->progress = true;
    if (++m.arrived == m.size) {
        m.arrived = 0;
        m.generation++;
    }
    while (m.generation == generation) yield();
    return brought;
}

inline const unsigned* meet_warp(unsigned mask, unsigned brings, const char* place) {
    if (mask != 0xffffffffu) fail("not all threads of the warp are meant", place);
    return meet(block->warps[threadIdx.x / WARP], threadIdx.x % WARP, brings, place);
}

inline unsigned ballot(unsigned mask, bool vote, const char* place) {
    const unsigned* votes = meet_warp(mask, vote, place);
    unsigned all = 0;
    for (unsigned i = 0; i < WARP; i++) all |= votes[i] << i;
    return all;
}

inline void enter() {
    __sanitizer_finish_switch_fiber(nullptr, &block->scheduler_stack, &block->scheduler_stack_len);
    block->body(block->argument);
    block->fibres[block->running].done = true;
    block->progress = true;
    yield();
}

// Create a fibre that starts with `enter`.
inline void prepare(Fibre& f, char* stack) {
    f.stack = stack;
    getcontext(&f.context);
    f.context.uc_stack.ss_sp = stack;
    f.context.uc_stack.ss_size = STACK;
    f.context.uc_link = nullptr;
    makecontext(&f.context, enter, 0);
}

// Run `body` as a block of THREADS threads, in ascending or descending order.
inline void run(unsigned number, bool descending, void (*body)(void*), void* argument) {
    static char stacks[THREADS][STACK];
    Block here;
    block = &here;
    for (Meeting& m : here.warps) m.size = WARP;
    here.all.size = THREADS;
    here.body = body;
    here.argument = argument;
    for (unsigned i = 0; i < THREADS; i++) prepare(here.fibres[i], stacks[i]);
    blockIdx.x = number;
    unsigned left = THREADS;
    while (left > 0) {
        here.progress = false;
        for (unsigned i = 0; i < THREADS; i++) {
            here.running = descending ? THREADS - 1 - i : i;
            Fibre& f = here.fibres[here.running];
            if (f.done) continue;
            threadIdx.x = here.running;
            __sanitizer_start_switch_fiber(&here.scheduler_fake_stack, f.stack, STACK);
            swapcontext(&here.scheduler, &f.context);
            __sanitizer_finish_switch_fiber(here.scheduler_fake_stack, nullptr, nullptr);
            left -= f.done;
        }
        if (!here.progress) fail("waits for threads that have ended", "a barrier");
    }
    block = nullptr;
}

}  // namespace shim

// The line of the source where threads meet.
#define SHIM_TEXT(x) #x
#define SHIM_LINE(x) SHIM_TEXT(x)
#define SHIM_PLACE "line " SHIM_LINE(__LINE__)
#define __ballot_sync(mask, vote) shim::ballot(mask, vote, SHIM_PLACE)
#define __any_sync(mask, vote) (shim::ballot(mask, vote, SHIM_PLACE) != 0)
#define __all_sync(mask, vote) (shim::ballot(mask, vote, SHIM_PLACE) == 0xffffffffu)
#define __shfl_sync(mask, value, lane) (shim::meet_warp(mask, value, SHIM_PLACE)[lane])
#define __syncwarp() ((void)shim::meet_warp(0xffffffffu, 0, SHIM_PLACE))
#define __syncthreads() ((void)shim::meet(shim::block->all, 32, 0, SHIM_PLACE))

template <class T>
T __ldg(const T* at) {
    return *at;
}
inline unsigned __popc(unsigned x) { return (unsigned)__builtin_popcount(x); }
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned by) {
    return (unsigned)(((uint64_t)high << 32 | low) >> (by % 32));
}
inline unsigned __byte_perm(unsigned low, unsigned high, unsigned which) {
    uint64_t bytes = (uint64_t)high << 32 | low;
    unsigned x = 0;
    for (unsigned i = 0; i < 4; i++) {
        x |= (unsigned)(bytes >> (8 * (which >> (4 * i) & 7)) & 255) << (8 * i);
    }
    return x;
}
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned by) {
    return (unsigned)(((uint64_t)high << 32 | low) << (by % 32) >> 32);
}
inline unsigned __dp4a(unsigned a, unsigned b, unsigned x) {
    for (unsigned i = 0; i < 32; i += 8) x += (a >> i & 255) * (b >> i & 255);
    return x;
}
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return (unsigned long long)((unsigned __int128)a * b >> 64);
}
