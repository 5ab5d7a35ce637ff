#!/usr/bin/env python3
"""A disk that fills: writers get ENOSPC only when it is full without us, and everything is exact.

    full.py --bsz PATH [--seed S] [--only SCENARIO] [--on DISK] [--work DIR] [--quick]

On small real file systems (full_disk.py), as root and as a user who may not use reserved blocks:

| scenario | what |
|---|---|
| download | models are downloaded until the disk is full; never fewer bytes than without a store; |
| | after some are removed, packing resumes |
| beside | calls that need space while an archive is being written get the space of the archive |
| unpack | writing to a packed file without room for the plain one fails, and leaves nothing |
| calls | all other calls on a full disk: as on the bare directory, or they succeed |
| kill | kill -9 on a full disk, in the middle of packing and unpacking, and at each step |
| disable | `bsz store disable` refuses without room, and the store goes on |
"""
import argparse
import contextlib
import errno
import itertools
import os
import random
import resource
import time

import full_disk
import tools
from full_disk import MIB, call
from full_packed import Packed
from full_place import Place, allocate, patch, patch_mapped, save, sha

# (name, file system, user)
DISKS = [("ext4", "ext4", None), ("ext4-reserved", "ext4-reserved", None),
         ("ext4-reserved-user", "ext4-reserved", "nobody"), ("xfs", "xfs", None),
         ("xfs-user", "xfs", "nobody"), ("btrfs", "btrfs", None), ("btrfs-user", "btrfs", "nobody")]
# What --quick does on these.
QUICK = {"ext4": ["download", "beside", "unpack", "calls", "kill", "disable"],
         "ext4-reserved-user": ["beside", "unpack", "calls"]}
# One write of a download.
PIECE = 256 << 10
# What two fills of equal disks may differ by: a file system allocates metadata as it likes.
SLACK = {"ext4": 256 << 10, "xfs": MIB, "btrfs": 8 * MIB}
# The packer leaves a full disk alone for 10 s, and tries what has failed again after 30 s.
RESUME_SECONDS = 45
# Two of the first two are what the packer wants to be free: its reserve of 64 MiB and one file.
LARGE, SMALL = 80 * MIB, 16 * MIB


