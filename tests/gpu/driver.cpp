// A stand-in for the CUDA driver: the part of libcuda.so that bsz and its tests use, on the CPU. It
// has two devices. The work of a stream is done when it is waited for and no earlier, so that code
// that uses results or frees memory too early is detected.
//
// In the environment, BSZ_FAKE_LAUNCHES is the number of launches after which all fail.
// BSZ_FAKE_FAIL=cuName:N lets the call of this name fail from the Nth time on, and
// BSZ_FAKE_HANG=cuName:N never return then.

#include "kernel.h"

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <unistd.h>
#include <vector>

enum Result {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    INVALID_DEVICE = 101,
    INVALID_CONTEXT = 201,
    LAUNCH_FAILED = 719,
    UNKNOWN = 999,
};

struct Queue {
    int device;
    std::deque<std::function<void()>> work;
    size_t done = 0;

    void step() {
        auto first = work.front();
        work.pop_front();
        first();
        done++;
    }
    void do_all() {
        while (!work.empty()) step();
    }
};

// A point in the work of a stream.
struct Point {
    std::shared_ptr<Queue> queue;
    size_t end = 0;
};
typedef std::shared_ptr<Queue> Handle;

struct Context {
    int device;
    // How many times it was retained.
    int retained = 0;
    Handle default_stream = std::make_shared<Queue>(Queue{device, {}});
};

// Guards everything below.
static std::mutex lock;
// The length of each allocation by its start: on each device, and on the host.
static std::map<uintptr_t, size_t> device[2], host;
static Context contexts[2] = {{0}, {1}};
static long launches = 0;
static std::map<std::string, long> calls;
static thread_local std::vector<Context*> current;

// Counts a call; whether it fails.
static bool fails(const char* name) {
    long n;
    {
        std::lock_guard guard(lock);
        n = ++calls[name];
    }
    auto chosen = [&](const char* variable) {
        const char* text = getenv(variable);
        if (!text) return false;
        std::string value = text;
        size_t colon = value.find(':');
        return value.substr(0, colon) == name && n >= atol(value.c_str() + colon + 1);
    };
    while (chosen("BSZ_FAKE_HANG")) pause();
    return chosen("BSZ_FAKE_FAIL");
}

#define ENTER            \
    if (fails(__func__)) \
        return UNKNOWN;  \
    std::lock_guard guard(lock)

// The same where a context is needed.
#define ENTER_CONTEXT                        \
    ENTER;                                   \
    if (current.empty()) return INVALID_CONTEXT

static std::map<uintptr_t, size_t>& memory() { return device[current.back()->device]; }

static Queue* of(const Handle* s) {
    return s ? s->get() : current.back()->default_stream.get();
}

static bool within(const std::map<uintptr_t, size_t>& memory, uintptr_t at, size_t len) {
    auto next = memory.upper_bound(at);
    if (next == memory.begin()) return false;
    --next;
    return at - next->first <= next->second && len <= next->second - (at - next->first);
}

static int allocate(std::map<uintptr_t, size_t>& memory, void** at, size_t len) {
    // Fresh memory may contain anything.
    *at = aligned_alloc(256, (len + 255) / 256 * 256);
    memset(*at, 0xcd, len);
    memory[(uintptr_t)*at] = len;
    return SUCCESS;
}

static int release(std::map<uintptr_t, size_t>& memory, uintptr_t at) {
    if (memory.erase(at) == 0) return INVALID_VALUE;
    free((void*)at);
    return SUCCESS;
}

static int transfer(Queue* s, uintptr_t to, uintptr_t from, size_t len) {
    s->work.push_back([=] { memcpy((void*)to, (void*)from, len); });
    return SUCCESS;
}

