"""A disk for full.py with a store on it, and the calls that are made there."""
import hashlib
import json
import mmap
import os
import time

import full_disk
import tools
from full_disk import MIB, call

PACK_SECONDS = 45


def sha(data):
    return hashlib.sha256(data).hexdigest()


def sha_of(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save(path, data):
    with open(path, "xb") as file:
        file.write(data)


def patch(path, start, data, flags=0):
    """pwrite and fsync."""
    handle = os.open(path, os.O_WRONLY | flags)
    try:
        tools.write_all(handle, data, start)
        os.fsync(handle)
    finally:
        os.close(handle)


def patch_mapped(path, start, data):
    handle = os.open(path, os.O_RDWR)
    try:
        with mmap.mmap(handle, 0) as mapped:
            mapped[start:start + len(data)] = data
            mapped.flush()
        os.fsync(handle)
    finally:
        os.close(handle)


def allocate(path, start, length):
    handle = os.open(path, os.O_WRONLY | os.O_CREAT)
    try:
        os.posix_fallocate(handle, start, length)
    finally:
        os.close(handle)


class Place:
    """A new disk with a store, or without one, and what its files must be: {name: digests}."""

    def __init__(self, test, bsz):
        self.test, self.user = test, test.user
        self.folder = os.path.join(test.folder,
                                   f"{test.name}-{test.seed}-{next(test.numbers)}")
        os.mkdir(self.folder)
        self.disk = full_disk.Disk(self.folder, test.kind, test.user, test.size)
        self.store = tools.Store(bsz, self.disk.directory)
        self.store.log = os.path.join(self.folder, "log")
        self.files = {}
        # So long, downloads may wait for the packer in all.
        self.paced = time.monotonic() + (20 if test.quick else 300)

    def mount(self, pack="now", env=None):
        self.store.mount(pack, env=env, options=["--allow-other"])

    def recover(self):
        self.store.mount("now", min_size="1TiB", options=["--allow-other"])

    def path(self, name):
        return os.path.join(self.disk.directory, name)

    def call(self, function, *arguments):
        return call(self.user, function, *arguments).outcome

    def save(self, name, data):
        outcome = self.call(save, self.path(name), data)
        if outcome != "ok":
            raise tools.Failed(f"{name} could not be written: {outcome}")
        self.files[name] = {sha(data)}

    def packed(self, *names, seconds=PACK_SECONDS):
        """Wait until these are packed."""
        if self.store.bsz and not tools.wait_until(
                lambda: all(map(self.store.packed, names)), seconds):
            raise tools.Failed(f"not packed after {seconds} s: {names}: {self.status()}")

    def command(self, name):
        os.getxattr(self.disk.directory, f"user.bsz.pack.{name}")

    def status(self):
        return json.loads(os.getxattr(self.disk.directory, "user.bsz.status"))["store"]

    def pace(self):
        """Wait until nothing is packed and at most one file waits, if there is room to pack."""
        def caught_up():
            status = self.status()
            return not status["packing"] and (status["queued"] <= 1
                                              or self.disk.free() < 100 * MIB)
        tools.wait_until(caught_up, min(PACK_SECONDS, self.paced - time.monotonic()), 0.02)

    def pack_half(self, name):
        """Pause in the middle of packing a file, with a part of its archive on the disk."""
        for _ in range(5):
            if self.is_half_packed(name):
                return
            # It was packed before anybody could pause: write what it has, and try again.
            self.command("resume")
            with open(self.path(name), "rb") as file:
                start = file.read(1)
            self.call(patch, self.path(name), 0, start)
        raise tools.Failed(f"{name} was packed before anybody could pause: {self.status()}")

    def is_half_packed(self, name):
        # What is on its way to the disk must not be taken for a part of the archive.
        self.disk.sync()
        room = self.disk.free()
        if not tools.wait_until(lambda: self.status()["packing"] == name, PACK_SECONDS, 0.001):
            raise tools.Failed(f"{name} was not being packed: {self.status()}")
        while True:
            time.sleep(0.005)
            self.command("pause")
            # Some file systems count what is written only once it is on its way to the disk.
            self.disk.sync()
            if self.status()["packing"] != name:
                return False
            if self.disk.free() < room - MIB:
                return True
            self.command("resume")

    def problems(self, settled=True):
        """What is wrong with the files as a program sees them, past all caches; and with those
        below."""
        found = []
        for name in sorted(self.files.keys() | set(os.listdir(self.disk.directory))):
            path = self.path(name)
            if os.path.isdir(path) or os.path.islink(path):
                continue
            try:
                if name not in self.files:
                    found.append(f"should not be there: {name}")
                elif sha_of(path) not in self.files[name]:
                    found.append(f"{name} is not exact, {os.path.getsize(path)} bytes")
            except OSError as error:
                found.append(f"{name}: {error}")
        if settled:
            tools.wait_until(self.store.settled, 5, 0.1)
            found += tools.unsettled(self.store.below)
        if self.store.bsz and self.store.dead():
            found.append(f"the daemon ended: {self.store.log_tail()}")
        return found + self.store.panics()

    def again(self, pack="now"):
        """Unmount and mount: the kernel has nothing cached."""
        self.store.umount()
        self.mount(pack)

    def close(self):
        self.store.close()
        self.disk.close()
