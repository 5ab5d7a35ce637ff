// src/gpu/kernel.cu as C++, and what a launch of one of its kernels is.

#pragma once

#include "shim.h"

#include "../../src/gpu/kernel.cu"

alignas(16) unsigned shared[64 << 8];

typedef void (*Kernel)(const Chunk*, const u8*, const u8*, u8*, u32*);

struct Arguments {
    Kernel kernel;
    const Chunk* chunks;
    const u8* stored;
    const u8* models;
    u8* out;
    u32* statuses;
};

// What a thread of a launch does; `argument` is its Arguments.
static void body(void* argument) {
    const Arguments& a = *(const Arguments*)argument;
    a.kernel(a.chunks, a.stored, a.models, a.out, a.statuses);
}
