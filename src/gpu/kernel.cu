// Decodes chunks on a GPU: docs/FORMAT.md, "Decoding a chunk". It accepts the same chunks as the
// scalar decoder of src/codec/decode, and decodes them to the same bytes; tests/gpu_kernel.rs
// compiles this file for the CPU and compares.
//
// A warp decodes a chunk. Each thread has four adjacent lanes, and so four adjacent elements of
// every round, which it merges in registers and writes at once. Its four steps hide each other's
// latency, and many warps hide the rest: no warp waits for another. The four warps of a block share
// the tables of one model.
//
// A chunk is untrusted. All reads are within its payload or SLACK bytes after it, all writes within
// its output.

#include "elements.cuh"
#include "hash.cuh"
#include "loops.cuh"
#include "parse.cuh"
#include "symbols.cuh"

// Bytes of shared memory for a warp: its ring, and later what its states carry; and the layout of
// its chunk.
#define LAYOUT_AT (RING + REPEATED)
#define SCRATCH (LAYOUT_AT + 48)
static_assert(sizeof(Layout) <= SCRATCH - LAYOUT_AT, "a layout has room");

// Moves sparse planes to `block`, which starts with round `round`.
__device__ void enter_block(Plane* planes, u32 count, const Payload& in, u32 block, u32 round,
                            u32 block_elements) {
    __syncwarp();
#pragma unroll 1
    for (u32 p = threadIdx.x % WARP; p < count; p += WARP) {
        Plane& plane = planes[p];
        if (plane.mode != SPARSE) continue;
        u32 bits = plane.bits_low & 0xff;
        plane.end = 0;
        if (in.byte(plane.bitmap + block / 8) >> (block % 8) & 1) {
            plane.at = in.skew + plane.next - 2 * round * 8 * bits;
            plane.end = in.skew + plane.limit;
            plane.next += packed_len(bits, block_elements);
        }
    }
    __syncwarp();
}

// ORs into the output what the states carry: the end of a plane of `bits` bits, from bit `low`,
// that follows its first `stored` bytes.
template <int WIDTH>
__device__ void add_carried(const Stream& s, u32 bits, u32 low, u32 stored, u32 count, bool rotated,
                            u32* scratch, u8* out) {
    u32 thread = threadIdx.x % WARP;
    scratch[2 * thread] = (s.states[0] & 0xffff) | s.states[1] << 16;
    scratch[2 * thread + 1] = (s.states[2] & 0xffff) | s.states[3] << 16;
    __syncwarp();
#pragma unroll 1
    for (u32 round = stored / (8 * bits) / 2; round * LANES < count; round++) {
        u32 values = unpack(bits, round, [&](u32 at) -> u32 {
            return at >= stored && at < stored + CARRIED ? scratch[(at - stored) / 4] : 0;
        });
        u32 symbol_values[MINE] = {};
        u32 bytes[WIDTH] = {};
        u32 elements[WIDTH];
        put<WIDTH>(values, low, bytes);
        assemble(symbol_values, bytes, rotated, elements);
        u32 first = first_of(round);
        // The same thread has written these elements before.
        store_bytes<WIDTH>(out + first * WIDTH, elements, elements_there(first, count) * WIDTH,
                           true);
    }
}

