// A stand-in for the CUDA driver: the part of libcuda.so that bsz uses, on the CPU. The work of a
// stream is done when it is waited for and no earlier, so that code that uses results or frees
// memory too early is detected.
//
// BSZ_FAKE_LAUNCHES in the environment is the number of launches after which all fail.

#include "kernel.h"

#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <vector>

enum Result {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    INVALID_CONTEXT = 201,
    LAUNCH_FAILED = 719,
};

struct Queue {
    std::vector<std::function<void()>> work;
};

// Guards everything below.
static std::mutex lock;
// The length of each allocation by its start, on the device and on the host.
static std::map<uintptr_t, size_t> device, host;
static long launches = 0;
// How many times the context was retained.
static int retained = 0;
static thread_local bool current = false;

static bool within(const std::map<uintptr_t, size_t>& memory, uintptr_t at, size_t len) {
    auto next = memory.upper_bound(at);
    if (next == memory.begin()) return false;
    --next;
    return at - next->first <= next->second && len <= next->second - (at - next->first);
}

static int allocate(std::map<uintptr_t, size_t>& memory, void** at, size_t len) {
    std::lock_guard guard(lock);
    if (!current) return INVALID_CONTEXT;
    // Fresh memory may contain anything.
    *at = aligned_alloc(256, (len + 255) / 256 * 256);
    memset(*at, 0xcd, len);
    memory[(uintptr_t)*at] = len;
    return SUCCESS;
}

static int release(std::map<uintptr_t, size_t>& memory, uintptr_t at) {
    std::lock_guard guard(lock);
    if (memory.erase(at) == 0) return INVALID_VALUE;
    free((void*)at);
    return SUCCESS;
}

static void do_all(Queue& s) {
    for (auto& one : s.work) one();
    s.work.clear();
}

