"""Small disks for full.py: real file systems on loop devices, which can be filled to the last block
from beside the store; and calls made by another user, or by a process that may get a signal."""
import contextlib
import errno
import os
import pickle
import pwd
import shutil
import signal
import subprocess
import time

import tools

MIB = 1 << 20
SIZE, QUICK_SIZE = 400 * MIB, 320 * MIB
MKFS = {
    "ext4": ["mkfs.ext4", "-q", "-F", "-b", "4096", "-m", "0"],
    "ext4-reserved": ["mkfs.ext4", "-q", "-F", "-b", "4096", "-m", "5"],
    "xfs": ["mkfs.xfs", "-q", "-f"],
    "btrfs": ["mkfs.btrfs", "-q", "-f"],
}
PACKAGES = {"mkfs.xfs": "xfsprogs", "mkfs.btrfs": "btrfs-progs", "mkfs.ext4": "e2fsprogs"}
# How long a call may take: a writer waits for the packer to give its space back.
CALL_SECONDS = 300


def missing(kind):
    """Why there can be no such file system here, or None. Installs what makes it."""
    program = MKFS[kind][0]
    if not shutil.which(program):
        subprocess.run(["apt-get", "install", "-y", "-q", PACKAGES[program]], check=False,
                       capture_output=True)
    if not shutil.which(program):
        return f"there is no {program}"
    with open("/proc/filesystems", encoding="utf-8") as known:
        kernel = known.read().split()
    name = kind.split("-", maxsplit=1)[0]
    if name not in kernel and subprocess.run(["modprobe", name], check=False,
                                             capture_output=True).returncode:
        return f"the kernel has no {name}"
    return None


class Disk:
    """A new file system. The store is the directory d in it; what fills the disk is beside that."""

    def __init__(self, folder, kind, user, size):
        self.user = user
        self.image = os.path.join(folder, "image")
        self.root = os.path.join(folder, "disk")
        self.directory = os.path.join(self.root, "d")
        os.makedirs(self.root, exist_ok=True)
        with open(self.image, "wb") as image:
            image.truncate(size)
        run([*MKFS[kind], self.image])
        run(["mount", "-o", "loop", self.image, self.root])
        os.mkdir(self.directory)
        if user:
            os.chown(self.directory, pwd.getpwnam(user).pw_uid, pwd.getpwnam(user).pw_gid)
        self.fills = 0

    def free(self):
        """Bytes that the user of the store could still write, as far as statvfs knows."""
        space = os.statvfs(self.root)
        return space.f_frsize * (space.f_bavail if self.user else space.f_bfree)

    def reserved(self):
        """Free bytes that only root may use."""
        space = os.statvfs(self.root)
        return space.f_frsize * (space.f_bfree - space.f_bavail)

    def fill(self, leave=0):
        """Leave so many bytes of room, which is taken first, and given back last."""
        self.sync()
        self.fills += 1
        room = os.path.join(self.root, f"fill-{self.fills}-room")
        if leave and not take(room, 0, leave):
            raise tools.Failed(f"there are no {leave} bytes of room")
        at, size = 0, 64 * MIB
        while size >= 4096:
            # Root could take what is reserved, too.
            if self.user and self.free() < size or not take(room[:-5], at, size):
                size //= 2
            else:
                at += size
        self.sync()
        if leave:
            os.unlink(room)
            self.sync()

    def unfill(self):
        for name in os.listdir(self.root):
            if name.startswith("fill-"):
                os.unlink(os.path.join(self.root, name))
        self.sync()

    def sync(self):
        """What is reserved for later becomes what is taken, and what is removed becomes free."""
        subprocess.run(["sync", "-f", self.root], check=False, capture_output=True)

    def close(self):
        for _ in range(50):
            if not subprocess.run(["umount", self.root], check=False,
                                  capture_output=True).returncode:
                break
            time.sleep(0.1)
        else:
            subprocess.run(["umount", "-l", self.root], check=False)
        with contextlib.suppress(OSError):
            os.unlink(self.image)


def run(command):
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise tools.Failed(f"{' '.join(command)}: {done.stderr.strip()}")


def take(path, start, size):
    """Whether there were so many bytes to take for a file."""
    try:
        with open(path, "ab") as file:
            os.posix_fallocate(file.fileno(), start, size)
        return True
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
    with contextlib.suppress(OSError):
        os.truncate(path, start)
    return False


class Call:
    """A function in a process of its own, as a user; its outcome is `ok`, or the name of an error
    or of a signal."""

    def __init__(self, user, function, *arguments):
        ours, theirs = os.pipe()
        self.pipe, self.outcome, self.result = ours, None, None
        self.pid = os.fork()
        if self.pid == 0:
            try:
                self.child(user, theirs, function, arguments)
            finally:
                os._exit(0)
        os.close(theirs)

    @staticmethod
    def child(user, pipe, function, arguments):
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.alarm(CALL_SECONDS)
        if user:
            ids = pwd.getpwnam(user)
            os.setgroups([])
            os.setgid(ids.pw_gid)
            os.setuid(ids.pw_uid)
        try:
            outcome = ("ok", function(*arguments))
        except OSError as error:
            outcome = (errno.errorcode.get(error.errno, str(error.errno)), None)
        except Exception as error:  # pylint: disable=broad-except
            outcome = (repr(error), None)
        with os.fdopen(pipe, "wb") as out:
            pickle.dump(outcome, out)

    def wait(self):
        """The same, once the process has ended."""
        with os.fdopen(self.pipe, "rb") as pipe:
            said = pipe.read()
        _, status = os.waitpid(self.pid, 0)
        if said:
            self.outcome, self.result = pickle.loads(said)
        else:
            ended = os.WIFSIGNALED(status)
            self.outcome = signal.Signals(os.WTERMSIG(status)).name if ended else "ended"
        return self


def call(user, function, *arguments):
    return Call(user, function, *arguments).wait()
