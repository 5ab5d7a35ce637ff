#!/usr/bin/env python3
"""Decode an archive on the GPU and use its tensors in torch:  torch_dlpack.py ARCHIVE [PLAIN]

    cargo build --release --example dlpack
    python3 examples/torch_dlpack.py model.bsz model.safetensors

With PLAIN, the original, every tensor is compared with the one that safetensors loads. BSZ_DLPACK
names the library if it is not target/release/examples/libdlpack.so. This example has not been run
on a GPU.
"""

import ctypes
import os
import pathlib
import sys

LIBRARY = pathlib.Path(__file__).resolve().parents[1] / "target/release/examples/libdlpack.so"


def library():
    lib = ctypes.CDLL(os.environ.get("BSZ_DLPACK") or str(LIBRARY))
    lib.bsz_load.restype = ctypes.c_void_p
    lib.bsz_load.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t]
    lib.bsz_count.restype = ctypes.c_size_t
    lib.bsz_count.argtypes = [ctypes.c_void_p]
    lib.bsz_name.restype = ctypes.c_char_p
    lib.bsz_tensor.restype = ctypes.c_void_p
    lib.bsz_name.argtypes = lib.bsz_tensor.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    lib.bsz_free.restype = None
    lib.bsz_free.argtypes = [ctypes.c_void_p]
    return lib


def tensors(path):
    """The name and DLPack capsule of each tensor. Capsules must be consumed, which frees them."""
    new_capsule = ctypes.pythonapi.PyCapsule_New
    new_capsule.restype = ctypes.py_object
    new_capsule.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    lib = library()
    why = ctypes.create_string_buffer(500)
    loaded = lib.bsz_load(os.fsencode(path), why, len(why))
    if not loaded:
        raise OSError(why.value.decode(errors="replace"))
    try:
        for i in range(lib.bsz_count(loaded)):
            tensor = lib.bsz_tensor(loaded, i)
            if tensor:
                yield lib.bsz_name(loaded, i).decode(), new_capsule(tensor, b"dltensor", None)
    finally:
        lib.bsz_free(loaded)


def main():
    import torch

    path, *plain = sys.argv[1:]
    loaded = {name: torch.utils.dlpack.from_dlpack(capsule) for name, capsule in tensors(path)}
    for name, tensor in loaded.items():
        print(name, tensor.dtype, tuple(tensor.shape), tensor.device)
    if plain:
        from safetensors.torch import load_file

        for name, expected in load_file(plain[0]).items():
            found = loaded[name].cpu()
            same = found.view(torch.uint8) if found.dim() else found.reshape(1).view(torch.uint8)
            expected = expected.reshape(1) if not expected.dim() else expected
            if not torch.equal(same, expected.view(torch.uint8)):
                raise SystemExit(f"{name} differs")
        print("all as in", plain[0])


if __name__ == "__main__":
    main()
