"""Models for the tests, written without any framework, and what is needed to run programs."""
import hashlib
import json
import os
import pathlib
import struct
import subprocess
import sys

import bszfs

# The width of each dtype of safetensors in bits.
BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F4": 4,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "I64": 64, "U64": 64, "F64": 64, "C64": 64,
}  # fmt: skip


def noise(seed, length):
    """Bytes that look random, but are the same in every run; none is a NaN of any float."""
    out = bytearray()
    counter = 0
    while len(out) < length:
        out += hashlib.blake2b(f"{seed} {counter}".encode(), digest_size=64).digest()
        counter += 1
    return bytes(byte & 0x3B for byte in out[:length])


def repeat(seed, length):
    """A lot of such bytes, quickly."""
    block = noise(seed, 1 << 16)
    return (block * (length // len(block) + 1))[:length]


def write(path, tensors, metadata=None, padding=None):
    """Write a safetensors file; `tensors` maps names to (dtype, shape) or (dtype, shape, bytes).

    `padding` is the number of spaces after the header: by default, as many as align the data.
    """
    header, data = {}, bytearray()
    if metadata is not None:
        header["__metadata__"] = metadata
    for name, (dtype, shape, *given) in tensors.items():
        count = 1
        for size in shape:
            count *= size
        nbytes = count * BITS[dtype] // 8
        payload = given[0] if given else (b"\0\1" * nbytes)[:nbytes] if dtype == "BOOL" else None
        payload = repeat(name, nbytes) if payload is None else payload
        assert len(payload) == nbytes
        header[name] = {"dtype": dtype, "shape": list(shape),
                        "data_offsets": [len(data), len(data) + nbytes]}
        data += payload
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8 if padding is None else padding)
    pathlib.Path(path).write_bytes(struct.pack("<Q", len(text)) + text + data)
    return pathlib.Path(path)


def packed(path, keep=None):
    """Replace a file by the archive beside it; `keep` is where the plain file goes."""
    path = pathlib.Path(path)
    archive = path.with_suffix(".bsz") if path.suffix == ".safetensors" else f"{path}.bsz"
    bszfs.pack(path, archive)
    if keep is not None:
        os.replace(path, keep)
    else:
        path.unlink()
    return pathlib.Path(archive)


def python(code, *args, env=None, cwd=None, check=True):
    """Run a program; returns what it printed."""
    done = subprocess.run([sys.executable, "-c", code, *map(str, args)], capture_output=True,
                          text=True, env=env, cwd=cwd, timeout=300)
    if check and done.returncode:
        raise AssertionError(f"exit {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done.stdout


def resident():
    """The resident memory of this process in bytes."""
    with open("/proc/self/statm", encoding="ascii") as f:
        return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def descriptors():
    return len(os.listdir("/proc/self/fd"))
