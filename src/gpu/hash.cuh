// XXH3-64 with seed 0, by a warp: the checksum of a chunk's decoded bytes. The algorithm is that of
// the xxHash specification (https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md).
//
// The products of the stripes of a block of 1 KiB are added up, so that threads can share them:
// eight threads have a lane each, and four such groups every fourth stripe.

#pragma once

#include "symbols.cuh"

#define PRIME32_1 0x9e3779b1ull
#define PRIME32_2 0x85ebca77ull
#define PRIME32_3 0xc2b2ae3dull
#define PRIME64_1 0x9e3779b185ebca87ull
#define PRIME64_2 0xc2b2ae3d27d4eb4full
#define PRIME64_3 0x165667b19e3779f9ull
#define PRIME64_4 0x85ebca77c2b2ae63ull
#define PRIME64_5 0x27d4eb2f165667c5ull
#define STRIPE 64u
#define BLOCK 1024u
// How many blocks beyond the current one are prefetched.
#define BLOCKS_AHEAD 4u

// The default secret, in little-endian words.
__constant__ const u64 SECRET[24] = {
    0xbe4ba423396cfeb8ull, 0x1cad21f72c81017cull, 0xdb979083e96dd4deull, 0x1f67b3b7a4a44072ull,
    0x78e5c0cc4ee679cbull, 0x2172ffcc7dd05a82ull, 0x8e2443f7744608b8ull, 0x4c263a81e69035e0ull,
    0xcb00c391bb52283cull, 0xa32e531b8b65d088ull, 0x4ef90da297486471ull, 0xd8acdea946ef1938ull,
    0x3f349ce33f76faa8ull, 0x1d4f0bc7c7bbdcf9ull, 0x3159b4cd4be0518aull, 0x647378d9c97e9fc8ull,
    0xc3ebd33483acc5eaull, 0xeb6313faffa081c5ull, 0x49daf0b751dd0d17ull, 0x9e68d429265516d3ull,
    0xfca1477d58be162bull, 0xce31d07ad1b8f88full, 0x280416958f3acb45ull, 0x7e404bbbcafbd7afull,
};

// The word of the secret at any byte.
__device__ u64 secret_at(u32 at) {
    u64 low = SECRET[at / 8] >> (at % 8 * 8);
    return at % 8 == 0 ? low : low | SECRET[at / 8 + 1] << (64 - at % 8 * 8);
}

// The first `n` bytes at any address.
__device__ u64 read_bytes(const u8* at, u32 n) {
    u64 x = 0;
    for (u32 i = 0; i < n; i++) x |= (u64)at[i] << (8 * i);
    return x;
}
__device__ u64 read_word(const u8* at) {
    return (u64)at % 8 == 0 ? *(const u64*)at : read_bytes(at, 8);
}

// The halves of the product, one XORed with the other.
__device__ u64 fold(u64 a, u64 b) { return a * b ^ __umul64hi(a, b); }
__device__ u64 avalanche(u64 x) {
    x = (x ^ x >> 37) * 0x165667919e3779f9ull;
    return x ^ x >> 32;
}
__device__ u64 avalanche_short(u64 x) {
    x = (x ^ x >> 33) * PRIME64_2;
    x = (x ^ x >> 29) * PRIME64_3;
    return x ^ x >> 32;
}
__device__ u64 rotated(u64 x, u32 by) { return x << by | x >> (64 - by); }
__device__ u64 swapped(u64 x) {
    u32 low = __byte_perm((u32)x, 0, 0x0123);
    u32 high = __byte_perm((u32)(x >> 32), 0, 0x0123);
    return (u64)low << 32 | high;
}
__device__ u64 mix16(const u8* data, u32 secret) {
    return fold(read_word(data) ^ secret_at(secret), read_word(data + 8) ^ secret_at(secret + 8));
}

// The hash of 1 to 240 bytes, by one thread.
__device__ u64 hash_short(const u8* data, u32 len) {
    if (len <= 3) {
        u64 x = (u32)data[0] << 16 | (u64)data[len / 2] << 24 | data[len - 1] | len << 8;
        return avalanche_short(x ^ ((SECRET[0] & 0xffffffffu) ^ SECRET[0] >> 32));
    }
    if (len <= 8) {
        u64 x = read_bytes(data + len - 4, 4) + (read_bytes(data, 4) << 32);
        x ^= SECRET[1] ^ SECRET[2];
        x = (x ^ rotated(x, 49) ^ rotated(x, 24)) * 0x9fb21c651e98df25ull;
        x = (x ^ ((x >> 35) + len)) * 0x9fb21c651e98df25ull;
        return x ^ x >> 28;
    }
    if (len <= 16) {
        u64 low = read_word(data) ^ SECRET[3] ^ SECRET[4];
        u64 high = read_word(data + len - 8) ^ SECRET[5] ^ SECRET[6];
        return avalanche(len + swapped(low) + high + fold(low, high));
    }
    u64 sum = len * PRIME64_1;
    if (len <= 128) {
        for (u32 i = 0; i <= (len - 1) / 32; i++) {
            sum += mix16(data + 16 * i, 32 * i);
            sum += mix16(data + len - 16 * (i + 1), 32 * i + 16);
        }
        return avalanche(sum);
    }
    for (u32 i = 0; i < 8; i++) sum += mix16(data + 16 * i, 16 * i);
    sum = avalanche(sum);
    for (u32 i = 8; i < len / 16; i++) sum += mix16(data + 16 * i, 16 * (i - 8) + 3);
    return avalanche(sum + mix16(data + len - 16, 136 - 17));
}

