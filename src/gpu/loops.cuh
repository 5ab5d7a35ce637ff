// Loops of their own for the most frequent chunks: how their elements are cut is known when this is
// compiled.
//
// The kernel's loop for all layouts spends half of its instructions on what these chunks do not
// need. Here, loads are a round ahead of their use: the bits of the planes in registers, and the
// coded words in a ring in shared memory, from which each thread takes its own. Memory takes longer
// than a round, so that a few more rounds are on their way to the L2 cache.

#pragma once

#include "cuts.cuh"
#include "ring.cuh"

// The classes of this thread's columns, four bytes.
struct Columns {
    const u8* classes;
    u32 column, columns;
    u32 next;

    __device__ void load() {
        next = __ldg((const u32*)(classes + column));
        column += LANES;
        if (column >= columns) column -= columns;
    }
};

// Decodes the first rounds of a chunk: those of which all planes are stored, and at most `rounds`.
// Returns their number, and counts what they have taken in `s`. More words and escapes may be taken
// than there are; the caller must check that. All threads of the warp must call this.
template <class C, bool CLASSES>
__device__ u32 decode_rounds(const Model& model, const u8* classes, u32 tables, const Payload& in,
                             const Layout& l, Stream& s, const Plane* planes, u32 block_rounds,
                             u32 rounds, u32 ring_at, u8* out) {
    rounds = least(rounds, PlaneBits<C>::rounds(planes));
    if (rounds == 0) return 0;
    PlaneBits<C> bits;
    bits.start(in, planes, rounds);
    bits.load(0);
    Columns columns = {classes + MINE * (threadIdx.x % WARP), 0, model.columns, 0};
    if constexpr (CLASSES) columns.load();
    Ring ring = ring_of(in, l.words_at, ring_at);
    u32 begin = (in.skew + l.words_at) % 8;
    u32 taken = begin;
    u32 below = kept(threads_below());
    u32 ones = kept(ALL);
    u32 one = kept(1);
    u32 choices = 0;
    u32 next_choices = in.word(l.choices_at);
    u8* to = kept(out + MINE * C::WIDTH * (threadIdx.x % WARP));
    u32 round = 0;
#pragma unroll 1
    for (u32 block = 0; round < rounds; block++) {
        u32 table = tables;
        u32 stop = rounds;
        if (model.choices > 1) {
            if (block % 16 == 0) {
                choices = next_choices;
                next_choices = in.word(least(l.choices_at + block / 4 + 4, in.len));
            }
            table += (choices & 3) * (CLASSES ? model.classes * TABLE : TABLE);
            choices >>= 2;
            stop = least(rounds, round + block_rounds);
        }
#pragma unroll 1
        for (; round < stop; round++) {
            u32 symbols[MINE];
            u32 elements[C::WIDTH];
#pragma unroll
            for (u32 j = 0; j < MINE; j++) {
                u32 mine = CLASSES ? __dp4a(columns.next, CLASS_UNIT << (8 * j), table) : table;
                symbols[j] = step(mine, ones, one, s.states[j]);
            }
            if constexpr (CLASSES) columns.load();
            take_words(ring, below, s.states, taken);
            u32 any = symbols[0] | symbols[1] | symbols[2] | symbols[3];
            if (__any_sync(ALL, C::EARLY ? (int)any < 0 : (int)(any << 17) < 0)) {
                bool escaped[MINE];
#pragma unroll
                for (u32 j = 0; j < MINE; j++) escaped[j] = symbols[j] & IS_ESCAPE;
                take_escapes(s, escaped, MINE, 32 - C::SYMBOL_BITS - C::EARLY, symbols);
            }
            assemble_cut<C>(symbols, bits, elements);
            // Now that no planes are on their way: a thread that waits for one load often waits for
            // all.
            if (ring.ready - taken < 2 * LANES) ring.refill();
            u32 now = anew(round);
            bits.load(now + 1);
            store(to + (u64)now * (LANES * C::WIDTH), elements);
        }
    }
    // The ring's memory gets another use.
    __syncwarp();
    s.words_taken = (taken - begin) / 2;
    return round;
}

// The loop for a cut, with classes of columns or without, if there is one. Where signs are in the
// symbols, columns have means of their own, and so nearly always classes; where they are not, F32
// hardly ever has.
template <class C, bool CLASSES, class... Rest>
__device__ u32 decode_cut(Rest&... rest) {
    if constexpr (C::ROTATED ? !CLASSES || C::WIDTH < 4 : CLASSES) {
        return decode_rounds<C, CLASSES>(rest...);
    }
    return 0;
}

// Decodes the first rounds of a chunk in the loop of its model, if there is one.
template <u32 WIDTH, bool CLASSES, class... Rest>
__device__ u32 decode_in_loop(const Model& model, Rest&... rest) {
    // The cut of a loop.
#define CUT(number, ...) \
    if (model.loop == number) return decode_cut<Cut<WIDTH, __VA_ARGS__>, CLASSES>(model, rest...)
    if constexpr (WIDTH == 1) {
        CUT(F8_E4M3, true, 2);
        CUT(F8_E4M3_SIGNED, false, 2);
        CUT(F8_E5M2, true, 1);
        CUT(F8_E5M2_SIGNED, false, 1);
    } else if constexpr (WIDTH == 2) {
        CUT(BF16, true, 6);
        CUT(BF16_SIGNED, false, 6);
        CUT(F16, true, 1, 8);
        CUT(F16_SIGNED, false, 1, 8);
    } else if constexpr (WIDTH == 4) {
        CUT(F32, true, 6, 8, 8);
        CUT(F32_SIGNED, false, 6, 8, 8);
        CUT(F32_OF_F16, true, 6, 2, -6, -7, 1);
        CUT(F32_OF_F16_SIGNED, false, 6, 3, -5, -8);
        CUT(F32_OF_BF16, true, 5, -1, -8, -7, 1);
    }
#undef CUT
    return 0;
}
