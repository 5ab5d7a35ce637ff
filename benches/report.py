#!/usr/bin/env python3
"""Measure what README.md and docs/BENCHMARKS.md show, and write it: `make bench-report`.

    report.py [--bsz PATH/bsz] [--ceiling PATH/ceiling] [--work DIRECTORY] [--runs N] [--fresh]
              [--only STEP] [--tiny] [--peers DIRECTORY] [--no-peers] [--zipnn]
    report.py --render     write pages and charts again from docs/benchmarks.json
    report.py --check      fail if these are not what docs/benchmarks.json says

The figures go to docs/benchmarks.json; tables and charts are made from that file alone. An
interrupted run continues where it stopped, unless the program, the instruments or the options
have changed. --only measures the steps whose names begin with STEP and prints them; --tiny tries
all instruments on small files. Neither changes a page. Needs NumPy and safetensors
(`tests/prepare python`), root for cold reads and throttled disks, and about 5 GB in DIRECTORY
(target/bench), where samples and peers are kept. The peers are pinned versions from PyPI; --zipnn
also installs ZipNN, which needs torch. What cannot be measured is reported as such.
"""

import argparse
import contextlib
import hashlib
import json
import os
import pathlib
import platform
import shutil
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import compare  # noqa: E402  beside this file
import mounts  # noqa: E402
import render  # noqa: E402
import samples  # noqa: E402

PEERS = {
    "lmz": ["lmzip==1.3.0", "zstandard"],
    "BigSmall": ["bigsmall==4.0.0", "safetensors"],
    "ZipNN": ["zipnn==0.5.4", "numpy"],
}
SIZES = [
    "minilm-f32",
    "minilm-bf16",
    "minilm-f8",
    "whisper-f16",
    "whisper-f32",
    "gpt2-f32",
    "llama-bf16",
]
DECODE = ["llama-bf16", "whisper-f16", "minilm-f32"]
LAYERS = ["layers-4", "layers-8", "layers-16", "llama-bf16"]
DISKS = [100, 200, 400, 800, None]
MAIN = "llama-bf16"
WORK = 0.02  # seconds between two layers
LAYER_DISK = 400
# BigSmall takes minutes for larger files.
SLOW = {"BigSmall": 250e6}

# What a first user types.
SESSION = [
    "bsz pack llama -o packed",
    "du -h --apparent-size llama/model.safetensors packed/model.bsz",
    "mkdir view && bsz mount packed view",
    "ls view",
    'python -c "import ml_dtypes\nfrom safetensors.numpy import load_file\n'
    "print(len(load_file('view/model.safetensors')), 'tensors')\"",
    "cmp llama/model.safetensors view/model.safetensors && echo identical",
    "bsz umount view",
]
LOAD = """
import sys, time
import ml_dtypes
from safetensors.numpy import load_file
start = time.perf_counter()
tensors = load_file(sys.argv[1])
print(time.perf_counter() - start)
"""
ZIPNN = """
import json, struct, sys
from zipnn import ZipNN
raw = open(sys.argv[1], "rb").read()
(n,) = struct.unpack_from("<Q", raw)
sizes = {}
for name, t in json.loads(raw[8 : 8 + n]).items():
    if name != "__metadata__":
        begin, end = t["data_offsets"]
        sizes[t["dtype"]] = sizes.get(t["dtype"], 0) + end - begin
dtype = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}[max(sizes, key=sizes.get)]
coder = lambda: ZipNN(method="huffman", input_format="byte", bytearray_dtype=dtype, threads=2)
packed = coder().compress(bytearray(raw[8 + n :]))
print(json.dumps([len(packed) + 8 + n, bytes(coder().decompress(packed)) == raw[8 + n :]]))
"""


def say(text):
    print(f"report: {text}", file=sys.stderr, flush=True)


def out(*command):
    """What a command prints; nothing where it fails."""
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    return "" if done.returncode else done.stdout.strip()


def install_peers(directory, names):
    """{peer: its program, or its Python, installed into environments of their own}."""
    found = {}
    for name in names:
        home = directory / name.lower()
        program = home / "bin" / ("python" if name == "ZipNN" else name.lower())
        if not (home / "installed").exists():
            say(f"installing {' '.join(PEERS[name])}")
            pip = [
                home / "bin/pip",
                "install",
                "--quiet",
                "--disable-pip-version-check",
                *PEERS[name],
            ]
            if (
                subprocess.run([sys.executable, "-m", "venv", home]).returncode
                or subprocess.run(pip).returncode
            ):
                say(f"{name} cannot be installed: not measured")
                continue
            (home / "installed").touch()
        found[name] = program
    return found


