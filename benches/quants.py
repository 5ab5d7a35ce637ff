#!/usr/bin/env python3
"""Quantised safetensors as current releases ship them, made from real weights, and what bsz saves.

    quants.py BSZ DIRECTORY FILE.safetensors...     models of FILE's matrices go to DIRECTORY

Needs NumPy and ml_dtypes (`tests/prepare python`). FILEs are samples of `samples.py`. For each of
them and each format, the matrices of its layers are quantised as the format's own tools do it,
without calibration; embeddings, norms and biases become BF16. A row of the table is one kind of
tensor of one model: its share of the file, the % that packing leaves of it, and the ideal: the
order-0 entropy of its numbers (not of its bytes), with four classes of rows or eight of columns
where these are smaller.

| format | tensors |
|---|---|
| fp8-block | F8_E4M3 `weight`, F32 `weight_scale_inv` for 128 x 128 |
| fp8-channel | F8_E4M3 `weight`, BF16 `weight_scale` for a row |
| mxfp8 | F8_E4M3 `weight`, U8 `weight_scale` (E8M0) for 32 in a row |
| mxfp4 | U8 `*_blocks` [experts, rows, k / 32, 16], U8 `*_scales` (E8M0), as gpt-oss |
| mxfp4-typed | the same as F4 and F8_E8M0 |
| nvfp4 | U8 `weight`, F8_E4M3 `weight_scale` for 16 in a row, F32 `weight_scale_2`: ModelOpt |
| mxfp6 | F6_E2M3, F8_E8M0 for 32 in a row |
| int4-packed | I32 `weight_packed` (8 in each), BF16 `weight_scale` for 128, as llm-compressor |
"""

import json
import pathlib
import struct
import subprocess
import sys

import ml_dtypes
import numpy as np
import samples

BF16, E4M3 = ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
NAMES = {
    np.dtype(BF16): "BF16",
    np.dtype(E4M3): "F8_E4M3",
    np.dtype(np.float32): "F32",
    np.dtype(np.uint8): "U8",
    np.dtype(np.int32): "I32",
}


