"""Follow pages of the package command by command, in a container without FUSE or privileges.

    walk.py README.md GUIDE.md      pip must find the package bszfs, and torch be installed

The blocks of each page run as they stand, from its first to the section that describes the API,
in a new directory with a model `llama`. Then what they made is compared with that model.
"""
import os
import pathlib
import re
import shutil
import subprocess
import sys

# The pages use these names without making them: the model, and a program that loads one.
MODEL = """
import sys, torch, transformers
torch.manual_seed(7)
config = transformers.LlamaConfig(hidden_size=256, intermediate_size=688, num_hidden_layers=4,
                                  num_attention_heads=8, num_key_value_heads=2, vocab_size=4000)
model = transformers.LlamaForCausalLM(config).to(torch.bfloat16)
model.save_pretrained(sys.argv[1])
"""
PROGRAM = """
import sys, torch, transformers
model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype="auto")
torch.save({"state": model.state_dict(), "logits": model(torch.arange(9)[None]).logits}, "loaded")
"""


def run(*command, cwd):
    print("$", *command, flush=True)
    subprocess.run(command, cwd=cwd, check=True)


def blocks(text):
    """The indented blocks of a page, and those that are fenced as Python, as (language, code)."""
    text = text.split("\n## In a program")[0]
    found = re.finditer(r"^```python\n([\s\S]*?)^```$|((?:^    .*\n)+)", text, re.MULTILINE)
    for block in found:
        if block[1]:
            yield "python", block[1]
        else:
            yield "bash", re.sub(r"^    ", "", block[2], flags=re.MULTILINE)


def compare(original, packed, cwd):
    """Compare the model that a program loads from each directory."""
    import torch

    (cwd / "program.py").write_text(PROGRAM)
    loaded = []
    for directory, command in ((original, ()), (packed, ("-m", "bszfs", "run"))):
        run(sys.executable, *command, "program.py", directory, cwd=cwd)
        loaded.append(torch.load(cwd / "loaded"))
    plain, unpacked = loaded
    assert plain["state"].keys() == unpacked["state"].keys()
    for name, tensor in plain["state"].items():
        other = unpacked["state"][name]
        assert tensor.dtype == other.dtype and torch.equal(tensor, other), name
    assert torch.equal(plain["logits"], unpacked["logits"])


def main():
    assert not os.path.exists("/dev/fuse"), "this container has FUSE"
    status = pathlib.Path("/proc/self/status").read_text()
    assert re.search(r"^CapEff:\s*0+$", status, re.MULTILINE), "this container has privileges"
    ran = 0
    for number, page in enumerate(map(pathlib.Path, sys.argv[1:])):
        cwd = pathlib.Path.home() / page.stem
        cwd.mkdir()
        run(sys.executable, "-c", MODEL, "original", cwd=cwd)
        shutil.copytree(cwd / "original", cwd / "llama")
        (cwd / "generate.py").write_text(PROGRAM)
        for language, code in blocks(page.read_text()):
            if "bsz unpack" in code:
                shutil.rmtree(cwd / "llama")
            if language == "bash":
                run("bash", "-euc", code, cwd=cwd)
            else:
                run(sys.executable, "-c", code, cwd=cwd)
            ran += 1
            if "bsz pack" in code:
                assert not list((cwd / "llama-packed").glob("*.safetensors"))
        compare("original", "llama-packed", cwd)
        if number:
            run("diff", "-r", "original", "llama", cwd=cwd)
    # Where there is no FUSE, a mount says so.
    command = ["bsz", "mount", "llama-packed"]
    mount = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    print(mount.stderr, end="")
    assert mount.returncode == 1 and mount.stderr.startswith("bsz: "), mount
    assert ran == 8, f"{ran} blocks"
    print(f"{ran} blocks ran as they stand, and every tensor is the same")


if __name__ == "__main__":
    main()