def cpu():
    info = pathlib.Path("/proc/cpuinfo").read_text()
    fields = dict(line.split(":", 1) for line in info.splitlines() if ":" in line)
    fields = {key.strip(): value.strip() for key, value in fields.items()}
    flags = fields.get("flags", "").split()
    simd = "AVX-512 VBMI2" if "avx512_vbmi2" in flags else "AVX2" if "avx2" in flags else "no AVX2"
    model = fields.get("model name", platform.machine())
    if "cpu family" in fields:
        model += f" (family {fields['cpu family']}, model {fields['model']})"
    return model, simd


def machine(a):
    model, simd = cpu()
    commit = out("git", "-C", render.ROOT, "rev-parse", "--short=10", "HEAD")
    changed = out(
        "git", "-C", render.ROOT, "status", "--porcelain", "src", "Cargo.lock", "Cargo.toml"
    )
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    safetensors = out(sys.executable, "-c", "import safetensors; print(safetensors.__version__)")
    return {
        "cpu": model,
        "simd": simd,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": pages / 2**30,
        "kernel": platform.release().split("-")[0],
        "load": os.getloadavg()[0],
        "file_system": out("findmnt", "--noheadings", "--output", "FSTYPE", "--target", a.work),
        "version": out(a.bsz, "--version").removeprefix("bsz "),
        "commit": commit + ("+" if changed else ""),
        "date": time.strftime("%Y-%m-%d"),
        "python": platform.python_version(),
        "safetensors": safetensors,
    }


