#!/usr/bin/env python3
"""Measure mounts of a web server's files behind a slow link: `make bench-remote`. Needs root.

    remote.py [--bsz PATH/bsz] [--examples DIRECTORY] [--python PYTHON] [--work DIRECTORY]
              [--mbits N] [--rtt MS] [--size MB] [--huge GB] [--runs N] [--only PART,...]
              [--json FILE]

The server is nginx behind a link of 1000 Mbit/s with a round trip of 50 ms (see link.py); its files
are in its page cache. Every reading has a fresh mount, and so an empty page cache and an empty
memory. The systems take turns, and figures are medians of the runs; a ratio is the median of the
ratios to the reference of the same run. Requests and bytes are the server's count, from before the
mount until after its end. The parts:

    rates     a file in order, in reads of 1 MiB: what the reader gets in a second, and `stored`,
              the file's size at the server by the same time. The reference is curl, 8 at once.
    loopback  the same without the link. The reference is the HTTP client alone.
    random    the latency of 256 KiB at random places. The reference is a range request.
    warm      a second mount with the first one's disk cache. The reference is a local archive.
    loaders   safetensors and transformers load models. The reference is curl, for plain files.
    huge      an archive of a file of 140 GB: the time to the first byte, and the memory.

`plain` are files that are not packed. The models of random weights, and an archive of a sparse file
of 140 GB, which takes minutes, are made in the working directory (target/bench/remote) and kept
there. PYTHON has torch and transformers. What cannot be measured is reported as such.
"""

import argparse
import json
import os
import pathlib
import random
import shutil
import signal
import statistics
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import clients  # noqa: E402  beside this file
import link  # noqa: E402
import models  # noqa: E402
import mounts  # noqa: E402
import report  # noqa: E402

MIB = 1 << 20
READ = 256 << 10
READS = 100
FAILURES = OSError, RuntimeError, ValueError, subprocess.SubprocessError
# By part: the figures of its table, with their titles and formats.
COLUMNS = {
    "rates": {
        "reader": ("reader MB/s", ".1f"),
        "stored": ("stored MB/s", ".1f"),
        "ratio": ("of reference", ".3f"),
        "fetched": ("fetched/size", ".3f"),
        "requests": ("requests", ".0f"),
        "mib_each": ("MiB each", ".1f"),
        "ready_ms": ("ready ms", ".0f"),
        "peak_mib": ("peak MiB", ".0f"),
        "cpu_s": ("CPU s", ".1f"),
    },
    "random": {
        "median_ms": ("median ms", ".1f"),
        "p90_ms": ("90 % ms", ".1f"),
        "most_ms": ("most ms", ".1f"),
        "beyond_ms": ("beyond ref. ms", ".1f"),
        "requests": ("requests each", ".2f"),
        "kib": ("KiB each", ".0f"),
    },
    "warm": {
        "reader": ("reader MB/s", ".1f"),
        "ratio": ("of reference", ".3f"),
        "before_ready": ("req. till ready", ".0f"),
        "requests": ("requests", ".0f"),
        "fetched": ("fetched/size", ".3f"),
        "ready_ms": ("ready ms", ".0f"),
    },
    "loaders": {
        "seconds": ("seconds", ".2f"),
        "ratio": ("times as fast", ".2f"),
        "fetched": ("fetched/size", ".3f"),
        "requests": ("requests", ".0f"),
    },
    "huge": {
        "ready_ms": ("ready ms", ".0f"),
        "first_ms": ("first byte ms", ".0f"),
        "first_mb": ("MB by then", ".1f"),
        "first_requests": ("requests", ".0f"),
        "first_mib": ("peak MiB by then", ".0f"),
        "peak_mib": ("peak MiB", ".0f"),
        "packed_s": ("packed in s", ".0f"),
    },
}
COLUMNS["loopback"] = COLUMNS["rates"]


def say(text):
    print(f"remote: {text}", file=sys.stderr, flush=True)


def timed(action):
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def run(command):
    if clients.start(command, stdout=subprocess.DEVNULL).wait():
        raise RuntimeError(f"{command[0].name} failed")


