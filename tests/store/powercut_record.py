"""Records what a daemon does to a directory: its system calls, with all data, through strace.

Only small directories are recorded, so the log may hold every byte. A call that changes the
directory in a way that this file does not know is an error, not a gap.

What a descriptor is of is found from the calls that made it. strace could print that (-y), but for
this it looks the path up: in the mount, whose daemon it has just stopped.
"""
import collections
import os
import re
import stat

from strace_log import (IGNORED, Unknown, leaders, plain, read_calls, split, strace, string)

OWN = re.compile(r"^/proc/(?:self|\d+)/fd/(\d+)(?:/(.*))?$")


class Descriptors:
    """A process's table."""

    def __init__(self):
        # {descriptor: inode number, or folder}, below the root only; {descriptor: absolute path}.
        self.open, self.paths = {}, {}
        # {descriptor: whether it has O_APPEND}; {descriptor: where the next write() goes}.
        self.appending, self.offsets = {}, {}


class Inode:
    """A file's content and attributes."""

    def __init__(self, data=b"", mode=0o600, mtime=0, attributes=None, link=None):
        self.data, self.mode, self.mtime, self.link = bytearray(data), mode, mtime, link
        self.attributes = dict(attributes or {})

    def copy(self):
        return Inode(self.data, self.mode, self.mtime, self.attributes, self.link)


class Change:
    """What one call did. Exactly one of inode (of its data or attributes) and names is set.

    names: {path: inode number, or None}, applied as one; inode: its number, and apply(Inode).
    """

    def __init__(self, call, names=None, inode=None, apply=None, span=None):
        self.start, self.end, self.what = call.start, call.end, call.name
        self.names, self.inode, self.apply = names, inode, apply
        # (offset, length) of a write, which can be done in part.
        self.span = span

    def folders(self):
        return {os.path.dirname(path) for path in self.names}


class Barrier:
    """A finished fsync: of an inode, of a folder, or (all None) of everything."""

    def __init__(self, call, inode=None, folder=None, data_only=False):
        self.start, self.end = call.start, call.end
        self.inode, self.folder, self.data_only = inode, folder, data_only

    def covers(self, change):
        if change.end > self.start:
            return False
        if self.inode is None and self.folder is None:
            return True
        if change.names is not None:
            # A name in two folders counts as kept with either, as a rename is one transaction.
            return self.folder in change.folders()
        attributes_only = change.span is None and change.what not in ("ftruncate", "fallocate")
        return change.inode == self.inode and not (self.data_only and attributes_only)


def snapshot(directory):
    """({path relative to the directory: inode number}, {number: Inode}, folders)."""
    names, inodes, folders = {}, {}, [""]
    for folder, inside, files in os.walk(directory):
        relative = os.path.relpath(folder, directory)
        relative = "" if relative == "." else relative
        folders += [os.path.join(relative, name) for name in inside]
        for name in files:
            path = os.path.join(folder, name)
            status = os.lstat(path)
            names[os.path.join(relative, name)] = status.st_ino
            if stat.S_ISLNK(status.st_mode):
                inodes[status.st_ino] = Inode(link=os.readlink(path))
                continue
            with open(path, "rb") as file:
                inodes[status.st_ino] = Inode(
                    file.read(), stat.S_IMODE(status.st_mode), status.st_mtime_ns,
                    {name: os.getxattr(path, name) for name in os.listxattr(path)})
    return names, inodes, folders