extern "C" {

int cuInit(unsigned) { return SUCCESS; }
int cuDeviceGetCount(int* count) {
    *count = 1;
    return SUCCESS;
}
int cuDeviceGet(int* at, int) {
    *at = 0;
    return SUCCESS;
}
int cuDeviceGetName(char* name, int len, int) {
    snprintf(name, (size_t)len, "no GPU at all");
    return SUCCESS;
}
int cuDevicePrimaryCtxRetain(void** context, int) {
    std::lock_guard guard(lock);
    retained++;
    *context = &device;
    return SUCCESS;
}
int cuDevicePrimaryCtxRelease_v2(int) {
    std::lock_guard guard(lock);
    // Work left in a queue would be lost.
    if (--retained == 0 && !(device.empty() && host.empty())) abort();
    return SUCCESS;
}
int cuCtxSetCurrent(void* context) {
    current = context == &device;
    return current ? SUCCESS : INVALID_CONTEXT;
}
int cuModuleLoadData(void** module, const char* image) {
    *module = &device;
    return strstr(image, ".target sm_75") ? SUCCESS : INVALID_VALUE;
}
int cuModuleUnload(void*) { return SUCCESS; }
int cuModuleGetFunction(void** function, void*, const char* name) {
    static const std::map<std::string, Kernel> kernels = {{"bszfs_copy", bszfs_copy},
                                                          {"bszfs_decode_1", bszfs_decode_1},
                                                          {"bszfs_decode_2", bszfs_decode_2},
                                                          {"bszfs_decode_4", bszfs_decode_4},
                                                          {"bszfs_decode_8", bszfs_decode_8}};
    auto found = kernels.find(name);
    if (found == kernels.end()) return INVALID_VALUE;
    *function = (void*)found->second;
    return SUCCESS;
}
int cuMemGetInfo_v2(size_t* free, size_t* total) {
    *free = *total = 1 << 30;
    return SUCCESS;
}
int cuMemAlloc_v2(void** at, size_t len) { return allocate(device, at, len); }
int cuMemFree_v2(uintptr_t at) { return release(device, at); }
int cuMemHostAlloc(void** at, size_t len, unsigned flags) {
    return flags == 0 ? allocate(host, at, len) : INVALID_VALUE;
}
int cuMemFreeHost(void* at) { return release(host, (uintptr_t)at); }

static int transfer(Queue* s, uintptr_t to, uintptr_t from, size_t len) {
    auto one = [=] { memcpy((void*)to, (void*)from, len); };
    if (s) s->work.push_back(one);
    else one();
    return SUCCESS;
}
int cuMemcpyHtoDAsync_v2(uintptr_t to, uintptr_t from, size_t len, Queue* s) {
    std::lock_guard guard(lock);
    if (!within(device, to, len) || !within(host, from, len)) return INVALID_VALUE;
    return transfer(s, to, from, len);
}
int cuMemcpyDtoHAsync_v2(uintptr_t to, uintptr_t from, size_t len, Queue* s) {
    std::lock_guard guard(lock);
    if (!within(host, to, len) || !within(device, from, len)) return INVALID_VALUE;
    return transfer(s, to, from, len);
}
int cuMemcpyDtoH_v2(uintptr_t to, uintptr_t from, size_t len) {
    std::lock_guard guard(lock);
    return within(device, from, len) ? transfer(nullptr, to, from, len) : INVALID_VALUE;
}
int cuMemcpyDtoDAsync_v2(uintptr_t to, uintptr_t from, size_t len, Queue* s) {
    std::lock_guard guard(lock);
    if (!within(device, to, len) || !within(device, from, len)) return INVALID_VALUE;
    return transfer(s, to, from, len);
}
int cuMemsetD8Async(uintptr_t at, u8 value, size_t len, Queue* s) {
    std::lock_guard guard(lock);
    if (!within(device, at, len)) return INVALID_VALUE;
    s->work.push_back([=] { memset((void*)at, value, len); });
    return SUCCESS;
}
int cuStreamCreate(Queue** s, unsigned) {
    *s = new Queue;
    return current ? SUCCESS : INVALID_CONTEXT;
}
int cuStreamSynchronize(Queue* s) {
    std::lock_guard guard(lock);
    do_all(*s);
    return SUCCESS;
}
int cuStreamDestroy_v2(Queue* s) {
    delete s;
    return SUCCESS;
}
int cuLaunchKernel(void* function, unsigned blocks, unsigned by, unsigned bz,
                   unsigned threads, unsigned ty, unsigned tz,
                   unsigned shared_len, Queue* s, void** parameters, void**) {
    std::lock_guard guard(lock);
    const char* limit = getenv("BSZ_FAKE_LAUNCHES");
    if (limit && launches++ >= atol(limit)) return LAUNCH_FAILED;
    if (blocks == 0 || by * bz * ty * tz != 1) return INVALID_VALUE;
    if (threads != WARP * WARPS || shared_len > (48 << 10)) return INVALID_VALUE;
    Arguments a;
    a.kernel = (Kernel)function;
    memcpy((void*)&a.chunks, parameters[0], 8);
    memcpy((void*)&a.stored, parameters[1], 8);
    memcpy((void*)&a.models, parameters[2], 8);
    memcpy((void*)&a.out, parameters[3], 8);
    memcpy((void*)&a.statuses, parameters[4], 8);
    if (!within(device, (uintptr_t)a.chunks, blocks * WARPS * sizeof(Chunk))) return INVALID_VALUE;
    if (!within(device, (uintptr_t)a.statuses, blocks * WARPS * sizeof(u32))) return INVALID_VALUE;
    s->work.push_back([=]() mutable {
        for (unsigned i = 0; i < blocks; i++) shim::run(i, i % 2 == 1, body, &a);
    });
    return SUCCESS;
}
int cuGetErrorString(int error, const char** text) {
    *text = error == LAUNCH_FAILED ? "unspecified launch failure" : "an error of no driver";
    return SUCCESS;
}

}  // extern "C"