// Decodes a chunk of `count` elements of WIDTH bytes, whose columns have several classes or not.
// All threads of the warp must call this.
template <int WIDTH, bool CLASSES>
__device__ u32 decode(const Model* stored_model, const Payload& in, u32 count, u32* scratch,
                      u8* out) {
    Model model = *stored_model;
    const u8* classes = (const u8*)stored_model + model.classes_at;
    u32 tables = place_of(shared);
    const u32* shapes = shared + model.classes * model.choices * (TABLE / 4);
    Plane* planes = (Plane*)(scratch + SCRATCH / 4);
    u32 thread = threadIdx.x % WARP;
    u32 rounds = parts_of(count, LANES);
    // Blocks longer than the chunk need not be told apart.
    u32 block_rounds = least(model.block / LANES, rounds);
    Layout l;
    u32 status = parse(model, shapes, in, block_rounds * LANES, count, l, planes);
    if (status != DONE) return status;

    Stream s;
    s.words = (const u16*)((const u8*)in.words + in.skew + l.words_at);
    s.escapes = s.words + l.word_count;
    s.word_count = l.word_count;
    s.escape_count = l.escape_count;
    s.words_taken = s.escapes_taken = 0;
    u32 symbol_values[MINE];
#pragma unroll
    for (u32 j = 0; j < MINE; j++) {
        s.states[j] = l.coded ? in.word(l.states_at + 4 * (MINE * thread + j)) : 0;
        symbol_values[j] = l.constant << (16 - model.symbol_bits);
    }
    // Rounds of which each thread can write its elements at once.
    u32 whole_rounds = (u64)out % (4 * (WIDTH < 4 ? WIDTH : 4)) == 0 ? count / LANES : 0;
    u32 round = 0;
    u32 loop = GENERAL;
    if (WIDTH < 8 && l.coded) {
        u32 ring_at = place_of(scratch);
        // What is not needed in the loop is read again afterwards: it has no registers to spare.
        Layout* saved = (Layout*)(scratch + LAYOUT_AT / 4);
        if (thread == 0) *saved = l;
        __syncwarp();
        round = decode_in_loop<WIDTH, CLASSES>(model, classes, tables, in, l, s, planes,
                                               block_rounds, whole_rounds, ring_at, out);
        if (s.words_taken > s.word_count || s.escapes_taken > s.escape_count) return SHORT;
        l = *saved;
        model = *stored_model;
        loop = round > 0 ? model.loop : (u32)GENERAL;
    }
    u32 column = CLASSES ? round * LANES % model.columns : 0;
#pragma unroll 1
    for (u32 block = round / block_rounds; round < rounds; block++) {
        if (l.sparse) {
            enter_block(planes, model.plane_count, in, block, round, block_rounds * LANES);
        }
        u32 table = table_of(model, tables, in, l, block);
        u32 mine[MINE] = {table, table, table, table};
        u32 stop = least(rounds, (block + 1) * block_rounds);
#pragma unroll 1
        for (; round < stop; round++) {
            u32 bytes[WIDTH] = {};
            // Read planes before symbols are decoded, which takes longer.
            load_planes<WIDTH>(planes, model.plane_count, in, round, bytes);
            if (l.coded) {
                if (CLASSES) {
#pragma unroll
                    for (u32 j = 0; j < MINE; j++) {
                        mine[j] = table + __ldg(classes + column + MINE * thread + j) * CLASS_UNIT;
                    }
                    column += LANES;
                    if (column >= model.columns) column -= model.columns;
                }
                next_round(model, s, round, count, mine, symbol_values);
                if (s.words_taken > s.word_count || s.escapes_taken > s.escape_count) return SHORT;
            }
            u32 elements[WIDTH];
            assemble(symbol_values, bytes, model.rotated, elements);
            u32 first = first_of(round);
            if (round < whole_rounds) {
                store(out + first * WIDTH, elements);
            } else {
                store_bytes<WIDTH>(out + first * WIDTH, elements,
                                   elements_there(first, count) * WIDTH, false);
            }
        }
    }
    if (!l.coded) return DONE;
    status = finish(s, l.carrier != NONE);
    if (status != DONE) return status;
    if (l.carrier != NONE) {
        u32 shape = shapes[l.carrier];
        add_carried<WIDTH>(s, shape & 0xff, shape >> 8, l.carrier_stored, count, model.rotated,
                           scratch, out);
    }
    return DONE | loop << 8;
}

// Copies a raw chunk: whole words of the output, and the bytes before and after them.
__device__ u32 copy(const Payload& in, u32 len, u8* out) {
    if (in.len != len) return BAD_LENGTH;
    u32 thread = threadIdx.x % WARP;
    u32 head = least((u32)(0 - (u64)out) & 3, len);
    u32 words = (len - head) / 4;
    u32 tail = head + 4 * words;
    if (thread < head) out[thread] = (u8)in.byte(thread);
    if (thread < len - tail) out[tail + thread] = (u8)in.byte(tail + thread);
#pragma unroll 8
    for (u32 i = thread; i < words; i += WARP) ((u32*)(out + head))[i] = in.word(head + 4 * i);
    return DONE;
}

