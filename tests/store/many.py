#!/usr/bin/env python3
"""A store of 100,000 files: quick to mount, small in memory, and a directory like any other.

    many.py --bsz PATH [--files N] [--seed S] [--work DIR] [--json FILE] [--quick]

Makes a tree (many_tree.py), and a plain copy of it. Mounts a store over the tree, waits until all
that packs is packed, and mounts it again with nothing in the kernel's caches. Then the first answer
must come within a second and before the walk that follows a mount is done, and at rest the daemon
must have less than 64 MiB in memory.

After that find, rsync, du, tar, cp, diff and git are run on the plain copy and on the mount, which
must give the same results; only du must show less. Both times are printed. The first tool finds
empty caches, each other one what those before it have left there.

Packing changes the times of directories, which SEMANTICS.md says; those of the tree are set again
through the mount before anything is compared. --quick: 5,000 files.
"""
import argparse
import collections
import filecmp
import hashlib
import itertools
import json
import os
import pathlib
import shutil
import subprocess
import tarfile
import time

import many_tree
import tools

MOUNT_SECONDS = 1
REST_KIB = 64 << 10
PACK_SECONDS = 1800
# Lines of `git status` for what many_tree.py has changed since the commit.
CHANGES = 6
STATUS = "user.bsz.status"
STORED = "user.bsz.stored"


def drop_caches(what):
    """1: pages, 2: what is known of files, 3: both."""
    os.sync()
    pathlib.Path("/proc/sys/vm/drop_caches").write_text(str(what))


def install(programs):
    missing = [program for program in programs if not shutil.which(program)]
    if missing:
        subprocess.run(["apt-get", "update", "-q"], check=True, stdout=subprocess.DEVNULL)
        subprocess.run(["apt-get", "install", "-y", "-q", *missing], check=True,
                       stdout=subprocess.DEVNULL)


def packer(store):
    """What the packer says; unlike `bsz store status`, without a look at any file."""
    return json.loads(os.getxattr(store.directory, STATUS))["store"]


