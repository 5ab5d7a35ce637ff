// Decoding of coded symbols, round by round.

#pragma once

#include "parse.cuh"

// Bytes of a line of the caches.
#define LINE 128u

// What C++ cannot say: shared memory by its own addresses of 32 bits, and predicates.
#ifdef __CUDA_ARCH__
__device__ u32 place_of(const void* at) { return (u32)__cvta_generic_to_shared(at); }
template <u32 OFFSET>
__device__ u32 shared_word(u32 at) {
    u32 x;
    asm("ld.shared.u32 %0, [%1+%2];" : "=r"(x) : "r"(at), "n"(OFFSET));
    return x;
}
__device__ u32 shared_half(u32 at) {
    u16 x;
    asm volatile("ld.shared.u16 %0, [%1];" : "=h"(x) : "r"(at) : "memory");
    return x;
}
__device__ void put_shared(u32 at, uint2 x) {
    asm volatile("st.shared.v2.u32 [%0], {%1, %2};" : : "r"(at), "r"(x.x), "r"(x.y) : "memory");
}
// Two predicated instructions, where the compiler would branch or select.
__device__ void take_other(u32 place, u32 bucket, u32 table, u32 one, u32& at, u32& number) {
    asm("{ .reg .pred other;\n"
        "setp.ge.u32 other, %2, %3;\n"
        "@other prmt.b32 %0, %3, %4, 0x7652;\n"
        "@other dp2a.lo.s32.u32 %1, %3, %5, %1; }"
        : "+r"(at), "+r"(number)
        : "r"(place), "r"(bucket), "r"(table), "r"(one));
}
// Starts to load a line of global memory into the L2 cache if `position` is below `limit`.
__device__ void prefetch(const void* at, u32 position, u32 limit) {
    asm volatile("{ .reg .pred below;\n"
                 "setp.lt.u32 below, %1, %2;\n"
                 "@below prefetch.global.L2 [%0]; }"
                 :
                 : "l"(at), "r"(position), "r"(limit));
}
// The bits of `b` where MASK has ones, otherwise those of `a`, by one instruction.
template <u32 MASK>
__device__ u32 select_bits(u32 a, u32 b) {
    u32 x;
    asm("lop3.b32 %0, %1, %2, %3, 0xb8;" : "=r"(x) : "r"(a), "n"(MASK), "r"(b));
    return x;
}
// An address of global memory.
template <class T>
__device__ T* as_global(T* at) {
    __builtin_assume(__isGlobal(at));
    return at;
}
// The same value, which the compiler computes anew whatever it depends on.
__device__ u32 anew(u32 x) {
    asm volatile("" : "+r"(x));
    return x;
}
#else
inline u32 anew(u32 x) { return x; }
// Reads a byte, so that the sanitizers see the address.
inline void prefetch(const void* at, u32 position, u32 limit) {
    if (position < limit) (void)*(const volatile u8*)at;
}
template <class T>
T* as_global(T* at) {
    return at;
}
template <u32 MASK>
u32 select_bits(u32 a, u32 b) {
    return (a & ~MASK) | (b & MASK);
}
inline u32 place_of(const void* at) { return (u32)((const u8*)at - (const u8*)shared); }
template <u32 OFFSET>
u32 shared_word(u32 at) {
    return *(const u32*)((const u8*)shared + at + OFFSET);
}
inline u32 shared_half(u32 at) { return *(const u16*)((const u8*)shared + at); }
inline void put_shared(u32 at, uint2 x) { *(uint2*)((u8*)shared + at) = x; }
inline void take_other(u32 place, u32 bucket, u32 table, u32 one, u32& at, u32& number) {
    if (place < bucket) return;
    at = __byte_perm(bucket, table, 0x7652);
    number += (u32)(int)(short)bucket * one;
}
#endif

// The same value, of which the compiler does not know where it is from, so that it keeps it in a
// register rather than computing it anew in every round. All threads of the warp must call this.
__device__ u32 kept(u32 x) { return __shfl_sync(ALL, x, threadIdx.x % WARP); }
template <class T>
__device__ T* kept(T* at) {
    return as_global((T*)(kept((u32)(u64)at) | (u64)kept((u32)((u64)at >> 32)) << 32));
}

// The word of a symbol, beside its value in the upper half.
#define FREQUENCY 0x3fffu
#define IS_ESCAPE 0x4000u

