// Elements of a round, four per thread: merged from planes and symbol values, and written to
// memory.

#pragma once

#include "parse.cuh"

// A plane's values in this thread's elements of a round, one byte each. `load` reads the words of
// the plane's groups.
template <class Load>
__device__ u32 unpack(u32 bits, u32 round, Load load) {
    u32 thread = threadIdx.x % WARP;
    // The position of the first element in its group.
    u32 e = MINE * (thread % (GROUP / MINE));
    u32 at = (2 * round + thread / (GROUP / MINE)) * 8 * bits;
    if (bits == 8) return load(at + e);
    u32 values = 0;
    u32 up = 0;
    if (bits & 4) {
        values = load(at + (e & 31)) >> (e >> 5 << 2) & 0x0f0f0f0fu;
        at += 32;
        up = 4;
    }
    if (bits & 2) {
        values |= (load(at + (e & 15)) >> (e >> 4 << 1) & 0x03030303u) << up;
        at += 16;
        up += 2;
    }
    if (bits & 1) values |= (load(at + (e & 7)) >> (e >> 3) & 0x01010101u) << up;
    return values;
}

// ORs `values`, one byte for each element, into the elements from bit `low`. Each word of `bytes`
// holds the same byte of all four elements.
template <int WIDTH>
__device__ void put(u32 values, u32 low, u32 (&bytes)[WIDTH]) {
    values <<= low % 8;
#pragma unroll
    for (u32 k = 0; k < WIDTH; k++) {
        bytes[k] |= k == low / 8 ? values : 0;
    }
}

// Reads the planes of this thread's elements of a round.
template <int WIDTH>
__device__ void load_planes(const Plane* planes, u32 count, const Payload& in, u32 round,
                            u32 (&bytes)[WIDTH]) {
#pragma unroll 1
    for (u32 p = 0; p < count; p++) {
        Plane plane = planes[p];
        u32 values = plane.value * 0x01010101u;
        if (plane.mode != CONSTANT) {
            // Groups are whole words, so all parts have the same misalignment.
            u32 shift = (plane.at & 3) << 3;
            values = unpack(plane.bits_low & 0xff, round, [&](u32 at) -> u32 {
                at += plane.at;
                if (at >= plane.end) return 0;
                const u32* w = in.words + (at >> 2);
                return __funnelshift_r(__ldg(w), __ldg(w + 1), shift);
            });
        }
        put<WIDTH>(values, plane.bits_low >> 8, bytes);
    }
}

// Each half, or each byte, of `x` rotated right by one bit.
__device__ u32 rotate_halves(u32 x) { return (x >> 1 & 0x7fff7fffu) | (x & 0x00010001u) << 15; }
__device__ u32 rotate_bytes(u32 x) { return (x >> 1 & 0x7f7f7f7fu) | (x & 0x01010101u) << 7; }

// Elements as they are in memory, from their symbol values and the bytes below.
__device__ void assemble(const u32 (&symbol_values)[MINE], const u32 (&bytes)[1], bool rotated,
                         u32 (&out)[1]) {
    u32 low = __byte_perm(symbol_values[0], symbol_values[1], 0x0051);
    u32 high = __byte_perm(symbol_values[2], symbol_values[3], 0x0051);
    u32 x = __byte_perm(low, high, 0x5410) | bytes[0];
    out[0] = rotated ? rotate_bytes(x) : x;
}

__device__ void assemble(const u32 (&symbol_values)[MINE], const u32 (&bytes)[2], bool rotated,
                         u32 (&out)[2]) {
    u32 low = __byte_perm(symbol_values[0], symbol_values[1], 0x5410) |
              __byte_perm(bytes[0], bytes[1], 0x5140);
    u32 high = __byte_perm(symbol_values[2], symbol_values[3], 0x5410) |
               __byte_perm(bytes[0], bytes[1], 0x7362);
    out[0] = rotated ? rotate_halves(low) : low;
    out[1] = rotated ? rotate_halves(high) : high;
}

// Four bytes of each element, from words that hold one byte of all four elements.
__device__ void transpose(u32 a, u32 b, u32 c, u32 d, u32 (&out)[MINE]) {
    u32 ab = __byte_perm(a, b, 0x5140);
    u32 cd = __byte_perm(c, d, 0x5140);
    out[0] = __byte_perm(ab, cd, 0x5410);
    out[1] = __byte_perm(ab, cd, 0x7632);
    ab = __byte_perm(a, b, 0x7362);
    cd = __byte_perm(c, d, 0x7362);
    out[2] = __byte_perm(ab, cd, 0x5410);
    out[3] = __byte_perm(ab, cd, 0x7632);
}

__device__ void assemble(const u32 (&symbol_values)[MINE], const u32 (&bytes)[4], bool rotated,
                         u32 (&out)[4]) {
    transpose(bytes[0], bytes[1], bytes[2], bytes[3], out);
#pragma unroll
    for (u32 j = 0; j < MINE; j++) {
        u32 x = out[j] | symbol_values[j] << 16;
        out[j] = rotated ? __funnelshift_r(x, x, 1) : x;
    }
}

__device__ void assemble(const u32 (&symbol_values)[MINE], const u32 (&bytes)[8], bool rotated,
                         u32 (&out)[8]) {
    u32 low[MINE];
    u32 high[MINE];
    transpose(bytes[0], bytes[1], bytes[2], bytes[3], low);
    transpose(bytes[4], bytes[5], bytes[6], bytes[7], high);
#pragma unroll
    for (u32 j = 0; j < MINE; j++) {
        u32 upper = high[j] | symbol_values[j] << 16;
        out[2 * j] = rotated ? __funnelshift_r(low[j], upper, 1) : low[j];
        out[2 * j + 1] = rotated ? __funnelshift_r(upper, low[j], 1) : upper;
    }
}

// Writes a thread's elements of a round to an aligned address.
__device__ void store(u8* out, const u32 (&x)[1]) { *(u32*)out = x[0]; }
__device__ void store(u8* out, const u32 (&x)[2]) { *(uint2*)out = make_uint2(x[0], x[1]); }
__device__ void store(u8* out, const u32 (&x)[4]) {
    *(uint4*)out = make_uint4(x[0], x[1], x[2], x[3]);
}
__device__ void store(u8* out, const u32 (&x)[8]) {
    *(uint4*)out = make_uint4(x[0], x[1], x[2], x[3]);
    *(uint4*)(out + 16) = make_uint4(x[4], x[5], x[6], x[7]);
}

// Writes the first `len` bytes one by one. If `add`, they are ORed into memory.
template <int WIDTH>
__device__ void store_bytes(u8* out, const u32 (&x)[WIDTH], u32 len, bool add) {
#pragma unroll
    for (u32 i = 0; i < 4 * WIDTH; i++) {
        if (i < len) out[i] = (u8)(x[i / 4] >> (8 * (i % 4))) | (add ? out[i] : 0);
    }
}
