#!/usr/bin/env python3
"""Time bsz's commands on FILE..., and lmz's, where it is installed (pip install lmzip).

    compare.py [--bsz PATH/bsz] [--lmz PATH/lmz] [--runs N] FILE...

Best of the runs, tools in turn: pack (lmz: compress), unpack, verify, in MB/s of the original. mounts.py times reading.
Rates drift on shared machines: compare rows of one run.
"""

import argparse
import pathlib
import shutil
import subprocess
import tempfile
import time

def timed(*command):
    start = time.perf_counter()
    subprocess.run([str(c) for c in command], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start


def tools(a, file, work):
    """(pack, unpack, verify, archive) by tool."""
    yield "bsz", [a.bsz, "pack", "--force", file, "-o", work / "a.bsz"], [
        a.bsz, "unpack", "--force", work / "a.bsz", "-o", work / "back"], [a.bsz, "verify", work / "a.bsz"], work / "a.bsz"
    if a.lmz:
        yield "lmz", [a.lmz, "compress", file, work / "a.lmz"], [
            a.lmz, "decompress", work / "a.lmz", work / "back"], [a.lmz, "verify", work / "a.lmz"], work / "a.lmz"


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--bsz", default="target/release/bsz")
    p.add_argument("--lmz", default=shutil.which("lmz"))
    p.add_argument("--runs", type=int, default=3)
    p.add_argument("files", nargs="+", type=pathlib.Path)
    a = p.parse_args()
    a.bsz = pathlib.Path(a.bsz).resolve()
    for file in a.files:
        size = file.stat().st_size
        rate = lambda seconds: f"{size / 1e6 / seconds:7.0f} MB/s"
        with tempfile.TemporaryDirectory(prefix="compare.", dir=file.resolve().parent) as work:
            work = pathlib.Path(work)
            print(f"{file.name}, {size / 1e6:.1f} MB")
            best = {}
            for _ in range(a.runs):
                for tool, pack, unpack, verify, archive in tools(a, file, work):
                    times = timed(*pack), timed(*unpack), timed(*verify)
                    ratio = archive.stat().st_size / size
                    best[tool] = ratio, [min(x) for x in zip(times, best.get(tool, (0, times))[1])]
                    subprocess.run(["cmp", file, work / "back"], check=True)
                    (work / "back").unlink()
                    archive.unlink()
            for tool, (ratio, times) in best.items():
                print(f"  {tool:8} {100 * ratio:6.2f} %   pack {rate(times[0])}   unpack {rate(times[1])}   verify {rate(times[2])}")


if __name__ == "__main__":
    main()