// Decodes a symbol with the table at `table` in shared memory, a multiple of 256; the state may
// need a word afterwards. Returns the word of the symbol.
__device__ u32 step(u32 table, u32 ones, u32 one, u32& x) {
    u32 at = (x >> 6 & 4 * 63) | table;
    // From the top byte down: how many slots belong to the bucket's own symbol, four times the
    // other symbol, and what to add to the place of a slot of that one.
    u32 bucket = shared_word<0>(at);
    u32 number = x & 255;
    take_other(__funnelshift_l(ones, x, 24), bucket, table, one, at, number);
    u32 symbol = shared_word<SYMBOLS_AT>(at);
    x = (symbol & FREQUENCY) * (x >> PROB_BITS) + number;
    return symbol;
}

// The table of a block if there is one class, otherwise that of its first class.
__device__ u32 table_of(const Model& model, u32 tables, const Payload& in, const Layout& l,
                        u32 block) {
    if (!l.coded || model.choices == 1) return tables;
    u32 choice = in.byte(l.choices_at + block / 4) >> (block % 4 * 2) & 3;
    return tables + choice * model.classes * TABLE;
}

// The position in a chunk's entropy-coded stream.
struct Stream {
    const u16* words;
    u32 word_count, words_taken;
    const u16* escapes;
    u32 escape_count, escapes_taken;
    // The states of this thread's lanes.
    u32 states[MINE];
};

// The threads of the warp that precede this one, as bits.
__device__ u32 threads_below() { return (1u << threadIdx.x % WARP) - 1; }

// How many of the lanes of the threads `below` this one are set.
__device__ u32 before(const bool (&mine)[MINE], u32 below) {
    u32 count = 0;
#pragma unroll
    for (u32 j = 0; j < MINE; j++) count += __popc(__ballot_sync(ALL, mine[j]) & below);
    return count;
}

// Replaces the symbol values of this thread's elements whose symbol is the escape. Only the first
// `present` elements exist.
__device__ void take_escapes(Stream& s, bool (&escaped)[MINE], u32 present, u32 align,
                             u32 (&symbol_values)[MINE]) {
#pragma unroll
    for (u32 j = 0; j < MINE; j++) escaped[j] &= j < present;
    u32 at = s.escapes_taken + before(escaped, threads_below());
#pragma unroll
    for (u32 j = 0; j < MINE; j++) {
        if (!escaped[j]) continue;
        if (at < s.escape_count) symbol_values[j] = (u32)__ldg(s.escapes + at) << align;
        at++;
    }
    s.escapes_taken = __shfl_sync(ALL, at, WARP - 1);
}

// Decodes round `round` of a chunk of `count` elements: the symbol values of this thread's
// elements. More words or escapes may be taken than there are; the caller must check that before
// the next round.
__device__ void next_round(const Model& model, Stream& s, u32 round, u32 count,
                           const u32 (&tables)[MINE], u32 (&symbol_values)[MINE]) {
    bool low[MINE];
    bool escaped[MINE];
    bool any = false;
#pragma unroll
    for (u32 j = 0; j < MINE; j++) {
        u32 symbol = step(tables[j], ALL, 1, s.states[j]);
        symbol_values[j] = symbol >> 16 << model.shift;
        low[j] = s.states[j] < STATE_LOW;
        escaped[j] = symbol & IS_ESCAPE;
        any |= escaped[j];
    }
    // Read a word whether or not it is taken. At most LANES words beyond the last one are read
    // before the check.
    u32 at = s.words_taken + before(low, threads_below());
#pragma unroll
    for (u32 j = 0; j < MINE; j++) {
        u32 filled = s.states[j] << 16 | __ldg(s.words + at);
        s.states[j] = low[j] ? filled : s.states[j];
        at += low[j];
    }
    s.words_taken = __shfl_sync(ALL, at, WARP - 1);
    if (__any_sync(ALL, any)) {
        take_escapes(s, escaped, elements_there(first_of(round), count), 16 - model.symbol_bits,
                     symbol_values);
    }
}

// Checks the end of the stream: everything must be consumed, and every lane must be back in the
// state that the encoder started from.
__device__ u32 finish(const Stream& s, bool carried) {
    bool back = true;
#pragma unroll
    for (u32 j = 0; j < MINE; j++) {
        back &= carried ? s.states[j] >> 16 == STATE_LOW >> 16 : s.states[j] == STATE_LOW;
    }
    if (!__all_sync(ALL, back) || s.words_taken != s.word_count) return BAD_END;
    return s.escapes_taken == s.escape_count ? DONE : ESCAPES_LEFT;
}