class Bench:
    """The parts, and what they share."""

    def __init__(self, a):
        self.a, self.files = a, models.Models(a.bsz, a.examples, a.python, a.work)
        self.view = a.work / "view"
        if os.path.ismount(self.view):  # of a run that was killed
            link.tool("umount", "-l", self.view)
        self.view.mkdir(exist_ok=True)

    def parts(self):
        return {
            "rates": self.rates,
            "loopback": self.loopback,
            "random": self.random,
            "warm": self.warm,
            "loaders": self.loaders,
            "huge": self.huge,
        }

    def far(self):
        a = self.a
        proxy = a.examples / "delay_proxy"
        return link.far(a.work / "far", self.files.root, proxy, a.mbits, a.rtt)

    def bsz(self, site, directory, *options):
        url = f"{site.url(directory)}/"
        return clients.Mounted([self.a.bsz, "mount", "-f", *options, url, self.view], self.view)

    def rclone(self, site, directory, full=False):
        cache = self.a.work / "rclone"
        shutil.rmtree(cache, ignore_errors=True)
        command = clients.rclone(site, directory, self.view, cache if full else None)
        return clients.Mounted(command, self.view)

    def mounts(self, site, model):
        """What mounts a model: by name, a function, and the file at the server."""
        packed, plain = (self.files.path(f.parent) for f in (model.archive, model.plain))
        return {
            "bsz": (lambda: self.bsz(site, packed), model.archive),
            "bsz, plain": (lambda: self.bsz(site, plain), model.plain),
            "rclone, plain": (lambda: self.rclone(site, plain), model.plain),
            "rclone full, plain": (lambda: self.rclone(site, plain, True), model.plain),
        }

    def in_turn(self, systems, runs=None):
        """{system: the figures of each run, or why there are none}; `systems` are functions."""
        found = {name: [] for name in systems}
        for run in range(runs or self.a.runs):
            for name, measure in systems.items():
                if isinstance(found[name], list):
                    try:
                        found[name].append(measure())
                    except FAILURES as e:
                        say(f"{name}: not measured: {e}")
                        found[name] = str(e)
        return found

    def read(self, site, mount, file, stored, pause=False):
        """One file in order: rates, memory, and what the server saw; a pause tells when."""
        mark, own = site.log.mark(), {}
        with mount() as m:
            if pause:
                own["before_ready"] = site.log.since(mark).count
            seconds = timed(lambda: mounts.stream(self.view / file.name, MIB))
            own |= {"ready_ms": 1e3 * m.ready, "peak_mib": m.peak(), "cpu_s": m.cpu()}
        return own | self.rate(site, mark, seconds, file.stat().st_size, stored)

    def fetch(self, site, stored, action):
        """The same of what only fetches."""
        mark = site.log.mark()
        return self.rate(site, mark, timed(action), None, stored)

    def rate(self, site, mark, seconds, size, stored):
        requests, length = site.log.since(mark), stored.stat().st_size
        each = length / MIB / requests.count if requests.count else None
        return {
            "reader": size and size / 1e6 / seconds,
            "stored": length / 1e6 / seconds,
            "fetched": requests.bytes / length,
            "requests": requests.count,
            "mib_each": each,
        }

    def readers(self, site):
        """What reads the model in order."""
        model = self.files.model(self.a.size)
        quick = [self.a.bsz, "--quiet", "verify", "--quick"]
        quick.append(site.url(self.files.path(model.archive)))
        small = "--cache-size", "64MiB"
        where = self.files.path(model.archive.parent)
        verify = lambda: self.fetch(site, model.archive, lambda: run(quick))  # noqa: E731
        readers = {"bsz verify --quick": verify}
        systems = self.mounts(site, model)
        systems["bsz --cache-size 64MiB"] = (lambda: self.bsz(site, where, *small), model.archive)
        for name, (mount, stored) in systems.items():
            readers[name] = lambda mount=mount, stored=stored: self.read(
                site, mount, model.plain, stored
            )
        return readers

    def curl(self, site, file):
        url, size = site.url(self.files.path(file)), file.stat().st_size
        return lambda: clients.curls(url, size)

    def rates(self):
        archive = self.files.model(self.a.size).archive
        with self.far() as site:
            curl = self.curl(site, archive)
            reference = {"curl x 8": lambda: self.fetch(site, archive, curl)}
            found = self.in_turn(reference | self.readers(site))
        return compared(found, "stored")

    def loopback(self):
        archive = self.files.model(self.a.size).archive
        with link.near(self.a.work / "near", self.files.root) as site:
            curl, url = self.curl(site, archive), site.url(self.files.path(archive))
            client = [self.a.examples / "fetch_raw", url]
            library = [client[0], "--library", url]
            reference = {
                "HTTP client": lambda: self.fetch(site, archive, lambda: run(client)),
                "curl x 8": lambda: self.fetch(site, archive, curl),
                "library, no mount": lambda: self.fetch(site, archive, lambda: run(library)),
            }
            found = self.in_turn(reference | self.readers(site))
        return compared(found, "stored")

    def random(self):
        model = self.files.model(self.a.size)
        blocks = range(0, model.plain.stat().st_size - READ, READ)
        places = random.Random(1).sample(blocks, min(READS, len(blocks) // 2))
        begin = places.pop()

        def latencies(site, read):
            read(READ, begin)
            mark = site.log.mark()
            times = sorted(1e3 * timed(lambda at=at: read(READ, at)) for at in places)
            requests, n = site.log.since(mark), len(times)
            figures = {"median_ms": times[n // 2], "p90_ms": times[n * 9 // 10]}
            figures |= {"most_ms": times[-1], "requests": requests.count / n}
            return figures | {"kib": requests.bytes / 1024 / n}

        def mounted(site, mount):
            with mount(), open(self.view / model.plain.name, "rb", buffering=0) as f:
                return latencies(site, lambda length, at: os.pread(f.fileno(), length, at))

        def requested(site):
            with clients.Ranges(site, self.files.path(model.plain)) as ranges:
                return latencies(site, ranges.read)

        with self.far() as site:
            systems = {"range request": lambda: requested(site)}
            for name, (mount, _) in self.mounts(site, model).items():
                systems[name] = lambda mount=mount: mounted(site, mount)
            found = self.in_turn(systems)
        return compared(found, "median_ms", "beyond_ms", lambda own, other: own - other)

    def warm(self):
        model, cache = self.files.model(self.a.size), self.a.work / "cache"
        local, where = self.files.local(model.archive), self.files.path(model.archive.parent)
        options = "--disk-cache", cache, "--disk-cache-size", "64GiB"
        command = [self.a.bsz, "mount", "-f", local.parent, self.view]

        def measure(site, mount):
            for path in local.parent, cache:
                models.evict(path)
            return self.read(site, mount, model.plain, model.archive, pause=True)

        def cached(site, empty):
            if empty:
                shutil.rmtree(cache, ignore_errors=True)
            return measure(site, lambda: self.bsz(site, where, *options))

        try:
            with self.far() as site:
                found = self.in_turn(
                    {
                        "local archive": lambda: measure(
                            site, lambda: clients.Mounted(command, self.view)
                        ),
                        "empty disk cache": lambda: cached(site, True),
                        "warm disk cache": lambda: cached(site, False),
                    }
                )
        finally:
            shutil.rmtree(cache, ignore_errors=True)
        return compared(found, "reader")

    def loaders(self):
        """Each framework in a process of its own, which has loaded the plain model before."""
        sizes = {"safetensors, torch": self.files.model(self.a.size)}
        sizes["transformers"] = self.files.llama(self.a.size)
        found = {}
        with self.far() as site:
            for framework, model in sizes.items():
                with clients.Loader(self.a.python, framework) as loader:
                    try:
                        expected = loader.load(model.plain.parent)["digest"]
                    except FAILURES as e:
                        say(f"{framework}: not measured: {e}")
                        found[framework] = str(e)
                        continue
                    found |= self.loads(site, framework, model, loader, expected)
        return found

    def loads(self, site, framework, model, loader, expected):
        def loaded(mount, stored):
            mark = site.log.mark()
            with mount():
                reply = loader.load(self.view)
            requests = site.log.since(mark)
            if reply["digest"] != expected:
                raise RuntimeError("another result than from the plain model")
            size = stored.stat().st_size
            figures = {"fetched": requests.bytes / size, "requests": requests.count}
            return {"seconds": reply["seconds"]} | figures

        curl = self.curl(site, model.plain)
        systems = {"curl x 8, plain": lambda: {"seconds": timed(curl)}}
        for name, (mount, stored) in self.mounts(site, model).items():
            systems[name] = lambda mount=mount, stored=stored: loaded(mount, stored)
        systems = {f"{framework}: {name}": measure for name, measure in systems.items()}
        return compared(self.in_turn(systems), "seconds", figure=lambda own, other: other / own)

    def huge(self):
        archive, view = self.files.huge(self.a.huge), self.view / "huge.safetensors"
        where, packed = self.files.path(archive.parent), self.files.seconds(archive)

        def requested(site):
            mark, url = site.log.mark(), site.url(self.files.path(archive))
            first = timed(lambda: clients.curls(url, 1, 1))
            return {"first_ms": 1e3 * first, "first_requests": site.log.since(mark).count}

        def mounted(site, *options):
            mark = site.log.mark()
            with self.bsz(site, where, *options) as m:
                with open(view, "rb", buffering=0) as f:
                    size = os.fstat(f.fileno()).st_size
                    os.pread(f.fileno(), 1, size // 2)
                    figures = {"ready_ms": 1e3 * m.ready}
                    figures["first_ms"] = 1e3 * (time.perf_counter() - m.started)
                    requests = site.log.since(mark)
                    figures["first_mb"] = requests.bytes / 1e6
                    figures["first_requests"] = requests.count
                    figures["first_mib"] = m.peak()
                    places = random.Random(1).choices(range(0, size - READ, 4096), k=8 * 64)
                    read = [lambda at=at: os.pread(f.fileno(), READ, at) for at in places]
                    mounts.spread(read, 64)
                    for at in range(0, min(size, 1 << 30), MIB):
                        os.pread(f.fileno(), MIB, at)
                figures["peak_mib"] = m.peak()
            return figures | {"packed_s": packed}

        with self.far() as site:
            return compared(
                self.in_turn(
                    {
                        "curl, one byte": lambda: requested(site),
                        "bsz": lambda: mounted(site),
                        "--cache-size 64MiB": lambda: mounted(site, "--cache-size", "64MiB"),
                    }
                )
            )

    def aims(self):
        """(part, system, figure, whether it may not be less or not be more, than what)."""
        return [
            ("rates", "bsz", "ratio", ">=", 0.95),
            ("rates", "bsz", "fetched", "<=", 1.02),
            ("rates", "bsz", "mib_each", ">=", 4),
            ("loopback", "library, no mount", "ratio", ">=", 0.7),
            ("random", "bsz", "beyond_ms", "<=", 10),
            ("warm", "warm disk cache", "before_ready", "<=", 3),
            ("huge", "bsz", "first_ms", "<=", 3 * self.a.rtt + 200),
            ("huge", "--cache-size 64MiB", "peak_mib", "<=", 128),
        ]


def compared(found, base=None, name="ratio", figure=lambda own, other: own / other):
    """{system: {figure: median, "runs": all of them}}, and each compared with the first one."""
    systems, lists = {}, [runs for runs in found.values() if isinstance(runs, list)]
    reference = lists[0] if lists else None
    for system, runs in found.items():
        if not isinstance(runs, list):
            systems[system] = {"error": runs}
            continue
        if base:
            for own, other in zip(runs, reference):
                own[name] = figure(own[base], other[base])
        keys = [key for key in runs[0] if all(run[key] is not None for run in runs)]
        medians = {key: statistics.median(run[key] for run in runs) for key in keys}
        systems[system] = medians | {"runs": runs}
    return systems


def table(part, systems):
    columns = COLUMNS[part]
    width = max(len(name) for name in [part, *systems])
    titles = {key: f"  {title:>8}" for key, (title, _) in columns.items()}
    print(f"\n{part:{width}}" + "".join(titles.values()))
    for system, figures in systems.items():
        if "error" in figures:
            print(f"{system:{width}}  not measured: {figures['error']}")
            continue
        cells = (
            f"{figures[key]:{len(titles[key])}{form}}" if key in figures else " " * len(titles[key])
            for key, (_, form) in columns.items()
        )
        print(f"{system:{width}}{''.join(cells)}".rstrip())


def judge(aims, results):
    """The aims that were measured, and what was found."""
    for part, system, figure, how, bound in aims:
        value = results.get(part, {}).get(system, {}).get(figure)
        if value is not None:
            met = value >= bound if how == ">=" else value <= bound
            yield {"part": part, "system": system, "figure": figure, "value": value, "met": met,
                   "aim": f"{how} {bound:g}"}


def stop(number, _):
    for n in signal.SIGINT, signal.SIGTERM, signal.SIGHUP:
        signal.signal(n, signal.SIG_IGN)
    raise SystemExit(128 + number)


def arguments():
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    root = pathlib.Path(__file__).resolve().parent.parent
    frameworks = root / ".venv-frameworks/bin/python"
    p.add_argument("--bsz", default=root / "target/release/bsz", type=pathlib.Path)
    p.add_argument("--examples", default=root / "target/release/examples", type=pathlib.Path)
    p.add_argument("--python", default=frameworks if frameworks.exists() else sys.executable)
    p.add_argument("--work", default=root / "target/bench/remote", type=pathlib.Path)
    p.add_argument("--mbits", type=int, default=1000)
    p.add_argument("--rtt", type=float, default=50)
    p.add_argument("--size", type=int, default=1100)
    p.add_argument("--huge", type=float, default=140)
    p.add_argument("--runs", type=int, default=3)
    p.add_argument("--only", default="", help="some of the parts, with commas")
    p.add_argument("--json", type=pathlib.Path)
    a = p.parse_args()
    a.bsz, a.examples, a.work = a.bsz.resolve(), a.examples.resolve(), a.work.resolve()
    return a


def main():
    a = arguments()
    if os.geteuid():
        sys.exit("remote: needs root, for the network namespace and its link")
    for number in signal.SIGINT, signal.SIGTERM, signal.SIGHUP:
        signal.signal(number, stop)
    a.work.mkdir(parents=True, exist_ok=True)
    bench, results = Bench(a), {}
    parts = bench.parts()
    only = [part for part in a.only.split(",") if part] or list(parts)
    if unknown := set(only) - set(parts):
        sys.exit(f"remote: no such part: {', '.join(unknown)}")
    machine = report.machine(a)
    options = {key: str(value) for key, value in vars(a).items()}
    print(f"{a.mbits} Mbit/s, round trip {a.rtt:g} ms; a model of {a.size} MB; medians of {a.runs};"
          f" {machine['cores']} cores, load {machine['load']:.1f}; bsz {machine['version']}")
    for part in only:
        say(part)
        try:
            results[part] = parts[part]()
        except FAILURES as e:
            results[part] = {part: {"error": str(e)}}
        finally:
            shutil.rmtree(a.work / "rclone", ignore_errors=True)
        table(part, results[part])
        if a.json:
            state = {"machine": machine, "options": options, "results": results}
            state["aims"] = list(judge(bench.aims(), results))
            a.json.write_text(json.dumps(state, indent=1) + "\n")
    for aim in judge(bench.aims(), results):
        print(f"{'met' if aim['met'] else 'MISSED':8}{aim['part']}, {aim['system']}:"
              f" {aim['figure']} {aim['value']:.3g}, aim {aim['aim']}")


if __name__ == "__main__":
    main()
