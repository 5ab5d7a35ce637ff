#!/usr/bin/env python3
"""Power cuts, replayed: after each call of the daemon, with and without what no fsync has ordered.

    powercut.py --bsz PATH [--seed S] [--work DIR] [--only SCENARIO] [--quick]
    powercut.py --self-test

The daemon's calls are recorded in a few scenarios (powercut_record.py). For a cut after each of
them, changes that an fsync of their file or folder has covered are there; of the others, any may be
missing, and of a write any part. Each different directory that can come of this is made, read
below, mounted, and read again once recovery has had its time. What was promised to the client at
that moment must be there: all that it has fsynced, and of a call under way all or nothing.

Two orders are tried: `any`, where each name is on its own until its folder is fsynced, as POSIX
says; and `journal`, where names change in the order of the calls, as on ext4, XFS and btrfs.
"""
import argparse
import collections
import contextlib
import hashlib
import itertools
import os
import pathlib
import random
import subprocess
import sys
import time

import crash_worker
import powercut_record
import tools

A, B = tools.model("a", 20_000), tools.model("b", 20_000)
OTHER = bytes(range(256)) * 40
MOST_CHOICES = 200
RECOVERY_SECONDS = 20


class Promises:
    """What a client may find at each moment: a list of worlds, one of which must be there."""

    def __init__(self, files):
        self.files = dict(files)
        self.times = [(0.0, [dict(files)])]

    def begin(self, changes):
        """A call that may have happened from now on."""
        after = {**self.files, **changes}
        after = {name: content for name, content in after.items() if content is not None}
        self.times.append((time.time(), self.times[-1][1] + [after]))
        self.files = {name: content.after if isinstance(content, crash_worker.Between) else content
                      for name, content in after.items()}

    def synced(self):
        """All that was begun is there from now on."""
        self.times.append((time.time(), [dict(self.files)]))

    def between(self, start, end):
        """All lists of worlds in force at some time of this span."""
        current = [worlds for moment, worlds in self.times if moment <= start][-1:]
        return current + [worlds for moment, worlds in self.times if start < moment < end]


