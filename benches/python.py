#!/usr/bin/env python3
"""Time what the Python package bszfs does beside safetensors, in one run.

    python.py [--size MB] [--runs N] [--disk-mbs N] [--json]

Makes a BF16 model of random weights (1100 MB), packs it, and prints the median of the runs (5) with
the ratio to `safetensors.torch.load_file(backend="pread")`, which also gives tensors with memory of
their own; and the same for the seconds of CPU, which other work disturbs less. Everything is warm:
in the page cache, and each way once before it is timed. The ways take turns, so that other work on
the machine meets all of them. With --disk-mbs, all of it is cold instead: the page cache is dropped
before every load, and the disk throttled (root and cgroup v1). The peak of `iter_layers` is
measured in processes of its own. Prints the load of the machine, by which to judge the figures.
"""
import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import bszfs
import bszfs.stream
import bszfs.torch
import torch
from safetensors.torch import load_file, save_file

import mounts

EMBEDDINGS = 100  # MB
LAYER = 50  # MB

PEAK = """
import json, sys, bszfs.stream

def status(field):
    with open("/proc/self/status", encoding="ascii") as f:
        return next(int(line.split()[1]) << 10 for line in f if line.startswith(field))

loader = bszfs.stream.Loader(sys.argv[1])
before = status("VmRSS")
with open("/proc/self/clear_refs", "w", encoding="ascii") as f:
    f.write("5")
for name, layer in loader.iter_layers(ahead=int(sys.argv[2]), into=sys.argv[3] or None):
    pass
print(status("VmHWM") - before)
"""


def make(directory, megabytes):
    """A model whose layers have three tensors each, and its archive."""
    torch.manual_seed(1)
    width = 1024

    def tensor(size):
        return torch.randn(int(size * 1e6) // 2 // width, width).mul_(0.02).bfloat16()

    tensors = {"model.embed_tokens.weight": tensor(EMBEDDINGS)}
    for i in range(max((megabytes - EMBEDDINGS) // LAYER, 1)):
        for part, share in (("attn", 0.2), ("mlp.up", 0.4), ("mlp.down", 0.4)):
            tensors[f"model.layers.{i}.{part}.weight"] = tensor(LAYER * share)
        tensors[f"model.layers.{i}.norm.weight"] = torch.ones(width, dtype=torch.bfloat16)
    plain, packed = directory / "plain", directory / "packed"
    plain.mkdir()
    packed.mkdir()
    save_file(tensors, str(plain / "model.safetensors"))
    bszfs.pack(plain / "model.safetensors", packed / "model.bsz")
    return plain / "model.safetensors", packed


def use(tensors):
    """Read every page, as computing would."""
    for tensor in tensors.values():
        tensor.flatten().view(torch.uint8)[::4096].sum()


def ways(plain, packed):
    """Every way to load, by name; the first is the reference."""
    archive = bszfs.Archive(packed / "model.bsz")
    memory = torch.empty(archive.size, dtype=torch.uint8).numpy()

    def layers(into):
        for _, layer in bszfs.stream.Loader(packed).iter_layers(into=into):
            use(layer)

    return {
        'safetensors, backend="pread"': lambda: load_file(plain, backend="pread"),
        "safetensors, mapped, every page used": lambda: use(load_file(plain)),
        "bszfs.torch.load_file": lambda: bszfs.torch.load_file(packed / "model.bsz"),
        "bszfs.torch.iter_tensors": lambda: [None for _ in bszfs.torch.iter_tensors(packed)],
        "iter_layers(), every page used": lambda: layers(None),
        'iter_layers(into="ring"), every page used': lambda: layers("ring"),
        "into memory that is there": lambda: archive.read_into(memory, 0),
    }


def timed(all_ways, runs, is_cold):
    seconds = {name: [] for name in all_ways}
    for run in range(runs + 1):
        for name, way in all_ways.items():
            if is_cold and not mounts.drop():
                sys.exit("python.py: only root can drop the page cache")
            begun = time.perf_counter(), time.process_time()
            result = way()
            took = time.perf_counter() - begun[0], time.process_time() - begun[1]
            del result
            if run:
                seconds[name].append(took)
    return {name: tuple(map(statistics.median, zip(*all_runs)))
            for name, all_runs in seconds.items()}


def peak(packed, ahead, into):
    command = [sys.executable, "-c", PEAK, str(packed), str(ahead), into]
    return int(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def main():
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--size", type=int, default=1100, metavar="MB")
    p.add_argument("--runs", type=int, default=5)
    p.add_argument("--disk-mbs", type=float, metavar="N", help="load from a disk of N MB/s")
    p.add_argument("--json", action="store_true", help="print the results for a program to read")
    a = p.parse_args()
    with tempfile.TemporaryDirectory(prefix="bszfs-bench.") as tmp:
        plain, packed = make(pathlib.Path(tmp), a.size)
        size, stored = plain.stat().st_size, (packed / "model.bsz").stat().st_size
        with mounts.Disk(tmp, a.disk_mbs):
            medians = timed(ways(plain, packed), a.runs, a.disk_mbs is not None)
        peaks = {(ahead, into): peak(packed, ahead, into)
                 for ahead in (1, 2) for into in ("", "ring")}
    reference = next(iter(medians.values()))
    load = os.getloadavg()
    if a.json:
        print(json.dumps({"bytes": size, "stored": stored, "disk_mbs": a.disk_mbs,
                          "seconds": medians, "load": load,
                          "peaks": [[*key, value] for key, value in peaks.items()]}))
        return
    kept = f"a disk of {a.disk_mbs:g} MB/s" if a.disk_mbs else "warm"
    print(f"{size / 1e6:.0f} MB, packed {stored / size:.3f}; {kept};"
          f" {len(os.sched_getaffinity(0))} cores, load {load[0]:.1f}; medians of {a.runs}")
    print(f"{'':44} {'seconds':>9} {'rate':>11} {'CPU':>9} {'ratio':>6} {'of CPU':>6}")
    for name, (seconds, cpu) in medians.items():
        ratios = f"{seconds / reference[0]:6.2f} {cpu / reference[1]:6.2f}"
        print(f"{name:44} {seconds:7.3f} s {size / 1e9 / seconds:6.2f} GB/s {cpu:7.3f} s {ratios}")
    for (ahead, into), found in peaks.items():
        bound = (ahead + 1) * LAYER + EMBEDDINGS + (64 << 20) / 1e6
        print(f"peak of iter_layers(ahead={ahead}{', ring' if into else ''})".ljust(44)
              + f" {found / 1e6:7.0f} MB, bound {bound:.0f} MB")


if __name__ == "__main__":
    main()
