"""The models that remote.py serves, plain and packed; each is made once and kept."""

import dataclasses
import json
import os
import pathlib
import shutil
import struct
import time

import clients
import link

LLAMA = """
import sys, torch, transformers
torch.manual_seed(5)
torch.set_default_dtype(torch.bfloat16)
config = transformers.LlamaConfig(
    hidden_size=1024, intermediate_size=2816, num_hidden_layers=int(sys.argv[2]),
    num_attention_heads=16, num_key_value_heads=4, vocab_size=16000)
transformers.LlamaForCausalLM(config).save_pretrained(sys.argv[1], max_shard_size="100GB")
"""
EMBEDDINGS, LAYER = 65.5, 22.6  # MB of the above
BLOCK = 16 << 20


@dataclasses.dataclass
class Model:
    plain: pathlib.Path
    archive: pathlib.Path


def evict(directory):
    """Drop a directory's files from the page cache, and write them before."""
    for path in directory.rglob("*"):
        if path.is_file():
            with open(path, "rb") as f:
                os.fsync(f.fileno())
                os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read(directory):
    """Fill the page cache with a directory's files."""
    for path in directory.iterdir():
        with open(path, "rb", buffering=0) as f:
            while f.read(BLOCK):
                pass


def sparse(path, gigabytes):
    """A model of zeros, which takes no space on the disk: 80 layers of matrices."""
    tensors, end, columns = {}, 0, 8192
    rows = int(gigabytes * 1e9 / 80 / 4 / 2 / columns)
    for layer in range(80):
        for part in "attn.q_proj", "attn.o_proj", "mlp.up_proj", "mlp.down_proj":
            begin, end = end, end + rows * columns * 2
            shape = {"dtype": "BF16", "shape": [rows, columns], "data_offsets": [begin, end]}
            tensors[f"model.layers.{layer}.{part}.weight"] = shape
    header = json.dumps(tensors, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(header)) + header)
        f.truncate(8 + len(header) + end)


class Models:
    """Below `root` are directories with a model each, as the server shows them."""

    def __init__(self, bsz, examples, python, work):
        self.bsz, self.examples, self.python, self.work = bsz, examples, python, work
        self.root = work / "served"
        self.root.mkdir(exist_ok=True)

    def path(self, path):
        """The path of a file or a directory at the server."""
        return str(path.relative_to(self.root))

    def made(self, name, make):
        """A directory that `make` fills, if it is not there yet."""
        whole, partial = self.root / name, self.work / f"{name}.partial"
        if not whole.exists():
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            make(partial)
            partial.rename(whole)
        read(whole)
        return whole

    def packed(self, plain):
        """The same directory, packed."""
        def pack(directory):
            link.tool(self.bsz, "--quiet", "pack", plain, "-o", directory, "--force")

        return self.made(f"{plain.name}-packed", pack)

    def both(self, plain):
        archive = self.packed(plain) / "model.bsz"
        return Model(plain / "model.safetensors", archive)

    def model(self, megabytes):
        def make(directory):
            mib = max(1, round(megabytes * 1e6 / (1 << 20)))
            weights = self.examples / "weights"
            link.tool(weights, "BF16", mib, directory / "model.safetensors")

        return self.both(self.made(f"model-{megabytes}", make))

    def llama(self, megabytes):
        """One of transformers, a quarter as large."""
        layers = max(1, round((megabytes / 4 - EMBEDDINGS) / LAYER))

        def make(directory):
            command = [self.python, "-c", LLAMA, directory, layers]
            if clients.start(command).wait():
                raise RuntimeError("transformers made no model")

        return self.both(self.made(f"llama-{layers}", make))

    def huge(self, gigabytes):
        """The archive of a sparse file; the seconds that packing took are beside it."""
        def make(directory):
            file = self.work / "huge.safetensors"
            try:
                sparse(file, gigabytes)
                begun = time.perf_counter()
                link.tool(self.bsz, "--quiet", "pack", file, "-o", directory / "huge.bsz")
                seconds = time.perf_counter() - begun
            finally:
                file.unlink(missing_ok=True)
            (directory / "seconds").write_text(f"{seconds:.1f}\n")

        return self.made(f"huge-{gigabytes:g}", make) / "huge.bsz"

    def seconds(self, archive):
        return float((archive.parent / "seconds").read_text())

    def local(self, archive):
        """A copy, so that it can be cold while the server's file is not."""
        copy = self.work / "local" / archive.parent.name / archive.name
        if not copy.exists():
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(archive, copy)
        return copy