class Client:
    """Makes calls through the mount, and notes what they promise."""

    def __init__(self, store, files):
        self.store = store
        self.promises = Promises(files)

    def path(self, name):
        return os.path.join(self.store.directory, name)

    def pack(self, name):
        if not tools.wait_until(lambda: self.store.packed(name), 20):
            raise tools.Failed(f"{name} is not packed after 20 s")

    def write(self, name, start, data):
        before = self.promises.files[name]
        after = before[:start] + data + before[start + len(data):]
        handle = os.open(self.path(name), os.O_WRONLY)
        self.promises.begin({name: crash_worker.Between(before, after)})
        tools.write_all(handle, data, start)
        os.fsync(handle)
        self.promises.synced()
        os.close(handle)

    def truncate(self, name, length):
        before = self.promises.files[name]
        self.promises.begin({name: crash_worker.Between(before, before[:length])})
        os.truncate(self.path(name), length)
        handle = os.open(self.path(name), os.O_WRONLY)
        os.fsync(handle)
        self.promises.synced()
        os.close(handle)

    def make(self, name, data):
        self.promises.begin({name: crash_worker.Between(b"", data)})
        handle = os.open(self.path(name), os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        tools.write_all(handle, data, 0)
        os.fsync(handle)
        os.close(handle)
        self.sync_folder()

    def rename(self, old, new):
        self.promises.begin({old: None, new: self.promises.files[old]})
        os.rename(self.path(old), self.path(new))
        self.sync_folder()

    def unlink(self, name):
        self.promises.begin({name: None})
        os.unlink(self.path(name))
        self.sync_folder()

    def sync_folder(self):
        handle = os.open(self.store.directory, os.O_RDONLY | os.O_DIRECTORY)
        os.fsync(handle)
        os.close(handle)
        self.promises.synced()


# (packed files, plain files, whether the packer runs, calls)
SCENARIOS = {
    "swap in": ({}, {"f": A}, "now", lambda client: client.pack("f")),
    "make, swap in": ({}, {}, "now", lambda client: (client.make("f", A), client.pack("f"))),
    "write to packed": ({"f": A}, {}, "off", lambda client: client.write("f", 1000, b"x" * 9000)),
    "truncate packed": ({"f": A}, {}, "off", lambda client: client.truncate("f", 10_000)),
    "truncate packed to 0": ({"f": A}, {}, "off", lambda client: client.truncate("f", 0)),
    "packed over plain": ({"f": A}, {"h": OTHER}, "off", lambda client: client.rename("f", "h")),
    "packed over packed": ({"f": A, "h": B}, {}, "off", lambda client: client.rename("f", "h")),
    "plain over packed": ({"f": A}, {"h": OTHER}, "off", lambda client: client.rename("h", "f")),
    "packed to a free name": ({"f": A}, {}, "off", lambda client: client.rename("f", "h")),
    "unlink packed": ({"f": A}, {}, "off", lambda client: client.unlink("f")),
}


# Replaying.

def parts(change, rng):
    """Ways in which a change that no fsync covers can be there: functions, or None for not."""
    if change.span is None:
        return [None, change.apply or change.names]
    offset, data = change.span
    cut = rng.randrange(len(data) + 1) // 4096 * 4096

    def put(content):
        def apply(inode):
            inode.data.extend(bytes(max(0, offset + len(data) - len(inode.data))))
            inode.data[offset:offset + len(content)] = content
        return apply
    # Not at all, all, a first part, and the size without the data.
    return [None, change.apply, put(data[:cut]), put(b"")]


def choices(open_changes, order, rng, most):
    """Selections of what is there of changes that may be missing: lists of parts."""
    options = [parts(change, rng) for change in open_changes]
    total = 1
    for option in options:
        total *= len(option)
    if total <= most:
        selections = itertools.product(*options)
    else:
        everything = [option[1] for option in options]
        selections = [everything, [None] * len(options)]
        for i in range(len(options)):
            selections.append(everything[:i] + [None] + everything[i + 1:])
            selections.append([None] * i + [options[i][1]] + [None] * (len(options) - i - 1))
        selections += [[rng.choice(option) for option in options] for _ in range(most)]
    for selection in selections:
        if order == "any" or in_order(open_changes, selection):
            yield selection


def in_order(open_changes, selection):
    """Whether no name's change is there without all those of names before it."""
    kept = [part is not None for change, part in zip(open_changes, selection)
            if change.names is not None]
    return kept == sorted(kept, reverse=True)


class Replay:
    """All directories that a power cut can leave, each with the worlds that are allowed in it."""

    def __init__(self, recording, promises, order, seed, most=MOST_CHOICES):
        self.recording, self.promises, self.order = recording, promises, order
        self.rng, self.most = random.Random(seed), most

    def states(self):
        """{key: (names, inodes, [lists of worlds], where)}, each different directory once."""
        found = {}
        events = self.recording.events
        last = time.time() + 1e9
        for count in range(len(events) + 1):
            start = events[count - 1].end if count else 0.0
            end = events[count].start if count < len(events) else last
            lists = self.promises.between(start, max(start, end))
            for names, inodes in self.after(events[:count]):
                key = self.key(names, inodes)
                where = f"cut after call {count} of {len(events)}"
                if count:
                    where += f" ({getattr(events[count - 1], 'what', 'fsync')})"
                state = found.setdefault(key, (names, inodes, [], where))
                state[2].extend(worlds for worlds in lists if worlds not in state[2])
        return found

    def after(self, events):
        """(names, inodes) of each directory that a cut after these events can leave."""
        barriers = [event for event in events if isinstance(event, powercut_record.Barrier)]
        changes = [event for event in events if isinstance(event, powercut_record.Change)]
        safe = [any(barrier.covers(change) for barrier in barriers) for change in changes]
        open_changes = [change for change, kept in zip(changes, safe) if not kept]
        for selection in choices(open_changes, self.order, self.rng, self.most):
            selected = iter(selection)
            names = dict(self.recording.names)
            inodes = collections.defaultdict(powercut_record.Inode)
            inodes.update({number: inode.copy()
                           for number, inode in self.recording.inodes.items()})
            for change, kept in zip(changes, safe):
                part = (change.apply or change.names) if kept else next(selected)
                if part is None:
                    continue
                if change.names is None:
                    part(inodes[change.inode])
                    continue
                for path, number in part.items():
                    names[path] = number
            yield {path: number for path, number in names.items() if number is not None}, inodes

    def key(self, names, inodes):
        """Equal for equal directories; times of recent writes are left out."""
        text = hashlib.sha256()
        for path, number in sorted(names.items()):
            inode = inodes[number]
            text.update(repr((path, inode.mode, inode.link, bytes(inode.data),
                              sorted(inode.attributes.items()),
                              sorted(p for p, n in names.items() if n == number))).encode())
        return text.digest()


def materialise(directory, folders, names, inodes):
    """Make the directory."""
    for folder in folders:
        os.makedirs(os.path.join(directory, folder), exist_ok=True)
    made = {}
    for path, number in names.items():
        target, inode = os.path.join(directory, path), inodes[number]
        if number in made:
            os.link(made[number], target, follow_symlinks=False)
            continue
        made[number] = target
        if inode.link is not None:
            os.symlink(inode.link, target)
            continue
        pathlib.Path(target).write_bytes(inode.data)
        for name, value in inode.attributes.items():
            os.setxattr(target, name, value)
        os.chmod(target, inode.mode)
        os.utime(target, ns=(inode.mtime, inode.mtime))


def fits(found, worlds):
    """Whether a tree is one of these worlds."""
    return any(all(crash_worker.allows(world.get(name), found.get(name))
                   for name in world.keys() | found.keys()) for world in worlds)


def broken(where, found, lists):
    """Problems of a tree against all lists of worlds."""
    if all(fits(found, worlds) for worlds in lists):
        return []
    return [f"{where}: {({name: tools.describe(data) for name, data in sorted(found.items())})}"]


class Test:
    """One scenario: recorded once, replayed in both orders."""

    def __init__(self, report, bsz, folder, seed, quick):
        self.report, self.bsz, self.folder, self.seed = report, bsz, folder, seed
        self.most_states = 12 if quick else 10**6
        self.number = 0

    def new_directory(self):
        self.number += 1
        directory = os.path.join(self.folder, f"d{self.number}")
        os.mkdir(directory)
        return directory

    def record(self, packed, plain, pack, calls):
        """(recording, promises) of the daemon's calls."""
        directory = self.new_directory()
        for name, content in packed.items():
            self.write(directory, name, content)
        store = tools.Store(self.bsz, directory)
        try:
            if packed:
                store.mount("now")
                for name in packed:
                    Client(store, {}).pack(name)
                store.umount()
            for name, content in plain.items():
                self.write(directory, name, content)
            # What was there before is safe: it was written long ago.
            os.sync()
            before = powercut_record.snapshot(directory)
            log = directory + ".strace"
            client = Client(store, {**packed, **plain})
            store.mount(pack, prefix=powercut_record.strace(log))
            calls(client)
            # Something may follow the answer; nothing announces it.
            time.sleep(0.3)
            store.umount()
            return powercut_record.Recording(directory, before, log), client.promises
        finally:
            store.close()

    def write(self, directory, name, content):
        path = os.path.join(directory, name)
        pathlib.Path(path).write_bytes(content)
        os.utime(path, (time.time() - 3600,) * 2)

    def scenario(self, name):
        try:
            recording, promises = self.record(*SCENARIOS[name])
        except (tools.Failed, powercut_record.Unknown, OSError) as error:
            return self.report.fail(name, error)
        for order in ["any", "journal"]:
            states = list(Replay(recording, promises, order, self.seed).states().values())
            total = len(states)
            if total > self.most_states:
                states = random.Random(self.seed).sample(states, self.most_states)
            problems = []
            for state in states:
                problems += self.check(recording.folders, *state)
            self.report.check(f"{name}, {order} order: {len(recording.events)} calls, "
                              f"{len(states)} of {total} directories", problems)

    def check(self, folders, names, inodes, lists, where):
        """Problems of one directory: below, mounted, after recovery."""
        directory = self.new_directory()
        materialise(directory, folders, names, inodes)
        store = tools.Store(self.bsz, directory)
        problems = []
        try:
            problems += broken("below", tools.read_below(self.bsz, store.below), lists)
            store.recover()
            tools.wait_until(lambda: not self.unsettled(store), RECOVERY_SECONDS, 0.05)
            problems += self.unsettled(store)
            problems += broken("mounted", tools.read_tree(store.directory), lists)
            store.umount()
            problems += broken("after", tools.read_below(self.bsz, store.below), lists)
        except (tools.Failed, OSError) as error:
            problems.append(error)
        finally:
            store.close()
        if problems:
            there = ", ".join(f"{path} ({len(inodes[number].data)} bytes)"
                              for path, number in sorted(names.items()))
            return [f"{where}, with {there}: {'; '.join(map(str, problems))}"]
        subprocess.run(["rm", "-rf", directory, store.log], check=False)
        return []

    def unsettled(self, store):
        """What recovery has left, but for an archive beside a file that differs from it: nobody
        knows which is newer, so both may stay, as long as the right one is shown."""
        found = tools.forms(store.below)
        return [what for what in tools.unsettled(store.below)
                if not self.differ(found.get(what.split(" ")[0], {}))]

    def differ(self, all_forms):
        if set(all_forms) != {"", ".bsz"}:
            return False
        try:
            archive = pathlib.Path(all_forms[".bsz"]).read_bytes()
            return (tools.unpack(self.bsz, archive) !=
                    pathlib.Path(all_forms[""]).read_bytes())
        except FileNotFoundError:
            return False


# The replayer's own test, without any mount.

SWAP = """
import os, sys
folder = os.open(sys.argv[1], os.O_RDONLY)
new = os.open(".", os.O_TMPFILE | os.O_RDWR, 0o600, dir_fd=folder)
data = open(sys.argv[2], "rb").read()
os.write(new, data[:5000])
os.pwritev(new, [data[5000:6000], data[6000:]], 5000)
os.fchmod(new, 0o644)
{sync_file}
os.link(f"/proc/self/fd/{{new}}", "g", dst_dir_fd=folder, follow_symlinks=True)
{sync_folder}
os.unlink("f", dir_fd=folder)
os.rename("g", "h", src_dir_fd=folder, dst_dir_fd=folder)
"""


def swap_losses(folder, number, order, sync_file, sync_folder):
    """In how many directories the data is nowhere, after a swap by a script as above."""
    directory = os.path.join(folder, f"self-{number}")
    os.mkdir(directory)
    pathlib.Path(directory, "f").write_bytes(A)
    source = os.path.join(folder, "source")
    pathlib.Path(source).write_bytes(A)
    before = powercut_record.snapshot(directory)
    script = SWAP.format(sync_file="os.fsync(new)" if sync_file else "",
                         sync_folder="os.fsync(folder)" if sync_folder else "")
    log = directory + ".strace"
    subprocess.run([*powercut_record.strace(log), sys.executable, "-c", script, directory,
                    source], check=True)
    recording = powercut_record.Recording(directory, before, log)
    states = Replay(recording, Promises({}), order, 1).states()
    for names, inodes, _, _ in states.values():
        copy = os.path.join(folder, f"copy-{number}")
        materialise(copy, recording.folders, names, inodes)
        found = tools.read_tree(copy)
        if found != {path: bytes(inodes[number].data) for path, number in names.items()}:
            raise tools.Failed("what was made is not what was meant")
        subprocess.run(["rm", "-rf", copy], check=True)
    return len(states), sum(not any(bytes(inodes[number].data) == A for number in names.values())
                            for names, inodes, _, _ in states.values())


def self_test(report):
    """With both fsyncs nothing can be lost; without one of them something can."""
    cases = [("any", True, True, False), ("journal", True, True, False),
             ("any", True, False, True), ("journal", True, False, False),
             ("any", False, True, True), ("journal", False, True, True)]
    with tools.work_folder(report=report) as folder:
        for number, (order, sync_file, sync_folder, loses) in enumerate(cases):
            states, lost = swap_losses(folder, number, order, sync_file, sync_folder)
            name = (f"self-test, {order} order, {'with' if sync_file else 'without'} fsync of the "
                    f"file, {'with' if sync_folder else 'without'} fsync of the folder: "
                    f"{lost} of {states} directories lose the data")
            report.check(name, [] if bool(lost) == loses else ["that is wrong"])


def main():
    tools.start()
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--bsz", help="the program")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--work", help="where to put the directories (default: temporary files)")
    parser.add_argument("--only", help="only this scenario")
    parser.add_argument("--quick", action="store_true",
                        help="a sample of the directories, until 40 s are over")
    parser.add_argument("--self-test", action="store_true", help="test the replayer, not a mount")
    arguments = parser.parse_args()
    report = tools.Report()
    if arguments.self_test:
        self_test(report)
        report.exit()
    if not arguments.bsz:
        parser.error("needs --bsz or --self-test")
    tools.need_root()
    end = time.monotonic() + 40
    with tools.work_folder(arguments.work, report) as folder:
        test = Test(report, arguments.bsz, folder, arguments.seed, arguments.quick)
        for name in [arguments.only] if arguments.only else SCENARIOS:
            if not arguments.quick or time.monotonic() < end:
                test.scenario(name)
    report.exit()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