class Run:
    """The steps, and what they share."""

    def __init__(self, a, peers):
        self.a, self.peers, self.files = a, peers, a.work / "files"
        self.tools = {"bsz": a.bsz} | {t: p for t, p in peers.items() if t != "ZipNN"}
        if zstd := shutil.which("zstd"):
            self.tools["zstd"] = zstd
        if a.tiny:
            self.sizes, self.decode, self.main = (
                ["tiny-bf16", "tiny-layers"],
                ["tiny-bf16"],
                "tiny-bf16",
            )
            self.layer_files, self.disks = ["tiny-layers"], [200, 400, None]
        else:
            self.sizes, self.decode, self.main = SIZES, DECODE, MAIN
            self.layer_files, self.disks = LAYERS, DISKS

    def steps(self):
        """{name: what measures it}, the quick ones first."""
        steps = {f"sizes/{name}": lambda name=name: self.size(name) for name in self.sizes}
        steps["session"] = self.session
        steps |= {f"decode/{name}": lambda name=name: self.decoding(name) for name in self.decode}
        steps["commands"] = self.commands
        steps["memory"] = self.memory
        steps["reads"] = self.reads
        steps |= {f"loads/{mbs or 'disk'}": lambda mbs=mbs: self.load(mbs) for mbs in self.disks}
        steps |= {
            f"layers/{name}": lambda name=name: self.layers(name) for name in self.layer_files
        }
        return steps

    def about(self, name):
        file = samples.sample(self.files, name)
        return file, {"title": samples.SAMPLES[name][0], "bytes": file.stat().st_size}

    def size(self, name):
        file, about = self.about(name)
        tools = {t: p for t, p in self.tools.items() if about["bytes"] < SLOW.get(t, float("inf"))}
        found = compare.compare(file, tools, 1, verify=False)
        if "ZipNN" in self.peers:
            done = subprocess.run(
                [self.peers["ZipNN"], "-c", ZIPNN, file], capture_output=True, text=True
            )
            if done.returncode:
                found["ZipNN"] = {"error": (done.stderr.strip().splitlines() or ["failed"])[-1]}
            else:
                size, same = json.loads(done.stdout.splitlines()[-1])
                found["ZipNN"] = {"bytes": size, "identical": same}
        for t in found.values():
            t.pop("seconds", None)
        return about | {"tools": found}

    def commands(self):
        file, about = self.about(self.main)
        tools = {t: p for t, p in self.tools.items() if t not in SLOW}
        with tempfile.TemporaryDirectory(dir=self.files) as work:
            command = [self.a.bsz, "--quiet", "pack", file, "-o", pathlib.Path(work) / "a.bsz"]
            pid = os.posix_spawn(command[0], [str(c) for c in command], os.environ)
            _, status, usage = os.wait4(pid, 0)
            if status:
                raise RuntimeError("bsz pack failed")
        return about | {
            "tools": compare.compare(file, tools, self.a.runs),
            "pack_mib": usage.ru_maxrss / 1024,
        }

    def decoding(self, name):
        file, about = self.about(name)
        done = subprocess.run(
            [self.a.bsz, "--quiet", "bench", "--json", file], check=True, capture_output=True
        )
        figures = json.loads(done.stdout)
        return about | {key: figures[key] for key in ("decoders", "memcpy", "verify_gbs", "random")}

    @contextlib.contextmanager
    def packed(self, file):
        """A folder to mount on, and an archive of `file`."""
        with tempfile.TemporaryDirectory(prefix="mount.", dir=self.files) as work:
            work = pathlib.Path(work)
            archive, view = work / f"{file.stem}.bsz", work / "view"
            view.mkdir()
            subprocess.run([self.a.bsz, "--quiet", "pack", file, "-o", archive], check=True)
            yield archive, view

    def mount(self, archive, view, *options):
        return [self.a.bsz, "mount", "--foreground", *options, archive, view]

    def cold(self):
        if not mounts.drop():
            raise RuntimeError("only root can drop the page cache")

    def reads(self):
        self.cold()
        file, about = self.about(self.main)
        with self.packed(file) as (archive, view):
            systems, env = (
                {"plain": None, "bsz": self.mount(archive, view)},
                os.environ | {"HOME": str(archive.parent)},
            )
            if lmz := self.peers.get("lmz"):
                store = archive.parent / "lmz"
                store.mkdir()
                os.link(file, store / file.name)
                subprocess.run([lmz, "add", store], env=env, check=True, stdout=subprocess.DEVNULL)
                systems["lmz"] = [lmz, "mount", "--quiet", view]
            if self.a.ceiling.exists():
                systems["ceiling"] = [self.a.ceiling, file, view]
            best = mounts.rates(file, systems, view, self.a.runs, env=env)
        return about | {"rates": [[*key, value] for key, value in best.items()]}

    def load(self, mbs):
        self.cold()
        file, about = self.about(self.main)
        best = {}
        with self.packed(file) as (archive, view), mounts.Disk(file, mbs):
            for _ in range(min(self.a.runs, 2) if mbs else self.a.runs):
                for system, command in {"plain": None, "bsz": self.mount(archive, view)}.items():
                    with mounts.Mount(command, view, file) as m:
                        for heat in "cold", "warm":
                            loader = [sys.executable, "-c", LOAD, m.path]
                            took = float(
                                subprocess.run(
                                    loader, check=True, capture_output=True, text=True
                                ).stdout
                            )
                            times = best.setdefault(system, {})
                            times[heat] = min(took, times.get(heat, took))
        return about | {"mbs": mbs} | best

    def layers(self, name):
        self.cold()
        file, about = self.about(name)
        with self.packed(file) as (archive, view), mounts.Disk(file, LAYER_DISK):
            systems = {
                "plain": None,
                "prefetch off": self.mount(archive, view, "--prefetch", "off"),
                "auto": self.mount(archive, view),
            }
            found = mounts.total_waits(file, systems, view, self.a.runs, WORK)
        if name == self.main:
            count = len(found["auto"])
            about["title"] = f"{count} layers of {self.layer_megabytes(file):.0f} MB, Llama's"
        return about | {"mbs": LAYER_DISK, "work": WORK, "waits": found}

    def layer_megabytes(self, file):
        first = mounts.layers_of(file)[0]
        return sum(end - begin for begin, end in first) / 1e6

    def memory(self):
        self.cold()
        file, about = self.about(self.main)
        with self.packed(file) as (archive, view):
            command = self.mount(archive, view)
            daemon, stored, shown = mounts.memory(command, view, file, archive)
            with mounts.Mount(command, view, file) as m:
                ready = m.ready
        return about | {"daemon": daemon, "archive": stored, "view": shown, "ready": ready}

    def session(self):
        """What the commands of SESSION print."""
        file, about = self.about(self.main)
        steps = []
        with tempfile.TemporaryDirectory(prefix="session.", dir=self.files) as work:
            work = pathlib.Path(work)
            (work / "bin").mkdir()
            (work / "bin/bsz").symlink_to(self.a.bsz)
            (work / "llama").mkdir()
            os.link(file, work / "llama/model.safetensors")
            (work / "llama/config.json").write_text('{"model_type": "llama"}\n')
            path = f"{work}/bin:{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
            try:
                for command in SESSION:
                    done = subprocess.run(
                        command,
                        shell=True,
                        cwd=work,
                        env=os.environ | {"PATH": path},
                        text=True,
                        check=True,
                        stdout=subprocess.PIPE,
                        stderr=subprocess.STDOUT,
                    )
                    steps.append({"command": command, "output": done.stdout.rstrip().splitlines()})
            finally:
                subprocess.run(["umount", "--quiet", work / "view"], stderr=subprocess.DEVNULL)
        return about | {"steps": steps}


