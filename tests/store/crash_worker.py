"""A process that works on files of the store until its daemon is killed, and knows what must hold.

Each worker has names of its own in directories that all share. Before each system call that
changes something it notes what the call is to change. When the daemon ends during a call, the
worker reports its files as they were after the last call that returned, and that note: the call
has happened or not, and of a write any part. What the other calls did must be there.
"""
import ctypes
import mmap
import os
import random
import time

import tools

FOLDERS = ["", "one/", "one/two/"]
MOST_FILES = 9
EXCHANGE = 2
AT_FDCWD = -100
LIBC = ctypes.CDLL(None, use_errno=True)


class Ended(Exception):
    """The daemon has ended during a call."""


class Wrong(Exception):
    """A call did something else than on a plain directory."""


class Between:
    """A content while a write from `before` to `after` is under way: any part of it."""

    def __init__(self, before, after):
        self.before, self.after = before, after

    def allows(self, found):
        before, after = self.before, self.after
        if not isinstance(found, bytes):
            return False
        if not min(len(before), len(after)) <= len(found) <= max(len(before), len(after)):
            return False
        # Only what differs is compared byte by byte.
        same = len(os.path.commonprefix([before, after]))
        if found[:same] != after[:same]:
            return False
        return all(found[i] in (0, *before[i:i + 1], *after[i:i + 1])
                   if i >= len(before) else found[i] in (before[i], *after[i:i + 1])
                   for i in range(same, len(found)))

    def __repr__(self):
        return f"between {tools.describe(self.before)} and {tools.describe(self.after)}"


def allows(expected, found):
    """Whether a content (None: no such file) is as expected."""
    if isinstance(expected, Between):
        return expected.allows(found)
    return expected == found