def content(seed, number):
    return tools.model(f"{seed}-{number}", (LARGE if number < 2 else SMALL) // 2)


def name_of(number):
    return f"m{number:02}.safetensors"


def download(directory, seed, free, pace=None):
    """Downloads models until the disk is full for writes of a piece and then of a page. Before each
    model, `pace` waits: downloads are slower than this.

    {"files": {name: length}, "first": bytes at the first ENOSPC, "free": free space then,
    "total": all bytes, "sync": whether what was written could be synced}
    """
    done = {"files": {}, "first": None, "free": None, "total": 0, "sync": "ok"}
    for number in itertools.count():
        data = memoryview(content(seed, number))
        if pace:
            pace()
        try:
            handle = os.open(f"{directory}/{name_of(number)}", os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            return done
        length, piece = 0, PIECE
        while length < len(data) and piece:
            try:
                written = os.pwrite(handle, data[length:length + piece], length)
                length += written
                done["total"] += written
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                if done["first"] is None:
                    done["first"] = done["total"]
                    # Whatever the packer still had is free by then.
                    time.sleep(2)
                    done["free"] = free()
                else:
                    piece = 4096 if piece > 4096 else 0
        done["files"][name_of(number)] = length
        try:
            os.fsync(handle)
        except OSError as error:
            done["sync"] = errno.errorcode[error.errno]
        os.close(handle)
        if length < len(data):
            return done
    return done


class Test(Packed):
    """All scenarios on one kind of disk."""

    def __init__(self, report, bsz, folder, disk, seed, quick):
        self.report, self.bsz, self.folder = report, bsz, folder
        self.name, self.kind, self.user = disk
        self.seed, self.quick = seed, quick
        self.size = full_disk.QUICK_SIZE if quick else full_disk.SIZE
        self.rng = random.Random(f"{seed} {self.name}")
        self.slack = SLACK[self.kind.split("-", maxsplit=1)[0]]
        self.numbers = itertools.count()
        self.places, self.contents, self.failed = [], {}, {}

    @contextlib.contextmanager
    def place(self, bare=False):
        place = Place(self, "none" if bare else self.bsz)
        try:
            yield place
        finally:
            place.close()

    def check(self, what, problems):
        self.report.check(f"{self.name} seed {self.seed}: {what}", problems)

    # download

    def download(self):
        """Returns what is to be done at the end: to see whether packing has resumed."""
        with self.place(bare=True) as bare:
            plain = call(self.user, download, bare.disk.directory, self.seed, bare.disk.free)
        if plain.outcome != "ok":
            raise tools.Failed(f"the bare directory: {plain.outcome}")
        place = Place(self, self.bsz)
        self.places.append(place)
        return self.download_stored(place, plain.result)

    def download_stored(self, place, plain):
        place.mount()
        done = call(self.user, download, place.disk.directory, self.seed, place.disk.free,
                    place.pace)
        if done.outcome != "ok":
            raise tools.Failed(f"a download: {done.outcome}")
        found = done.result
        print(f"# {self.name}: {found['first']} bytes until the disk was full with {found['free']} "
              f"free, then {found['total'] - found['first']}; without a store {plain['first']}, "
              f"{plain['free']} free, {plain['total'] - plain['first']}", flush=True)
        problems = []
        if found["total"] < plain["total"] - self.slack:
            problems.append(f"{found['total']} bytes, {plain['total']} without a store")
        if found["free"] > plain["free"] + PIECE + self.slack:
            problems.append(f"ENOSPC with {found['free']} bytes free")
        late, late_plain = (one["total"] - one["first"] for one in [found, plain])
        if late > late_plain + PIECE + self.slack:
            problems.append(f"{late} bytes more could be written after ENOSPC")
        if found["sync"] != plain["sync"]:
            problems.append(f"fsync: {found['sync']} instead of {plain['sync']}")
        self.check("a writer gets ENOSPC when the disk is full", problems)
        for number, (name, length) in enumerate(found["files"].items()):
            place.files[name] = {sha(content(self.seed, number)[:length])}
        packed = {name for name in place.files if place.store.packed(name)}
        self.check("all is exact on the full disk",
                   place.problems() + ([] if packed else [f"nothing is packed: {place.status()}"]))
        names = [name_of(number) for number in range(2)]
        plain_left = set(place.files) - packed - set(names)
        for name in names:
            if place.call(os.unlink, place.path(name)) != "ok":
                raise tools.Failed(f"{name} cannot be removed")
            del place.files[name]
        removed = time.time()

        def resumed():
            left = removed + RESUME_SECONDS - time.time()
            more = tools.wait_until(lambda: any(map(place.store.packed, plain_left)), left, 0.2)
            problems = [] if more else [f"nothing more packed {RESUME_SECONDS} s after there was "
                                        f"room for it: {place.status()}"]
            self.check("packing resumes when there is room", problems + place.problems())
        return resumed

    # beside

    def beside(self):
        big = tools.model(f"{self.seed}-big", 24 * MIB)
        small = tools.model(f"{self.seed}-small", 256 << 10)
        calls = {
            "pwrite": (patch, "old.bin", 4096, b"x" * MIB),
            "append": (patch, "old.bin", 0, b"y" * MIB, os.O_APPEND),
            "a new file": (save, "new.bin", b"z" * 100_000),
            "fallocate": (allocate, "allocated.bin", 0, MIB),
            "mmap of a hole": (patch_mapped, "holes.bin", 0, b"m" * 4096),
            "truncate, and write": (os.truncate, "small.safetensors", 100_000),
            "a write that unpacks": (patch, "small2.safetensors", 1000, b"w" * 1000),
            "mkdir": (os.mkdir, "made"),
            "a long symlink": (os.symlink, "to/" + "s" * 1000),
            "a large xattr": (os.setxattr, "old.bin", "user.large", b"v" * 3000),
        }
        with self.place() as place:
            place.mount()
            place.save("old.bin", b"o" * 4096)
            place.save("holes.bin", b"")
            os.truncate(place.path("holes.bin"), MIB)
            for name in ["small.safetensors", "small2.safetensors"]:
                place.save(name, small)
            place.packed("small.safetensors", "small2.safetensors")
            place.command("pause")
            place.save("big.safetensors", big)
            quick = self.rng.sample([*calls], 4)
            for what, (function, *arguments) in calls.items():
                if self.quick and what not in quick:
                    continue
                self.beside_call(place, what, function, arguments)
            place.store.umount()
            place.recover()
            written = small[:1000] + b"w" * 1000 + small[2000:]
            place.files = {"big.safetensors": {sha(big)},
                           "small.safetensors": {sha(small[:100_000])},
                           "small2.safetensors": {sha(written)}}
            problems = [p for p in place.problems() if "should not be there" not in p]
            if not self.quick:
                self.check("all is exact after writers took the packer's space", problems)
            if not self.quick:
                self.beside_download(place)

    def beside_call(self, place, what, function, arguments):
        # A new daemon has forgotten that the disk was full.
        place.again()
        place.pack_half("big.safetensors")
        place.disk.fill()
        taken = place.disk.reserved()
        if function is os.symlink:
            arguments = [*arguments, "link"]
        path = len(arguments) - 1 if function is os.symlink else 0
        arguments[path] = place.path(arguments[path])
        outcome = place.call(function, *arguments)
        problems = [] if outcome == "ok" else [outcome]
        if place.user and place.disk.reserved() < taken - MIB:
            problems.append(f"{taken - place.disk.reserved()} bytes of what is reserved for root "
                            "were taken")
        place.disk.unfill()
        self.check(f"beside packing, there is space for: {what}", problems)

    def beside_download(self, place):
        """The writer of large files, through the mount, beside the packer."""
        place.disk.fill()
        # What nobody can have.
        rest = place.disk.free()
        place.disk.unfill()
        place.again()
        before = place.disk.free()
        place.pack_half("big.safetensors")
        wrote = call(self.user, download, place.disk.directory, self.seed, place.disk.free)
        got = wrote.result["first"] if wrote.outcome == "ok" else 0
        problems = [] if wrote.outcome == "ok" else [wrote.outcome]
        if got < before - rest - MIB - 2 * self.slack:
            problems.append(f"{got} bytes of {before}, and an archive of "
                            f"{before - place.disk.free()}; at the end, {rest} cannot be had")
        self.check("beside packing, a download gets all that is free", problems)


SCENARIOS = ["download", "beside", "unpack", "calls", "kill", "disable"]


def test_disk(report, arguments, folder, disk, seed):
    """All scenarios on one kind of disk; what has to wait for its time comes last."""
    test = Test(report, arguments.bsz, folder, disk, seed, arguments.quick)
    later = []
    try:
        run_scenarios(test, report, arguments, later)
    finally:
        for place in test.places:
            place.close()


def run_scenarios(test, report, arguments, later):
    scenarios = QUICK.get(test.name, SCENARIOS) if arguments.quick else SCENARIOS
    for scenario in [arguments.only] if arguments.only else scenarios:
        started = time.monotonic()
        try:
            rest = getattr(test, scenario)()
            later += [rest] if rest else []
        except (tools.Failed, OSError) as error:
            report.fail(f"{test.name} seed {test.seed}: {scenario}", error)
        print(f"# {test.name}: {scenario}: {time.monotonic() - started:.1f} s", flush=True)
    for rest in later:
        try:
            rest()
        except (tools.Failed, OSError) as error:
            report.fail(f"{test.name} seed {test.seed}: to resume", error)


def main():
    tools.start()
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--bsz", required=True, help="the program")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=2, help="how many seeds to try")
    parser.add_argument("--only", choices=SCENARIOS, help="only this scenario")
    parser.add_argument("--on", choices=[disk[0] for disk in DISKS], help="only this disk")
    parser.add_argument("--work", help="where to put the disks (default: in memory)")
    parser.add_argument("--quick", action="store_true", help="one seed on ext4: a minute")
    arguments = parser.parse_args()
    tools.need_root()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    report = tools.Report()
    memory = "/dev/shm"
    if not arguments.work and os.path.isdir(memory):
        space = os.statvfs(memory)
        arguments.work = memory if space.f_bavail * space.f_frsize > 4 * full_disk.SIZE else None
    with tools.work_folder(arguments.work, report) as folder:
        for seed in range(arguments.seed, arguments.seed + (1 if arguments.quick else
                                                            arguments.seeds)):
            for disk in DISKS:
                wanted = arguments.on or (disk[0] in QUICK or not arguments.quick)
                if not wanted or arguments.on and arguments.on != disk[0]:
                    continue
                why = full_disk.missing(disk[1])
                if why:
                    print(f"# {disk[0]}: skipped: {why}")
                    continue
                test_disk(report, arguments, os.path.realpath(folder), disk, seed)
    report.exit()


if __name__ == "__main__":
    main()
