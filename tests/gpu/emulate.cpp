// Runs src/gpu/kernel.cu on the CPU: emulate BATCH RESULT
//
// A batch starts with little-endian numbers of 8 bytes: how many launches, chunks, stored bytes,
// bytes of models and bytes of output there are; then for each launch the number of its kernel,
// its first chunk, its blocks, and its bytes of shared memory. The chunks, the stored bytes and the
// models follow as in GPU memory. The result is the output and, for each chunk, a status of four
// bytes. Memory that belongs to no chunk is poisoned, so that a sanitizer detects any use.

#include "kernel.h"

#include <sanitizer/asan_interface.h>
#include <vector>

// How many bytes past a payload may be read, as in src/gpu/batch.rs.
static const size_t SLACK = 272;

// The kernels by their numbers, as in src/gpu/batch.rs.
static Kernel kernel_of(u64 number) {
    switch (number) {
        case 0: return bszfs_copy;
        case 1: return bszfs_decode_1;
        case 2: return bszfs_decode_2;
        case 4: return bszfs_decode_4;
        case 8: return bszfs_decode_8;
        case 17: return bszfs_decode_1_classes;
        case 18: return bszfs_decode_2_classes;
        case 20: return bszfs_decode_4_classes;
        case 24: return bszfs_decode_8_classes;
        case 255: return bszfs_check;
    }
    exit(2);
}

struct Launch {
    u64 kernel, first, blocks, shared_len;
};

static void launch(const Launch& l, Arguments a) {
    a.kernel = kernel_of(l.kernel);
    a.chunks += l.first;
    a.statuses += l.first;
    if (l.shared_len > sizeof shared) exit(2);
    __asan_poison_memory_region((u8*)shared + l.shared_len, sizeof shared - l.shared_len);
    for (u32 i = 0; i < l.blocks; i++) {
        // A GPU does not clear shared memory.
        memset(shared, 0x5a, l.shared_len);
        shim::run(i, i % 2 == 1, body, &a);
    }
    __asan_unpoison_memory_region(shared, sizeof shared);
}

static void read_all(FILE* file, void* to, size_t n) {
    if (fread(to, 1, n, file) != n) {
        fprintf(stderr, "the batch is too short\n");
        exit(2);
    }
}

// Bytes aligned to 256, like GPU memory.
static u8* allocate(size_t n) { return (u8*)aligned_alloc(256, (n + 256) / 256 * 256); }

int main(int, char** args) {
    FILE* in = fopen(args[1], "rb");
    FILE* out = fopen(args[2], "wb");
    if (!in || !out) return 2;
    u64 head[5];
    read_all(in, head, sizeof head);
    auto [launch_count, count, stored_len, models_len, out_len] = head;
    std::vector<Launch> launches(launch_count);
    read_all(in, launches.data(), launch_count * sizeof(Launch));
    std::vector<Chunk> chunks(count);
    read_all(in, chunks.data(), count * sizeof(Chunk));
    u8* stored = allocate(stored_len);
    u8* models = allocate(models_len);
    u8* output = allocate(out_len);
    std::vector<u32> statuses(count);
    read_all(in, stored, stored_len);
    read_all(in, models, models_len);
    memset(output, 0xaa, out_len);

    __asan_poison_memory_region(stored, stored_len);
    __asan_poison_memory_region(output, out_len);
    for (const Chunk& c : chunks) {
        if (c.coding == NOTHING) continue;
        __asan_unpoison_memory_region(stored + c.payload, c.payload_len + SLACK);
        __asan_unpoison_memory_region(output + c.out, c.out_len);
    }
    __asan_poison_memory_region(models + models_len, (models_len + 256) / 256 * 256 - models_len);
    for (const Launch& l : launches) {
        launch(l, {nullptr, chunks.data(), stored, models, output, statuses.data()});
    }

    __asan_unpoison_memory_region(output, out_len);
    __asan_unpoison_memory_region(stored, stored_len);
    __asan_unpoison_memory_region(models, (models_len + 256) / 256 * 256);
    bool written = fwrite(output, 1, out_len, out) == out_len;
    written &= fwrite(statuses.data(), 4, count, out) == count;
    free(output);
    free(stored);
    free(models);
    return fclose(out) == 0 && written ? 0 : 2;
}