def ticks(store):
    """Processor time of the daemon."""
    fields = pathlib.Path(f"/proc/{store.daemon.pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def at_rest(store):
    """Wait until the walk is done, nothing is left to pack, and the daemon has slept for 2 s."""
    def has_packed():
        status = packer(store)
        return status["recovered"] and not status["queued"] and not status["packing"]

    if not tools.wait_until(has_packed, PACK_SECONDS, 0.02):
        raise tools.Failed(f"not at rest after {PACK_SECONDS} s: {packer(store)}")
    done = time.monotonic()
    before = None
    while before != (before := ticks(store)):
        time.sleep(2)
    return done


class Many:
    """A store, its plain copy, and the figures."""

    def __init__(self, report, store, tree, plain, folder):
        self.report, self.store, self.tree = report, store, tree
        self.plain, self.folder = plain, folder
        self.sides = {"plain": plain, "mount": store.directory}
        self.figures = {"memory_kib": {}, "seconds": {}, "failed": []}

    def check(self, name, problems):
        if problems:
            self.figures["failed"].append(name)
        self.report.check(name, problems)

    def memory(self, when):
        """Print what the daemon has in memory, in KiB, and return it."""
        text = pathlib.Path(f"/proc/{self.store.daemon.pid}/status").read_text()
        fields = dict(line.split(":", 1) for line in text.splitlines())
        found = {name: int(fields[name].split()[0]) for name in ["VmRSS", "RssAnon", "VmHWM"]}
        self.figures["memory_kib"][when] = found
        print(f"# memory {when}: {found['VmRSS'] / 1024:.1f} MiB, of which anonymous "
              f"{found['RssAnon'] / 1024:.1f}; at most {found['VmHWM'] / 1024:.1f}", flush=True)
        return found

    def pack(self):
        """Mount, pack all, and compare what is packed with what should be."""
        started = time.monotonic()
        self.store.mount("now", 0, "1")
        done = at_rest(self.store)
        self.figures["pack_seconds"] = done - started
        print(f"# packed {packer(self.store)['packed']} files in {done - started:.1f} s")
        self.memory("after packing")
        found = subprocess.run([self.store.bsz, "store", "status", "--json", self.store.directory],
                               check=True, capture_output=True).stdout
        status = json.loads(found)[0]
        self.figures["status"] = {name: status[name] for name in
                                  ["packed", "original_bytes", "stored_bytes", "saved_bytes"]}
        expected, stays = self.tree.packs, self.tree.stays
        problems = [f"not packed: {name!r}" for name in sorted(expected) if not self.packed(name)]
        problems += [f"packed: {name!r}" for name in sorted(stays) if self.packed(name)]
        if status["packed"] != len(expected):
            problems.append(f"{status['packed']} files are packed instead of {len(expected)}")
        if status["store"]["failed"]:
            problems.append(f"failed attempts: {status['store']}")
        self.check("all that packs is packed", problems)
        for folder, _, _ in os.walk(self.plain):
            stat = os.stat(folder)
            path = os.path.join(self.store.directory, os.path.relpath(folder, self.plain))
            os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        self.umount()

    def packed(self, name):
        try:
            return bool(os.getxattr(os.path.join(self.store.directory, name), STORED))
        except OSError:
            return False

    def umount(self):
        if code := self.store.umount():
            raise tools.Failed(f"exit code {code} after umount")

    def mount(self):
        """Mount with empty caches: the first answer, the walk, and memory once it is done."""
        drop_caches(3)
        deep = os.path.join(self.store.directory, sorted(self.tree.packs)[-1])
        started = time.monotonic()
        self.store.mount("now", 0, "1")
        mounted = time.monotonic()
        os.stat(deep)
        answered = time.monotonic()
        walking = not packer(self.store)["recovered"]
        walked = at_rest(self.store)
        times = {"mounted": mounted - started, "first_stat": answered - started,
                 "walked": walked - started}
        self.figures["mount_seconds"] = times
        print(f"# mounted after {times['mounted']:.3f} s, first stat after "
              f"{times['first_stat']:.3f} s, walk done after {times['walked']:.3f} s")
        self.check("mounted within a second",
                   [] if times["first_stat"] < MOUNT_SECONDS else [times])
        self.check("the first answer does not wait for the walk",
                   [] if walking else ["the walk was done before the first stat"])
        rest = self.memory("at rest")
        self.check("64 MiB at rest",
                   [] if rest["VmRSS"] < REST_KIB else [f"{rest['VmRSS']} KiB"])

    def run(self, tool, command, against=None, codes=(0,)):
        """Run a command on both sides, in each as its working folder, and print the times.

        Of the words of the command, {side} and {folder} are replaced, and {against} by the value
        for the side. Returns the names of files with the output, by side.
        """
        outputs, seconds = {}, {}
        for side, source in self.sides.items():
            words = [word.format(side=side, folder=self.folder, against=(against or {}).get(side))
                     for word in command]
            outputs[side] = os.path.join(self.folder, f"output-{side}")
            started = time.monotonic()
            with open(outputs[side], "wb") as out:
                done = subprocess.run(words, cwd=source, stdout=out, stderr=subprocess.PIPE,
                                      check=False, env=os.environ | many_tree.GIT)
            seconds[side] = time.monotonic() - started
            if done.returncode not in codes or done.stderr:
                said = done.stderr.decode(errors="replace")[-300:]
                self.check(f"{tool}, {side}", [f"exit code {done.returncode}: {said}"])
        self.figures["seconds"][tool] = seconds
        plain, mount = seconds["plain"], seconds["mount"]
        print(f"# {tool:24} plain {plain:7.2f} s, mounted {mount:7.2f} s: {mount / plain:5.1f}",
              flush=True)
        return outputs

    def nothing(self, name, outputs):
        """Check that a tool that shows differences has shown none, on either side."""
        self.check(name, [f"{side}: {line!r}" for side, path in outputs.items()
                          for line in pathlib.Path(path).read_bytes().splitlines()])

    def tools(self):
        drop_caches(3)
        for step in [self.find, self.du, self.rsync, self.tar, self.cp, self.git]:
            step()

    def find(self):
        """All names and attributes but those that belong to the file system, as its blocks."""
        outputs = self.run("find", ["find", ".", "-type", "d", "-printf", r"d %P %m %U %G %n %T@\0",
                                    "-o", "-printf", r"%y %P %m %U %G %n %s %T@ %l\0"])
        plain, mount = (collections.Counter(pathlib.Path(path).read_bytes().split(b"\0"))
                        for path in outputs.values())
        self.figures["names"] = plain.total() - 1
        print(f"# {plain.total() - 1} names")
        self.check("find", [f"only plain: {line!r}" for line in plain - mount]
                   + [f"only mounted: {line!r}" for line in mount - plain])

    def du(self):
        outputs = self.run("du -s", ["du", "-s", "--block-size=1", "."])
        used = {side: int(pathlib.Path(path).read_text().split()[0])
                for side, path in outputs.items()}
        self.figures["du_bytes"] = used
        print(f"# du: plain {used['plain'] / 1e6:.1f} MB, mounted {used['mount'] / 1e6:.1f} MB")
        self.check("du shows less", [] if used["mount"] < used["plain"] else [used])

    def rsync(self):
        """A copy of each side, and dry runs that compare: each must list nothing."""
        copies = {side: os.path.join(self.folder, f"rsync-{side}") for side in self.sides}
        self.run("rsync -aH", ["rsync", "-aH", "./", "{against}/"], copies)
        against = {"plain": copies["mount"], "mount": self.plain}
        compare = ["--delete", "./", "{against}/"]
        self.nothing("rsync -ain", self.run("rsync -ainH", ["rsync", "-ainH", *compare], against))
        # Of the mount's copy, also the bytes.
        outputs = self.run("rsync -aincH", ["rsync", "-aincH", *compare], against)
        self.nothing("rsync -ainc", outputs)
        self.remove(copies)

    def tar(self):
        for tool, options in [("tar", []), ("tar --sparse", ["--sparse"])]:
            outputs = self.run(tool, ["tar", "--create", "--sort=name", *options, "."])
            self.check(tool, streams(*outputs.values()))
            self.remove(outputs)

    def cp(self):
        copies = {side: os.path.join(self.folder, f"cp-{side}") for side in self.sides}
        self.run("cp -r", ["cp", "-r", "--reflink=auto", ".", "{against}"], copies)
        against = {"plain": copies["mount"], "mount": self.plain}
        self.nothing("diff -r", self.run("diff -r", ["diff", "-r", "--no-dereference", ".",
                                                     "{against}"], against, codes=(0, 1)))
        self.remove(copies)

    def git(self):
        """Twice: the first time git notes what the files are in this copy."""
        for tool in ["git status", "git status, again", "git fsck"]:
            words = ["fsck", "--full"] if tool == "git fsck" else ["status", "--porcelain"]
            outputs = self.run(tool, ["git", "-C", "repo", *words])
            plain, mount = (pathlib.Path(path).read_text() for path in outputs.values())
            self.check(tool, [] if plain == mount else [f"{mount!r} instead of {plain!r}"])
            if tool == "git status" and mount.count("\n") != CHANGES:
                self.check("git status sees the changes", [mount])

    def remove(self, paths):
        for path in paths.values():
            if os.path.isdir(path):
                shutil.rmtree(path)
            else:
                os.unlink(path)


def streams(plain, mount):
    """Problems of a tar stream against another, by content: that of --sparse says where a file has
    holes, which a packed one has not."""
    if filecmp.cmp(plain, mount, shallow=False):
        return []
    problems, members = [], 0
    with tarfile.open(plain) as one, tarfile.open(mount) as other:
        for pair in itertools.zip_longest(one, other):
            described = [describe(tar, member) for tar, member in zip([one, other], pair)]
            if described[0] != described[1]:
                problems.append(f"{described[1]} instead of {described[0]}")
            members += 1
            # Else tarfile keeps all that it has read.
            one.members, other.members = [], []
    print(f"# the streams differ in form; of {members} members, {len(problems)} in content")
    return problems


def describe(tar, member):
    if member is None:
        return None
    digest = None
    if member.isreg():
        with tar.extractfile(member) as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    return (member.name, member.isreg() or member.type, member.mode, member.uid, member.gid,
            member.mtime, member.linkname, member.size, digest)


def test(report, args, folder):
    directory, plain = os.path.join(folder, "d"), os.path.join(folder, "plain")
    os.mkdir(directory)
    started = time.monotonic()
    tree = many_tree.Tree(directory, args.files, args.seed)
    tree.build()
    subprocess.run(["cp", "-a", directory, plain], check=True)
    print(f"# made {tree.made} files, {len(tree.packs)} of which pack, and a copy, in "
          f"{time.monotonic() - started:.1f} s", flush=True)
    store = tools.Store(args.bsz, directory)
    many = Many(report, store, tree, plain, folder)
    many.figures["files"] = tree.made
    try:
        many.pack()
        many.mount()
        many.tools()
        many.memory("after the tools")
        drop_caches(2)
        at_rest(store)
        many.memory("after drop_caches")
        many.umount()
        many.check("no panics", store.panics())
    except tools.Failed as error:
        many.check("many", [error])
    finally:
        store.close()
        if args.json:
            pathlib.Path(args.json).write_text(json.dumps(many.figures, indent=2) + "\n")


def main():
    tools.start()
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--bsz", required=True, help="the program")
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--work", help="where to put the directories (default: temporary files)")
    parser.add_argument("--json", help="write the figures to this file")
    parser.add_argument("--quick", action="store_true", help="5,000 files")
    arguments = parser.parse_args()
    tools.need_root()
    if arguments.quick:
        arguments.files = 5000
    install(["rsync", "git"])
    report = tools.Report()
    with tools.work_folder(arguments.work, report) as folder:
        test(report, arguments, folder)
    report.exit()


if __name__ == "__main__":
    main()
