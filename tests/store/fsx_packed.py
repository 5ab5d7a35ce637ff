#!/usr/bin/env python3
"""fsx for files that the packer takes: random operations on models, compared with a copy in memory.

    fsx_packed.py --bsz PATH [--ops N] [--seed S] [--work DIR] [--quick]

What is written never touches a file's header, and its length is what the header says whenever the
file is closed. So the packer, which waits for nothing, swaps files between and during operations on
others. All bytes, and size, inode number and mtime, are compared each time a file is taken again,
also through descriptors and maps that were opened before the swap. A run in which nothing was
packed fails. A failure shows the last operations; the same seed gives the same operations, but not
the same moments of swapping.
"""
import argparse
import ctypes
import faulthandler
import mmap
import os
import random
import tempfile

import tools

FILES = 8
VALUES = 40_000
LONGEST = 1 << 17
# Where each file's header ends.
HEAD = len(tools.header(VALUES))
KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 1, 2, 16
LIBC = ctypes.CDLL(None, use_errno=True)


class Mismatch(Exception):
    """The file system did something else than a plain directory."""


class Model:
    """A file, and what it should hold."""

    def __init__(self, name, content):
        self.name = name
        self.content = bytearray(content)
        self.length = len(content)
        self.mark = None
        # (descriptor, map) of readers that stay open while the file is swapped.
        self.readers = []
        self.stat = None
        self.held = None


