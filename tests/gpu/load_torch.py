"""Load an archive with the Python package into the memory of a GPU, and compare and time it.

    load_torch.py ARCHIVE PLAIN      needs torch and safetensors; prints JSON

A warning of the package, that it decodes on the CPU, is an error here.
"""
import json
import sys
import time
import warnings

import bszfs.stream
import bszfs.torch
import safetensors.torch
import torch

RUNS = 3


def timed(load):
    """The result, and the least seconds of some loads."""
    best = None
    for _ in range(RUNS):
        result = None  # free the memory of the last one
        torch.cuda.synchronize()
        begun = time.perf_counter()
        result = load()
        torch.cuda.synchronize()
        took = time.perf_counter() - begun
        best = took if best is None else min(best, took)
    return result, round(best, 4)


def layers(archive, device, into):
    """All tensors by way of `iter_layers`. Kernels on them run while the next layer is decoded."""
    loaded = {}
    for _, layer in bszfs.stream.Loader(archive, device).iter_layers(ahead=1, into=into):
        for name, tensor in layer.items():
            loaded[name] = tensor.clone()
        del layer
    return loaded


def main():
    archive, plain = sys.argv[1:]
    device = "cuda:0"
    warnings.filterwarnings("error", message="cuda:")
    expected, plain_s = timed(lambda: safetensors.torch.load_file(plain, device))
    count = sum(t.numel() * t.element_size() for t in expected.values())
    seconds = {}
    for way, load in (
        ("load_file", lambda: bszfs.torch.load_file(archive, device)),
        ("ring", lambda: layers(archive, device, "ring")),
        ("layers", lambda: layers(archive, device, None)),
    ):
        loaded, seconds[way] = timed(load)
        assert loaded.keys() == expected.keys(), way
        for name, tensor in expected.items():
            other = loaded[name]
            same = tensor.dtype == other.dtype and tensor.shape == other.shape
            # As bytes: a NaN is not equal to itself.
            as_bytes = [t.reshape(-1).view(torch.uint8) for t in (tensor, other)]
            assert same and torch.equal(*as_bytes), f"{way}: {name}"
    print(json.dumps({"torch": torch.__version__, "bytes": count, "safetensors_s": plain_s,
                      "seconds": seconds}))


if __name__ == "__main__":
    main()
