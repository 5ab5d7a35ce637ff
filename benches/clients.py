"""What fetches and reads a server's files, for remote.py: mounts, curl, range requests, loaders."""

import contextlib
import http.client
import json
import os
import pathlib
import re
import subprocess
import tempfile
import threading
import time

import link

HERE = pathlib.Path(__file__).resolve().parent
LIMIT = 900  # seconds after which a mount is taken for hung
# No proxies, no hub, no settings of the user.
ENVIRONMENT = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")} | {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONWARNINGS": "ignore",
    "RCLONE_CONFIG": "/dev/null",
}


def start(command, **options):
    """A process that dies with us, in the clean environment."""
    command = [str(c) for c in command]
    return subprocess.Popen(command, env=ENVIRONMENT, preexec_fn=link.dies_with_us, **options)


class Mounted:
    """A daemon in the foreground, and the directory that it shows.

    `ready` is when it answered first, in seconds after its start.
    """

    def __init__(self, command, view):
        self.view, self.ready = pathlib.Path(view), None
        self.errors = tempfile.TemporaryFile("w+")
        self.started = time.perf_counter()
        self.daemon = start(command, stdout=subprocess.DEVNULL, stderr=self.errors)
        # Only a dead daemon lets go a reader that waits for it.
        self.watch = threading.Timer(LIMIT, self.daemon.kill)
        self.watch.daemon = True
        self.watch.start()

    def __enter__(self):
        try:
            while not os.path.ismount(self.view):
                if self.daemon.poll() is not None:
                    raise RuntimeError(self.last_words())
                time.sleep(0.002)
            self.ready = time.perf_counter() - self.started
        except BaseException:
            self.end()
            raise
        return self

    def __exit__(self, *_):
        self.end()

    def last_words(self):
        self.errors.seek(0)
        return (self.errors.read().strip().splitlines() or ["did not mount, and said nothing"])[-1]

    def end(self):
        self.watch.cancel()
        quiet = {"stderr": subprocess.DEVNULL}
        if self.ready and subprocess.run(["umount", self.view], **quiet).returncode:
            # A reader holds it: one that was interrupted, and waits for the daemon.
            subprocess.run(["umount", "-l", self.view], **quiet)
            self.daemon.kill()
        try:
            if not self.ready:
                self.daemon.terminate()
            self.daemon.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.daemon.kill()
            self.daemon.wait()
            subprocess.run(["umount", "-l", self.view], **quiet)
        self.errors.close()

    def peak(self):
        """The most memory that the daemon had, in MiB: VmHWM."""
        status = pathlib.Path(f"/proc/{self.daemon.pid}/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1024

    def cpu(self):
        """The seconds of CPU that the daemon has used."""
        stat = pathlib.Path(f"/proc/{self.daemon.pid}/stat").read_text()
        return sum(map(int, stat.rpartition(")")[2].split()[11:13])) / os.sysconf("SC_CLK_TCK")


def rclone(site, directory, view, cache=None):
    """rclone's mount of the same directory, with what it has against slow links.

    With a directory for its cache, it keeps what it reads in files, which readers that jump need.
    """
    options = ["--read-only", "--no-checksum", "--no-modtime", "--max-read-ahead", "1Mi"]
    options += ["--dir-cache-time", "1h", "--poll-interval", "0", "--vfs-read-wait", "100ms"]
    options += ["--vfs-cache-mode", "full" if cache else "off"]
    if cache:
        options += ["--cache-dir", cache, "--vfs-read-ahead", "64Mi"]
    if "--vfs-read-chunk-streams" in link.tool("rclone", "mount", "--help"):  # since 1.68
        options += ["--vfs-read-chunk-size", "8Mi", "--vfs-read-chunk-streams", "8"]
    return ["rclone", "mount", "--http-url", site.html(directory) + "/", *options, ":http:", view]


def curls(url, size, count=8):
    """Fetch equal ranges of a file, all at once, by as many processes."""
    share = -(-size // count)
    ranges = [f"{at}-{min(size, at + share) - 1}" for at in range(0, size, share)]
    command = ["curl", "--silent", "--show-error", "--fail", "--output", "/dev/null", url]
    fetching = [start([*command, "--range", part]) for part in ranges]
    try:
        if any([process.wait() for process in fetching]):
            raise RuntimeError(f"curl failed: {url}")
    finally:
        for process in fetching:
            process.kill()
            process.wait()


class Ranges:
    """Range requests over one connection that is kept alive."""

    def __init__(self, site, path):
        self.connection = http.client.HTTPConnection(site.host, site.port, timeout=60)
        self.path = f"/{path}"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.connection.close()

    def read(self, length, at):
        wanted = {"Range": f"bytes={at}-{at + length - 1}"}
        self.connection.request("GET", self.path, headers=wanted)
        answer = self.connection.getresponse()
        if answer.status != 206 or len(answer.read()) != length:
            raise RuntimeError(f"{self.path}: not the range that was asked for")


class Loader:
    """A process that loads models of directories with one framework: tests/frameworks/load.py."""

    def __init__(self, python, framework):
        program = HERE.parent / "tests/frameworks/load.py"
        self.errors = tempfile.TemporaryFile("w+")
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self.errors}
        self.process = start([python, program, framework], text=True, **pipes)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.communicate()
        self.errors.close()

    def load(self, directory):
        """The seconds that a load took, and the hash of the result."""
        with contextlib.suppress(BrokenPipeError):
            print(directory, file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        if not line:
            self.errors.seek(0)
            raise RuntimeError((self.errors.read().strip().splitlines() or ["no result"])[-1])
        return json.loads(line)
