// Decoding of coded symbols, round by round.

#pragma once

#include "parse.cuh"

__device__ u32 word_at(const u32* words, u32 bytes) {
    return *(const u32*)((const u8*)words + bytes);
}

// Decodes a symbol; the state may need a word afterwards. Returns four times the symbol.
__device__ u32 step(const u32* table, u32& x) {
    u32 bucket = x >> 6 & 4 * 63;
    u32 frequencies = word_at(table, bucket);
    u32 rest = word_at(table + SYMBOLS, bucket);
    // The top byte is the number of slots that belong to the bucket's own symbol.
    bool own = (x << 24 | 0xffffffu) < rest;
    u32 frequency = own ? frequencies & 0xffff : frequencies >> 16;
    u32 number = (x & 255) + (own ? 0 : (u32)(int)(short)rest);
    x = frequency * (x >> PROB_BITS) + number;
    return own ? bucket : __byte_perm(rest, 0, 0x4442);
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

// How many of the warp's lanes that precede this thread's are set.
__device__ u32 before(const bool (&mine)[MINE]) {
    u32 below = (1u << threadIdx.x % WARP) - 1;
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
    u32 at = s.escapes_taken + before(escaped);
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
__device__ void next_round(const Model& model, const u32* value_table, Stream& s, u32 round,
                           u32 count, const u32* const (&tables)[MINE],
                           u32 (&symbol_values)[MINE]) {
    bool low[MINE];
    bool escaped[MINE];
    bool any = false;
#pragma unroll
    for (u32 j = 0; j < MINE; j++) {
        u32 symbol = step(tables[j], s.states[j]);
        symbol_values[j] = word_at(value_table, symbol);
        low[j] = s.states[j] < STATE_LOW;
        escaped[j] = symbol == 4 * model.escape;
        any |= escaped[j];
    }
    // Read a word whether or not it is taken. At most LANES words beyond the last one are read
    // before the check.
    u32 at = s.words_taken + before(low);
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
