#!/usr/bin/env python3
"""Time whole commands on FILE...: bsz, and every other tool that is given or installed.

    compare.py [--bsz PATH/bsz] [--lmz PATH/lmz] [--bigsmall PATH/bigsmall] [--zstd PATH/zstd]
               [--runs N] FILE...

Prints the size of the archive and the best rates of the runs, taking the tools in turn: pack,
unpack and verify, in MB/s of the original. Each restored file is compared with the original:
"tensors" marks a tool that restores the tensors, but not the file. mounts.py times reads.
Rates drift on shared machines: compare rows of one run.
"""

import argparse
import filecmp
import pathlib
import shutil
import subprocess
import tempfile
import time


def timed(command):
    """Seconds that a command takes, which must succeed."""
    start = time.perf_counter()
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    if done.returncode:
        error = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise RuntimeError(f"{command[0]} {command[1]}: {error}")
    return time.perf_counter() - start


FILE, ARCHIVE, BACK = object(), object(), object()
# By tool: the suffix of its archives, and the arguments of pack, unpack and verify.
ARGUMENTS = {
    "bsz": (
        ".bsz",
        (["pack", FILE, "-o", ARCHIVE], ["unpack", ARCHIVE, "-o", BACK], ["verify", ARCHIVE]),
    ),
    "lmz": (
        ".lmz",
        (["compress", FILE, ARCHIVE], ["decompress", ARCHIVE, BACK], ["verify", ARCHIVE]),
    ),
    "BigSmall": (
        ".bs",
        (
            ["compress", FILE, "-o", ARCHIVE],
            ["decompress", ARCHIVE, "-o", BACK],
            ["verify", ARCHIVE],
        ),
    ),
    "zstd": (
        ".zst",
        (
            ["-q", "-3", "-T0", FILE, "-o", ARCHIVE],
            ["-q", "-d", ARCHIVE, "-o", BACK],
            ["-q", "-t", ARCHIVE],
        ),
    ),
}


def commands(tool, program, file, work):
    """The archive, the restored file, and the commands (pack, unpack, verify) of one tool."""
    suffix, templates = ARGUMENTS[tool]
    archive, back = work / f"a{suffix}", work / "back.safetensors"
    paths = {FILE: file, ARCHIVE: archive, BACK: back}
    return (
        archive,
        back,
        tuple([program, *(paths.get(part, part) for part in parts)] for parts in templates),
    )


def compare(file, tools, runs, verify=True):
    """{tool: {bytes, the best seconds of pack, unpack, verify; identical}}, or an error."""
    best = {}
    for _ in range(runs):
        for tool, program in tools.items():
            with tempfile.TemporaryDirectory(prefix="compare.", dir=file.parent) as work:
                try:
                    archive, back, three = commands(tool, program, file, pathlib.Path(work))
                    times = [timed(command) for command in three[: 3 if verify else 2]]
                except RuntimeError as e:
                    best[tool] = {"error": str(e)}
                    continue
                if back.is_dir():
                    back = next(path for path in back.rglob("*") if path.is_file())
                old = best.get(tool, {"seconds": times})["seconds"]
                best[tool] = {
                    "bytes": archive.stat().st_size,
                    "seconds": [min(x) for x in zip(times, old)],
                    "identical": filecmp.cmp(file, back, shallow=False),
                }
    return best


def main():
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--bsz", default="target/release/bsz")
    p.add_argument("--lmz", default=shutil.which("lmz"))
    p.add_argument("--bigsmall", default=shutil.which("bigsmall"))
    p.add_argument("--zstd", default=shutil.which("zstd"))
    p.add_argument("--runs", type=int, default=3)
    p.add_argument("files", nargs="+", type=pathlib.Path)
    a = p.parse_args()
    tools = {
        "bsz": pathlib.Path(a.bsz).resolve(),
        "lmz": a.lmz,
        "BigSmall": a.bigsmall,
        "zstd": a.zstd,
    }
    for file in (f.resolve() for f in a.files):
        size = file.stat().st_size
        print(f"{file.name}, {size / 1e6:.1f} MB")
        for tool, r in compare(file, {t: p for t, p in tools.items() if p}, a.runs).items():
            if "error" in r:
                print(f"  {tool:8} {r['error']}")
                continue
            rates = (
                f"{name} {size / 1e6 / s:7.0f} MB/s"
                for name, s in zip(("pack", "unpack", "verify"), r["seconds"])
            )
            print(
                f"  {tool:8} {100 * r['bytes'] / size:6.2f} %   {'   '.join(rates)}"
                f"   {'identical' if r['identical'] else 'tensors'}"
            )


if __name__ == "__main__":
    main()
