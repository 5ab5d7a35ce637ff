#!/usr/bin/env python3
"""Compare a store with the directory below it: writes, reads of plain files, and small files.

    store.py [--bsz PATH/bsz] [--ceiling PATH/ceiling] [--runs N] [--disk-mbs N] [--json FILE]
             DIRECTORY

Works in a new folder in DIRECTORY, on files of random bytes: nothing is packed. `write` is a file
of 1 GiB in blocks of 1 MiB with a final fsync, the disk held to --disk-mbs (400; root and cgroup
v1), as a download arrives. The reads are those of mounts.py, beside the FUSE ceiling. `small` is
the number of files of 4 KiB that are opened, read and closed in a second, and of files whose
attributes are read, all of them not looked up before. Each figure is the median of the runs.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import tempfile
import time

from mounts import MIB, PATTERNS, Mount, drop, table
from mounts import rates as read_rates

WRITTEN = 1024 * MIB
READ = 512 * MIB
SMALL_FILES = 5000


class Held:
    """Hold all writes to the disk that holds `path`, those of the kernel's own threads too."""

    LIMIT = pathlib.Path("/sys/fs/cgroup/blkio/blkio.throttle.write_bps_device")

    def __init__(self, path, mbs):
        device = os.stat(path).st_dev
        self.number, self.mbs = f"{os.major(device)}:{os.minor(device)}", mbs

    def __enter__(self):
        os.sync()
        self.LIMIT.write_text(f"{self.number} {int(self.mbs * 1e6)}")

    def __exit__(self, *_):
        self.LIMIT.write_text(f"{self.number} 0")


class Store:
    """A store over a directory, and nothing else without a program."""

    def __init__(self, bsz, directory):
        self.bsz, self.directory = bsz, directory

    def __enter__(self):
        if self.bsz:
            quiet = {"stdout": subprocess.DEVNULL}
            subprocess.run([self.bsz, "mount", self.directory], check=True, **quiet)
        return self.directory

    def __exit__(self, *_):
        if self.bsz:
            subprocess.run([self.bsz, "umount", self.directory], check=True)


def written(path):
    """MB/s of a file that arrives in order, until it is on the disk."""
    block = os.urandom(MIB)
    start = time.perf_counter()
    fd = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o644)
    for _ in range(WRITTEN // MIB):
        os.write(fd, block)
    os.fsync(fd)
    os.close(fd)
    rate = WRITTEN / 1e6 / (time.perf_counter() - start)
    os.unlink(path)
    return rate


def thousands(directory, use):
    """Thousands of small files that are used in a second."""
    start = time.perf_counter()
    for number in range(SMALL_FILES):
        use(directory / f"{number}.json")
    return SMALL_FILES / 1e3 / (time.perf_counter() - start)


def read(path):
    fd = os.open(path, os.O_RDONLY)
    os.read(fd, 1 << 16)
    os.close(fd)


def writes(systems, directory, runs, mbs):
    found = {}
    for _ in range(runs):
        for name, bsz in systems.items():
            with Store(bsz, directory), Held(directory.parent, mbs):
                found.setdefault(name, []).append(written(directory / "written"))
    return {name: statistics.median(rates) for name, rates in found.items()}


def small(systems, directory, runs):
    for number in range(SMALL_FILES):
        (directory / f"{number}.json").write_bytes(b"x" * 4096)
    found = {}
    for _ in range(runs):
        for name, bsz in systems.items():
            for what, use in {"read": read, "stat": os.stat}.items():
                with Store(bsz, directory):
                    drop()
                    subprocess.run(["cat", *directory.glob("*.json")], stdout=subprocess.DEVNULL)
                with Store(bsz, directory):
                    rate = thousands(directory, use)
                found.setdefault((what, name), []).append(rate)
    return {f"{what}, {name}": statistics.median(rates) for (what, name), rates in found.items()}


def main():
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--bsz", default="target/release/bsz", type=pathlib.Path)
    p.add_argument("--ceiling", default="target/release/examples/ceiling", type=pathlib.Path)
    p.add_argument("--runs", type=int, default=3)
    p.add_argument("--disk-mbs", type=float, default=400)
    p.add_argument("--json", type=pathlib.Path)
    p.add_argument("directory", type=pathlib.Path)
    a = p.parse_args()
    bsz, ceiling, found = a.bsz.resolve(), a.ceiling.resolve(), {}
    systems = {"directory": None, "store": bsz}
    with tempfile.TemporaryDirectory(prefix="store.", dir=a.directory.resolve()) as work:
        work = pathlib.Path(work)
        source, view, few = work / "source", work / "view", work / "small"
        for folder in source, view, few:
            folder.mkdir()

        found["write"] = writes(systems, source, a.runs, a.disk_mbs)
        rate = "  ".join(f"{name} {rate:.0f}" for name, rate in found["write"].items())
        share = found["write"]["store"] / found["write"]["directory"]
        print(f"write: MB/s, the disk held to {a.disk_mbs:.0f}: {rate}: {share:.2f} of it")

        file = source / "plain.bin"
        with open(file, "wb") as f:
            for _ in range(READ // MIB):
                f.write(os.urandom(MIB))
        mounts = {
            "plain": None,
            "store": [bsz, "mount", "--foreground", "--read-write", source, view],
            "ceiling": [ceiling, file, view],
        }
        best = read_rates(file, mounts, view, a.runs)
        table(file, best, mounts)
        found["read"] = {", ".join(key): rate for key, rate in best.items()}

        found["small"] = small(systems, few, a.runs)
        print("small: thousands of files a second:")
        for name, rate in found["small"].items():
            print(f"  {name:18}{rate:8.1f}")
    if a.json:
        a.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
