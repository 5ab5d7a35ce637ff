// How elements are cut, known at compile time: their planes in parts, loaded a round ahead, and
// merged with the symbols.

#pragma once

#include "elements.cuh"
#include "symbols.cuh"

// How many rounds beyond the one that is loaded are prefetched.
#define PLANES_AHEAD 4u

// A part of a plane: a number of bits of each element that is a power of two.
struct Part {
    u32 plane, bits;
    // Bytes of a group of the plane that precede the part.
    u32 before;
    // Its lowest bit in the element.
    u32 low;
};

// Elements of WIDTH_ bytes with planes of BITS, from the top one down. Those whose bits are
// negative are zero, all others stored in full.
template <u32 WIDTH_, bool ROTATED_, int... BITS>
struct Cut {
    static constexpr u32 WIDTH = WIDTH_;
    static constexpr bool ROTATED = ROTATED_;
    static constexpr u32 PLANES = sizeof...(BITS);
    // Bits below the symbol value.
    static constexpr u32 LOW_BITS = ((BITS < 0 ? -BITS : BITS) + ... + 0);
    static constexpr u32 SYMBOL_BITS = 8 * WIDTH - LOW_BITS;
    // Whether symbol values are rotated in the tables, and parts while they are loaded. Elements of
    // a register are rotated by one instruction.
    static constexpr bool EARLY = ROTATED && WIDTH < 4;
    // Parts of all planes that are stored.
    static constexpr u32 PARTS =
        ((BITS < 0 ? 0 : BITS / 8 + BITS / 4 % 2 + BITS / 2 % 2 + BITS % 2) + ... + 0);

    // The bits of a plane, and whether it is stored.
    __device__ static constexpr u32 plane(u32 p) {
        const int all[] = {BITS..., 0};
        return all[p] < 0 ? -all[p] : all[p];
    }
    __device__ static constexpr bool is_stored(u32 p) {
        const int all[] = {BITS..., 0};
        return all[p] > 0;
    }

    // The parts, from the lowest bit of the element up.
    __device__ static constexpr Part part(u32 number) {
        u32 low = 0;
        for (u32 p = PLANES; p-- > 0;) {
            u32 before = 0;
            for (u32 bits = 8; bits > 0; bits /= 2) {
                if (!(plane(p) & bits)) continue;
                if (is_stored(p) && number-- == 0) return {p, bits, before, low};
                before += 8 * bits;
                low += bits;
            }
        }
        return {};
    }

    // The bits of elements, before they are rotated, that are from parts.
    __device__ static constexpr u32 stored_bits() {
        u32 all = 0;
        for (u32 i = 0; i < PARTS; i++) all |= ((1u << part(i).bits) - 1) << part(i).low;
        return all;
    }

    // The bit of a byte to which loading moves the lowest bit of a part.
    __device__ static constexpr u32 place(Part part) {
        if (!EARLY) return part.low % 8;
        return part.low % 8 > 0 ? part.low % 8 - 1 : part.bits == 1 ? 7 : 0;
    }
};

template <u32 N>
struct Number {
    static constexpr u32 value = N;
};

// Calls `f` with the numbers below COUNT, each as a type of its own.
template <u32 COUNT, u32 FROM = 0, class F>
__device__ void for_each(F f) {
    if constexpr (FROM < COUNT) {
        f(Number<FROM>());
        for_each<COUNT, FROM + 1>(f);
    }
}

// This thread's bits of the planes in a round.
template <class C>
struct PlaneBits {
    static constexpr u32 ROOM = C::PARTS > 0 ? C::PARTS : 1;
    const u32* from[ROOM];
    u32 shifts[ROOM];
    u32 words[ROOM][2];
    // Rounds below this one prefetch a later one.
    u32 prefetched;

    // Starts with the first of `rounds` rounds of `planes`, which are stored in full.
    __device__ void start(const Payload& in, const Plane* planes, u32 rounds) {
        u32 thread = threadIdx.x % WARP;
        prefetched = rounds - least(rounds, PLANES_AHEAD);
        // The position of the first element in its group.
        u32 e = MINE * (thread % (GROUP / MINE));
        for_each<C::PARTS>([&](auto i) {
            constexpr Part part = C::part(decltype(i)::value);
            constexpr u32 period = 8 * part.bits;
            u32 group = planes[part.plane].at + thread / (GROUP / MINE) * 8 * C::plane(part.plane);
            u32 bit = 8 * (group + part.before + e % period) + e / period * part.bits -
                      C::place(part);
            from[i.value] = kept(in.words + bit / 32);
            shifts[i.value] = kept(bit % 32);
            if constexpr (part.before == 0) {
                constexpr u32 bytes = 16 * C::plane(part.plane);
                const u8* at = (const u8*)in.words + planes[part.plane].at;
                u32 line = LINE * thread;
                prefetch(at + line, line, bytes * least(rounds, PLANES_AHEAD + 1));
            }
        });
    }

    // Loads those of a round.
    __device__ void load(u32 round) {
        for_each<C::PARTS>([&](auto i) {
            constexpr Part part = C::part(decltype(i)::value);
            u64 bytes = (u64)round * (16 * C::plane(part.plane));
            const u32* w = (const u32*)((const u8*)from[i.value] + bytes);
            words[i.value][0] = __ldg(w);
            words[i.value][1] = __ldg(w + 1);
            if constexpr (part.before == 0) {
                constexpr u32 ahead = PLANES_AHEAD * 16 * C::plane(part.plane);
                prefetch((const u8*)w + ahead, round, prefetched);
            }
        });
    }