class Recording:
    """The changes and barriers of a log, on top of a snapshot made before."""

    def __init__(self, directory, before, log):
        self.root = os.path.realpath(directory)
        self.names, self.inodes, self.folders = before
        self.live = dict(self.names)
        self.new = 0
        self.events, self.stamps = [], []
        calls = read_calls(log)
        self.leaders = leaders(calls)
        # Processes that the daemon starts do not touch the directory, so that each begins anew.
        self.tables = collections.defaultdict(Descriptors)
        for call in calls:
            self.table = self.tables[self.leaders.get(call.thread, call.thread)]
            self.take(call)

    # Arguments.

    def relative(self, path):
        """Path below the root, or None for one elsewhere."""
        path = os.path.normpath(path)
        if path == self.root:
            return ""
        return path[len(self.root) + 1:] if path.startswith(self.root + "/") else None

    def absolute(self, folder, argument):
        """Path of a (directory descriptor, name) pair."""
        name = string(argument).decode()
        own = OWN.match(name)
        if own:
            return os.path.join(self.table.paths.get(int(own[1]), "/?"), own[2] or "")
        # The daemon starts in our own working directory.
        base = os.getcwd() if folder == "AT_FDCWD" else self.table.paths.get(int(folder), "/?")
        return os.path.normpath(os.path.join(base, name))

    def path(self, folder, argument):
        """The same below the root, or None."""
        return self.relative(self.absolute(folder, argument))

    def descriptor(self, argument):
        """What a descriptor is of: inode number, a folder's path, or None if not of the root's."""
        return self.table.open.get(int(argument)) if argument.isdigit() else None

    def file(self, argument):
        found = self.descriptor(argument)
        return found if isinstance(found, int) else None

    # Calls.

    def take(self, call):
        if call.name in IGNORED:
            return
        handler = getattr(self, "on_" + call.name, None)
        if handler:
            handler(call, *call.arguments)
        elif any(map(self.inside, call.arguments)):
            raise Unknown(f"{call.name}{call.arguments}"[:200])

    def inside(self, argument):
        """Whether an argument is a descriptor or an absolute path of the recorded directory."""
        if argument.startswith('"/') or argument.startswith('"\\x2f'):
            return self.path("AT_FDCWD", argument) is not None
        return self.descriptor(argument) is not None

    def change(self, call, **what):
        self.events.append(Change(call, **what))

    def rename_names(self, call, names):
        self.change(call, names=names)
        for path, number in names.items():
            if number is None:
                self.live.pop(path, None)
            else:
                self.live[path] = number

    def on_open(self, call, path, flags, *_):
        self.opened(call, "AT_FDCWD", path, flags)

    def on_openat(self, call, folder, path, flags, *mode):
        self.opened(call, folder, path, flags)
        number = self.table.open.get(call.result)
        if mode and "O_CREAT" in flags and isinstance(number, int):
            # A store has no umask.
            self.inodes[number].mode = int(mode[0], 8)

    def on_openat2(self, call, folder, path, how, *_):
        self.opened(call, folder, path, re.search(r"flags=([A-Z_|0-9a-z]+)", how)[1])

    def on_close(self, _call, descriptor):
        self.table.open.pop(int(descriptor), None)
        self.table.paths.pop(int(descriptor), None)

    def opened(self, call, folder, argument, flags):
        self.table.open.pop(call.result, None)
        self.table.paths[call.result] = self.absolute(folder, argument)
        path = self.path(folder, argument)
        own = OWN.match(string(argument).decode())
        if own and not own[2]:
            # The same file again, whatever its name is now.
            number = self.table.open.get(int(own[1]))
            if isinstance(number, int):
                self.reopened(call, number, flags.split("|"))
                return
        if path is None:
            return
        flags = flags.split("|")
        if "O_TMPFILE" in flags:
            self.table.open[call.result] = self.fresh()
        elif path in self.live:
            self.reopened(call, self.live[path], flags)
        elif "O_CREAT" in flags:
            number = self.fresh()
            self.rename_names(call, {path: number})
            self.table.open[call.result] = number
        else:
            self.table.open[call.result] = path
        self.table.appending[call.result] = "O_APPEND" in flags
        self.table.offsets[call.result] = 0

    def reopened(self, call, number, flags):
        self.table.open[call.result] = number
        self.table.appending[call.result] = "O_APPEND" in flags
        self.table.offsets[call.result] = 0
        if "O_TRUNC" in flags:
            self.truncate(call, number, 0)

    def fresh(self):
        self.new -= 1
        self.inodes[self.new] = Inode()
        return self.new

    def on_dup(self, call, old, *_):
        number = int(old)
        self.table.open[call.result] = self.table.open.get(number)
        self.table.paths[call.result] = self.table.paths.get(number)
        self.table.appending[call.result] = self.table.appending.get(number)

    on_dup2 = on_dup3 = on_dup

    def on_fcntl(self, call, old, command, *_):
        if command.startswith("F_DUPFD"):
            self.on_dup(call, old)

    def stamp(self, call):
        """The time that a write gives its file; it may become more exact later."""
        self.stamps.append([int(call.start * 1e9)])
        return self.stamps[-1]

    def wrote(self, call, number, offset, data):
        stamp = self.stamp(call)

        def apply(inode):
            missing = offset - len(inode.data)
            if missing > 0:
                inode.data.extend(bytes(missing))
            inode.data[offset:offset + len(data)] = data
            inode.mtime = stamp[0]
        self.change(call, inode=number, apply=apply, span=(offset, data))

    def sequential(self, call, argument, data):
        number = self.file(argument)
        if number is None:
            return
        descriptor = int(argument)
        offset = (self.size(number) if self.table.appending.get(descriptor)
                  else self.table.offsets.get(descriptor, 0))
        self.wrote(call, number, offset, data[:call.result])
        self.table.offsets[descriptor] = offset + call.result

    def size(self, number):
        """Size of the file after all changes up to now."""
        copy = self.inodes[number].copy()
        for event in self.events:
            if isinstance(event, Change) and event.inode == number:
                event.apply(copy)
        return len(copy.data)

    def vector(self, argument):
        return b"".join(plain(part) for part in re.findall(r'iov_base="((?:\\x..)*)"', argument))

    def on_write(self, call, descriptor, data, *_):
        if self.file(descriptor) is not None:
            self.sequential(call, descriptor, string(data))

    def on_writev(self, call, descriptor, vector, *_):
        if self.file(descriptor) is not None:
            self.sequential(call, descriptor, self.vector(vector))

    def on_pwrite64(self, call, descriptor, data, _length, offset):
        if self.file(descriptor) is not None:
            self.wrote(call, self.file(descriptor), int(offset), string(data)[:call.result])

    def on_pwritev(self, call, descriptor, vector, _count, offset, *_):
        if self.file(descriptor) is not None:
            self.wrote(call, self.file(descriptor), int(offset),
                       self.vector(vector)[:call.result])

    on_pwritev2 = on_pwritev

    def truncate(self, call, number, length):
        stamp = self.stamp(call)

        def apply(inode):
            inode.data.extend(bytes(max(0, length - len(inode.data))))
            del inode.data[length:]
            inode.mtime = stamp[0]
        self.change(call, inode=number, apply=apply)

    def on_ftruncate(self, call, descriptor, length):
        if self.file(descriptor) is not None:
            self.truncate(call, self.file(descriptor), int(length))

    def on_truncate(self, call, path, length):
        number = self.named("AT_FDCWD", path)
        if number is not None:
            self.truncate(call, number, int(length))

    def on_fallocate(self, call, descriptor, mode, offset, length):
        number = self.file(descriptor)
        if number is None:
            return
        end = int(offset) + int(length)
        if mode == "0":
            def apply(inode):
                inode.data.extend(bytes(max(0, end - len(inode.data))))
            self.change(call, inode=number, apply=apply)
        elif mode != "FALLOC_FL_KEEP_SIZE":
            raise Unknown(f"fallocate {mode}")

    def on_linkat(self, call, folder, path, to, name, *flags):
        if string(path) == b"":
            number = self.file(folder)
        else:
            number = self.named(folder, path)
        target = self.path(to, name)
        if target is None:
            return
        if not isinstance(number, int):
            raise Unknown(f"link of what was not seen to be opened: {target}")
        self.rename_names(call, {target: number})

    def on_link(self, call, path, name):
        self.on_linkat(call, "AT_FDCWD", path, "AT_FDCWD", name)

    def on_renameat2(self, call, folder, path, to, name, flags="0"):
        old, new = self.path(folder, path), self.path(to, name)
        if old is None and new is None:
            return
        if old not in self.live:
            raise Unknown(f"rename of {old}, which is no file")
        if "RENAME_EXCHANGE" in flags:
            return self.rename_names(call, {old: self.live[new], new: self.live[old]})
        self.rename_names(call, {old: None, new: self.live[old]})

    def on_renameat(self, call, folder, path, to, name):
        self.on_renameat2(call, folder, path, to, name)

    def on_rename(self, call, path, name):
        self.on_renameat2(call, "AT_FDCWD", path, "AT_FDCWD", name)

    def on_unlinkat(self, call, folder, path, *_):
        gone = self.path(folder, path)
        if gone in self.live:
            self.rename_names(call, {gone: None})

    def on_unlink(self, call, path):
        self.on_unlinkat(call, "AT_FDCWD", path)

    def attributes(self, call, number, apply):
        if number is not None:
            self.change(call, inode=number, apply=apply)

    def named(self, folder, path):
        """The inode of a name, also through /proc/self/fd."""
        match = OWN.match(string(path).decode())
        match = match if match and not match[2] else None
        found = (self.table.open.get(int(match[1])) if match
                 else self.live.get(self.path(folder, path)))
        return found if isinstance(found, int) else None

    def on_fchmod(self, call, descriptor, mode):
        self.attributes(call, self.file(descriptor),
                        lambda inode: setattr(inode, "mode", int(mode, 8)))

    def on_fchmodat(self, call, folder, path, mode, *_):
        self.attributes(call, self.named(folder, path),
                        lambda inode: setattr(inode, "mode", int(mode, 8)))

    def on_chmod(self, call, path, mode):
        self.on_fchmodat(call, "AT_FDCWD", path, mode)

    on_fchmodat2 = on_fchmodat

    def on_utimensat(self, call, folder, path, times, *_):
        number = self.file(folder) if path in ("NULL", '""') else self.named(folder, path)
        stamp = self.modified(times)
        if number is None or stamp is None:
            return
        if stamp == "now":
            stamp = int(call.start * 1e9)
        else:
            self.adopt(stamp)
        self.attributes(call, number, lambda inode: setattr(inode, "mtime", stamp))

    def modified(self, times):
        """The second of two times: nanoseconds, "now", or None for unchanged."""
        if times == "NULL" or "UTIME_NOW" in split(times[1:-1])[1]:
            return "now"
        match = re.search(r"tv_sec=(\d+), tv_nsec=(\d+)", split(times[1:-1])[1])
        return int(match[1]) * 10**9 + int(match[2]) if match else None

    def adopt(self, stamp):
        """The log has no times of files. But an archive gets that of its original, which so is the
        true time of the write that comes closest."""
        closest = min(self.stamps, key=lambda other: abs(other[0] - stamp), default=[0])
        if abs(closest[0] - stamp) < 2 * 10**7:
            closest[0] = stamp

    def on_fsetxattr(self, call, descriptor, name, value, *_):
        self.attributes(call, self.file(descriptor), lambda inode: inode.attributes.__setitem__(
            string(name).decode(), string(value)))

    def on_setxattr(self, call, path, name, value, *_):
        self.attributes(call, self.named("AT_FDCWD", path),
                        lambda inode: inode.attributes.__setitem__(string(name).decode(),
                                                                   string(value)))

    def on_fremovexattr(self, call, descriptor, name):
        self.attributes(call, self.file(descriptor),
                        lambda inode: inode.attributes.pop(string(name).decode(), None))

    def on_removexattr(self, call, path, name):
        self.attributes(call, self.named("AT_FDCWD", path),
                        lambda inode: inode.attributes.pop(string(name).decode(), None))

    def on_fsync(self, call, descriptor):
        found = self.descriptor(descriptor)
        if isinstance(found, int):
            self.events.append(Barrier(call, inode=found,
                                       data_only=call.name == "fdatasync"))
        elif found is not None:
            self.events.append(Barrier(call, folder=found))

    on_fdatasync = on_fsync

    def on_sync(self, call, *_):
        self.events.append(Barrier(call))

    on_syncfs = on_sync
