// The stored form of a chunk, and the parser, which finds and checks its parts.

#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define ALL 0xffffffffu
#define WARP 32u
// Warps, and so chunks, of a block.
#define WARPS 4u
// Lanes that a thread decodes.
#define MINE 4u
#define LANES 128u
#define PROB_BITS 14u
#define STATE_LOW 0x10000u
// Values of a plane that are packed together.
#define GROUP 64u
// Bytes that the final states carry.
#define CARRIED 256u
// Bytes of a table: a word for each of 64 buckets, and a word for each of 64 symbols. See `step`.
#define TABLE 512u
#define SYMBOLS_AT 256u
// What a class is multiplied by where columns have it, and the bytes that one unit then stands for.
#define CLASS 4u
#define CLASS_UNIT (TABLE / CLASS)

extern __shared__ __align__(512) u32 shared[];

// The outcome of a chunk, as src/gpu/status.rs reads it. 0, the initial value, means that no kernel
// has looked at the chunk. The byte above has the Loop that has decoded a part of it, if any.
enum Status : u32 {
    DONE = 1,
    SHORT,
    RESERVED,
    UNKNOWN_MODE,
    BAD_CHOICE,
    BAD_STATE,
    BAD_ESCAPE,
    BAD_PLANE,
    BAD_BITMAP,
    TRAILING,
    BAD_END,
    ESCAPES_LEFT,
    BAD_LENGTH,
    BAD_CHECKSUM,
    // A bug of the host.
    BAD_BATCH,
};

// The loops for the most frequent layouts, in loops.cuh, and the one for all.
enum Loop : u32 {
    GENERAL = 0,
    BF16,
    BF16_SIGNED,
    F16,
    F16_SIGNED,
    F32,
    F32_SIGNED,
    F32_OF_F16,
    F32_OF_F16_SIGNED,
    F32_OF_BF16,
    F8_E4M3,
    F8_E4M3_SIGNED,
    F8_E5M2,
    F8_E5M2_SIGNED,
};

// NOTHING pads the chunks of a launch to a multiple of four.
enum Coding : u32 { RAW = 0, PLANES = 2, NOTHING = 3 };

// A chunk of a batch. Chunks whose numbers differ only in the last two bits have the same model, or
// none.
struct Chunk {
    // Positions in bytes: among the stored bytes, in the output (addresses, if that is null), and
    // among the models.
    u64 payload, out, model;
    // Of the decoded bytes.
    u64 checksum;
    u32 payload_len, out_len;
    u32 coding;
    // Whether `bszfs_check` compares the checksum.
    u32 is_checked;
};

// A model, as src/gpu/model.rs writes it.
struct Model {
    u32 width, rotated, symbol_bits, plane_count;
    u32 block, columns, classes, choices;
    // The Loop for elements that are cut like these, and by how many bits it expects symbol values
    // in the tables to be shifted down, as elements are when they are rotated right.
    u32 loop, shift;
    // Words that follow this struct and that a block keeps in shared memory: the tables; for each
    // plane its number of bits, in the low byte, and its lowest bit, in the byte above; zeros up to
    // a multiple of 16 bytes.
    u32 shared_words;
    // The position of the classes of the columns, one byte each, from the start of the model. A
    // byte is the class times CLASS. Their number, `columns`, is a multiple of four, for which the
    // model's columns are repeated where necessary; the first ones follow once more.
    u32 classes_at;
};

// A chunk's stored bytes.
struct Payload {
    // Their address, rounded down to whole words, and the bytes by which it was rounded.
    const u32* words;
    u32 skew;
    u32 len;

    __device__ u32 byte(u32 at) const { return __ldg((const u8*)words + (skew + at)); }
    __device__ u32 half(u32 at) const { return byte(at) | byte(at + 1) << 8; }
    __device__ u32 word(u32 at) const {
        const u32* w = words + ((skew + at) >> 2);
        return __funnelshift_r(__ldg(w), __ldg(w + 1), ((skew + at) & 3) << 3);
    }
    // Moves `at` past `n` bytes, if there are as many.
    __device__ bool take(u32 n, u32& at) const {
        if (n > len - at) return false;
        at += n;
        return true;
    }
};