def measure(run, state, path, only):
    """Measure what the state lacks, and keep it after every step."""
    steps = {name: step for name, step in run.steps().items() if name.startswith(only)}
    begun = time.monotonic()
    for i, (name, step) in enumerate(steps.items(), 1):
        if "error" in state["results"].get(name, {"error": ""}):
            say(f"{i}/{len(steps)}  {time.monotonic() - begun:4.0f} s  {name}")
            try:
                state["results"][name] = step()
            except (
                OSError,
                RuntimeError,
                ValueError,
                subprocess.CalledProcessError,
                samples.Unavailable,
            ) as e:
                say(f"{name}: not measured: {e}")
                state["results"][name] = {"error": str(e)}
            samples.write_whole(
                path, lambda partial: partial.write_text(json.dumps(state, indent=1) + "\n")
            )
    state["results"] = {name: state["results"][name] for name in steps}  # in the order of the steps
    return state


def identity(a, names):
    """What must be equal for a run to be continued: program, instruments and options."""
    instruments = (module.__file__ for module in (compare, mounts, samples))
    parts = [a.bsz.read_bytes(), *(pathlib.Path(file).read_bytes() for file in instruments)]
    digest = hashlib.sha256(b"".join(parts)).hexdigest()
    return {"sha256": digest, "runs": a.runs, "tiny": a.tiny, "peers": sorted(names)}


def main():
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--bsz", default=render.ROOT / "target/release/bsz", type=pathlib.Path)
    p.add_argument(
        "--ceiling", default=render.ROOT / "target/release/examples/ceiling", type=pathlib.Path
    )
    p.add_argument("--work", default=render.ROOT / "target/bench", type=pathlib.Path)
    p.add_argument("--peers", type=pathlib.Path)
    p.add_argument("--runs", type=int, default=3)
    p.add_argument("--only", default="")
    for flag in "--fresh", "--tiny", "--no-peers", "--zipnn", "--render", "--check":
        p.add_argument(flag, action="store_true")
    a = p.parse_args()
    if a.check:
        if found := render.stale(render.load()):
            names = ", ".join(str(path.relative_to(render.ROOT)) for path in found)
            sys.exit(f"stale, run `benches/report.py --render`: {names}")
        return
    if a.render:
        return render.write(render.load())

    a.bsz, a.ceiling, a.work = a.bsz.resolve(), a.ceiling.resolve(), a.work.resolve()
    a.work.mkdir(parents=True, exist_ok=True)
    names = [] if a.no_peers else ["lmz", "BigSmall"] + ["ZipNN"] * a.zipnn
    path, mark = a.work / ("tiny.json" if a.tiny else "run.json"), identity(a, names)
    state = json.loads(path.read_text()) if path.exists() and not a.fresh and not a.only else {}
    if state.get("identity") != mark:
        state = {"identity": mark, "runs": a.runs, "machine": machine(a), "results": {}}
        if state["machine"]["load"] > 0.5:
            say(f"the machine is busy (load average {state['machine']['load']:.2f}): low rates")
    else:
        say(f"continuing the run of {state['machine']['date']}")
    peers = install_peers(a.peers or a.work / "peers", names)
    zstd = out("zstd", "--version").partition(" v")[2].partition(",")[0]
    state["peers"] = {
        name: PEERS[name][0].partition("==")[2] if name in peers else None
        for name in ("lmz", "BigSmall", "ZipNN")
    } | {"zstd": zstd or None}
    state = measure(Run(a, peers), state, a.work / "only.json" if a.only else path, a.only)
    if a.only or a.tiny:
        f = render.Figures(state)
        print("\n\n".join(text for make in render.TABLES.values() if (text := make(f))))
        return
    del state["identity"]
    render.FIGURES.write_text(json.dumps(state, indent=1) + "\n")
    render.write(state)
    say(f"wrote {render.FIGURES.relative_to(render.ROOT)}, the pages and the charts")


if __name__ == "__main__":
    main()
