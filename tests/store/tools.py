"""What the tests of the live store share: a store that can be mounted, killed and looked at from
below, model files that pack well, and one line for each result.

A store is a directory that `bsz mount DIR` shows over itself. Its descriptor is opened before that,
so that the tests still see what lies below, where the archives are. With `--bsz none` nothing is
mounted: then a test shows what the plain directory does, which is how the tests are tested.
"""
import contextlib
import errno
import json
import os
import pathlib
import random
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time

# The forms of a file below, in the order in which they are shown, by the ending of the name.
FORMS = [".bsz-over", "", ".bsz", ".bsz-old"]
# None of these may be there once recovery has finished.
LEFTOVERS = (".bsz-over", ".bsz-old", ".bsz-partial")
# An archive that was made through the mount, and so is shown as the file that it is.
PLAIN_MARK = "user.bsz.plain"
# What a system call says when the daemon of its mount has ended.
DAEMON_ENDED = (errno.ENOTCONN, errno.ECONNABORTED)
# Hidden from readers, and never anybody's file.
PARTIAL = ".bsz-partial"
# High bytes of BF16 weights: a few exponents, so that packing saves a third.
EXPONENTS = bytes(0x38 + (i * i >> 13) for i in range(256))


class Report:
    """Prints `ok NAME` or `FAIL NAME: what`, and knows the exit code."""

    def __init__(self):
        self.failed = 0

    def ok(self, name):
        print(f"ok {name}", flush=True)

    def fail(self, name, what):
        self.failed += 1
        print(f"FAIL {name}: {what}", flush=True)

    def check(self, name, problems):
        """One result for a list of problems, of which the first few are shown."""
        if not problems:
            return self.ok(name)
        more = f" (and {len(problems) - 5} more)" if len(problems) > 5 else ""
        self.fail(name, "; ".join(map(str, problems[:5])) + more)

    def exit(self):
        sys.exit(1 if self.failed else 0)


class Failed(Exception):
    """The store did not do what every test needs: mount, unmount, unpack."""


class Store:
    """DIR, and the daemon that shows it over itself."""

    def __init__(self, bsz, directory, user=None):
        self.bsz = None if bsz == "none" else os.path.abspath(bsz)
        self.directory = os.path.realpath(directory)
        self.user = user
        self.log = self.directory + ".log"
        self.daemon = None
        self.fd = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY)
        # As what is mounted later is not below the descriptor, this is always the bare directory.
        self.below = f"/proc/self/fd/{self.fd}/."

    def mount(self, pack="off", settle=0, min_size="1KiB", env=None, options=(), prefix=()):
        """Mounts and waits until the mount is there; prefix runs the daemon, as strace does."""
        if not self.bsz:
            return
        command = [*prefix, self.bsz, "mount", self.directory, "--foreground", "--pack", pack,
                   "--settle", str(settle), "--min-size", min_size, *options]
        if self.user:
            command = ["runuser", "-u", self.user, "--", *command]
        with open(self.log, "ab") as log:
            # A group of its own: under strace or runuser, the daemon is a child of our child.
            self.daemon = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log,
                                           stderr=log, env=os.environ | (env or {}),
                                           process_group=0)
        if not wait_until(lambda: mounted(self.directory) or self.daemon.poll() is not None, 20):
            raise Failed(f"no mount after 20 s: {self.log_tail()}")
        # Whoever is told to end itself at a step of recovery may do so before anybody looks.
        if self.daemon.poll() is not None and not (env and "BSZ_END_AT_STEP" in env):
            raise Failed(f"mount ended with {self.daemon.returncode}: {self.log_tail()}")

    def recover(self, env=None):
        """Mounts so that all pairs are resolved, which needs the packer, but nothing new is packed:
        without the packer, a plain file beside its archive may be the user's wish."""
        self.mount("now", min_size="1TiB", env=env)

    def dead(self):
        return bool(self.daemon) and self.daemon.poll() is not None

    def kill(self):
        """kill -9. What is left of the mount gives ENOTCONN until it is detached."""
        if self.daemon:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.daemon.pid, signal.SIGKILL)
            try:
                self.daemon.wait(10)
            except subprocess.TimeoutExpired:
                # One of its threads waits for its own mount, and all who use the mount with it.
                subprocess.run(["umount", "-f", self.directory], check=False, capture_output=True)
                self.daemon.wait()
                raise Failed("the daemon waited for its own mount, and could not die") from None

    def detach(self):
        """Detach the mount of a dead daemon; from then on, DIR is the directory below."""
        for _ in range(10):
            if not mounted(self.directory):
                break
            subprocess.run(["umount", "-l", self.directory], check=False, capture_output=True)
        self.daemon = None

    def umount(self):
        """End the mount as a user does; returns the daemon's exit code."""
        if not self.daemon:
            return 0
        for wait in [0.1, 0.3, 1, 3, 0]:
            done = subprocess.run([self.bsz, "umount", self.directory], capture_output=True,
                                  text=True, check=False)
            if done.returncode == 0:
                break
            time.sleep(wait)
        else:
            raise Failed(f"umount: {done.stderr.strip()}")
        try:
            code = self.daemon.wait(30)
        except subprocess.TimeoutExpired:
            self.kill()
            self.detach()
            raise Failed("the daemon lives 30 s after umount") from None
        self.daemon = None
        return code

    def log_tail(self):
        with contextlib.suppress(OSError):
            return pathlib.Path(self.log).read_text(errors="replace")[-500:].strip()
        return "no log"

    def panics(self):
        """Lines of the daemon's log that no daemon should write."""
        with contextlib.suppress(OSError):
            text = pathlib.Path(self.log).read_text(errors="replace")
            return [line for line in text.splitlines() if "panicked" in line]
        return []

    def packed(self, name):
        """Whether the file is an archive below, and nothing else."""
        return set(forms(self.below).get(name, {})) == {".bsz"}

    def settled(self):
        """Whether nothing below waits for recovery: one form of each file, and no leftovers."""
        return not unsettled(self.below)

    def close(self):
        for end in [self.umount, self.kill]:
            with contextlib.suppress(Failed):
                end()
        self.detach()
        os.close(self.fd)