extern "C" {

int cuInit(unsigned) {
    ENTER;
    return SUCCESS;
}
int cuDeviceGetCount(int* count) {
    ENTER;
    *count = 2;
    return SUCCESS;
}
int cuDeviceGet(int* at, int ordinal) {
    ENTER;
    *at = ordinal;
    return ordinal == 0 || ordinal == 1 ? SUCCESS : INVALID_DEVICE;
}
int cuDeviceGetName(char* name, int len, int ordinal) {
    ENTER;
    snprintf(name, (size_t)len, ordinal == 0 ? "no GPU at all" : "no second GPU");
    return SUCCESS;
}
int cuDevicePrimaryCtxRetain(void** context, int ordinal) {
    ENTER;
    contexts[ordinal].retained++;
    *context = &contexts[ordinal];
    return SUCCESS;
}
int cuDevicePrimaryCtxRelease_v2(int ordinal) {
    ENTER;
    // Work left in a queue would be lost.
    bool is_last = --contexts[ordinal].retained == 0;
    bool is_left = !(device[ordinal].empty() && host.empty());
    if (is_last && is_left && !getenv("BSZ_FAKE_FAIL")) abort();
    return SUCCESS;
}
int cuCtxPushCurrent_v2(void* context) {
    ENTER;
    current.push_back((Context*)context);
    return current.back()->retained > 0 ? SUCCESS : INVALID_CONTEXT;
}
int cuCtxPopCurrent_v2(void** context) {
    ENTER_CONTEXT;
    *context = current.back();
    current.pop_back();
    return SUCCESS;
}
int cuCtxGetCurrent(void** context) {
    ENTER;
    *context = current.empty() ? nullptr : current.back();
    return SUCCESS;
}
int cuModuleLoadData(void** module, const char* image) {
    ENTER_CONTEXT;
    *module = &contexts;
    return strstr(image, ".target sm_75") ? SUCCESS : INVALID_VALUE;
}
int cuModuleUnload(void*) {
    ENTER_CONTEXT;
    return SUCCESS;
}
int cuModuleGetFunction(void** function, void*, const char* name) {
    ENTER_CONTEXT;
    static const std::map<std::string, Kernel> kernels = {
        {"bszfs_copy", bszfs_copy},
        {"bszfs_decode_1", bszfs_decode_1},
        {"bszfs_decode_2", bszfs_decode_2},
        {"bszfs_decode_4", bszfs_decode_4},
        {"bszfs_decode_8", bszfs_decode_8},
        {"bszfs_decode_1_classes", bszfs_decode_1_classes},
        {"bszfs_decode_2_classes", bszfs_decode_2_classes},
        {"bszfs_decode_4_classes", bszfs_decode_4_classes},
        {"bszfs_decode_8_classes", bszfs_decode_8_classes},
        {"bszfs_check", bszfs_check},
    };
    auto found = kernels.find(name);
    if (found == kernels.end()) return INVALID_VALUE;
    *function = (void*)found->second;
    return SUCCESS;
}
int cuMemGetInfo_v2(size_t* free, size_t* total) {
    ENTER_CONTEXT;
    *free = *total = 1 << 30;
    return SUCCESS;
}
int cuMemAlloc_v2(void** at, size_t len) {
    ENTER_CONTEXT;
    return allocate(memory(), at, len);
}
int cuMemFree_v2(uintptr_t at) {
    ENTER_CONTEXT;
    // The driver waits for work that uses the memory; ours must have been waited for.
    return release(memory(), at);
}
int cuMemHostAlloc(void** at, size_t len, unsigned flags) {
    ENTER_CONTEXT;
    return flags == 0 ? allocate(host, at, len) : INVALID_VALUE;
}
int cuMemFreeHost(void* at) {
    ENTER_CONTEXT;
    return release(host, (uintptr_t)at);
}
int cuMemcpyHtoDAsync_v2(uintptr_t to, uintptr_t from, size_t len, Handle* s) {
    ENTER_CONTEXT;
    if (!within(memory(), to, len) || !within(host, from, len)) return INVALID_VALUE;
    return transfer(of(s), to, from, len);
}
int cuMemcpyDtoHAsync_v2(uintptr_t to, uintptr_t from, size_t len, Handle* s) {
    ENTER_CONTEXT;
    if (!within(host, to, len) || !within(memory(), from, len)) return INVALID_VALUE;
    return transfer(of(s), to, from, len);
}
int cuMemcpyDtoH_v2(uintptr_t to, uintptr_t from, size_t len) {
    ENTER_CONTEXT;
    if (!within(memory(), from, len)) return INVALID_VALUE;
    memcpy((void*)to, (void*)from, len);
    return SUCCESS;
}
int cuMemcpyDtoDAsync_v2(uintptr_t to, uintptr_t from, size_t len, Handle* s) {
    ENTER_CONTEXT;
    if (!within(memory(), to, len) || !within(memory(), from, len)) return INVALID_VALUE;
    return transfer(of(s), to, from, len);
}
int cuMemsetD8Async(uintptr_t at, u8 value, size_t len, Handle* s) {
    ENTER_CONTEXT;
    if (!within(memory(), at, len)) return INVALID_VALUE;
    of(s)->work.push_back([=] { memset((void*)at, value, len); });
    return SUCCESS;
}
int cuStreamCreate(Handle** s, unsigned) {
    ENTER_CONTEXT;
    *s = new Handle(std::make_shared<Queue>(Queue{current.back()->device, {}}));
    return SUCCESS;
}
int cuStreamSynchronize(Handle* s) {
    ENTER_CONTEXT;
    of(s)->do_all();
    return SUCCESS;
}
int cuStreamDestroy_v2(Handle* s) {
    ENTER_CONTEXT;
    delete s;
    return SUCCESS;
}
int cuEventCreate(Point** event, unsigned) {
    ENTER_CONTEXT;
    *event = new Point;
    return SUCCESS;
}
int cuEventRecord(Point* event, Handle* s) {
    ENTER_CONTEXT;
    event->queue = s ? *s : current.back()->default_stream;
    event->end = event->queue->done + event->queue->work.size();
    return SUCCESS;
}
int cuStreamWaitEvent(Handle* s, Point* event, unsigned) {
    ENTER_CONTEXT;
    of(s)->work.push_back([point = *event] {
        while (point.queue->done < point.end) point.queue->step();
    });
    return SUCCESS;
}
int cuEventDestroy_v2(Point* event) {
    ENTER_CONTEXT;
    delete event;
    return SUCCESS;
}
int cuLaunchKernel(void* function, unsigned blocks, unsigned by, unsigned bz,
                   unsigned threads, unsigned ty, unsigned tz,
                   unsigned shared_len, Handle* s, void** parameters, void**) {
    ENTER_CONTEXT;
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
    size_t chunks = (size_t)blocks * WARPS;
    if (!within(memory(), (uintptr_t)a.chunks, chunks * sizeof(Chunk))) return INVALID_VALUE;
    if (!within(memory(), (uintptr_t)a.statuses, chunks * sizeof(u32))) return INVALID_VALUE;
    int number = current.back()->device;
    of(s)->work.push_back([=]() mutable {
        for (size_t i = 0; i < chunks; i++) {
            const Chunk& c = a.chunks[i];
            // A GPU would report this much later, and not as such.
            uintptr_t to = (uintptr_t)a.out + c.out;
            if (c.coding != NOTHING && !within(device[number], to, c.out_len)) abort();
        }
        for (unsigned i = 0; i < blocks; i++) shim::run(i, i % 2 == 1, body, &a);
    });
    return SUCCESS;
}
int cuGetErrorString(int error, const char** text) {
    *text = error == LAUNCH_FAILED ? "unspecified launch failure" : "an error of no driver";
    return SUCCESS;
}

}  // extern "C"