__device__ Payload payload_of(const Chunk& chunk, const u8* stored) {
    u64 begin = (u64)(stored + chunk.payload);
    return {(const u32*)(begin & ~3ull), (u32)(begin & 3), chunk.payload_len};
}

// Decodes the four chunks of a block, which have the same model. Shared memory holds the tables and
// the shapes of the planes of the model, followed for each warp by SCRATCH bytes and the planes of
// its chunk.
template <int WIDTH, bool CLASSES>
__device__ void decode_block(const Chunk* chunks, const u8* stored, const u8* models, u8* out,
                             u32* statuses) {
    u32 warp = threadIdx.x / WARP;
    chunks += blockIdx.x * WARPS;
    const Model* model = (const Model*)(models + chunks[0].model);
    u32 shared_words = model->shared_words;
    const u32* from = (const u32*)(model + 1);
    for (u32 i = threadIdx.x; i < shared_words; i += WARP * WARPS) shared[i] = from[i];
    __syncthreads();
    const Chunk chunk = chunks[warp];
    if (chunk.coding == NOTHING) return;
    u32 status = BAD_BATCH;
    if (chunk.coding == PLANES && chunk.model == chunks[0].model && model->width == WIDTH &&
        (model->classes > 1) == CLASSES) {
        u32 scratch_words = (SCRATCH + model->plane_count * sizeof(Plane)) / 4;
        u32* scratch = shared + shared_words + warp * scratch_words;
        u32 count = chunk.out_len / WIDTH;
        status = count == 0 || chunk.out_len % WIDTH != 0
                     ? BAD_LENGTH
                     : decode<WIDTH, CLASSES>(model, payload_of(chunk, stored), count, scratch,
                                              out + chunk.out);
    }
    if (threadIdx.x % WARP == 0) statuses[blockIdx.x * WARPS + warp] = status;
}

// The kernels: one for each element width, with classes of columns and without, so that none needs
// the registers of another; one for raw chunks; and one that compares checksums of what the others
// have decoded. As many blocks as given share a multiprocessor that has 65536 registers.

#define KERNEL(name, blocks) \
    extern "C" __global__ void __launch_bounds__(WARP * WARPS, blocks) \
        name(const Chunk* chunks, const u8* stored, const u8* models, u8* out, u32* statuses)
#define DECODE(name, width, classes, blocks) \
    KERNEL(name, blocks) { decode_block<width, classes>(chunks, stored, models, out, statuses); }

DECODE(bszfs_decode_1, 1, false, 6)
DECODE(bszfs_decode_2, 2, false, 6)
DECODE(bszfs_decode_4, 4, false, 5)
DECODE(bszfs_decode_8, 8, false, 6)
DECODE(bszfs_decode_1_classes, 1, true, 5)
DECODE(bszfs_decode_2_classes, 2, true, 5)
DECODE(bszfs_decode_4_classes, 4, true, 5)
DECODE(bszfs_decode_8_classes, 8, true, 6)

KERNEL(bszfs_copy, 6) {
    (void)models;
    u32 id = blockIdx.x * WARPS + threadIdx.x / WARP;
    const Chunk chunk = chunks[id];
    if (chunk.coding == NOTHING) return;
    u32 status = chunk.coding == RAW
                     ? copy(payload_of(chunk, stored), chunk.out_len, out + chunk.out)
                     : BAD_BATCH;
    if (threadIdx.x % WARP == 0) statuses[id] = status;
}

KERNEL(bszfs_check, 6) {
    (void)stored;
    (void)models;
    u32 id = blockIdx.x * WARPS + threadIdx.x / WARP;
    const Chunk chunk = chunks[id];
    if (chunk.coding == NOTHING || !chunk.is_checked) return;
    // All threads must have read the status before it is changed.
    u32 status = __shfl_sync(ALL, statuses[id], 0);
    if ((status & 0xff) != DONE) return;
    u64 found = hash(out + chunk.out, chunk.out_len);
    if (threadIdx.x % WARP == 0 && found != chunk.checksum) statuses[id] = BAD_CHECKSUM;
}
