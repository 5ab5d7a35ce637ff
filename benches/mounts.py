#!/usr/bin/env python3
"""Read FILE as model loaders do: the plain file, through bsz, and through the FUSE ceiling.

    mounts.py [--bsz PATH/bsz] [--ceiling PATH/ceiling] [--runs N] [--work MS] [--disk-mbs N]
              FILE.safetensors...

Prints GB/s of the original, the best of the runs, taking the systems in turn. A cold read has a
fresh mount and a dropped page cache (root only); a warm read repeats it. `layers` is the time
that a reader waits if it maps the file, takes the layers in order and works MS milliseconds after
each. `memory` is the daemon's own memory after a cold read in blocks of 16 MiB, and how much of
the archive and of the view is in the page cache. --disk-mbs throttles the disk for the reader and
the daemon (root and cgroup v1). Rates drift on shared machines: compare rows of one run.
"""

import argparse
import json
import mmap
import os
import pathlib
import random
import re
import struct
import subprocess
import tempfile
import threading
import time

MIB = 1 << 20
RANDOM_READS = 5000


def spread(jobs, threads):
    """Run all jobs on this many threads; raise the first error."""
    todo, lock, errors = iter(jobs), threading.Lock(), []

    def work():
        try:
            while True:
                with lock:
                    job = next(todo, None)
                if job is None:
                    return
                job()
        except OSError as e:
            errors.append(e)

    crew = [threading.Thread(target=work) for _ in range(threads)]
    [t.start() for t in crew]
    [t.join() for t in crew]
    if errors:
        raise errors[0]


def stream(path, block):
    buffer = memoryview(bytearray(block))
    with open(path, "rb", buffering=0) as f:
        while f.readinto(buffer):
            pass


def blocks(path, size, threads):
    """Positional reads of `size` bytes by several threads that share the file."""
    fd = os.open(path, os.O_RDONLY)
    spread(
        [lambda at=at: os.pread(fd, size, at) for at in range(0, os.fstat(fd).st_size, size)],
        threads,
    )
    os.close(fd)


def mapped(path, threads):
    """Faults through a private mapping: in order, or by several threads at random places."""
    with (
        open(path, "rb") as f,
        mmap.mmap(f.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ) as m,
    ):
        starts = list(range(0, len(m), 2 * MIB))
        if threads > 1:
            random.Random(1).shuffle(starts)
        # Touch only the first byte of each page, so that faults dominate the time.
        spread([lambda at=at: m[at : at + 2 * MIB : 4096] for at in starts], threads)


def direct(path):
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    buffer = mmap.mmap(-1, MIB)
    while os.readv(fd, [buffer]):
        pass
    os.close(fd)