class Tester:
    """Works in the store's directory until it has done so many operations."""

    def __init__(self, store, seed):
        self.store = store
        self.root = store.directory
        self.rng = random.Random(seed)
        self.history = []
        self.done = self.sessions = self.found_packed = self.written_packed = self.names = 0
        self.files = []
        os.mkdir(os.path.join(self.root, "sub"))
        for _ in range(FILES):
            self.files.append(self.create())

    # Names and files as a whole.

    def path(self, name):
        return os.path.join(self.root, name)

    def new_name(self):
        self.names += 1
        folder = self.rng.choice(["", "sub/"])
        return f"{folder}m{self.names}.safetensors"

    def note(self, text):
        self.done += 1
        self.history = self.history[-30:] + [text]

    def new_content(self):
        return tools.header(VALUES) + tools.weights(self.rng, 2 * VALUES)

    def create(self):
        file = Model(self.new_name(), self.new_content())
        with open(self.path(file.name), "xb") as out:
            out.write(file.content)
        self.note(f"create {file.name}")
        self.closed(file)
        return file

    def closed(self, file):
        """Remember what must stay. As long as a file is held, its number does."""
        self.let_go(file)
        file.held = os.open(self.path(file.name), os.O_PATH)
        file.stat = os.stat(self.path(file.name))

    def let_go(self, file):
        if file.held is not None:
            os.close(file.held)
            file.held = None

    def check_stat(self, file, stat):
        """Packing changes neither number, size, mtime, mode nor owner."""
        for field in ["st_ino", "st_size", "st_mtime_ns", "st_mode", "st_uid", "st_gid",
                      "st_nlink"]:
            now, before = getattr(stat, field), getattr(file.stat, field)
            if now != before:
                raise Mismatch(f"{file.name}: {field} {now} instead of {before}")

    def check_bytes(self, what, offset, found, expected):
        if bytes(found) == bytes(expected):
            return
        at = next((i for i, (a, b) in enumerate(zip(found, expected)) if a != b),
                  min(len(found), len(expected)))
        raise Mismatch(f"{what}: differs at {offset + at}, {len(found)} bytes for "
                       f"{len(expected)}: {bytes(found[at:at + 8]).hex()} instead of "
                       f"{bytes(expected[at:at + 8]).hex()}")

    def verify(self, file):
        """Everything about a closed file, by a new descriptor and by those that are open."""
        path = self.path(file.name)
        self.check_stat(file, os.stat(path))
        with open(path, "rb") as new:
            self.check_bytes(f"{file.name} reopened", 0, new.read(), file.content)
        for descriptor, view in file.readers:
            found = os.pread(descriptor, len(file.content) + 1, 0)
            self.check_bytes(f"{file.name} by an older descriptor", 0, found, file.content)
            self.check_bytes(f"{file.name} by an older map", 0, view[:], file.content)
        if file.mark is not None and os.getxattr(path, "user.test") != file.mark:
            raise Mismatch(f"{file.name}: its xattr is lost")

    def close_readers(self, file):
        for descriptor, view in file.readers:
            view.close()
            os.close(descriptor)
        file.readers = []

    def add_reader(self, file):
        descriptor = os.open(self.path(file.name), os.O_RDONLY)
        view = mmap.mmap(descriptor, file.length, mmap.MAP_SHARED, mmap.PROT_READ)
        file.readers.append((descriptor, view))

    # Operations on closed files.

    def whole_file(self, file):
        """One operation that needs no open file; on a packed one, most of them stay packed."""
        operation = self.rng.choice([self.rename, self.rename_over, self.replace, self.again,
                                     self.link, self.chmod, self.utime, self.mark, self.truncate])
        self.note(f"{operation.__name__} {file.name}")
        operation(file)

    def rename(self, file):
        name = self.new_name()
        os.rename(self.path(file.name), self.path(name))
        file.name = name
        self.check_stat(file, os.stat(self.path(name)))

    def rename_over(self, file):
        other = self.rng.choice([other for other in self.files if other is not file])
        os.rename(self.path(file.name), self.path(other.name))
        file.name = other.name
        self.close_readers(other)
        self.let_go(other)
        self.files.remove(other)
        self.files.append(self.create())

    def replace(self, file):
        temporary = self.path(file.name + ".tmp")
        self.close_readers(file)
        file.content[:] = self.new_content()
        file.mark = None
        with open(temporary, "wb") as out:
            out.write(file.content)
        os.rename(temporary, self.path(file.name))
        self.closed(file)

    def again(self, file):
        """Removed, while a reader has it open; then made again with the same name."""
        with open(self.path(file.name), "rb") as reader:
            os.unlink(self.path(file.name))
            self.check_bytes(f"{file.name} removed", 0, reader.read(), file.content)
        if os.path.exists(self.path(file.name)):
            raise Mismatch(f"{file.name} is there after unlink")
        self.replace(file)

    def link(self, file):
        second = self.path(file.name + ".link")
        os.link(self.path(file.name), second)
        stat = os.stat(second)
        if stat.st_ino != file.stat.st_ino or stat.st_nlink != 2:
            raise Mismatch(f"{file.name}.link: {stat}")
        with open(second, "rb") as reader:
            self.check_bytes(f"{file.name}.link", 0, reader.read(), file.content)
        os.unlink(second)

    def chmod(self, file):
        os.chmod(self.path(file.name), self.rng.choice([0o644, 0o600, 0o444, 0o664]))
        self.closed(file)

    def utime(self, file):
        moment = self.rng.randrange(10**18, 17 * 10**17)
        os.utime(self.path(file.name), ns=(moment, moment))
        stat = os.stat(self.path(file.name))
        if stat.st_mtime_ns != moment:
            raise Mismatch(f"{file.name}: mtime {stat.st_mtime_ns} after utime {moment}")
        self.closed(file)

    def mark(self, file):
        file.mark = self.rng.randbytes(5)
        os.setxattr(self.path(file.name), "user.test", file.mark)

    def truncate(self, file):
        """By path, down and up again, as nothing else may see the file in between."""
        length = self.rng.randrange(HEAD, file.length)
        os.truncate(self.path(file.name), length)
        os.truncate(self.path(file.name), file.length)
        file.content[length:] = bytes(file.length - length)
        self.closed(file)

    # Operations on an open file.

    def span(self, limit):
        """(offset, length) after the header and before the limit."""
        start = self.rng.randrange(HEAD, max(limit, HEAD + 1))
        return start, self.rng.randint(0, min(limit - start, self.rng.choice([64, 5000, 65536])))

    def bytes_for(self, offset, length):
        """Data with high bytes where the format has them, so that the file stays worth packing."""
        return tools.weights(self.rng, length + offset % 2)[offset % 2:]

    def put(self, file, offset, data):
        if offset > len(file.content):
            file.content.extend(bytes(offset - len(file.content)))
        file.content[offset:offset + len(data)] = data

    def do_read(self, file, handle):
        start, length = self.span(len(file.content))
        self.check_bytes(f"read {file.name}", start, os.pread(handle, length, start),
                         file.content[start:start + length])

    def do_sendfile(self, file, handle):
        start, length = self.span(len(file.content))
        with tempfile.TemporaryFile() as out:
            while length > 0:
                sent = os.sendfile(out.fileno(), handle, start, length)
                out.seek(-sent, os.SEEK_END)
                self.check_bytes(f"sendfile {file.name}", start, out.read(),
                                 file.content[start:start + sent])
                start, length = start + sent, length - sent
                if not sent:
                    raise Mismatch(f"sendfile {file.name}: nothing at {start}")

    def do_write(self, file, handle):
        start, length = self.span(LONGEST)
        data = self.bytes_for(start, length)
        written = os.pwrite(handle, data, start)
        if written != length:
            raise Mismatch(f"write {file.name}: {written} of {length}")
        if length:
            self.put(file, start, data)

    def do_append(self, file, _handle):
        length = self.rng.randint(1, 3000)
        data = self.bytes_for(len(file.content), length)
        second = os.open(self.path(file.name), os.O_WRONLY | os.O_APPEND)
        os.write(second, data)
        os.close(second)
        file.content.extend(data)

    def do_map_read(self, file, handle):
        start, length = self.span(len(file.content))
        with mmap.mmap(handle, len(file.content), mmap.MAP_SHARED, mmap.PROT_READ) as view:
            self.check_bytes(f"map of {file.name}", start, view[start:start + length],
                             file.content[start:start + length])

    def do_map_write(self, file, handle):
        start, length = self.span(len(file.content))
        data = self.bytes_for(start, length)
        with mmap.mmap(handle, len(file.content), mmap.MAP_SHARED) as view:
            view[start:start + length] = data
            if self.rng.random() < 0.5:
                view.flush()
        self.put(file, start, data)

    def do_truncate(self, file, handle):
        length = self.rng.randrange(HEAD, LONGEST)
        os.ftruncate(handle, length)
        self.resize(file, length)

    def resize(self, file, length):
        file.content.extend(bytes(max(0, length - len(file.content))))
        del file.content[length:]

    def fallocate(self, handle, mode, start, length):
        if LIBC.fallocate(handle, mode, ctypes.c_long(start), ctypes.c_long(length)):
            raise Mismatch(f"fallocate {mode}: {os.strerror(ctypes.get_errno())}")

    def do_punch(self, file, handle):
        start, length = self.span(len(file.content))
        if length:
            self.fallocate(handle, PUNCH_HOLE | KEEP_SIZE, start, length)
            self.put(file, start, bytes(length))

    def do_zero(self, file, handle):
        start, length = self.span(len(file.content))
        if length:
            self.fallocate(handle, ZERO_RANGE, start, length)
            self.put(file, start, bytes(length))

    def do_allocate(self, file, handle):
        start, length = self.span(LONGEST)
        if length:
            keep = self.rng.choice([0, KEEP_SIZE])
            self.fallocate(handle, keep, start, length)
            if not keep:
                self.resize(file, max(len(file.content), start + length))

    def do_copy(self, file, handle):
        """From this file or another, which may be packed; distances stay even."""
        source = self.rng.choice([file, self.rng.choice(self.files)])
        start, length = self.span(len(source.content))
        target = start % 2 + self.rng.randrange(HEAD, LONGEST - length) // 2 * 2
        target = max(target, HEAD + start % 2)
        if source is file and abs(target - start) < length or not length:
            return
        data = bytes(source.content[start:start + length])
        other = os.open(self.path(source.name), os.O_RDONLY)
        copied = 0
        while copied < length:
            step = os.copy_file_range(other, handle, length - copied, start + copied,
                                      target + copied)
            if not step:
                raise Mismatch(f"copy_file_range from {source.name}: {copied} of {length}")
            copied += step
        os.close(other)
        self.put(file, target, data)

    def do_sync(self, _file, handle):
        self.rng.choice([os.fsync, os.fdatasync])(handle)

    def do_seek(self, file, handle):
        """A hole reads as zeros, and there is one at the end of each file."""
        start, _ = self.span(len(file.content))
        hole = os.lseek(handle, start, os.SEEK_HOLE)
        if not start <= hole <= len(file.content):
            raise Mismatch(f"SEEK_HOLE {file.name}: {hole} from {start}")
        if hole < len(file.content):
            try:
                end = os.lseek(handle, hole, os.SEEK_DATA)
            except OSError:
                end = len(file.content)
            self.check_bytes(f"hole of {file.name}", hole, file.content[hole:end],
                             bytes(end - hole))

    def do_rename(self, file, _handle):
        name = self.new_name()
        os.rename(self.path(file.name), self.path(name))
        file.name = name

    def do_size(self, file, handle):
        sizes = [os.fstat(handle).st_size, os.stat(self.path(file.name)).st_size,
                 os.lseek(handle, 0, os.SEEK_END)]
        if sizes != [len(file.content)] * 3:
            raise Mismatch(f"size of {file.name}: {sizes} instead of {len(file.content)}")

    # Weights: reading and writing most often, as in fsx.
    OPERATIONS = {do_read: 10, do_write: 10, do_map_read: 8, do_map_write: 8, do_sendfile: 3,
                  do_append: 3, do_truncate: 4, do_punch: 3, do_zero: 1, do_allocate: 2,
                  do_copy: 5, do_sync: 1, do_seek: 2, do_rename: 1, do_size: 5}

    # Sessions: a file is opened, worked on, closed, and left to the packer.

    def session(self):
        file = self.rng.choice(self.files)
        packed = bool(self.store.bsz) and self.is_packed(file)
        self.sessions += 1
        self.found_packed += packed
        self.verify(file)
        if self.rng.random() < 0.3:
            self.whole_file(file)
        elif self.rng.random() < 0.8:
            self.written_packed += packed
            self.work_on(file)
        self.verify(file)
        if self.rng.random() < 0.3 and len(file.readers) < 3:
            self.add_reader(file)
        if self.store.bsz and self.rng.random() < 0.3:
            tools.wait_until(lambda: self.is_packed(file), 0.5, 0.005)

    def is_packed(self, file):
        path = os.path.join(self.store.below, file.name)
        return os.path.exists(path + ".bsz") and not os.path.exists(path)

    def work_on(self, file):
        flags = os.O_RDWR
        if self.rng.random() < 0.05:
            flags |= os.O_TRUNC
        self.note(f"open {file.name}{' O_TRUNC' if flags & os.O_TRUNC else ''}")
        os.chmod(self.path(file.name), 0o644)
        handle = os.open(self.path(file.name), flags)
        if flags & os.O_TRUNC:
            file.content[:] = self.new_content()
            os.pwrite(handle, file.content, 0)
        operations, weights = zip(*self.OPERATIONS.items())
        for operation in self.rng.choices(operations, weights, k=self.rng.randint(0, 60)):
            self.note(f"{operation.__name__} {file.name}")
            operation(self, file, handle)
        os.ftruncate(handle, file.length)
        self.resize(file, file.length)
        os.close(handle)
        self.closed(file)

    def run(self, operations):
        while self.done < operations:
            self.session()
        for file in self.files:
            self.verify(file)
            self.close_readers(file)
            self.let_go(file)


