// The coded words of a chunk on their way through shared memory.

#pragma once

#include "symbols.cuh"

// Bytes of a warp's ring, and how many of them are repeated behind it, so that the four words of a
// thread are contiguous. After the last round, the ring's memory holds what the states carry.
#define RING 512u
#define REPEATED 16u
// How many bytes beyond those that are loaded are prefetched.
#define WORDS_AHEAD 768u
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
    // `last` for one thread of each line, otherwise 0.
    u32 prefetched;

    __device__ void fetch() {
        next = __ldg((const uint2*)(from + least(ready, last)));
        prefetch(from + ready + WORDS_AHEAD, ready + WORDS_AHEAD, prefetched);
    }

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
    ring.prefetched = kept(threadIdx.x % (LINE / 8) == 0 ? ring.last : 0);
    u32 line = LINE * (threadIdx.x % WARP);
    prefetch((const u8*)in.words + first + line, line, least(ring.last, WORDS_AHEAD));
    ring.fetch();
    ring.refill();
    ring.refill();
    return ring;
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