// A plane of the chunk that a warp decodes, in shared memory. `at` and `end` are relative to the
// first word of the payload, all other positions to its first byte.
struct __align__(16) Plane {
    // Where its groups would start if all were present. May have wrapped around.
    u32 at;
    // The end of the bytes that are present; the rest is 0. In an absent block, everything is.
    u32 end;
    u32 bits_low;
    // A PlaneMode.
    u32 mode;
    u32 value;
    // Of a sparse plane: the bitmap of its present blocks, the start of the next one, and the end
    // of the last one.
    u32 bitmap, next, limit;
};

enum PlaneMode : u32 { STORED = 0, CONSTANT = 1, SPARSE = 2 };

// The positions of the parts of a chunk in its payload.
struct Layout {
    bool coded;
    // Whether any plane is sparse.
    bool sparse;
    // The symbol value of all elements, if the symbols are not coded.
    u32 constant;
    u32 word_count, escape_count;
    u32 choices_at, states_at, words_at, escapes_at;
    // The plane that ends in the states, or NONE, and its bytes that precede those.
    u32 carrier, carrier_stored;
};

#define NONE 0xffffffffu

__device__ u32 least(u32 a, u32 b) { return a < b ? a : b; }
__device__ u32 parts_of(u32 n, u32 size) { return n / size + (n % size != 0); }
__device__ u32 packed_len(u32 bits, u32 n) { return parts_of(n, GROUP) * 8 * bits; }

// This thread's first element of a round.
__device__ u32 first_of(u32 round) { return round * LANES + MINE * (threadIdx.x % WARP); }
// How many of the four elements from `first` are part of the chunk.
__device__ u32 elements_there(u32 first, u32 count) {
    return count > first ? least(count - first, MINE) : 0;
}

// Whether all choices of `blocks` blocks exist. All threads must call this.
__device__ bool choices_hold(const Payload& in, u32 at, u32 blocks, u32 choices) {
    bool hold = true;
#pragma unroll 1
    for (u32 i = threadIdx.x % WARP; i < parts_of(blocks, 4); i += WARP) {
        u32 four = in.byte(at + i);
        for (u32 j = 0; j < 4; j++) {
            u32 choice = four >> (2 * j) & 3;
            hold &= choice < choices && (4 * i + j < blocks || choice == 0);
        }
    }
    return __all_sync(ALL, hold);
}

// Parses coded symbols. All threads must call this.
__device__ u32 parse_coded(const Model& model, const Payload& in, u32 count, u32& at, Layout& l) {
    u32 head = at;
    if (!in.take(8, at)) return SHORT;
    l.word_count = in.word(head);
    l.escape_count = in.word(head + 4);
    l.choices_at = at;
    u32 blocks = model.choices > 1 ? parts_of(count, model.block) : 0;
    if (!in.take(parts_of(blocks, 4), at)) return SHORT;
    if (!choices_hold(in, l.choices_at, blocks, model.choices)) return BAD_CHOICE;
    l.states_at = at;
    if (!in.take(4 * LANES, at)) return SHORT;
    bool hold = true;
#pragma unroll 1
    for (u32 lane = threadIdx.x % WARP; lane < LANES; lane += WARP) {
        hold &= in.word(l.states_at + 4 * lane) >= STATE_LOW;
    }
    if (!__all_sync(ALL, hold)) return BAD_STATE;
    l.words_at = at;
    if (l.word_count > in.len / 2 || !in.take(2 * l.word_count, at)) return SHORT;
    l.escapes_at = at;
    if (l.escape_count > in.len / 2 || !in.take(2 * l.escape_count, at)) return SHORT;
    hold = true;
#pragma unroll 1
    for (u32 i = threadIdx.x % WARP; i < l.escape_count; i += WARP) {
        hold &= in.half(l.escapes_at + 2 * i) >> model.symbol_bits == 0;
    }
    if (!__all_sync(ALL, hold)) return BAD_ESCAPE;
    // The host places payloads such that their words are aligned.
    if ((in.skew + l.words_at) % 2 != 0) return BAD_BATCH;
    return DONE;
}

