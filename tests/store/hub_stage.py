"""A directory that the checks run in, plain or mounted over itself, and its clients' processes."""
import hashlib
import json
import os
import pathlib
import re
import signal
import stat
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent

# The commands of the program under test. {bsz} and {dir} are filled in.
MOUNT = ["{bsz}", "mount", "{dir}", "--pack", "off"]
MOUNT_PACKING = ["{bsz}", "mount", "{dir}", "--pack", "now", "--settle", "0"]
PACK_NOW = ["{bsz}", "store", "pack-now", "{dir}", "--wait"]
UNMOUNT = ["{bsz}", "umount", "{dir}"]

TIMEOUT = 300
# How the clients show how long ago something was.
AGO = re.compile(r"(\d+|a|an|a few) (second|minute|hour|day)s? ago")
DAY = 24 * 3600
# Who owns all repositories of the checks.
OWNER = "bsz"


class Failed(Exception):
    """What was not as it must be."""


def expect(condition, what):
    if not condition:
        raise Failed(what)


def folder(repo):
    """The repository's directory in a cache."""
    return f"models--{OWNER}--{repo}"


def name(repo):
    """The repository's name on the hub."""
    return f"{OWNER}/{repo}"


class Stage:
    """A cache directory under test. `plain` is the stage to compare with, or None for that one."""

    def __init__(self, name, cache, hub, tools, home, plain=None, bsz=None, mount=None, pack=None):
        self.name, self.cache, self.hub, self.tools, self.home = name, cache, hub, tools, home
        self.plain, self.bsz, self.mounting, self.packing = plain, bsz, mount, pack
        self.outcomes, self.started = {}, time.time()
        self.cache.mkdir(parents=True, exist_ok=True)

    def environment(self, xet=True, offline=False):
        """Nothing of the caller's, so that settings of one's own do not change the outcome."""
        return {"PATH": os.environ["PATH"], "LANG": "C.UTF-8", "HOME": str(self.home),
                "HF_HOME": str(self.home / "hf"), "HF_HUB_CACHE": str(self.cache),
                "HF_ENDPOINT": self.hub.url, "HF_HUB_DISABLE_XET": str(int(not xet)),
                "HF_HUB_OFFLINE": str(int(offline)), "HF_HUB_DISABLE_PROGRESS_BARS": "1",
                "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_UPDATE_CHECK": "1",
                "NO_COLOR": "1", "COLUMNS": "200", "TOKENIZERS_PARALLELISM": "false",
                "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "2"}

    def start(self, command, **environment):
        return subprocess.Popen([str(part) for part in command], text=True,
                                env=self.environment(**environment), stdin=subprocess.DEVNULL,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                start_new_session=True)

    def start_client(self, venv, function, arguments, **environment):
        python = self.tools / f"venv-{venv}/bin/python"
        return self.start([python, HERE / "hub_client.py", function, json.dumps(arguments)],
                          **environment)

    def client(self, venv, function, fails=False, xet=True, offline=False, **arguments):
        """Run hub_client.py's `function` in a process of its own; return its answer."""
        process = self.start_client(venv, function, arguments, xet=xet, offline=offline)
        out = finish(process, fails)
        return None if fails else json.loads(self.plainly(out.splitlines()[-1]))

    def hf(self, venv, *words, offline=False):
        """Run the hub's command line; return what it prints, without paths and times."""
        process = self.start([self.tools / f"venv-{venv}/bin/hf", *words], offline=offline)
        return self.plainly(finish(process))

    def plainly(self, text):
        return AGO.sub("AGO", text.replace(str(self.cache), "CACHE"))

    def tree(self, *below):
        """All below these directories, as a client sees it: {path: what it is, with its content}.

        Of times, only that none is in the future; of directories, no size, for that is the file
        system's affair.
        """
        seen = {}
        for root in [self.cache / path for path in below or ["."]]:
            for path in [root, *sorted(root.rglob("*"))] if root.exists() else []:
                seen[str(path.relative_to(self.cache))] = describe(path)
        return seen

    def models(self):
        """The files of at least 1 MiB that downloads have completed: {path: stat}."""
        found = {}
        for path in sorted(self.cache.rglob("*")):
            status = path.lstat()
            if stat.S_ISREG(status.st_mode) and status.st_size >= 1 << 20 \
                    and not path.name.endswith(".incomplete"):
                found[str(path.relative_to(self.cache))] = status
        return found

    def run(self, command):
        """Run a command of the program under test."""
        words = [word.format(bsz=self.bsz, dir=self.cache) for word in command]
        done = subprocess.run(words, text=True, stdin=subprocess.DEVNULL, timeout=TIMEOUT,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        expect(done.returncode == 0, f"{' '.join(words)}: {last(done.stderr + done.stdout)}")

    def mount(self, command=None):
        if self.mounting:
            self.run(command or self.mounting)
            expect(os.path.ismount(self.cache), "the directory is not a mount point")

    def unmount(self):
        if self.mounting and os.path.ismount(self.cache):
            self.run(UNMOUNT)
            expect(not os.path.ismount(self.cache), "the directory is still a mount point")

    def clean(self):
        """Detach what is left, also after the daemon died."""
        if self.mounting:
            subprocess.run(["fusermount3", "-uz", self.cache], stderr=subprocess.DEVNULL)


def describe(path):
    status = path.lstat()
    about = [stat.filemode(status.st_mode), status.st_uid, status.st_gid]
    # A minute for clocks that differ, as on network file systems.
    expect(status.st_mtime < time.time() + 60, f"{path}: modified in the future")
    if path.is_symlink():
        return [*about, os.readlink(path)]
    if path.is_dir():
        return about
    with path.open("rb") as file:
        return [*about, status.st_nlink, status.st_size,
                hashlib.file_digest(file, "sha256").hexdigest()]


def finish(process, fails=False):
    """Wait for a client; return what it printed, or raise Failed if it failed, or did not fail."""
    try:
        out, err = process.communicate(timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise Failed(f"a client did not end within {TIMEOUT} s") from None
    if os.environ.get("HUB_VERBOSE"):
        print(process.args[1:], out, err, sep="\n", file=sys.stderr)
    if fails:
        expect(process.returncode != 0, "a client succeeded that had to fail")
    else:
        expect(process.returncode == 0, f"{process.args[-2:]} ended with {process.returncode}: "
               + last(err or out))
    return out


def last(text):
    return (text.strip().splitlines() or ["it printed nothing"])[-1]
