"""A tree of many files for many.py: texts, models that pack, links, odd names, a git repository."""
import json
import os
import pathlib
import random
import subprocess

import tools

# Values of a model: 256 KiB of BF16.
VALUES = 131_072
# Longer names are not packed, nor is what a download has not finished.
MAX_PACKED_NAME = 246
ODD_NAMES = [
    "\udcff\udcfe not UTF-8", "caf\udce9", "new\nline", "tab\there", "\x01control\x7f",
    " before", "after ", "-rf", "--help", "quote'\"`$x", "back\\slash", "*?[a]", "é", "e\u0301",
    "模型", "😀", "\u202eright", "~", "#x#", ".hidden", "..x", "a=b,c;d&e|f", "x" * 234,
]
GIT = {"GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_AUTHOR_NAME": "a",
       "GIT_AUTHOR_EMAIL": "a@example.org", "GIT_COMMITTER_NAME": "a",
       "GIT_COMMITTER_EMAIL": "a@example.org", "GIT_AUTHOR_DATE": "@1700000000 +0000",
       "GIT_COMMITTER_DATE": "@1700000000 +0000", "LC_ALL": "C"}


def git(folder, *words):
    return subprocess.run(["git", "-C", folder, *words], env=os.environ | GIT, check=True,
                          capture_output=True).stdout


class Tree:
    """Makes the tree; `packs` and `stays` are the names of the models that pack, and of those that
    do not."""

    def __init__(self, root, count, seed):
        self.root, self.count, self.rng = pathlib.Path(root), count, random.Random(seed)
        self.packs, self.stays, self.made = set(), set(), 0
        self.first_text = self.last_text = None
        words = ["".join(self.rng.choices("abcdefghijklmnop", k=self.rng.randrange(2, 9)))
                 for _ in range(500)]
        self.text = " ".join(self.rng.choices(words, k=12_000)).encode()

    def build(self):
        self.repository()
        self.odd()
        self.special()
        number = 0
        while self.made < self.count:
            folder = number // 100
            self.ordinary(f"t{folder // 40:02}/d{folder:04}", number)
            number += 1
        self.set_times()

    def ordinary(self, folder, number):
        """Of 200 files: two models, a symlink, three hard links, and texts."""
        kind = number % 200
        if kind == 7:
            self.model(f"{folder}/model-{number:06}.safetensors")
        elif kind == 107:
            # As in the hub's cache.
            self.model(f"{folder}/{self.rng.randbytes(32).hex()}")
        elif kind == 50:
            target = os.path.basename(self.last_text)
            self.symlink(f"{folder}/s{number:06}", self.rng.choice([target, "missing", ".", "/"]))
        elif kind in [98, 99]:
            self.link(self.last_text, f"{folder}/h{number:06}")
        elif kind == 199:
            self.link(self.first_text, f"{folder}/h{number:06}")
        else:
            self.last_text = self.note(folder, number)
            self.first_text = self.first_text or self.last_text

    def note(self, folder, number):
        length = min(int(self.rng.expovariate(1 / 1500)), 40_000)
        start = self.rng.randrange(len(self.text) - length)
        data, ending = self.text[start:start + length], "txt"
        if number % 3 == 0:
            data, ending = json.dumps({"id": number, "text": data.decode()}).encode(), "json"
        return self.write(f"{folder}/f{number:06}.{ending}", data)

    def odd(self):
        for name in ODD_NAMES:
            self.write(f"odd/{name}", name.encode("utf-8", "surrogateescape"))
            self.model(f"odd models/{name}.safetensors")
        self.write("odd/" + "y" * 255, b"y")
        self.write("odd/no archive.bsz", b"text")
        self.model("odd \udcff folder/model.safetensors")

    def special(self):
        """Models that stay plain, modes, holes, an empty file."""
        self.model("special/" + "z" * (MAX_PACKED_NAME + 1), packs=False)
        self.model("special/download.incomplete", packs=False)
        for number in range(5):
            linked = self.model(f"special/linked-{number}.safetensors", packs=False)
            self.link(linked, f"special/other-name-{number}.safetensors")
            self.stays.add(f"special/other-name-{number}.safetensors")
        noise = tools.header(VALUES) + self.rng.randbytes(2 * VALUES)
        self.write("special/noise.safetensors", noise)
        self.stays.add("special/noise.safetensors")
        for mode in [0o000, 0o444, 0o600, 0o755, 0o4755, 0o2770, 0o1666]:
            os.chmod(self.root / self.model(f"special/mode-{mode:o}.safetensors"), mode)
            os.chmod(self.root / self.write(f"special/mode-{mode:o}.txt", b"mode"), mode)
        os.chown(self.root / self.model("special/owner.safetensors"), 12345, 54321)
        self.write("special/empty", b"")
        for number in range(10):
            with open(self.root / self.write(f"special/holes-{number}", b""), "r+b") as file:
                file.truncate(4 << 20)
                for _ in range(number):
                    os.pwrite(file.fileno(), b"data", self.rng.randrange(4 << 20))

    def repository(self):
        """Committed files, and a change of each kind since."""
        repo = self.root / "repo"
        for number in range(max(100, self.count // 50)):
            self.note(f"repo/part-{number // 100:02}", number)
        for number in range(max(5, self.count // 5000)):
            self.model(f"repo/models/{number}.safetensors")
        self.symlink("repo/link", "part-00")
        git(repo, "init", "-q", "-b", "main")
        git(repo, "add", "-A")
        git(repo, "-c", "gc.auto=0", "commit", "-q", "-m", "all")
        names = sorted(name for name in os.listdir(repo / "part-00"))
        (repo / "part-00" / names[0]).write_text("changed")
        (repo / "part-00" / names[1]).unlink()
        (repo / "part-00" / names[2]).chmod(0o755)
        git(repo, "mv", f"part-00/{names[3]}", "part-00/moved")
        self.write("repo/untracked", b"new")
        changed = self.root / "repo/models/0.safetensors"
        changed.write_bytes(tools.model("changed", VALUES))

    def model(self, name, packs=True):
        (self.packs if packs else self.stays).add(name)
        return self.write(name, tools.model(name.encode("utf-8", "surrogateescape"), VALUES))

    def write(self, name, data):
        self.place(name).write_bytes(data)
        return name

    def symlink(self, name, target):
        os.symlink(target, self.place(name))

    def link(self, old, name):
        os.link(self.root / old, self.place(name))

    def place(self, name):
        self.made += 1
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def set_times(self):
        """Times to the nanosecond, all different; those of folders after all that is in them."""
        for folder, _, names in os.walk(self.root, topdown=False):
            inside = names if ".git" not in pathlib.Path(folder).parts else []
            for path in [*(os.path.join(folder, name) for name in inside), folder]:
                stamp = self.rng.randrange(10**18, 17 * 10**17)
                os.utime(path, ns=(stamp, stamp), follow_symlinks=False)
