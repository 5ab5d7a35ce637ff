"""Packed files on a full disk: the scenarios unpack, calls, kill and disable of full.py."""
import contextlib
import os
import re
import subprocess
import time

import crash_steps
import crash_worker
import full_disk
import tools
from full_disk import MIB
from full_place import allocate, patch, patch_mapped, save, sha, sha_of

RECOVERY_SECONDS = 20
# What a mount at full disk must finish: the daemon ended at these steps of each.
STEPS = {"packing": range(1, 5), "writing": (5, 7, 8, 9), "truncating": (5, 6, 7, 8, 9),
         "plain over packed": (11, 12, 13), "packed over plain": (14, 15, 16, 17)}


# What is tried on the bare directory besides the calls.
NEW_FILE = "make a file at first"


def open_truncated(path, data):
    """open with O_TRUNC, and write."""
    handle = os.open(path, os.O_WRONLY | os.O_TRUNC)
    os.close(handle)
    handle = os.open(path, os.O_WRONLY)
    try:
        tools.write_all(handle, data, 0)
        os.fsync(handle)
    finally:
        os.close(handle)


def patch_hole(path, function, size):
    """Make the last half of a file of twice this size a hole, and write to that."""
    os.truncate(path, 2 * size)
    function(path, size, b"h" * size)


