// Rounds of the most frequent chunks: BF16 whose sign and five lowest bits are one stored plane.
//
// The kernel's loop for all layouts spends half of its instructions on what these chunks do not
// need. Here, loads are a round ahead of their use: the plane's bits in registers, and the coded
// words in a ring in shared memory, from which each thread takes its own.

#pragma once

#include "elements.cuh"
#include "symbols.cuh"

// Bytes of a warp's ring, and how many of them are repeated behind it, so that the four words of a
// thread are contiguous. After the last round, the ring's memory holds what the states carry.
#define RING 512u
#define REPEATED 16u
// Bytes of the plane in a round.
#define PLANE_ROUND 96u

// The coded words of a chunk on their way through a warp's ring. Positions are bytes from an
// address that is aligned to 8 bytes.
struct Ring {
    // The address of the ring in shared memory.
    u32 place;
    // This thread's 8 bytes of the first 256, and the position of the last ones that may be read.
    const u8* from;
    u32 last;
    // The end of what is in the ring, and this thread's part of the following 256 bytes.
    u32 ready;
    uint2 next;

    __device__ void fetch() { next = __ldg((const uint2*)(from + least(ready, last))); }

    // Moves 256 bytes into the ring. All threads of the warp must call this.
    __device__ void refill() {
        u32 at = ready % RING + 8 * (threadIdx.x % WARP);
        // Others may still read what this overwrites.
        __syncwarp();
        put_shared(place + at, next);
        if (at < REPEATED) put_shared(place + RING + at, next);
        __syncwarp();
        ready += 256;
        fetch();
    }
};

// A ring that holds enough words for a round. The first word is at most 6 bytes after its begin.
__device__ Ring ring_of(const Payload& in, u32 words_at, u32 place) {
    u32 first = (in.skew + words_at) / 8 * 8;
    Ring ring;
    ring.place = kept(place);
    ring.from = (const u8*)in.words + first + 8 * (threadIdx.x % WARP);
    // The last bytes of the last thread are less than SLACK bytes past the payload. Words there are
    // none of the chunk's, which the caller notices.
    ring.last = (in.skew + in.len - first) / 8 * 8;
    ring.ready = 0;
    ring.fetch();
    ring.refill();
    ring.refill();
    return ring;
}

// This thread's bits of a plane, in two parts: four bits of each element and two bits.
struct SixBits {
    const u32* fours;
    const u32* twos;
    u32 fours_shift, twos_shift;
    u32 words[4];

    __device__ void load() {
        words[0] = __ldg(fours);
        words[1] = __ldg(fours + 1);
        words[2] = __ldg(twos);
        words[3] = __ldg(twos + 1);
        fours += PLANE_ROUND / 4;
        twos += PLANE_ROUND / 4;
    }
};

// The bits of the plane that starts at byte `at` of the words of `in`.
__device__ SixBits six_bits_of(const Payload& in, u32 at) {
    u32 thread = threadIdx.x % WARP;
    // The position of the first element in its group of 64, which has 32 bytes of fours and then
    // 16 bytes of twos.
    u32 e = MINE * (thread % (GROUP / MINE));
    at += thread / (GROUP / MINE) * (PLANE_ROUND / 2);
    // The lowest bit of the fours belongs to the sign. The twos are moved up by three bits, which
    // is where they belong in the element.
    u32 fours = 8 * (at + e % 32) + e / 32 * 4;
    u32 twos = 8 * (at + 32 + e % 16) + e / 16 * 2 - 3;
    SixBits bits;
    bits.fours = in.words + fours / 32;
    bits.fours_shift = kept(fours % 32);
    bits.twos = in.words + twos / 32;
    bits.twos_shift = kept(twos % 32);
    return bits;
}