// A value of 64 bits of the thread whose number differs in the bits of `by`.
__device__ u64 of_thread(u64 x, u32 by) {
    u32 thread = threadIdx.x % WARP ^ by;
    u32 low = __shfl_sync(ALL, (u32)x, thread);
    u32 high = __shfl_sync(ALL, (u32)(x >> 32), thread);
    return (u64)high << 32 | low;
}

// What a stripe adds to a lane: to its own sum, and to that of the neighbouring lane.
struct Sums {
    u64 own, neighbour;

    __device__ void add(u64 word, u64 key) {
        u64 x = word ^ key;
        own += (x & 0xffffffffu) * (x >> 32);
        neighbour += word;
    }
    // The sums of all threads for this thread's lane.
    __device__ u64 all() const {
        u64 sum = own + of_thread(neighbour, 1);
        sum += of_thread(sum, 8);
        return sum + of_thread(sum, 16);
    }
};

// The hash of more than 240 bytes. All threads of the warp must call this.
__device__ u64 hash_long(const u8* data, u32 len) {
    u32 lane = threadIdx.x % 8;
    u32 group = threadIdx.x % WARP / 8;
    u64 state = lane == 0   ? PRIME32_3
                : lane == 1 ? PRIME64_1
                : lane == 2 ? PRIME64_2
                : lane == 3 ? PRIME64_3
                : lane == 4 ? PRIME64_4
                : lane == 5 ? PRIME32_2
                : lane == 6 ? PRIME64_5
                            : PRIME32_1;
    u64 keys[4];
    for (u32 i = 0; i < 4; i++) keys[i] = SECRET[group + 4 * i + lane];
    u64 scramble = SECRET[16 + lane];
    const u8* mine = data + STRIPE * group + 8 * lane;
    u32 blocks = (len - 1) / BLOCK;
    // The first threads prefetch a line each of every block.
    u32 line = LINE * (threadIdx.x % WARP);
    u32 prefetched = line < BLOCK ? len : 0;
    static_assert(BLOCKS_AHEAD * BLOCK <= LINE * WARP, "a line for each thread");
    prefetch(data + line, line, least(len, BLOCKS_AHEAD * BLOCK));
    u64 words[4];
#pragma unroll
    for (u32 i = 0; i < 4; i++) words[i] = blocks > 0 ? read_word(mine + 4 * STRIPE * i) : 0;
#pragma unroll 1
    for (u32 block = 0; block < blocks; block++) {
        Sums sums = {0, 0};
        u32 ahead = BLOCK * (block + BLOCKS_AHEAD) + line;
        prefetch(data + ahead, ahead, prefetched);
        mine += BLOCK;
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            sums.add(words[i], keys[i]);
            // Words of the next block are on their way while this one is added up.
            if (block + 1 < blocks) words[i] = read_word(mine + 4 * STRIPE * i);
        }
        state += sums.all();
        state = (state ^ state >> 47 ^ scramble) * PRIME32_1;
    }
    Sums sums = {0, 0};
    u32 stripes = (len - 1) % BLOCK / STRIPE;
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        if (group + 4 * i < stripes) sums.add(read_word(mine + 4 * STRIPE * i), keys[i]);
    }
    if (group == 0) sums.add(read_word(data + len - STRIPE + 8 * lane), secret_at(121 + 8 * lane));
    state += sums.all();
    // Pairs of lanes are multiplied, and the products added up.
    u64 keyed = state ^ secret_at(11 + 8 * lane);
    u64 product = fold(keyed, of_thread(keyed, 1));
    product += of_thread(product, 2);
    product += of_thread(product, 4);
    return avalanche(len * PRIME64_1 + product);
}

// The hash of at least one byte. All threads of the warp must call this, and all get it.
__device__ u64 hash(const u8* data, u32 len) {
    if (len > 240) return hash_long(data, len);
    u64 x = threadIdx.x % WARP == 0 ? hash_short(data, len) : 0;
    u32 low = __shfl_sync(ALL, (u32)x, 0);
    u32 high = __shfl_sync(ALL, (u32)(x >> 32), 0);
    return (u64)high << 32 | low;
}
