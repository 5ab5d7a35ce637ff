#!/usr/bin/env python3
"""Compare how the unmodified safetensors library reads a mounted model and the plain one.

    load.py write PATH              write a model with every dtype that NumPy and ml_dtypes have
    load.py compare PLAIN MOUNTED   load both in every way of the library; differences are errors
"""
import sys
from concurrent.futures import ThreadPoolExecutor

import ml_dtypes
import numpy as np
import safetensors
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

# The dtypes that the library loads into NumPy arrays. It writes F8, but returns only its bytes.
WHOLE = [np.float64, np.float32, np.float16, ml_dtypes.bfloat16, np.complex64, np.bool_,
         np.int64, np.int32, np.int16, np.int8, np.uint64, np.uint32, np.uint16, np.uint8]
EIGHT_BIT = [ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2]


def eight_bit(path):
    """The path of the second file, which has the F8 tensors."""
    return path.replace(".safetensors", "-f8.safetensors")


def values(rng, dtype, shape):
    normal = rng.standard_normal(shape, dtype=np.float32) * np.float32(0.02)
    kind = np.dtype(dtype).kind
    if kind == "b":
        return np.asarray(normal > 0)
    return np.asarray(normal * 1000 if kind in "iu" else normal).astype(dtype)


def write(path):
    rng = np.random.default_rng(5)
    tensors = {}
    for dtype in WHOLE:
        name = np.dtype(dtype).name
        shapes = {"matrix": (700, 900), "odd": (3, 5, 7), "scalar": (), "empty": (0, 4)}
        for which, shape in shapes.items():
            tensors[f"{name}.{which}"] = values(rng, dtype, shape)
    save_file(tensors, path, metadata={"format": "np"})
    save_file({np.dtype(d).name: values(rng, d, (700, 900)) for d in EIGHT_BIT}, eight_bit(path))


def same(name, a, b):
    if a.dtype != b.dtype or a.shape != b.shape or a.tobytes() != b.tobytes():
        sys.exit(f"{name}: differs ({a.dtype}{a.shape} and {b.dtype}{b.shape})")


def compare(plain, mounted):
    expected = load_file(plain)
    for backend in ("mmap", "pread"):
        found = load_file(mounted, backend=backend)
        if expected.keys() != found.keys():
            sys.exit(f"{backend}: the names differ")
        for name in expected:
            same(f"{backend} {name}", expected[name], found[name])

    with safe_open(mounted, "numpy") as f:
        if f.metadata() != {"format": "np"}:
            sys.exit(f"metadata: {f.metadata()}")
        for name in reversed(list(f.keys())):
            same(name, expected[name], f.get_tensor(name))

    # Like transformers: slices, from four threads.
    def slices(name):
        with safe_open(mounted, "numpy") as f:
            part = f.get_slice(name)
            for row in range(0, 700, 100):
                same(name, expected[name][row:row + 100, 100:800], part[row:row + 100, 100:800])
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(slices, [name for name in expected if name.endswith(".matrix")]))

    # Like the check of a download: whole files, from their bytes.
    raw = []
    for path in (eight_bit(plain), eight_bit(mounted)):
        with open(path, "rb") as f:
            raw.append(dict(safetensors.deserialize(f.read())))
    if raw[0] != raw[1] or len(raw[0]) != len(EIGHT_BIT):
        sys.exit("F8: differs")
    print(f"{len(expected) + len(EIGHT_BIT)} tensors identical")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["write", path]:
            write(path)
        case ["compare", plain, mounted]:
            compare(plain, mounted)
        case _:
            sys.exit(__doc__)