// Four elements, from the words of their symbols and the bits of the plane.
__device__ void assemble_bf16(const u32 (&symbols)[MINE], const SixBits& bits, u32 (&out)[2]) {
    const u32 (&words)[4] = bits.words;
    u32 fours = __funnelshift_r(words[0], words[1], bits.fours_shift);
    u32 twos = __funnelshift_r(words[2], words[3], bits.twos_shift);
    // One byte for each element: its lowest five bits, and its sign in the highest bit.
    u32 low = ((fours >> 1) & 0x07070707u) | (twos & ~0x07070707u);
    u32 sign = fours << 7;
    out[0] = (__byte_perm(low, sign, 0x5140) & 0x801f801fu) |
             __byte_perm(symbols[0], symbols[1], 0x7632);
    out[1] = (__byte_perm(low, sign, 0x7362) & 0x801f801fu) |
             __byte_perm(symbols[2], symbols[3], 0x7632);
}

// Takes a word from the ring for each state that needs one. `taken`, the position in the ring,
// moves past the words of all threads.
__device__ void take_words(const Ring& ring, u32 below, u32 (&states)[MINE], u32& taken) {
    bool low[MINE];
#pragma unroll
    for (u32 j = 0; j < MINE; j++) low[j] = states[j] < STATE_LOW;
    u32 at = taken + 2 * before(low, below);
    u32 place = ring.place + at % RING;
    u32 apart = place - at;
#pragma unroll
    for (u32 j = 0; j < MINE; j++) {
        u32 word = shared_half(place);
        if (low[j]) {
            states[j] = __byte_perm(word, states[j], 0x5410);
            place += 2;
        }
    }
    taken = __shfl_sync(ALL, place - apart, WARP - 1);
}

// Whether a chunk with this layout may be decoded by `decode_bf16`.
__device__ bool is_usual_bf16(const Model& model, const Layout& l, const Plane* planes) {
    return model.is_usual_bf16 && l.coded && model.classes == 1 && planes[0].mode == STORED;
}

// Decodes the first rounds of a chunk: those of which the whole plane is stored, and at most
// `rounds`. Returns their number, and counts what they have taken in `s`. More words and escapes
// may be taken than there are; the caller must check that. All threads of the warp must call this.
__device__ u32 decode_bf16(const Model& model, u32 tables, const Payload& in, const Layout& l,
                           Stream& s, const Plane& plane, u32 block_rounds, u32 rounds,
                           u32 ring_at, u8* out) {
    rounds = least(rounds, (plane.end - plane.at) / PLANE_ROUND);
    if (rounds == 0) return 0;
    SixBits bits = six_bits_of(in, plane.at);
    bits.load();
    Ring ring = ring_of(in, l.words_at, ring_at);
    u32 begin = (in.skew + l.words_at) % 8;
    u32 taken = begin;
    u32 below = kept(threads_below());
    u32 ones = kept(ALL);
    u32 one = kept(1);
    u32 choices = 0;
    u32 next_choices = in.word(l.choices_at);
    u8* to = out + 8 * (threadIdx.x % WARP);
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
            table += (choices & 3) * TABLE;
            choices >>= 2;
            stop = least(rounds, round + block_rounds);
        }
#pragma unroll 1
        for (; round < stop; round++) {
            u32 symbols[MINE];
            u32 elements[2];
            if (ring.ready - taken < 2 * LANES) ring.refill();
#pragma unroll
            for (u32 j = 0; j < MINE; j++) symbols[j] = step(table, ones, one, s.states[j]);
            take_words(ring, below, s.states, taken);
            u32 any = symbols[0] | symbols[1] | symbols[2] | symbols[3];
            // The highest bit marks the escape, as IS_ESCAPE does.
            if (__any_sync(ALL, (int)any < 0)) {
                bool escaped[MINE];
#pragma unroll
                for (u32 j = 0; j < MINE; j++) escaped[j] = (int)symbols[j] < 0;
                take_escapes(s, escaped, MINE, 16 + 5, symbols);
            }
            assemble_bf16(symbols, bits, elements);
            bits.load();
            store(to, elements);
            to += LANES * 2;
        }
    }
    // The ring's memory gets another use.
    __syncwarp();
    s.words_taken = (taken - begin) / 2;
    return round;
}
