#!/usr/bin/env python3
"""Sizes of models that are stored as differences from their bases, beside the published method.

    families.py [--bsz PATH] [--level N] [--json] BASE=TUNED [BASE=TUNED ...]

Each pair names two .safetensors files with the same tensors. Prints, in % of the tuned file: the
archive without a base, the archive with one, and XOR with the base, byte planes apart, each through
`zstd` (default level 19). Archives are unpacked again and compared. Every figure is of whole files,
headers and indexes included.
"""
import argparse
import filecmp
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np

WIDTHS = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "BF16": 2, "F16": 2}


def tensors(path):
    """The header's length and, by name, the type, shape and bytes of each tensor."""
    data = np.memmap(path, np.uint8, "r")
    end = 8 + int.from_bytes(data[:8].tobytes(), "little")
    header = json.loads(data[8:end].tobytes())
    header.pop("__metadata__", None)

    def of(entry):
        start, stop = entry["data_offsets"]
        return entry["dtype"], entry["shape"], data[end + start : end + stop]

    return end, {name: of(entry) for name, entry in header.items()}


def xor_len(base, tuned, level, directory):
    """Bytes of the XOR of both, byte planes apart, each compressed on its own."""
    _, of_base = tensors(base)
    end, of_tuned = tensors(tuned)
    planes = {}
    for name, (dtype, shape, data) in of_tuned.items():
        width = WIDTHS.get(dtype, 1)
        other = of_base.get(name)
        if other and other[:2] == (dtype, shape):
            data = data ^ other[2]
        for byte in range(width):
            planes.setdefault((width, byte), []).append(data[byte::width])
    total = end
    for parts in planes.values():
        plain, packed = directory / "plane", directory / "plane.zst"
        np.concatenate(parts).tofile(plain)
        command = ["zstd", "-q", "-f", f"-{level}", "-T1", str(plain), "-o", str(packed)]
        subprocess.run(command, check=True)
        total += packed.stat().st_size
    return total


def packed_len(bsz, tuned, directory, *base):
    """Bytes of the archive of `tuned`, which must come back exactly."""
    archive = directory / "tuned.safetensors.bsz"
    archive.unlink(missing_ok=True)
    command = [bsz, "--quiet", "pack", str(tuned), "-o", str(archive), "--force", *base]
    subprocess.run(command, check=True)
    back = directory / "back"
    subprocess.run([bsz, "--quiet", "unpack", str(archive), "-o", str(back), "--force"], check=True)
    if not filecmp.cmp(tuned, back, shallow=False):
        sys.exit(f"{tuned}: does not come back")
    return archive.stat().st_size


def measure(bsz, base, tuned, level):
    """The three sizes of a pair, in % of the tuned file."""
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR", "/var/tmp")) as name:
        directory = pathlib.Path(name)
        alone = packed_len(bsz, tuned, directory)
        archive = directory / "base.safetensors.bsz"
        subprocess.run([bsz, "--quiet", "pack", str(base), "-o", str(archive)], check=True)
        related = packed_len(bsz, tuned, directory, "--base", str(archive))
        xor = xor_len(base, tuned, level, directory)
    size = os.path.getsize(tuned)
    return {
        "tuned": pathlib.Path(tuned).name,
        "bytes": size,
        "alone": round(100 * alone / size, 2),
        "with_base": round(100 * related / size, 2),
        "xor_zstd": round(100 * xor / size, 2),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pairs", nargs="+", metavar="BASE=TUNED")
    parser.add_argument("--bsz", default="target/release/bsz")
    parser.add_argument("--level", type=int, default=19)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    rows = []
    for pair in args.pairs:
        base, _, tuned = pair.partition("=")
        rows.append(measure(args.bsz, base, tuned, args.level))
        if not args.json:
            row = rows[-1]
            figures = [row[key] for key in ("alone", "with_base", "xor_zstd")]
            print(f"{row['tuned']:40} " + " ".join(f"{f:7.2f}" for f in figures), flush=True)
    if args.json:
        print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
