// The coded symbols of a chunk, round by round.

#pragma once

#include "parse.cuh"

__device__ u32 word_at(const u32* words, u32 bytes) { return *(const u32*)((const u8*)words + bytes); }

// Decode a symbol: the state, which may need a word then. Returns four times the symbol.
__device__ u32 step(const u32* table, u32& x) {
    u32 bucket = x >> 6 & 4 * 63;
    u32 frequencies = word_at(table, bucket);
    u32 rest = word_at(table + SYMBOLS, bucket);
    // The number of the bucket's own slots is in the top byte.
    bool own = (x << 24 | 0xffffffu) < rest;
    u32 frequency = own ? frequencies & 0xffff : frequencies >> 16;
    u32 number = (x & 255) + (own ? 0 : (u32)(int)(short)rest);
    x = frequency * (x >> PROB_BITS) + number;
    return own ? bucket : __byte_perm(rest, 0, 0x4442);
}

// Where the decoding of a chunk's symbols stands.
struct Stream {
    const u16* words;
    u32 word_count, words_taken;
    const u16* escapes;
    u32 escape_count, escapes_taken;
    // Of this thread's lanes.
    u32 states[MINE];
};

// How many of the warp's lanes before this thread's are set.
__device__ u32 before(const bool (&mine)[MINE]) {
    u32 below = (1u << threadIdx.x % WARP) - 1;
    u32 count = 0;
#pragma unroll
    for (u32 j = 0; j < MINE; j++) count += __popc(__ballot_sync(ALL, mine[j]) & below);
    return count;
}

// The tops of this thread's elements that were escaped: of `present` elements, the others are not there.
__device__ void take_escapes(Stream& s, bool (&escaped)[MINE], u32 present, u32 align, u32 (&tops)[MINE]) {
#pragma unroll
    for (u32 j = 0; j < MINE; j++) escaped[j] &= j < present;
    u32 at = s.escapes_taken + before(escaped);
#pragma unroll
    for (u32 j = 0; j < MINE; j++) {
        if (!escaped[j]) continue;
        if (at < s.escape_count) tops[j] = (u32)__ldg(s.escapes + at) << align;
        at++;
    }
    s.escapes_taken = __shfl_sync(ALL, at, WARP - 1);
}

// The next round, which is number `round` of a chunk of `count` elements: the tops of this thread's elements. More may have
// been taken then than there is, which is to be noticed before the next one.
__device__ void next_round(const Model& model, const u32* values, Stream& s, u32 round, u32 count,
                           const u32* const (&tables)[MINE], u32 (&tops)[MINE]) {
    bool low[MINE];
    bool escaped[MINE];
    bool any = false;
#pragma unroll
    for (u32 j = 0; j < MINE; j++) {
        u32 symbol = step(tables[j], s.states[j]);
        tops[j] = word_at(values, symbol);
        low[j] = s.states[j] < STATE_LOW;
        escaped[j] = symbol == 4 * model.escape;
        any |= escaped[j];
    }
    // A word is read whether or not it is taken. No more than LANES behind the last one are before that is noticed.
    u32 at = s.words_taken + before(low);
#pragma unroll
    for (u32 j = 0; j < MINE; j++) {
        u32 filled = s.states[j] << 16 | __ldg(s.words + at);
        s.states[j] = low[j] ? filled : s.states[j];
        at += low[j];
    }
    s.words_taken = __shfl_sync(ALL, at, WARP - 1);
    if (__any_sync(ALL, any)) {
        take_escapes(s, escaped, elements_there(first_of(round), count), 16 - model.symbol_bits, tops);
    }
}

// Whether the stream ends as it should: with all that there is, and every lane where the encoder started.
__device__ u32 finish(const Stream& s, bool carried) {
    bool back = true;
#pragma unroll
    for (u32 j = 0; j < MINE; j++) {
        back &= carried ? s.states[j] >> 16 == STATE_LOW >> 16 : s.states[j] == STATE_LOW;
    }
    if (!__all_sync(ALL, back) || s.words_taken != s.word_count) return BAD_END;
    return s.escapes_taken == s.escape_count ? DONE : ESCAPES_LEFT;
}
