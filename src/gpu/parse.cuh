// A chunk as it is stored, and where its parts are: untrusted until it was parsed.

#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define ALL 0xffffffffu
#define WARP 32u
// Warps of a block, and chunks.
#define WARPS 4u
// Lanes of a thread.
#define MINE 4u
#define LANES 128u
#define PROB_BITS 14u
#define STATE_LOW 0x10000u
// Elements that a plane packs together.
#define GROUP 64u
// Bytes that the states at the end give back.
#define CARRIED 256u
#define SYMBOLS 64u
// Words of a table: by bucket, both frequencies; by bucket, everything else.
#define TABLE 128u

// What became of a chunk, as src/gpu/batch.rs has it. 0, which was there before, says that it was not looked at.
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
    // The host has made a mistake.
    BAD_BATCH,
};

enum Coding : u32 { RAW = 0, PLANES = 2, NOTHING = 3 };

// One chunk of a batch. Those whose numbers differ in their last two bits only have the same model, if any.
struct Chunk {
    // Bytes from the beginning of what is stored, of the output, and of the models.
    u64 payload, out, model;
    u32 payload_len, out_len;
    u32 coding;
    // How many chunks a launch has is a multiple of four: it ends in chunks of NOTHING.
    u32 reserved;
};

// A model, as src/gpu/model.rs writes it.
struct Model {
    u32 width, rotated, symbol_bits, plane_count;
    u32 block, columns, classes, choices;
    u32 escape;
    // Words behind this that a block keeps in shared memory: the tops of all SYMBOLS, aligned to 16 bits; the tables; for
    // each plane its bits, in the low byte, and its lowest bit, in the byte above; zeros up to 16 bytes.
    u32 shared_words;
    // Bytes from the model's beginning to the classes of its columns, a byte each, and of the first ones again.
    u32 classes_at;
    u32 table_count;
};

// A chunk's stored bytes.
struct Payload {
    // Its beginning, rounded down to whole words, and by how many bytes it was.
    const u32* words;
    u32 skew;
    u32 len;

    __device__ u32 byte(u32 at) const { return __ldg((const u8*)words + (skew + at)); }
    __device__ u32 half(u32 at) const { return byte(at) | byte(at + 1) << 8; }
    __device__ u32 word(u32 at) const {
        const u32* w = words + ((skew + at) >> 2);
        return __funnelshift_r(__ldg(w), __ldg(w + 1), ((skew + at) & 3) << 3);
    }
    // Whether `n` bytes from `at` on are there, which is then moved behind them.
    __device__ bool take(u32 n, u32& at) const {
        if (n > len - at) return false;
        at += n;
        return true;
    }
};

// A plane of the chunk that a warp decodes, in shared memory. The first two positions are counted from the payload's first
// word, the others from its first byte.
struct __align__(16) Plane {
    // Where its groups would begin if all were there. It may have wrapped.
    u32 at;
    // What is there ends here: the rest is 0. At a block that is not there, all is.
    u32 end;
    u32 bits_low;
    // 1: one value for all.
    u32 mode;
    u32 value;
    // Of a plane without its zero blocks: which are there, where the next one begins, and the last one ends.
    u32 bitmap, next, limit;
};

enum PlaneMode : u32 { STORED = 0, CONSTANT = 1, SPARSE = 2 };

// Where the parts of a chunk are in its payload.
struct Layout {
    bool coded;
    // Some plane lacks blocks.
    bool sparse;
    // The top of all elements, where it is not coded.
    u32 constant;
    u32 word_count, escape_count;
    u32 choices_at, states_at, words_at, escapes_at;
    // The plane that ends in the states, and the bytes it has before; NONE where there is no such plane.
    u32 carrier, carrier_stored;
};

#define NONE 0xffffffffu

__device__ u32 least(u32 a, u32 b) { return a < b ? a : b; }
__device__ u32 parts_of(u32 n, u32 size) { return n / size + (n % size != 0); }
__device__ u32 packed_len(u32 bits, u32 n) { return parts_of(n, GROUP) * 8 * bits; }

// This thread's first element of a round.
__device__ u32 first_of(u32 round) { return round * LANES + MINE * (threadIdx.x % WARP); }
// How many of the four elements from `first` on are there.
__device__ u32 elements_there(u32 first, u32 count) { return count > first ? least(count - first, MINE) : 0; }

// Whether the choices of `blocks` blocks are choices that there are. All threads come here.
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

// The parts of coded symbols. All threads come here.
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
    // The host places payloads such that words are aligned.
    if ((in.skew + l.words_at) % 2 != 0) return BAD_BATCH;
    return DONE;
}

// A plane without the blocks in which it is zero.
__device__ u32 parse_sparse(const Payload& in, u32 block, u32 count, u32& at, u32 bits, Plane& plane) {
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
    if (last >> (used - 1) == 1) len -= packed_len(bits, block) - packed_len(bits, count - (blocks - 1) * block);
    plane.next = at;
    if (!in.take(len, at)) return SHORT;
    plane.limit = at;
    return DONE;
}

// What the records say of the planes, and where these are. All threads come here.
__device__ u32 parse_planes(const Model& model, const u32* shapes, const Payload& in, u32 block, u32 count, u32& at,
                            Layout& l, Plane* planes) {
    // The last plane that is stored and long enough ends in the states.
    l.carrier = NONE;
#pragma unroll 1
    for (u32 p = 0; p < model.plane_count && l.coded; p++) {
        if (in.byte(4 + 2 * p) == STORED && packed_len(shapes[p] & 0xff, count) >= CARRIED) l.carrier = p;
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
        // All have the same.
        if (threadIdx.x % WARP == p % WARP) planes[p] = plane;
    }
    __syncwarp();
    return at == in.len ? DONE : TRAILING;
}

__device__ u32 parse(const Model& model, const u32* shapes, const Payload& in, u32 block, u32 count, Layout& l,
                     Plane* planes) {
    u32 at = 0;
    if (!in.take(4 + 2 * model.plane_count, at)) return SHORT;
    u32 mode = in.byte(0);
    l.constant = in.half(2);
    l.coded = mode == 0;
    l.word_count = l.escape_count = l.choices_at = l.states_at = l.words_at = l.escapes_at = l.carrier_stored = 0;
    if (in.byte(1) != 0) return RESERVED;
    if (mode > 2) return UNKNOWN_MODE;
    if (mode == 2 || (mode == 0 ? l.constant != 0 : l.constant >> model.symbol_bits != 0)) return BAD_PLANE;
    if (l.coded) {
        u32 status = parse_coded(model, in, count, at, l);
        if (status != DONE) return status;
    }
    return parse_planes(model, shapes, in, block, count, at, l, planes);
}
