#!/usr/bin/env python3
"""Compare each FILE with its archive, byte by byte: unpacked, mounted, at random, mapped privately.

    exact.py PATH/bsz FILE...

Prints one line per file, and exits with 1 at the first difference. Leaves nothing behind.
"""

import mmap
import os
import pathlib
import random
import subprocess
import sys
import tempfile

READS = 10_000
MIB = 1 << 20


def random_reads(plain, view, size):
    r = random.Random(1)
    for _ in range(READS):
        at = r.randrange(size + 1)
        n = r.choice([1, 100, 4096, 70_000])
        assert os.pread(view, n, at) == os.pread(plain, n, at), f"{n} bytes at {at}"


def mapped(plain, view, size):
    a = mmap.mmap(plain, size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)
    b = mmap.mmap(view, size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)
    for at in range(0, size, MIB):
        assert a[at : at + MIB] == b[at : at + MIB], f"mapped at {at}"


def check(bsz, file, work):
    archive, back, view = work / "packed" / f"{file.stem}.bsz", work / "back", work / "view"
    archive.parent.mkdir()
    view.mkdir()
    run = lambda *args: subprocess.run([str(a) for a in (bsz, *args)], check=True,
                                       stdout=subprocess.DEVNULL)
    run("pack", file, "-o", archive)
    run("verify", archive)
    run("unpack", archive, "-o", back)
    subprocess.run(["cmp", file, back], check=True)
    run("mount", "--cache-size", "64MiB", archive.parent, view)
    try:
        shown = view / file.name
        subprocess.run(["cmp", file, shown], check=True)
        plain, seen = os.open(file, os.O_RDONLY), os.open(shown, os.O_RDONLY)
        random_reads(plain, seen, file.stat().st_size)
        mapped(plain, seen, file.stat().st_size)
        os.close(plain)
        os.close(seen)
    finally:
        run("umount", view)
    return archive.stat().st_size / file.stat().st_size


def main():
    bsz, *files = (pathlib.Path(path).resolve() for path in sys.argv[1:])
    for file in files:
        with tempfile.TemporaryDirectory(prefix="exact.") as work:
            ratio = check(bsz, file, pathlib.Path(work))
        print(f"{file.name:34} {100 * ratio:6.2f} %  exact: unpacked, mounted,"
              f" {READS} random reads, mapped", flush=True)


if __name__ == "__main__":
    main()