def after_unmount(store, files):
    """Problems of what lies below once the mount has ended."""
    found = tools.read_below(store.bsz, store.below)
    return tools.unsettled(store.below) + tools.differences(
        found, {file.name: bytes(file.content) for file in files})


def test(report, bsz, operations, seed, work=None):
    """Reports on one run."""
    name = f"fsx_packed, {operations} operations, seed {seed}"
    with tools.work_folder(work) as folder:
        directory = os.path.join(folder, "d")
        os.mkdir(directory)
        store = tools.Store(bsz, directory)
        tester = None
        try:
            store.mount("now", 0)
            tester = Tester(store, seed)
            tester.run(operations)
            print(f"# {tester.done} operations in {tester.sessions} sessions; "
                  f"{tester.found_packed} began on a packed file, "
                  f"{tester.written_packed} of them to write")
            report.check(name, ["nothing was packed"]
                         if store.bsz and not tester.found_packed else [])
            code = store.umount()
            report.check("fsx_packed, after unmount", store.panics() + (
                [f"exit code {code}"] if code else []) + after_unmount(store, tester.files))
        except (Mismatch, OSError, tools.Failed) as error:
            report.fail(name, error)
            print("# last operations: " + ", ".join(tester.history[-12:] if tester else []))
            print(f"# daemon's log: {store.log_tail()}")
        finally:
            store.close()


def main():
    tools.start()
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--bsz", required=True, help="the program, or `none` for no mount")
    parser.add_argument("--ops", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--work", help="where to put the directory (default: temporary files)")
    parser.add_argument("--quick", action="store_true", help="5,000 operations")
    arguments = parser.parse_args()
    faulthandler.enable()
    report = tools.Report()
    test(report, arguments.bsz, 5_000 if arguments.quick else arguments.ops, arguments.seed,
         arguments.work)
    report.exit()


if __name__ == "__main__":
    main()