class Worker:
    """files: {name: content}, where a symlink's content is its target as text."""

    def __init__(self, root, number, seed, files, times):
        self.root, self.number = root, number
        self.rng = random.Random(seed)
        self.files, self.times = dict(files), dict(times)
        self.pending = {}
        self.doing = ""
        self.calls = 0

    # One system call, and what it changes.

    def path(self, name):
        return os.path.join(self.root, name)

    def call(self, changes, function, *arguments, **keywords):
        """A call that makes {name: content, or None} of some files."""
        self.pending = changes
        for name in changes:
            self.times.pop(name, None)
        try:
            result = function(*arguments, **keywords)
        except OSError as error:
            if tools.daemon_ended(error, self.root):
                raise Ended from error
            raise Wrong(f"{self.doing}: {error}") from error
        self.apply(changes)
        return result

    def apply(self, changes):
        self.calls += 1
        for name, content in changes.items():
            if content is None:
                self.files.pop(name, None)
            else:
                self.files[name] = content.after if isinstance(content, Between) else content
        self.pending = {}

    def harmless(self, function, *arguments, **keywords):
        return self.call({}, function, *arguments, **keywords)

    def closed(self, name):
        """Whatever packing and recovery do, mtime stays what it is now."""
        self.times[name] = self.harmless(os.stat, self.path(name)).st_mtime_ns

    # Names.

    def new_name(self):
        ending = self.rng.choice([".safetensors", ""])
        return (f"{self.rng.choice(FOLDERS)}w{self.number}-"
                f"{self.rng.randrange(10**6):06}{ending}")

    def regular(self):
        return [name for name, content in self.files.items()
                if isinstance(content, bytes) and not name.endswith(".incomplete")]

    def pick(self):
        names = self.regular()
        return self.rng.choice(names) if names else None

    def single(self):
        """A file with one link: of several, writing changes only one if it is packed."""
        name = self.pick()
        if name and self.harmless(os.stat, self.path(name)).st_nlink == 1:
            return name
        return None

    # Operations.

    def download(self):
        """As a hub client: .incomplete, rename into place, a symlink to it."""
        target = self.pick() if self.rng.random() < 0.3 else self.new_name()
        target = target or self.new_name()
        temporary = f"{target}.{self.rng.randrange(16**8):08x}.incomplete"
        data = tools.model(self.rng.random(), self.rng.choice([2_000, 32_768, 150_000]))
        handle = self.call({temporary: b""}, os.open, self.path(temporary),
                           os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            self.write_all(handle, temporary, data)
            if self.rng.random() < 0.3:
                self.harmless(os.fsync, handle)
        finally:
            self.close(handle)
        self.closed(temporary)
        self.move(temporary, target)
        if self.rng.random() < 0.5:
            self.symlink(target)

    def write_all(self, handle, name, data):
        step = self.rng.choice([10_000, 65_536, len(data)])
        for start in range(0, len(data), step):
            self.write_at(handle, name, start, data[start:start + step])

    def write_at(self, handle, name, start, data):
        before = self.files[name]
        padded = before + bytes(max(0, start - len(before)))
        after = padded[:start] + data + padded[start + len(data):]
        self.call({name: Between(before, after)}, tools.write_all, handle, data, start)

    def close(self, handle):
        """close gives ENOTCONN, too, once the daemon has ended; it changes nothing."""
        try:
            os.close(handle)
        except OSError:
            pass

    def move(self, old, new):
        stamp = self.times.get(old)
        self.call({old: None, new: self.files[old]}, os.rename, self.path(old), self.path(new))
        if stamp:
            self.times[new] = stamp

    def symlink(self, target):
        name = self.new_name() + ".link"
        text = os.path.relpath(target, os.path.dirname(name) or ".")
        self.call({name: text}, os.symlink, text, self.path(name))

    def read(self):
        name = self.pick()
        if not name:
            return

        def content():
            with open(self.path(name), "rb", buffering=0) as file:
                return file.readall()
        found = self.harmless(content)
        if found != self.files[name]:
            raise Wrong(f"read {name}: {tools.describe(found)} instead of "
                        f"{tools.describe(self.files[name])}")

    def write(self):
        """In place; now and then over the header, so that it is no model any more."""
        name = self.single()
        if not name or not self.files[name]:
            return
        handle = self.harmless(os.open, self.path(name), os.O_RDWR)
        try:
            for _ in range(self.rng.randint(0, 3)):
                lowest = 0 if self.rng.random() < 0.1 else min(200, len(self.files[name]) - 1)
                start = self.rng.randrange(lowest, len(self.files[name]))
                data = self.rng.randbytes(self.rng.choice([1, 4096, 30_000]))
                self.write_at(handle, name, start, data)
        finally:
            self.close(handle)
        self.closed(name)

    def append(self):
        name = self.single()
        if not name:
            return
        handle = self.harmless(os.open, self.path(name), os.O_WRONLY | os.O_APPEND)
        try:
            before = self.files[name]
            data = self.rng.randbytes(3000)
            self.call({name: Between(before, before + data)}, tools.append_all, handle, data)
        finally:
            self.close(handle)
        self.closed(name)

    def map_write(self):
        """Pages reach the daemon at msync at the latest."""
        name = self.single()
        if not name or not self.files[name]:
            return
        handle = self.harmless(os.open, self.path(name), os.O_RDWR)
        try:
            before = self.files[name]
            start = self.rng.randrange(len(before))
            data = self.rng.randbytes(min(5000, len(before) - start))
            after = before[:start] + data + before[start + len(data):]
            view = self.harmless(mmap.mmap, handle, len(before))
            self.call({name: Between(before, after)}, self.change_pages, handle, view, start, data)
        finally:
            self.close(handle)
        self.closed(name)

    def change_pages(self, handle, view, start, data):
        """Through the file's own pages; a page that cannot be read any more would be a SIGBUS, so
        they are read before by a call that can fail."""
        os.pread(handle, len(view), 0)
        view[start:start + len(data)] = data
        view.flush()
        view.close()

    def truncate(self):
        name = self.single()
        if not name or not self.files[name]:
            return
        before = self.files[name]
        length = self.rng.choice([0, self.rng.randrange(len(before)), len(before) + 5000])
        after = before[:length] + bytes(max(0, length - len(before)))
        self.call({name: after}, os.truncate, self.path(name), length)
        self.closed(name)

    def rewrite(self):
        """As a program that saves: O_TRUNC, and all new."""
        name = self.single()
        if not name:
            return
        handle = self.call({name: b""}, os.open, self.path(name), os.O_WRONLY | os.O_TRUNC)
        try:
            self.write_all(handle, name, tools.model(self.rng.random(), 20_000))
        finally:
            self.close(handle)
        self.closed(name)

    def rename(self):
        name = self.pick()
        if name:
            self.move(name, self.new_name())

    def rename_over(self):
        name, other = self.pick(), self.pick()
        # Of two links of one file, rename does nothing.
        if name and name != other and self.files[name] != self.files[other]:
            self.move(name, other)

    def exchange(self):
        name, other = self.pick(), self.pick()
        if not name or name == other:
            return

        def swap():
            if LIBC.renameat2(AT_FDCWD, self.path(name).encode(), AT_FDCWD,
                              self.path(other).encode(), EXCHANGE):
                code = ctypes.get_errno()
                raise OSError(code, os.strerror(code))
        self.call({name: self.files[other], other: self.files[name]}, swap)

    def link(self):
        name = self.pick()
        if name:
            second = self.new_name()
            self.call({second: self.files[name]}, os.link, self.path(name), self.path(second))

    def unlink(self):
        name = self.rng.choice(list(self.files)) if self.files else None
        if name:
            self.call({name: None}, os.unlink, self.path(name))

    def chmod(self):
        name = self.pick()
        if name:
            self.harmless(os.chmod, self.path(name), self.rng.choice([0o644, 0o444]))

    def pause(self):
        """Time for the packer."""
        time.sleep(self.rng.random() * 0.05)

    OPERATIONS = {download: 8, read: 6, write: 4, append: 2, map_write: 2, truncate: 2, rewrite: 2,
                  rename: 5, rename_over: 4, exchange: 1, link: 2, unlink: 3, chmod: 1, pause: 8}

    def run(self):
        operations, weights = zip(*self.OPERATIONS.items())
        while True:
            operation = self.rng.choices(operations, weights)[0]
            if len(self.regular()) > MOST_FILES:
                operation = Worker.unlink
            self.doing = operation.__name__
            operation(self)


def main(connection, *arguments):
    """Run in a process of its own; sends what it knows once the daemon has ended."""
    worker, problem = Worker(*arguments), None
    try:
        worker.run()
    except Ended:
        pass
    except Wrong as error:
        problem = str(error)
    connection.send({"files": worker.files, "pending": worker.pending, "times": worker.times,
                     "doing": worker.doing, "calls": worker.calls, "problem": problem})
    connection.close()
