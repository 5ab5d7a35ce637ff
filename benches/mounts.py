#!/usr/bin/env python3
"""Read FILE in the ways of model loaders: plain, through bsz, through the ceiling of FUSE; cold, warm, and layer by layer.

    mounts.py [--bsz PATH/bsz] [--ceiling PATH/ceiling] [--runs N] [--work MS] FILE.safetensors...

GB/s of the original, best of the runs, systems in turn. Cold: a fresh mount and, where permitted (root), a dropped page
cache; warm: the same again. `layers` is the time that a reader waits who takes the layers in order and works MS
milliseconds after each. `memory` is what the daemon has of its own after a cold read of 16 MiB blocks, and what the
archive and the view take of the page cache. Rates drift on shared machines: compare rows of one run.
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


def spread(jobs, threads):
    """Do all jobs on so many threads; raise the first error."""
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
    """Positional reads of `size` by several threads that share the file."""
    fd = os.open(path, os.O_RDONLY)
    spread([lambda at=at: os.pread(fd, size, at) for at in range(0, os.fstat(fd).st_size, size)], threads)
    os.close(fd)


def mapped(path, threads):
    """Faults through a private mapping: in order, or blocks of 2 MiB at random by several threads."""
    with open(path, "rb") as f, mmap.mmap(f.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ) as m:
        starts = list(range(0, len(m), 2 * MIB))
        if threads > 1:
            random.Random(1).shuffle(starts)
        # The first byte of each page, and nothing more, so that the faults are what is timed.
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
    for _ in range(5000):
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
    """The bytes of each layer, in the order of their numbers."""
    with open(path, "rb") as f:
        (n,) = struct.unpack("<Q", f.read(8))
        header = json.loads(f.read(n))
    layers = {}
    for name, tensor in header.items():
        if found := re.search(r"(?:^|\.)(?:layers?|blocks?|h)\.(\d+)\.", name):
            begin, end = (8 + n + x for x in tensor["data_offsets"])
            layers.setdefault((name[: found.start(1)], int(found[1])), []).append((begin, end))
    return [sorted(layers[k]) for k in sorted(layers)]


def waited(path, layers, work):
    """Seconds that reading takes of a reader who takes layers one by one and works in between."""
    total = 0
    with open(path, "rb", buffering=0) as f:
        for layer in layers:
            start = time.perf_counter()
            for at, end in layer:
                while at < end:
                    at += len(os.pread(f.fileno(), min(MIB, end - at), at))
            total += time.perf_counter() - start
            time.sleep(work)
    return total


def drop():
    os.sync()
    try:
        pathlib.Path("/proc/sys/vm/drop_caches").write_text("3")
    except OSError:
        print("not root: the page cache is not dropped, and nothing here is cold")


class Mount:
    """A daemon and the file that it shows; nothing is mounted for `None`."""

    def __init__(self, command, view, file):
        self.view, self.path = view, view / file.name if command else file
        self.daemon = command and subprocess.Popen([str(c) for c in command])

    def __enter__(self):
        while self.daemon and not self.path.exists():
            if self.daemon.poll() is not None:
                raise SystemExit(f"{self.daemon.args[0]} did not mount")
            time.sleep(0.005)
        drop()
        return self

    def __exit__(self, *_):
        if self.daemon:
            subprocess.run(["umount", self.view], check=True)
            self.daemon.wait(timeout=30)

    def anonymous_mib(self):
        status = pathlib.Path(f"/proc/{self.daemon.pid}/status").read_text()
        return int(re.search(r"RssAnon:\s+(\d+)", status)[1]) / 1024


def cached_mib(path):
    out = subprocess.run(["fincore", "--bytes", "--noheadings", "--output", "RES", path], capture_output=True, text=True)
    return int(out.stdout or 0) / MIB


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--bsz", default="target/release/bsz", type=pathlib.Path)
    p.add_argument("--ceiling", default="target/release/examples/ceiling", type=pathlib.Path)
    p.add_argument("--runs", type=int, default=3)
    p.add_argument("--work", type=float, default=20)
    p.add_argument("files", nargs="+", type=pathlib.Path)
    a = p.parse_args()
    for file in (f.resolve() for f in a.files):
        with tempfile.TemporaryDirectory(prefix="mounts.", dir=file.parent) as work:
            view, archive = pathlib.Path(work) / "view", pathlib.Path(work) / f"{file.stem}.bsz"
            view.mkdir()
            subprocess.run([a.bsz, "--quiet", "pack", file, "-o", archive], check=True)
            mount = [a.bsz.resolve(), "mount", "--foreground"]
            systems = {"plain": None, "bsz": [*mount, archive, view], "ceiling": [a.ceiling.resolve(), file, view]}
            size, best = file.stat().st_size, {}
            for _ in range(a.runs):
                for name, pattern in PATTERNS.items():
                    for system, command in systems.items():
                        with Mount(command, view, file) as m:
                            for heat in "cold", "warm":
                                start = time.perf_counter()
                                pattern(m.path)
                                rate = size / 1e9 / (time.perf_counter() - start)
                                best[name, system, heat] = max(rate, best.get((name, system, heat), 0))
                for system, command in systems.items():
                    with Mount(command, view, file) as m:
                        start = time.perf_counter()
                        at_random(m.path)
                        rate = 5 / (time.perf_counter() - start)
                        best["random", system] = max(rate, best.get(("random", system), 0))
            print(f"{file.name}, {size / 1e6:.0f} MB")
            print(f"  {'GB/s':12}" + "".join(f"{s + ' ' + h:>14}" for h in ("cold", "warm") for s in systems))
            for name in PATTERNS:
                print(f"  {name:12}" + "".join(f"{best[name, s, h]:14.2f}" for h in ("cold", "warm") for s in systems))
            print(f"  {'random 4 KiB':12}" + "".join(f"{best['random', s]:14.1f}" for s in systems) + "   thousands a second")
            if layers := layers_of(file):
                times = {}
                for _ in range(a.runs):
                    for how in "off", "auto":
                        with Mount([*mount, "--prefetch", how, archive, view], view, file) as m:
                            t = waited(m.path, layers, a.work / 1000)
                            times[how] = min(t, times.get(how, t))
                print(f"  layers       {len(layers)} of them, {a.work:.0f} ms of work after each: waits {1000 * times['off']:.0f} ms"
                      f" with --prefetch off, {1000 * times['auto']:.0f} ms with auto")
            with Mount(systems["bsz"], view, file) as m:
                stream(m.path, 16 * MIB)
                print(f"  memory       daemon {m.anonymous_mib():.0f} MiB, page cache of the archive {cached_mib(archive):.0f} MiB,"
                      f" of the view {cached_mib(m.path):.0f} MiB")


if __name__ == "__main__":
    main()
