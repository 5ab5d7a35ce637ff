// src/gpu/kernel.cu as C++, and launches of its kernels.

#pragma once

#include "shim.h"

#include "../../src/gpu/kernel.cu"

alignas(512) unsigned shared[64 << 8];

typedef void (*Kernel)(const Chunk*, const u8*, const u8*, u8*, u32*);

struct Arguments {
    Kernel kernel;
    const Chunk* chunks;
    const u8* stored;
    const u8* models;
    u8* out;
    u32* statuses;
};

// The code of one thread of a launch; `argument` points to its Arguments.
static void body(void* argument) {
    const Arguments& a = *(const Arguments*)argument;
    a.kernel(a.chunks, a.stored, a.models, a.out, a.statuses);
}