def at_random(path):
    fd = os.open(path, os.O_RDONLY)
    r, pages = random.Random(1), max(1, os.fstat(fd).st_size // 4096)
    for _ in range(RANDOM_READS):
        os.pread(fd, 4096, r.randrange(pages) * 4096)
    os.close(fd)


PATTERNS = {
    "read 1 MiB": lambda p: stream(p, MIB),
    "read 16 MiB": lambda p: stream(p, 16 * MIB),
    "16 x 2 MiB": lambda p: blocks(p, 2 * MIB, 16),
    "8 x 16 MiB": lambda p: blocks(p, 16 * MIB, 8),
    "mmap": lambda p: mapped(p, 1),
    "mmap x 4": lambda p: mapped(p, 4),
    "O_DIRECT": direct,
}


def layers_of(path):
    """The byte ranges of each layer, in the order of their numbers."""
    with open(path, "rb") as f:
        (n,) = struct.unpack("<Q", f.read(8))
        header = json.loads(f.read(n))
    layers = {}
    for name, tensor in header.items():
        if found := re.search(r"(?:^|\.)(?:layers?|blocks?|h)\.(\d+)\.", name):
            begin, end = (8 + n + x for x in tensor["data_offsets"])
            layers.setdefault((name[: found.start(1)], int(found[1])), []).append((begin, end))
    return [sorted(layers[k]) for k in sorted(layers)]


def waits(path, layers, work):
    """Seconds that a reader waits for each layer if it maps the file and works after each."""
    times = []
    with (
        open(path, "rb") as f,
        mmap.mmap(f.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ) as m,
    ):
        for layer in layers:
            start = time.perf_counter()
            for begin, end in layer:
                m[begin:end:4096]
            times.append(time.perf_counter() - start)
            time.sleep(work)
    return times


def drop():
    """Drop the page cache; False where that is not permitted, and nothing is cold."""
    os.sync()
    try:
        pathlib.Path("/proc/sys/vm/drop_caches").write_text("3")
    except OSError:
        return False
    return True


class Disk:
    """Throttle reads from the disk that holds `path`, for this process and its children.

    Needs root and the blkio controller of cgroup v1. Raises OSError where it is not to be had.
    """

    ROOT = pathlib.Path("/sys/fs/cgroup/blkio")

    def __init__(self, path, mbs):
        device = os.stat(path).st_dev
        self.number, self.mbs = f"{os.major(device)}:{os.minor(device)}", mbs
        sysfs = pathlib.Path("/sys/dev/block") / self.number
        if (sysfs / "partition").exists():
            self.number = (sysfs.resolve().parent / "dev").read_text().strip()
        self.group = self.ROOT / f"bsz-bench.{os.getpid()}"

    def __enter__(self):
        if self.mbs:
            mine = pathlib.Path("/proc/self/cgroup").read_text()
            found = re.search(r"^\d+:blkio:/?(.*)$", mine, re.M)
            if not found:
                raise OSError("no blkio controller of cgroup v1")
            self.home = self.ROOT / found[1]
            self.group.mkdir(exist_ok=True)
            limit = self.group / "blkio.throttle.read_bps_device"
            limit.write_text(f"{self.number} {int(self.mbs * 1e6)}")
            (self.group / "cgroup.procs").write_text("0")
        return self

    def __exit__(self, *_):
        if self.mbs:
            (self.home / "cgroup.procs").write_text("0")
            for _ in range(100):  # until the last daemon is gone
                try:
                    return self.group.rmdir()
                except OSError:
                    time.sleep(0.05)


class Mount:
    """A daemon and the file that it shows, with a cold page cache; `None` is the plain file."""

    def __init__(self, command, view, file, env=None):
        self.view, self.path, self.ready = view, file, None
        self.daemon, self.started = None, time.perf_counter()
        if command:
            command = [str(c) for c in command]
            self.daemon = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL)

    def __enter__(self):
        while self.daemon:
            if shown := next(self.view.rglob(self.path.name), None):
                self.path, self.ready = shown, time.perf_counter() - self.started
                break
            if self.daemon.poll() is not None:
                raise RuntimeError(f"{self.daemon.args[0]} did not mount")
            time.sleep(0.002)
        drop()
        return self

    def __exit__(self, *_):
        if self.daemon:
            quiet = {"stderr": subprocess.DEVNULL}
            if subprocess.run(["umount", self.view], **quiet).returncode:
                subprocess.run(["fusermount3", "-u", self.view], check=True)
            self.daemon.wait(timeout=30)

    def anonymous_mib(self):
        """Memory of the daemon's own."""
        status = pathlib.Path(f"/proc/{self.daemon.pid}/status").read_text()
        return int(re.search(r"RssAnon:\s+(\d+)", status)[1]) / 1024


def cached_mib(path):
    fincore = ["fincore", "--bytes", "--noheadings", "--output", "RES", path]
    return int(subprocess.run(fincore, capture_output=True, text=True).stdout or 0) / MIB