def write(path, tensors):
    """Write [(name, dtype or None, shape or None, array)]."""
    header, end = {}, 0
    for name, dtype, shape, a in tensors:
        begin, end = end, end + a.nbytes
        shape = list(a.shape if shape is None else shape)
        header[name] = {
            "dtype": dtype or NAMES[a.dtype],
            "shape": shape,
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for *_, a in tensors:
            f.write(np.ascontiguousarray(a).tobytes())


def blocks(w, size):
    return w.reshape(*w.shape[:-1], -1, size)


def amax(b):
    return np.maximum(np.abs(b).max(-1, keepdims=True), 1e-12)


def fp4(b):
    """E2M1 of scaled numbers, rounded to nearest, ties to even; negative zero is kept."""
    edges = (E2M1[1:] + E2M1[:-1]) / 2
    a = np.abs(b)
    code = np.searchsorted(edges, a, side="left")
    ties = np.isin(a, edges) & (code % 2 == 1)
    return (code + ties).astype(np.uint8) | np.signbit(b).astype(np.uint8) << 3


def pairs(codes):
    """Two codes of four bits in a byte, the first one in the lower half."""
    return codes[..., ::2] | codes[..., 1::2] << 4


def e8m0(b, largest):
    """The shared exponent of OCP MX, biased by 127: that of the largest, less that of the type."""
    return np.clip(np.floor(np.log2(amax(b))) - largest + 127, 0, 254).astype(np.uint8)


def power(exponent):
    return np.exp2(exponent.astype(np.float32) - 127)


def fp8_block(w):
    n, k = w.shape
    tiles = np.pad(w, ((0, -n % 128), (0, -k % 128)))
    tiles = tiles.reshape(-(-n // 128), 128, -(-k // 128), 128)
    scale = np.maximum(np.abs(tiles).max((1, 3)), 1e-12) / 448
    q = w / scale.repeat(128, 0)[:n].repeat(128, 1)[:, :k]
    q = q.astype(E4M3)
    yield "weight", None, None, q, q.view(np.uint8)
    yield "weight_scale_inv", None, None, scale.astype(np.float32), None


def fp8_channel(w):
    scale = (amax(w) / 448).astype(BF16)
    q = np.clip(w / scale.astype(np.float32), -448, 448).astype(E4M3)
    yield "weight", None, None, q, q.view(np.uint8)
    yield "weight_scale", None, None, scale, None


def mxfp8(w):
    b = blocks(w, 32)
    scale = e8m0(b, 8)
    q = np.clip(b / power(scale), -448, 448).reshape(w.shape).astype(E4M3)
    yield "weight", None, None, q, q.view(np.uint8)
    yield "weight_scale", None, None, scale[..., 0], scale[..., 0]


def mxfp4(w):
    b = blocks(w, 32)
    scale = e8m0(b, 2)
    codes = fp4(b / power(scale))
    yield "blocks", None, None, pairs(codes), codes.reshape(w.shape)
    yield "scales", None, None, scale[..., 0], scale[..., 0]


def mxfp4_typed(w):
    for name, _, _, a, symbols in mxfp4(w):
        if name == "blocks":
            yield "weight", "F4", w.shape, a, symbols
        else:
            yield "weight_scale", "F8_E8M0", a.shape, a, symbols


def nvfp4(w):
    whole = np.abs(w).max() / (6 * 448)
    b = blocks(w, 16)
    scale = np.clip(amax(b) / 6 / whole, 2**-9, 448).astype(E4M3)
    codes = fp4(b / (scale.astype(np.float32) * whole)).reshape(w.shape)
    yield "weight", None, None, pairs(codes), codes
    yield "weight_scale", None, None, scale[..., 0], scale[..., 0].view(np.uint8)
    yield "weight_scale_2", None, (), np.float32([whole]), None


def mxfp6(w):
    b = blocks(w, 32)
    scale = e8m0(b, 2)
    # E2M3 has steps of 1/8 below 2, of 1/4 below 4, and of 1/2 up to 7.5.
    a = np.minimum(np.abs(b) / power(scale), 7.5)
    step = np.where(a < 2, 0.125, np.where(a < 4, 0.25, 0.5))
    a = np.round(a / step) * step
    code = np.where(a < 2, a * 8, np.where(a < 4, a * 4 + 8, a * 2 + 16)).astype(np.uint32)
    code = (code | np.signbit(b).astype(np.uint32) << 5).reshape(w.shape)
    four = blocks(code, 4)
    word = four[..., 0] | four[..., 1] << 6 | four[..., 2] << 12 | four[..., 3] << 18
    packed = np.stack([word & 255, word >> 8 & 255, word >> 16], -1).astype(np.uint8)
    yield "weight", "F6_E2M3", w.shape, packed, code.astype(np.uint8)
    yield "weight_scale", "F8_E8M0", None, scale[..., 0], scale[..., 0]


def int4_packed(w):
    b = blocks(w, 128)
    scale = (amax(b) / 7.5).astype(BF16)
    code = np.clip(np.round(b / scale.astype(np.float32)), -8, 7).astype(np.int32) + 8
    eight = blocks(code.reshape(w.shape), 8).astype(np.uint32)
    word = sum(eight[..., i] << np.uint32(4 * i) for i in range(8))
    yield "weight_packed", None, None, word.astype(np.uint32).view(np.int32), code.reshape(w.shape)
    yield "weight_scale", None, None, scale[..., 0], None


FORMATS = {
    "fp8-block": fp8_block,
    "fp8-channel": fp8_channel,
    "mxfp8": mxfp8,
    "mxfp4": mxfp4,
    "mxfp4-typed": mxfp4_typed,
    "nvfp4": nvfp4,
    "mxfp6": mxfp6,
    "int4-packed": int4_packed,
}


def layers(tensors):
    """The matrices to quantise, and the tensors to keep."""
    # Embeddings and what is too narrow for a block stay as they are.
    def kept(name, a):
        return a.ndim != 2 or "embed" in name or "wte" in name or "wpe" in name or a.shape[1] % 128

    floats = [(n, a.astype(np.float32)) for n, a in tensors if a.dtype.kind in "fV"]
    return [t for t in floats if not kept(*t)], [t for t in floats if kept(*t)]


def experts(matrices):
    """Matrices of one shape side by side, as gpt-oss stores experts."""
    by_shape = {}
    for _, a in matrices:
        by_shape.setdefault(a.shape, []).append(a)
    for shape, group in by_shape.items():
        yield f"experts_{shape[0]}x{shape[1]}", np.stack(group)


def quantise(name, tensors):
    """The tensors of a model in this format, and the numbers of each kind of tensor."""
    matrices, kept = layers(tensors)
    named = experts(matrices) if name in ("mxfp4", "mxfp4-typed") else matrices
    out, numbers = [], {}
    for prefix, w in named:
        for part, dtype, shape, a, symbols in FORMATS[name](w):
            joint = "_" if name == "mxfp4" else "."
            out.append((prefix.removesuffix(".weight") + joint + part, dtype, shape, a))
            if symbols is not None:
                numbers.setdefault(part, []).append(symbols.reshape(-1, symbols.shape[-1]))
    return out + [(n, None, None, a.astype(BF16)) for n, a in kept], numbers


def entropy(counts):
    """Bits of the numbers of each histogram."""
    total = np.maximum(counts.sum(-1, keepdims=True), 1)
    share = counts / total
    return -(counts * np.log2(np.where(share > 0, share, 1))).sum(-1)


def classed(counts, classes):
    """Bits with classes of items that have these histograms (Lloyd)."""
    mean = (counts * np.arange(counts.shape[1])).sum(1) / np.maximum(counts.sum(1), 1)
    member = np.argsort(np.argsort(mean)) * classes // len(counts)
    for _ in range(8):
        sums = np.stack([counts[member == c].sum(0) for c in range(classes)]) + 1e-3
        bits = -np.log2(sums / sums.sum(1, keepdims=True))
        member = (counts @ bits.T).argmin(1)
    return entropy(np.stack([counts[member == c].sum(0) for c in range(classes)])).sum()


def ideal(symbols):
    """Bits of a matrix of numbers."""
    rows, columns = symbols.shape
    top = int(symbols.max()) + 1

    def histograms(of, n):
        flat = of.astype(np.int64) * top + symbols
        return np.bincount(flat.ravel(), minlength=n * top).reshape(n, top).astype(np.float64)

    by_row = histograms(np.arange(rows)[:, None], rows)
    by_column = histograms(np.arange(columns)[None, :], columns)
    one = entropy(by_row.sum(0))
    return min(one, classed(by_row, 4) + 2 * rows, classed(by_column, 8) + 4 * columns)


def measured(bsz, path):
    """Packs a file, and tells for each of its tensors the bytes before and after, and codings."""
    archive = path.with_suffix(".bsz")
    subprocess.run([bsz, "--quiet", "pack", "--force", path, "-o", archive], check=True)
    back = path.with_suffix(".back")
    subprocess.run([bsz, "--quiet", "unpack", "--force", archive, "-o", back], check=True)
    same = subprocess.run(["cmp", "--silent", path, back]).returncode == 0
    back.unlink()
    if not same:
        sys.exit(f"{path} came back changed")
    info = json.loads(subprocess.check_output([bsz, "info", "--json", archive]))
    info = info[0] if isinstance(info, list) else info
    archive.unlink()
    return info


def main(bsz, directory, *files):
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    print("| model | tensors | share | left | ideal | codings |\n|---|---|---|---|---|---|")
    for file in map(pathlib.Path, files):
        tensors = samples.load(file.read_bytes())
        for name in FORMATS:
            path = directory / f"{file.stem}-{name}.safetensors"
            out, numbers = quantise(name, tensors)
            write(path, out)
            info = measured(bsz, path)
            for part, symbols in numbers.items():
                bits = sum(ideal(s) for s in symbols)
                mine = [t for t in info["tensors"] if t["name"].endswith(part)]
                mine = [t for t in mine if t["dtype"] != "BF16"]
                size, stored = (sum(t[k] for t in mine) for k in ("bytes", "stored"))
                codings = {}
                for t in mine:
                    for coding, n in t["codings"].items():
                        codings[coding] = codings.get(coding, 0) + n
                print(
                    f"| {file.stem}, {name} | {part} | {100 * size / info['original']:.1f} "
                    f"| {100 * stored / size:.2f} | {100 * bits / 8 / size:.2f} "
                    f"| {', '.join(f'{n} {c}' for c, n in codings.items())} |",
                    flush=True,
                )
            left = 100 * info["archive"] / info["original"]
            print(f"| {file.stem}, {name} | whole file | 100 | {left:.2f} | | |", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
