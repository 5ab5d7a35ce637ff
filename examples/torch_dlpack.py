#!/usr/bin/env python3
"""Decode an archive on a GPU and use its tensors in torch:

    torch_dlpack.py [--gpu N] ARCHIVE [PLAIN]

    cargo build --release --example dlpack
    python3 examples/torch_dlpack.py model.bsz model.safetensors

With PLAIN, the original, every tensor is compared with the one that safetensors loads. BSZ_DLPACK
names the library if it is not target/release/examples/libdlpack.so. This example has not been run
on a GPU.

A dtype that DLPack or this torch lacks, such as F4, is passed as bytes, and listed as such.
"""

import argparse
import ctypes
import os
import pathlib
import sys

LIBRARY = pathlib.Path(__file__).resolve().parents[1] / "target/release/examples/libdlpack.so"


def library():
    lib = ctypes.CDLL(os.environ.get("BSZ_DLPACK") or str(LIBRARY))
    lib.bsz_load.restype = ctypes.c_void_p
    lib.bsz_load.argtypes = [ctypes.c_char_p, ctypes.c_uint32, ctypes.c_char_p, ctypes.c_size_t]
    lib.bsz_count.restype = ctypes.c_size_t
    lib.bsz_count.argtypes = [ctypes.c_void_p]
    lib.bsz_name.restype = ctypes.c_char_p
    lib.bsz_tensor.restype = ctypes.c_void_p
    lib.bsz_name.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    lib.bsz_tensor.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint8]
    lib.bsz_free.restype = None
    lib.bsz_free.argtypes = [ctypes.c_void_p]
    return lib


def tensors(path, gpu=0, consume=lambda capsule, as_bytes: capsule):
    """The name of each tensor, what `consume` makes of it, and whether it was passed as bytes.

    `consume` gets a DLPack capsule, which it must consume, since that frees it. If it raises
    BufferError, RuntimeError or ValueError for a type that it does not know, it gets bytes instead.
    """
    new_capsule = ctypes.pythonapi.PyCapsule_New
    new_capsule.restype = ctypes.py_object
    new_capsule.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    lib = library()
    why = ctypes.create_string_buffer(500)
    loaded = lib.bsz_load(os.fsencode(path), gpu, why, len(why))
    if not loaded:
        raise OSError(why.value.decode(errors="replace"))

    def passed(i, as_bytes):
        tensor = lib.bsz_tensor(loaded, i, as_bytes)
        return tensor and consume(new_capsule(tensor, b"dltensor", None), as_bytes)

    try:
        for i in range(lib.bsz_count(loaded)):
            name = lib.bsz_name(loaded, i).decode()
            try:
                tensor, as_bytes = passed(i, False), False
            except (BufferError, RuntimeError, ValueError):
                tensor = None
            if tensor is None:
                tensor, as_bytes = passed(i, True), True
            if tensor is None:
                raise OSError(f"{name}: cannot be passed")
            yield name, tensor, as_bytes
    finally:
        lib.bsz_free(loaded)


def main():
    import torch

    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--gpu", type=int, default=0, metavar="N", help="which GPU [default: 0]")
    parser.add_argument("archive")
    parser.add_argument("plain", nargs="?")
    args = parser.parse_args()
    found = {}
    for name, tensor, as_bytes in tensors(
            args.archive, args.gpu, lambda capsule, _: torch.utils.dlpack.from_dlpack(capsule)):
        found[name] = tensor
        note = " as bytes: no type for its elements" if as_bytes else ""
        print(f"{name} {tensor.dtype} {tuple(tensor.shape)} {tensor.device}{note}")
    if args.plain:
        from safetensors.torch import load_file

        expected = load_file(args.plain)
        if found.keys() != expected.keys():
            raise SystemExit("other tensors than in the plain file")
        for name, tensor in expected.items():
            bytes_ = found[name].cpu().reshape(-1).view(torch.uint8)
            if not torch.equal(bytes_, tensor.reshape(-1).view(torch.uint8)):
                raise SystemExit(f"{name} differs")
        print("all as in", args.plain)


if __name__ == "__main__":
    main()