def calls(base, other):
    """(what, whether it needs the plain file, function of two paths, contents after it) of calls on
    P, a packed file of these bytes, and Q, a plain one of others, or R, packed."""
    size = len(base)
    new = b"n" * 9000
    return [
        ("truncate to nothing", False, lambda p, q, r: os.truncate(p, 0), {"p": b""}),
        ("truncate to a part", True, lambda p, q, r: os.truncate(p, size // 2),
         {"p": base[:size // 2]}),
        ("truncate to its size", False, lambda p, q, r: os.truncate(p, size), {}),
        ("truncate to more", True, lambda p, q, r: os.truncate(p, size + MIB),
         {"p": base + bytes(MIB)}),
        ("append", True, lambda p, q, r: patch(p, 0, new, os.O_APPEND), {"p": base + new}),
        ("write in the middle", True, lambda p, q, r: patch(p, 70_000, new),
         {"p": base[:70_000] + new + base[79_000:]}),
        ("write to a mapping", True, lambda p, q, r: patch_mapped(p, 70_000, new),
         {"p": base[:70_000] + new + base[79_000:]}),
        ("fallocate more", True, lambda p, q, r: allocate(p, size, MIB), {"p": base + bytes(MIB)}),
        ("fallocate what is there", True, lambda p, q, r: allocate(p, 0, 8192), {}),
        ("rename plain over packed", False, lambda p, q, r: os.rename(q, p),
         {"p": other, "q": None}),
        ("rename packed over plain", False, lambda p, q, r: os.rename(p, q),
         {"p": None, "q": base}),
        ("rename packed over packed", False, lambda p, q, r: os.rename(p, r),
         {"p": None, "r": base}),
        ("rename", False, lambda p, q, r: os.rename(p, f"{p}.new.safetensors"),
         {"p": None, "p.new.safetensors": base}),
        ("link", True, lambda p, q, r: os.link(p, f"{p}.link"), {"p.link": base}),
        ("chmod", False, lambda p, q, r: os.chmod(p, 0o600), {}),
        ("utime", False, lambda p, q, r: os.utime(p, (1, 1)), {}),
        ("a small xattr", False, lambda p, q, r: os.setxattr(p, "user.s", b"s"), {}),
        ("a large xattr", False, lambda p, q, r: os.setxattr(p, "user.l", b"l" * 3000), {}),
        ("an xattr of a plain file", False, lambda p, q, r: os.setxattr(q, "user.s", b"s" * 20),
         {}),
        ("unlink", False, lambda p, q, r: os.unlink(p), {"p": None}),
        ("make a file", False, lambda p, q, r: save(f"{p}.made", b""), {"p.made": b""}),
        ("mkdir", False, lambda p, q, r: os.mkdir(f"{p}.dir"), {}),
        ("fallocate, a plain file", False, lambda p, q, r: allocate(q, len(other), MIB),
         {"q": other + bytes(MIB)}),
        ("write into a hole", False, lambda p, q, r: patch_hole(q, patch, MIB),
         {"q": other + bytes(MIB - len(other)) + b"h" * MIB}),
        ("write to a mapped hole", True, lambda p, q, r: patch_hole(q, patch_mapped, MIB),
         {"q": other + bytes(MIB - len(other)) + b"h" * MIB}),
        ("write to a plain file", False, lambda p, q, r: patch(q, 100, b"w" * 100),
         {"q": other[:100] + b"w" * 100 + other[200:]}),
        ("append to a plain file", False, lambda p, q, r: patch(q, 0, b"w" * 9000, os.O_APPEND),
         {"q": other + b"w" * 9000}),
        ("truncate to nothing, and write", False, lambda p, q, r: open_truncated(q, other[:4096]),
         {"q": other[:4096]}),
    ]


class Packed:
    """Scenarios of a Test whose files are packed before the disk is filled."""

    def unpack(self):
        with self.place() as place:
            data = {f"p{n}.safetensors": tools.model(f"{self.seed}-p{n}", 4 * MIB)
                    for n in range(2 if self.quick else 4)}
            place.mount()
            for name, model in data.items():
                place.save(name, model)
            place.packed(*data)
            for (name, model), leave in zip(data.items(), [0, 6 * MIB, 8 * MIB - 4096, 12288]):
                self.unpack_without_room(place, name, model, leave)
            self.check("all is exact after writes without room", place.problems())
        with self.place() as place:
            self.unpack_attributes(place)

    def unpack_without_room(self, place, name, model, leave):
        start = self.rng.randrange(len(model) - 5000)
        place.disk.fill(leave)
        before, reserved = place.disk.free(), place.disk.reserved()
        outcome = place.call(patch, place.path(name), start, b"n" * 5000)
        place.disk.sync()
        problems = [] if outcome == "ENOSPC" else [f"{outcome} instead of ENOSPC"]
        if not place.store.packed(name):
            problems.append("it is no longer packed")
        if outcome != "ok" and sha_of(place.path(name)) != sha(model):
            problems.append("it is no longer exact")
        if place.disk.free() < before - 64 * 1024:
            problems.append(f"{place.disk.free()} bytes free, {before} before")
        if place.user and place.disk.reserved() < reserved:
            problems.append(f"{reserved - place.disk.reserved()} bytes of what is reserved for "
                            "root were taken")
        problems += tools.unsettled(place.store.below)
        self.check(f"a write to a packed file with {leave} bytes of room fails", problems)
        place.disk.unfill()
        outcome = place.call(patch, place.path(name), start, b"n" * 5000)
        self.check(f"it works once there is room, after {leave}",
                   [] if outcome == "ok" else [outcome])
        place.files[name] = {sha(model[:start] + b"n" * 5000 + model[start + 5000:])}

    def unpack_attributes(self, place):
        """Where only the attributes have no room, none may be lost."""
        value, length = b"a" * 3000, 64 << 10
        names = [f"a{n}.safetensors" for n in range(8)]
        place.mount()
        data = tools.model("attributes", length)
        for name in names:
            place.save(name, data)
            os.setxattr(place.path(name), "user.large", value)
        place.packed(*names)
        problems, works = [], 0
        for number, name in enumerate(names):
            place.disk.fill(2 * length + 4096 * number)
            outcome = place.call(patch, place.path(name), 100, b"b" * 100)
            with contextlib.suppress(OSError):
                if os.getxattr(place.path(name), "user.large") == value:
                    outcome += " with its attribute"
            works += outcome.startswith("ok")
            if outcome not in ["ok with its attribute", "ENOSPC with its attribute"]:
                problems.append(f"with {2 * length} + {4096 * number} bytes of room: {outcome}")
            if outcome.startswith("ok"):
                place.files[name] = {sha(data[:100] + b"b" * 100 + data[200:])}
            place.disk.unfill()
        print(f"# {self.name}: {works} of {len(names)} writes had room")
        self.check("unpacking keeps extended attributes, or fails", problems + place.problems())

    # calls

    def calls(self):
        with self.place(bare=True) as bare:
            plain = self.all_calls(bare)
        with self.place() as place:
            found = self.all_calls(place, plain)
            place.disk.unfill()
            place.again()
            self.learn_failed(place)
            self.check("all is exact after calls on a full disk", place.problems())
            self.calls_again(place, found)

    def all_calls(self, place, plain=None):
        """{what: outcome} of all calls, each on a disk that is full; compared to those that the
        bare directory has, if they are given."""
        base, other = tools.model(f"{self.seed}-base", MIB // 2), os.urandom(40_000)
        table, outcomes = calls(base, other), {}
        self.failed = {}
        self.contents = {"p": base, "q": other, "r": base}
        place.mount()
        for number in range(len(table)):
            place.save(f"c{number}-p", base)
            place.save(f"c{number}-q", other)
        replaced = next(f"c{n}-r" for n, call in enumerate(table) if "r" in call[3])
        place.save(replaced, base)
        place.packed(replaced, *(f"c{number}-p" for number in range(len(table))))
        for number, (what, needs, function, after) in enumerate(table):
            place.disk.fill()
            if not plain and number == 0:
                outcomes[NEW_FILE] = place.call(save, place.path("probe"), b"")
                place.call(os.unlink, place.path("probe"))
            reserved = place.disk.reserved()
            outcome = place.call(function, *(place.path(f"c{number}-{w}") for w in "pqr"))
            outcomes[what] = outcome
            for which, data in after.items():
                self.learn(place, f"c{number}-{which}", data, outcome)
            if plain:
                # A packed file is truncated to nothing by putting an empty one in its place.
                needs |= number == 0 and plain[NEW_FILE] == "ENOSPC"
                self.compare(place, what, needs, outcome, plain[what], reserved)
        return outcomes

    def learn(self, place, name, data, outcome):
        """A call that failed has changed nothing, or a part of what it was to change; which is
        seen once the kernel has forgotten pages that could not be written."""
        if outcome == "ok":
            place.files.pop(name, None)
            if data is not None:
                place.files[name] = {sha(data)}
        elif name in place.files and data is not None:
            self.failed[name] = data

    def learn_failed(self, place):
        for name, data in self.failed.items():
            with open(place.path(name), "rb") as file:
                now = file.read()
            before = self.contents[name[-1]]
            # It may have been truncated, too.
            if crash_worker.Between(before, data).allows(now) or now == data[:len(now)]:
                place.files[name] = {sha(now)}

    def compare(self, place, what, needs, outcome, plain, reserved):
        allowed = {plain, "ok"} | ({"ENOSPC"} if needs else set())
        problems = [] if outcome in allowed else [f"{outcome} instead of {plain}"]
        taken = reserved - place.disk.reserved()
        if place.user and taken > 64 << 10:
            problems.append(f"{taken} bytes of what is reserved for root were taken")
        if outcome != plain and not problems:
            print(f"# {self.name}: {what}: {outcome}, {plain} without a store", flush=True)
        self.check(f"full disk: {what}", problems)

    def calls_again(self, place, found):
        """What had no room has it now."""
        base, other = tools.model(f"{self.seed}-base", MIB // 2), b""
        problems = []
        for number, (what, needs, function, _) in enumerate(calls(base, other)):
            if needs and found[what] != "ok":
                outcome = place.call(function, *(place.path(f"c{number}-{w}") for w in "pqr"))
                problems += [] if outcome == "ok" else [f"{what}: {outcome}"]
        self.check("with room, the calls that had none work", problems)

    # kill

    def kill(self):
        with self.place() as place:
            place.mount("off")
            models = {f"k{n}.safetensors": tools.model(f"{self.seed}-k{n}", 8 * MIB)
                      for n in range(4)}
            for name, data in models.items():
                place.save(name, data)
            place.store.umount()
            for number in range(2 if self.quick else 8):
                self.kill_packing(place, number)
            place.mount()
            place.packed(*models)
            for number in range(2 if self.quick else 6):
                self.kill_unpacking(place, models, number)
        for what, numbers in STEPS.items():
            with self.place() as place:
                self.kill_steps(place, what, [self.rng.choice(numbers)] if self.quick else numbers)

    def kill_packing(self, place, number):
        """Fill the disk while a file is packed; kill the daemon with or without time to see it."""
        place.mount()
        waiting = [name for name in place.files if not place.store.packed(name)]
        before = place.disk.free()
        tools.wait_until(lambda: place.disk.free() < before - MIB, 2 if waiting else 0, 0.001)
        time.sleep(self.rng.random() * 0.1)
        place.disk.fill(self.rng.choice([0, 0, MIB, 4 * MIB]))
        time.sleep(self.rng.choice([0, 0.01, 0.1, 0.5]))
        place.store.kill()
        place.store.detach()
        self.check(f"kill {number} while packing on a full disk", self.recovered(place))
        self.repack(place)

    def repack(self, place):
        """There is room again; what is packed becomes plain by another way than the store's."""
        place.disk.unfill()
        place.store.umount()
        for name, all_forms in tools.forms(place.store.below).items():
            if set(all_forms) == {".bsz"}:
                data = tools.content_below(place.store.bsz, all_forms)
                owner = os.stat(all_forms[".bsz"])
                os.unlink(all_forms[".bsz"])
                save(os.path.join(place.store.below, name), data)
                os.chown(os.path.join(place.store.below, name), owner.st_uid, owner.st_gid)

    def recovered(self, place):
        """Problems below, and of a mount on the full disk."""
        problems = [f"below: {name} is not exact" for name, data in
                    tools.read_below(place.store.bsz, place.store.below).items()
                    if sha(data) not in place.files.get(name, ())]
        place.recover()
        tools.wait_until(place.store.settled, RECOVERY_SECONDS, 0.02)
        return problems + place.problems()

    def kill_unpacking(self, place, models, number):
        """A writer unpacks while the disk fills, and the daemon is killed."""
        name, data = self.rng.choice([*models.items()])
        after = data[:5000] + b"k" * 5000 + data[10_000:]
        place.disk.fill(self.rng.choice([MIB, 8 * MIB, 17 * MIB, 20 * MIB]))
        writer = full_disk.Call(place.user, patch, place.path(name), 5000, b"k" * 5000)
        time.sleep(self.rng.random() * 0.15)
        place.disk.fill()
        place.store.kill()
        writer.wait()
        place.store.detach()
        place.files[name] = {sha(after)}
        if writer.outcome != "ok":
            now = tools.read_below(place.store.bsz, place.store.below)[name]
            allowed = crash_worker.Between(data, after).allows(now)
            place.files[name] = {sha(now) if allowed else sha(data)}
        self.check(f"kill {number} while unpacking on a full disk", self.recovered(place))
        place.files[name] = {sha(data)}
        place.store.umount()
        place.disk.unfill()
        place.mount("off")
        outcome = place.call(patch, place.path(name), 5000, data[5000:10_000])
        if outcome != "ok":
            raise tools.Failed(f"{name} could not be written with room: {outcome}")
        place.again()
        place.packed(*models)

    def kill_steps(self, place, what, numbers):
        """End at a step, with room; then fill the disk, and recover without any."""
        listed = crash_steps.steps(self.bsz)
        base = tools.model(f"{self.seed}-step", MIB // 2)
        other, new = b"o" * 40_000, b"n" * 4096
        results = {
            "packing": ({"p": base}, lambda p, q: None),
            "writing": ({"p": base[:9000] + new + base[9000 + len(new):]},
                        lambda p, q: patch(p, 9000, new)),
            "truncating": ({"p": base[:300_000]}, lambda p, q: os.truncate(p, 300_000)),
            "plain over packed": ({"p": other, "q": None}, lambda p, q: os.rename(q, p)),
            "packed over plain": ({"p": None, "q": base}, lambda p, q: os.rename(p, q)),
        }
        after, function = results[what]
        for step in numbers:
            name = {which: f"{what.replace(' ', '-')}-{step}-{which}" for which in "pq"}
            place.mount("off" if what == "packing" else "now")
            place.save(name["p"], base)
            place.save(name["q"], other)
            if what != "packing":
                place.packed(name["p"])
            place.store.umount()
            place.mount(env={"BSZ_END_AT_STEP": str(step)})
            place.call(function, *(place.path(name[which]) for which in "pq"))
            ended = tools.wait_until(place.store.dead, 20)
            place.store.kill()
            place.store.detach()
            place.disk.fill()
            for which in after:
                place.files[name[which]] = {sha(data) for data in
                                            [base if which == "p" else other, after[which]]
                                            if data is not None}
            # One name of a renaming is gone, and which one is seen only now.
            shown = tools.read_below(place.store.bsz, place.store.below)
            problems = [] if ended else ["the daemon did not end there"]
            problems += [f"{name[which]} is lost" for which in "pq" if name[which] not in shown
                         and after.get(which, b"") is not None]
            for which in "pq":
                if name[which] not in shown:
                    del place.files[name[which]]
            problems += self.recovered(place)
            self.check(f"on a full disk, a mount after an end at: {listed.get(step, step)}",
                       problems)
            place.store.umount()
            place.disk.unfill()

    # disable

    def disable(self):
        with self.place() as place:
            names = [f"d{n}.safetensors" for n in range(3)]
            place.mount()
            for name in names:
                place.save(name, tools.model(f"{self.seed}-{name}", 8 * MIB))
            place.packed(*names)
            place.disk.fill()
            done = self.run_disable(place)
            needs = re.search(r"needs ([0-9.]+) (\w+)", done.stderr)
            problems = [] if done.returncode else ["it did not refuse"]
            if not needs:
                problems.append(f"it does not say what it needs: {done.stderr.strip()!r}")
            if not tools.mounted(place.disk.directory):
                problems.append("the store is not mounted any more")
            problems += [f"{name} is not packed" for name in names if not place.store.packed(name)]
            self.check("disable refuses without room", problems + place.problems())
            if problems:
                return
            place.disk.unfill()
            place.save("more.safetensors", tools.model("more", 8 * MIB))
            place.packed("more.safetensors")
            self.check("the store goes on", place.problems())
            # 4 of 16 MiB become a third larger than they are, and one archive goes after its file.
            place.disk.fill(32 * MIB)
            done = self.run_disable(place)
            problems = [] if done.returncode else ["it did not refuse with 32 MiB of room"]
            problems += place.problems()
            place.disk.unfill()
            # What is reserved for root does not count.
            place.disk.fill(60 * MIB + (0 if place.user else place.disk.reserved()))
            done = self.run_disable(place)
            if done.returncode:
                problems.append(f"with room: {done.stderr.strip()}")
            place.store.kill()
            place.store.detach()
            archives = [name for name in os.listdir(place.disk.directory) if ".bsz" in name]
            self.check("disable works with the room that it needs",
                       problems + archives + place.problems())

    def run_disable(self, place):
        return subprocess.run([self.bsz, "store", "disable", place.disk.directory],
                              capture_output=True, text=True, check=False, timeout=120)