def mounted(directory):
    """Whether something is mounted at this path, dead or alive."""
    with open("/proc/self/mountinfo", encoding="utf-8") as table:
        return any(line.split(" ")[4] == directory for line in table)


def daemon_ended(error, directory):
    """Whether a call failed as its daemon has ended; pages that could not be written give EIO."""
    if error.errno == errno.EIO:
        try:
            # What stat says may have been kept by the kernel.
            os.statvfs(directory)
        except OSError as again:
            return again.errno in DAEMON_ENDED
    return error.errno in DAEMON_ENDED


def write_all(handle, data, start):
    """pwrite, again if it was short: it is, if the daemon ended after a part of it, and then the
    next call says so."""
    done = 0
    while done < len(data):
        done += os.pwrite(handle, data[done:], start + done)


def append_all(handle, data):
    """The same at the end of a file."""
    done = 0
    while done < len(data):
        done += os.write(handle, data[done:])


def wait_until(condition, seconds, pause=0.01):
    """Whether the condition came true in time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(pause)
    return True


def form_of(path, name):
    """(name that is shown, form) of an entry below."""
    for form in FORMS[:1] + FORMS[2:]:
        if not name.endswith(form) or name == form or os.path.islink(path):
            continue
        if not os.path.isfile(path):
            continue
        if form == ".bsz":
            with contextlib.suppress(OSError):
                os.getxattr(path, PLAIN_MARK)
                return name, ""
        return name[:-len(form)], form
    return name, ""


def walk(root, inside=""):
    """(folder below root, path) of all entries that are no directories.

    Symlinks are never followed: `..` in one, followed below a mount, leads back into the mount.
    """
    with os.scandir(os.path.join(root, inside)) as entries:
        for entry in list(entries):
            if entry.is_dir(follow_symlinks=False):
                yield from walk(root, os.path.join(inside, entry.name))
            else:
                yield inside, entry.path


def forms(below):
    """{shown name: {form: path}} of all files and symlinks below, names relative to the root."""
    found = {}
    for inside, path in walk(below):
        name, form = form_of(path, os.path.basename(path))
        found.setdefault(os.path.join(inside, name), {})[form] = path
    return found


def unsettled(below):
    """Problems that recovery should have solved."""
    problems = []
    for name, all_forms in sorted(forms(below).items()):
        if len(all_forms) > 1:
            problems.append(f"{name} is there as {sorted(all_forms)}")
        elif name.endswith(LEFTOVERS) or any(form in LEFTOVERS for form in all_forms):
            problems.append(f"left over: {name} {sorted(all_forms)}")
    return problems


def content_below(bsz, all_forms):
    """What a reader should see of a file, from its forms below; archives are decoded by `unpack`.

    Bytes of a file, or the target of a symlink as text.
    """
    form = next(form for form in FORMS if form in all_forms)
    path = all_forms[form]
    if os.path.islink(path):
        return os.readlink(path)
    data = pathlib.Path(path).read_bytes()
    return data if form == "" else unpack(bsz, data)


def unpack(bsz, archive):
    """The original of an archive's bytes, through a copy: paths through a descriptor of the
    directory below would lead into the mount once they are made absolute."""
    with tempfile.TemporaryDirectory() as folder:
        copy = os.path.join(folder, "copy.bsz")
        pathlib.Path(copy).write_bytes(archive)
        done = subprocess.run([bsz, "unpack", "-q", copy, "-o", os.path.join(folder, "original")],
                              capture_output=True, text=True, check=False)
        if done.returncode:
            raise Failed(f"unpack: {done.stderr.strip()}")
        return pathlib.Path(folder, "original").read_bytes()


def read_tree(root):
    """{name: bytes, or a symlink's target as text} of all files as a program sees them."""
    found = {}
    for inside, path in walk(root):
        found[os.path.join(inside, os.path.basename(path))] = (
            os.readlink(path) if os.path.islink(path) else pathlib.Path(path).read_bytes())
    return found


def read_below(bsz, below):
    """The same as read_tree, of the directory below, by the order in which forms are shown."""
    return {name: content_below(bsz, all_forms) for name, all_forms in forms(below).items()
            if not name.endswith(PARTIAL)}


def weights(rng, count):
    """COUNT bytes that belong at an even offset of BF16 data; they pack to two thirds."""
    data = bytearray(count + 1)
    half = (count + 1) // 2
    data[0::2] = rng.randbytes(half + (count + 1) % 2)
    data[1::2] = rng.randbytes(half).translate(EXPONENTS)
    return bytes(data[:count])


def header(values):
    """The head of a safetensors file with one BF16 tensor of so many values."""
    text = json.dumps({"t": {"dtype": "BF16", "shape": [values],
                             "data_offsets": [0, 2 * values]}}).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def model(seed, values=32768):
    """A complete safetensors file."""
    return header(values) + weights(random.Random(seed), 2 * values)


def describe(content):
    """A content, short enough for a message."""
    if content is None or isinstance(content, str):
        return f"{content!r}"
    import hashlib
    return f"{len(content)} bytes {hashlib.sha256(content).hexdigest()[:12]}"


def differences(found, expected):
    """Problems of one tree against the other."""
    problems = [f"lost: {name}" for name in sorted(expected.keys() - found.keys())]
    problems += [f"should not be there: {name}" for name in sorted(found.keys() - expected.keys())]
    problems += [f"{name}: {describe(found[name])} instead of {describe(expected[name])}"
                 for name in sorted(found.keys() & expected.keys())
                 if found[name] != expected[name]]
    return problems


@contextlib.contextmanager
def work_folder(given=None, report=None):
    """A new folder in the one given, or among temporary files; kept if the report has failures."""
    folder = tempfile.mkdtemp(prefix="store-", dir=given)
    os.chmod(folder, 0o755)
    yield folder
    if report and report.failed:
        print(f"# kept: {folder}")
        return
    for entry in os.listdir(folder):
        if mounted(os.path.join(folder, entry)):
            return
    shutil.rmtree(folder, ignore_errors=True)


def start():
    """For the start of each test: without this, an end by SIGTERM would leave mounts behind."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by a signal"))


def need_root():
    if os.geteuid() != 0:
        sys.exit("needs root")