// Parses a sparse plane.
__device__ u32 parse_sparse(const Payload& in, u32 block, u32 count, u32& at, u32 bits,
                            Plane& plane) {
    u32 blocks = parts_of(count, block);
    plane.bitmap = at;
    if (!in.take(parts_of(blocks, 8), at)) return SHORT;
    u32 present = 0;
    u32 last = 0;
#pragma unroll 1
    for (u32 i = plane.bitmap; i < at; i++) {
        last = in.byte(i);
        present += __popc(last);
    }
    u32 used = (blocks - 1) % 8 + 1;
    if (last >> used != 0) return BAD_BITMAP;
    u32 len = present * packed_len(bits, block);
    if (last >> (used - 1) == 1) {
        len -= packed_len(bits, block) - packed_len(bits, count - (blocks - 1) * block);
    }
    plane.next = at;
    if (!in.take(len, at)) return SHORT;
    plane.limit = at;
    return DONE;
}

// Parses the records of the planes and the planes. All threads must call this.
__device__ u32 parse_planes(const Model& model, const u32* shapes, const Payload& in, u32 block,
                            u32 count, u32& at, Layout& l, Plane* planes) {
    // The last plane that is stored in full and long enough ends in the states.
    l.carrier = NONE;
#pragma unroll 1
    for (u32 p = 0; p < model.plane_count && l.coded; p++) {
        if (in.byte(4 + 2 * p) == STORED && packed_len(shapes[p] & 0xff, count) >= CARRIED) {
            l.carrier = p;
        }
    }
    l.sparse = false;
#pragma unroll 1
    for (u32 p = 0; p < model.plane_count; p++) {
        u32 bits = shapes[p] & 0xff;
        Plane plane = {in.skew + at, 0, shapes[p], in.byte(4 + 2 * p), in.byte(5 + 2 * p), 0, 0, 0};
        if (plane.mode != CONSTANT && plane.value != 0) return BAD_PLANE;
        if (plane.mode == STORED) {
            u32 stored = packed_len(bits, count) - (l.carrier == p ? CARRIED : 0);
            if (l.carrier == p) l.carrier_stored = stored;
            if (!in.take(stored, at)) return SHORT;
            plane.end = in.skew + at;
        } else if (plane.mode == SPARSE) {
            u32 status = parse_sparse(in, block, count, at, bits, plane);
            if (status != DONE) return status;
            l.sparse = true;
        } else if (plane.mode != CONSTANT) {
            return UNKNOWN_MODE;
        } else if (plane.value >> bits != 0) {
            return BAD_PLANE;
        }
        // All threads have the same value.
        if (threadIdx.x % WARP == p % WARP) planes[p] = plane;
    }
    __syncwarp();
    return at == in.len ? DONE : TRAILING;
}

__device__ u32 parse(const Model& model, const u32* shapes, const Payload& in, u32 block, u32 count,
                     Layout& l, Plane* planes) {
    u32 at = 0;
    if (!in.take(4 + 2 * model.plane_count, at)) return SHORT;
    u32 mode = in.byte(0);
    l.constant = in.half(2);
    l.coded = mode == 0;
    l.word_count = l.escape_count = l.choices_at = l.states_at = l.words_at = l.escapes_at = 0;
    l.carrier_stored = 0;
    if (in.byte(1) != 0) return RESERVED;
    if (mode > 2) return UNKNOWN_MODE;
    if (mode == 2 || (mode == 0 ? l.constant != 0 : l.constant >> model.symbol_bits != 0)) {
        return BAD_PLANE;
    }
    if (l.coded) {
        u32 status = parse_coded(model, in, count, at, l);
        if (status != DONE) return status;
    }
    return parse_planes(model, shapes, in, block, count, at, l, planes);
}