def rates(file, systems, view, runs, patterns=PATTERNS, env=None):
    """The best rates by pattern, system and "cold" or "warm": GB/s; "random 4 KiB", cold: kIOPS."""
    size, best = file.stat().st_size, {}

    def timed(name, system, heat, amount, work):
        start = time.perf_counter()
        work()
        rate = amount / (time.perf_counter() - start)
        best[name, system, heat] = max(rate, best.get((name, system, heat), 0))

    for _ in range(runs):
        for name, pattern in patterns.items():
            for system, command in systems.items():
                with Mount(command, view, file, env) as m:
                    for heat in "cold", "warm":
                        timed(name, system, heat, size / 1e9, lambda: pattern(m.path))
        for system, command in systems.items():
            with Mount(command, view, file, env) as m:
                timed("random 4 KiB", system, "cold", RANDOM_READS / 1e3, lambda: at_random(m.path))
    return best


def memory(command, view, file, archive):
    """MiB after a cold read: the daemon's own, the archive's and the view's page cache."""
    with Mount(command, view, file) as m:
        stream(m.path, 16 * MIB)
        return m.anonymous_mib(), cached_mib(archive), cached_mib(m.path)


def total_waits(file, systems, view, runs, work):
    """The waits for each layer in the run with the median total, by system."""
    layers, found = layers_of(file), {}
    for _ in range(runs if layers else 0):
        for system, command in systems.items():
            with Mount(command, view, file) as m:
                found.setdefault(system, []).append(waits(m.path, layers, work))
    return {system: sorted(runs, key=sum)[len(runs) // 2] for system, runs in found.items()}


def table(file, best, systems):
    print(f"{file.name}, {file.stat().st_size / 1e6:.0f} MB")
    columns = [(system, heat) for heat in ("cold", "warm") for system in systems]
    print(f"  {'GB/s':12}" + "".join(f"{system + ' ' + heat:>14}" for system, heat in columns))
    for name in PATTERNS:
        print(f"  {name:12}" + "".join(f"{best[name, s, h]:14.2f}" for s, h in columns))
    random = "".join(f"{best['random 4 KiB', s, 'cold']:14.1f}" for s in systems)
    print(f"  {'random 4 KiB':12}{random}   thousands a second")


def main():
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--bsz", default="target/release/bsz", type=pathlib.Path)
    p.add_argument("--ceiling", default="target/release/examples/ceiling", type=pathlib.Path)
    p.add_argument("--runs", type=int, default=3)
    p.add_argument("--work", type=float, default=20)
    p.add_argument("--disk-mbs", type=float)
    p.add_argument("files", nargs="+", type=pathlib.Path)
    a = p.parse_args()
    if not drop():
        print("not root: the page cache is not dropped, so no read is cold")
    for file in (f.resolve() for f in a.files):
        with tempfile.TemporaryDirectory(prefix="mounts.", dir=file.parent) as work:
            view, archive = pathlib.Path(work) / "view", pathlib.Path(work) / f"{file.stem}.bsz"
            view.mkdir()
            subprocess.run([a.bsz, "--quiet", "pack", file, "-o", archive], check=True)
            mount = [a.bsz.resolve(), "mount", "--foreground"]
            plain, bsz = {"plain": None}, {"bsz": [*mount, archive, view]}
            ceiling = {"ceiling": [a.ceiling.resolve(), file, view]}
            with Disk(file, a.disk_mbs):
                systems = plain | bsz | ceiling
                table(file, rates(file, systems, view, a.runs), systems)
                off = {"prefetch off": [*mount, "--prefetch", "off", archive, view]}
                found = total_waits(file, plain | off | bsz, view, a.runs, a.work / 1e3)
                for system, times in found.items():
                    print(
                        f"  layers       {len(times)} of them, {a.work:.0f} ms of work after each:"
                        f" waits {1e3 * sum(times):.0f} ms with {system}"
                    )
                own, stored, shown = memory(bsz["bsz"], view, file, archive)
                print(
                    f"  memory       daemon {own:.0f} MiB, page cache of the archive"
                    f" {stored:.0f} MiB, of the view {shown:.0f} MiB"
                )


if __name__ == "__main__":
    main()
