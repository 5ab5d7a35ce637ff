#!/usr/bin/env python3
"""Load models with one framework, as often as asked; `run.py` drives it.

    load.py [--packed] FRAMEWORK

For every line with a directory on standard input, prints one line of JSON: the seconds that the
framework took until it had a result from every weight, or all tensors in memory, and the SHA-256 of
that result. With --packed, the directories hold archives, which the Python package bszfs reads in
this process. Exits with 77, with the reason as its last line, if the framework is not installed.
"""
import gc
import hashlib
import json
import pathlib
import sys
import time


def files(directory):
    return [str(path) for path in sorted(pathlib.Path(directory).glob("*.safetensors"))]


def raw(array):
    """The bytes of a NumPy, torch or JAX array."""
    if type(array).__module__.startswith("torch"):
        import torch
        array = array.detach().contiguous().flatten().view(torch.uint8)
    import numpy
    return numpy.asarray(array).tobytes()


def digest(tensors):
    """The hash of all tensors by name, equal for all libraries that read the same."""
    sha = hashlib.sha256()
    for name in sorted(tensors):
        sha.update(name.encode())
        sha.update(raw(tensors[name]))
    return sha.hexdigest()


def safetensors_numpy():
    import ml_dtypes  # noqa: F401  NumPy's BF16
    import safetensors
    from safetensors.numpy import load_file
    load = lambda d: {k: v for f in files(d) for k, v in load_file(f).items()}
    return safetensors.__version__, load


def safetensors_torch():
    import safetensors
    import torch
    from safetensors.torch import load_file

    def load(directory):
        tensors = {k: v for f in files(directory) for k, v in load_file(f).items()}
        for tensor in tensors.values():  # mapped files are read when touched
            tensor.flatten().view(torch.uint8)[::4096].sum()
        return tensors
    return f"{safetensors.__version__}, torch {torch.__version__}", load


def safetensors_jax():
    import jax
    from safetensors.flax import load_file

    def load(directory):
        tensors = {k: v for f in files(directory) for k, v in load_file(f).items()}
        return jax.block_until_ready(tensors)
    return f"jax {jax.__version__}", load


def fastsafetensors():
    import importlib.metadata
    from fastsafetensors import fastsafe_open

    def load(directory):
        with fastsafe_open(files(directory), device="cpu", nogds=True) as f:
            return {name: f.get_tensor(name) for name in f.keys()}
    return importlib.metadata.version("fastsafetensors"), load


def runai():
    import importlib.metadata
    from runai_model_streamer import SafetensorsStreamer

    def load(directory):
        with SafetensorsStreamer() as streamer:
            streamer.stream_files(files(directory))
            return dict(streamer.get_tensors())
    return importlib.metadata.version("runai-model-streamer"), load


def transformers():
    import torch
    import transformers

    def load(directory):
        model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype="auto")
        with torch.inference_mode():
            return {"logits": model(torch.arange(16)[None] * 101).logits}
    return transformers.__version__, load


def sentence_transformers():
    import sentence_transformers

    def load(directory):
        model = sentence_transformers.SentenceTransformer(directory, device="cpu")
        texts = ["this is a test", "a mount that shows what it has packed", "7"]
        return {"embeddings": model.encode(texts)}
    return sentence_transformers.__version__, load


def diffusers():
    import diffusers
    import torch

    def load(directory):
        model = diffusers.UNet2DModel.from_pretrained(directory, torch_dtype=torch.bfloat16)
        noise = torch.linspace(-1, 1, 3 * 32 * 32, dtype=torch.bfloat16).reshape(1, 3, 32, 32)
        with torch.inference_mode():
            return {"noise": model(noise, 7).sample}
    return diffusers.__version__, load


FRAMEWORKS = {
    "safetensors, NumPy": safetensors_numpy,
    "safetensors, torch": safetensors_torch,
    "safetensors, JAX": safetensors_jax,
    "fastsafetensors": fastsafetensors, "run:ai streamer": runai, "transformers": transformers,
    "sentence-transformers": sentence_transformers, "diffusers": diffusers,
}


def from_archives(load):
    """Load with the framework as it is, while bszfs shows archives as their originals."""
    import bszfs

    def loads(directory):
        with bszfs.patched(directory):
            return load(directory)
    return loads


def main(framework, packed):
    replies, sys.stdout = sys.stdout, sys.stderr  # the output of libraries is not a reply
    try:
        version, load = FRAMEWORKS[framework]()
        if packed:
            load = from_archives(load)
    except ImportError as e:
        print(e)
        sys.exit(77)
    for line in sys.stdin:
        begun = time.perf_counter()
        result = load(line.rstrip("\n"))
        seconds = time.perf_counter() - begun
        reply = {"seconds": seconds, "digest": digest(result), "version": version}
        print(json.dumps(reply), file=replies, flush=True)
        del result
        gc.collect()


if __name__ == "__main__":
    packed = sys.argv[1:2] == ["--packed"]
    if len(sys.argv) != 2 + packed:
        sys.exit(__doc__)
    main(sys.argv[-1], packed)