    // The bits of a part, one byte for each element, among other bits.
    __device__ u32 part(u32 i) const {
        return __funnelshift_r(words[i][0], words[i][1], shifts[i]);
    }

    // How many rounds are stored of all planes that the cut expects to be stored; none if a plane
    // is not as it expects.
    __device__ static u32 rounds(const Plane* planes) {
        u32 rounds = NONE;
        for_each<C::PLANES>([&](auto p) {
            const Plane& plane = planes[p.value];
            if constexpr (C::is_stored(decltype(p)::value)) {
                bool is = plane.mode == STORED;
                rounds = is ? least(rounds, (plane.end - plane.at) / (16 * C::plane(p.value))) : 0;
            } else {
                rounds = plane.mode == CONSTANT && plane.value == 0 ? rounds : 0;
            }
        });
        return rounds;
    }
};

// The same byte of all four elements: `x` from bit BIT up, and `bytes` below.
template <u32 BIT>
__device__ u32 above(u32 bytes, u32 x) {
    constexpr u32 mask = ((1u << BIT) - 1) * 0x01010101u;
    return select_bits<~mask>(bytes, x);
}

// The bytes of four elements, from the lowest one up, as far as planes are in them; above those,
// they have other bits. The planes are rotated already if the cut says so.
template <class C>
__device__ void merge_planes(const PlaneBits<C>& planes, u32 (&bytes)[C::WIDTH]) {
    for_each<C::PARTS>([&](auto i) {
        constexpr Part part = C::part(decltype(i)::value);
        constexpr u32 byte = part.low / 8;
        constexpr u32 place = C::place(part);
        u32 x = planes.part(i.value);
        if constexpr (!C::EARLY || part.low % 8 > 0) {
            bytes[byte] = place == 0 ? x : above<place>(bytes[byte], x);
        } else {
            // The lowest bit moves to the byte below, that of the element to its top.
            if constexpr (part.bits > 1) bytes[byte] = x >> 1;
            if constexpr (byte > 0) {
                bytes[byte - 1] = above<7>(bytes[byte - 1], part.bits > 1 ? x << 7 : x);
            }
        }
    });
    if constexpr (C::EARLY && C::PARTS > 0) {
        u32 x = planes.part(0);
        if constexpr (C::part(0).bits > 1) x <<= 7;
        constexpr bool shared = C::LOW_BITS - 1 > 8 * (C::WIDTH - 1);
        bytes[C::WIDTH - 1] = shared ? above<7>(bytes[C::WIDTH - 1], x) : x;
    }
}

// Four elements, from the words of their symbols and the bits of their planes.
template <class C>
__device__ void assemble_cut(const u32 (&symbols)[MINE], const PlaneBits<C>& planes,
                             u32 (&out)[C::WIDTH]) {
    // The bits of an element that are not from its symbol.
    constexpr u32 low = (1u << C::LOW_BITS) - 1;
    constexpr u32 mask = C::EARLY ? low >> 1 | 1u << (8 * C::WIDTH - 1) : low;
    u32 bytes[C::WIDTH] = {};
    merge_planes(planes, bytes);
    if constexpr (C::WIDTH == 1) {
        u32 x = __byte_perm(__byte_perm(symbols[0], symbols[1], 0x0073),
                            __byte_perm(symbols[2], symbols[3], 0x0073), 0x5410);
        out[0] = (bytes[0] & mask * 0x01010101u) | x;
    } else if constexpr (C::WIDTH == 2) {
        out[0] = (__byte_perm(bytes[0], bytes[1], 0x5140) & mask * 0x00010001u) |
                 __byte_perm(symbols[0], symbols[1], 0x7632);
        out[1] = (__byte_perm(bytes[0], bytes[1], 0x7362) & mask * 0x00010001u) |
                 __byte_perm(symbols[2], symbols[3], 0x7632);
    } else {
        static_assert(C::WIDTH == 4 && C::LOW_BITS <= 24, "three bytes from planes");
        // Other bits of these bytes are not overwritten by symbols.
        constexpr u32 zero = low & ~C::stored_bits();
#pragma unroll
        for (u32 k = 0; k < 3; k++) {
            if (zero >> (8 * k) & 255) bytes[k] &= (~zero >> (8 * k) & 255) * 0x01010101u;
        }
        u32 first = __byte_perm(bytes[0], bytes[1], 0x5140);
        u32 last = __byte_perm(bytes[0], bytes[1], 0x7362);
        out[0] = __byte_perm(first, bytes[2], 0x4410);
        out[1] = __byte_perm(first, bytes[2], 0x5532);
        out[2] = __byte_perm(last, bytes[2], 0x6610);
        out[3] = __byte_perm(last, bytes[2], 0x7732);
#pragma unroll
        for (u32 j = 0; j < MINE; j++) {
            u32 x = select_bits<~mask>(out[j], symbols[j]);
            out[j] = C::ROTATED ? __funnelshift_r(x, x, 1) : x;
        }
    }
}
