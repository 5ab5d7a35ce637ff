"""Ends the daemon at each numbered step of its protocols, in scenarios that together reach all.

A scenario prepares files below, some packed, then makes a few calls through the mount. The daemon
runs with BSZ_END_AT_STEP=n:k, and aborts when it is at step n for the k-th time. Then the files
below must read as before or after the call under way, all forms taken in the order in which they
are shown; a new mount must show the same, recover, and leave one form of each file.
"""
import contextlib
import ctypes
import os
import pathlib
import random
import re
import signal
import subprocess
import time

import crash_worker
import tools

# Where the steps are listed, if the program itself does not.
SOURCE = pathlib.Path(__file__).resolve().parents[2] / "src/store/steps.rs"
# Used if neither does; too many do no harm.
STEPS = {number: "" for number in range(1, 41)}
MOST_TIMES = 3
RECOVERY_SECONDS = 20
# The packer tries again half a minute after a file was still open.
PACK_SECONDS = 45
A, B, C = (tools.model(seed, 20_000) for seed in ["a", "b", "c"])
OTHER = bytes(range(256)) * 40


def steps(bsz):
    """{number: what has been done} of all steps: from `bsz store steps`, or from the source."""
    done = subprocess.run([bsz, "store", "steps"], capture_output=True, text=True, check=False)
    found = re.findall(r"^\s*(\d+)[\s.:]*(.*)$", done.stdout, re.MULTILINE)
    if not found and SOURCE.exists():
        found = re.findall(r'^\s*\w+ = (\d+), "(.*)";$', SOURCE.read_text("utf-8"), re.MULTILINE)
    return {int(number): text.strip() for number, text in found} or STEPS


class Ended(Exception):
    """The daemon has ended during a call."""


class Run:
    """The calls of a scenario, and what the files must be at each moment."""

    def __init__(self, store, files):
        self.store = store
        self.files = dict(files)
        self.worlds = [dict(files)]

    def path(self, name):
        return os.path.join(self.store.directory, name)

    def call(self, changes, function, *arguments):
        """A call that changes {name: content, Between, or None for removed}."""
        after = {**self.files, **changes}
        self.worlds = [self.files, {k: v for k, v in after.items() if v is not None}]
        try:
            result = function(*arguments)
        except OSError as error:
            if tools.daemon_ended(error, self.store.directory):
                raise Ended from error
            raise
        self.files = {name: content.after if isinstance(content, crash_worker.Between) else content
                      for name, content in after.items() if content is not None}
        self.worlds = [self.files]
        return result

    def pack(self, *names):
        """Wait until these are packed, or the daemon has ended."""
        tools.wait_until(lambda: self.store.dead() or all(map(self.store.packed, names)),
                         PACK_SECONDS)
        if self.store.dead():
            raise Ended
        if not all(map(self.store.packed, names)):
            raise tools.Failed(f"not packed after {PACK_SECONDS} s: {names}")

    def recover(self):
        tools.wait_until(lambda: self.store.dead() or self.store.settled(), RECOVERY_SECONDS)
        if self.store.dead():
            raise Ended

    def write(self, name, start, data, flags=os.O_WRONLY):
        """Open, write, fsync, close."""
        handle = self.call({}, os.open, self.path(name), flags)
        before = self.files[name]
        after = before[:start] + data + before[start + len(data):]
        try:
            self.call({name: crash_worker.Between(before, after)}, tools.write_all,
                      handle, data, start)
            self.call({}, os.fsync, handle)
        finally:
            with contextlib.suppress(OSError):
                os.close(handle)

    def rename(self, old, new):
        self.call({old: None, new: self.files[old]}, os.rename, self.path(old), self.path(new))

    def exchange(self, one, other):
        def swap():
            if crash_worker.LIBC.renameat2(
                    crash_worker.AT_FDCWD, self.path(one).encode(), crash_worker.AT_FDCWD,
                    self.path(other).encode(), crash_worker.EXCHANGE):
                code = ctypes.get_errno()
                raise OSError(code, os.strerror(code))
        self.call({one: self.files[other], other: self.files[one]}, swap)


class Scenario:
    """packed and plain: {name: content} at the start; then calls; raw changes what lies below.

    pack is what the packer does meanwhile; "recover": nothing but resolving pairs."""

    def __init__(self, calls, packed=None, plain=None, pack="off", raw=None, shown=None):
        self.calls, self.pack, self.raw = calls, pack, raw
        self.packed, self.plain = packed or {}, plain or {}
        # What must be readable at the start, if raw makes it something else.
        self.shown = shown or {**self.packed, **self.plain}


def recovering(raw, packed=None, plain=None, shown=None):
    """What a crash has left, and a daemon that finishes it."""
    return Scenario(Run.recover, packed, plain, "recover", raw, shown)


def write_exclusive(run):
    handle = run.call({"f": b""}, os.open, run.path("f"), os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        run.call({"f": crash_worker.Between(b"", A)}, tools.write_all, handle, A, 0)
    finally:
        with contextlib.suppress(OSError):
            os.close(handle)
    run.pack("f")


def truncate_open(run):
    handle = run.call({"f": b""}, os.open, run.path("f"), os.O_WRONLY | os.O_TRUNC)
    try:
        run.call({"f": crash_worker.Between(b"", B)}, tools.write_all, handle, B, 0)
    finally:
        with contextlib.suppress(OSError):
            os.close(handle)


def truncate_to(length):
    def calls(run):
        after = A[:length] + bytes(max(0, length - len(A)))
        run.call({"f": after}, os.truncate, run.path("f"), length)
    return calls


def replace(run):
    """As a program that saves: a new file, renamed over the packed one, which is packed again."""
    handle = run.call({"t": b""}, os.open, run.path("t"), os.O_WRONLY | os.O_CREAT)
    try:
        run.call({"t": crash_worker.Between(b"", B)}, tools.write_all, handle, B, 0)
        run.call({}, os.fsync, handle)
    finally:
        with contextlib.suppress(OSError):
            os.close(handle)
    run.rename("t", "f")


def link(run):
    run.call({"g": A}, os.link, run.path("f"), run.path("g"))


def link_and_write(run):
    """What is written by a name is there under that name; the other one may keep the archive."""
    link(run)
    data = b"x" * 5000
    run.files["g"] = crash_worker.Between(A, A[:1000] + data + A[6000:])
    run.write("f", 1000, data)


def link_and_exchange(run):
    """Exchanging unpacks; each name has to show what the other one has shown."""
    link(run)
    run.exchange("f", "h")


def unlink(run):
    run.call({"f": None}, os.unlink, run.path("f"))


def unlink_and_make(run):
    unlink(run)
    handle = run.call({"f": b""}, os.open, run.path("f"), os.O_WRONLY | os.O_CREAT)
    with contextlib.suppress(OSError):
        os.close(handle)


def make_archive_name(run):
    """A name that the archive of another file has: that one is unpacked first."""
    handle = run.call({"f.bsz": b""}, os.open, run.path("f.bsz"), os.O_WRONLY | os.O_CREAT)
    with contextlib.suppress(OSError):
        os.close(handle)


def folder_rename(run):
    """A folder with a packed file, onto an empty one."""
    run.call({"old/f": None, "new/f": A}, os.rename, run.path("old"), run.path("new"))


def move(below, old, new):
    os.rename(os.path.join(below, old), os.path.join(below, new))


def both(below):
    """f plain beside its archive, as between link and unlink of a swap."""
    archive = pathlib.Path(below, "f.bsz")
    stat = archive.stat()
    plain = pathlib.Path(below, "f")
    plain.write_bytes(A)
    os.utime(plain, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def differing(below):
    """f plain, and beside it an archive of something else, as after changes without a mount.
    Recovery leaves both; whatever changes or removes f has to remove the archive first."""
    pathlib.Path(below, "f").write_bytes(OTHER)


def over_plain(below):
    """As a rename of a packed file over the plain h that ended after its first step."""
    move(below, "f.bsz", "h.bsz-over")


def over_archive(below):
    """The same, one step later: h is gone, the archive not yet under its name."""
    over_plain(below)
    os.unlink(os.path.join(below, "h"))


def old_beside_plain(below):
    """As a rename of plain over packed that ended before its last step."""
    move(below, "f.bsz", "f.bsz-old")
    pathlib.Path(below, "f").write_bytes(B)


def old_alone(below):
    """The same, ended before the rename itself."""
    move(below, "f.bsz", "f.bsz-old")


def partial(below):
    """A temporary file, which has the number of a process that is gone in its name."""
    pathlib.Path(below, ".7ffffff-0-0.bsz-partial").write_bytes(b"half an archive")


SCENARIOS = {
    "pack": Scenario(lambda run: run.pack("f"), plain={"f": A}, pack="now"),
    "create and pack": Scenario(write_exclusive, pack="now"),
    "pack over a stale archive": Scenario(lambda run: run.pack("f"), packed={"f": A}, pack="now",
                                          raw=lambda below: (both(below))),
    "write to packed": Scenario(lambda run: run.write("f", 1000, b"x" * 5000), packed={"f": A}),
    "append to packed": Scenario(lambda run: run.write("f", len(A), b"x" * 5000),
                                 packed={"f": A}),
    "write to packed, pack again": Scenario(
        lambda run: (run.write("f", 1000, bytes(5000)), run.pack("f")), packed={"f": A},
        pack="now"),
    "truncate packed": Scenario(truncate_to(10_000), packed={"f": A}),
    "truncate packed to 0": Scenario(truncate_to(0), packed={"f": A}),
    "extend packed": Scenario(truncate_to(len(A) + 9000), packed={"f": A}),
    "open packed with O_TRUNC": Scenario(truncate_open, packed={"f": A}),
    "plain over packed": Scenario(replace, packed={"f": A}),
    "packed over plain": Scenario(lambda run: run.rename("f", "h"), packed={"f": A},
                                  plain={"h": OTHER}),
    "packed over packed": Scenario(lambda run: run.rename("f", "h"), packed={"f": A, "h": B}),
    "packed to a free name": Scenario(lambda run: run.rename("f", "h"), packed={"f": A}),
    "packed into a folder": Scenario(lambda run: run.rename("f", "new/h"), packed={"f": A},
                                     plain={"new/h": OTHER}),
    "folder with packed": Scenario(folder_rename, packed={"old/f": A}),
    "exchange packed and plain": Scenario(lambda run: run.exchange("f", "h"), packed={"f": A},
                                          plain={"h": OTHER}),
    "exchange two packed": Scenario(lambda run: run.exchange("f", "h"), packed={"f": A, "h": B}),
    "unlink packed": Scenario(unlink, packed={"f": A}),
    "unlink both": Scenario(unlink, packed={"f": A}, raw=both),
    "unlink packed, make again": Scenario(unlink_and_make, packed={"f": A}),
    "write to both": Scenario(lambda run: run.write("f", 1000, b"x" * 5000), packed={"f": A},
                              raw=both),
    "rename both": Scenario(lambda run: run.rename("f", "h"), packed={"f": A}, raw=both),
    "rename over both": Scenario(lambda run: run.rename("h", "f"), packed={"f": A},
                                 plain={"h": OTHER}, raw=both),
    "link packed": Scenario(link, packed={"f": A}),
    "link packed, write": Scenario(link_and_write, packed={"f": A}),
    "link packed, exchange": Scenario(link_and_exchange, packed={"f": A, "h": B}),
    "make the archive's name": Scenario(make_archive_name, packed={"f": A}),
    "unlink differing": Scenario(unlink, packed={"f": A}, raw=differing, shown={"f": OTHER}),
    "write to differing": Scenario(lambda run: run.write("f", 100, b"x" * 5000),
                                   packed={"f": A}, raw=differing, shown={"f": OTHER}),
    "truncate differing": Scenario(
        lambda run: run.call({"f": b""}, os.truncate, run.path("f"), 0),
        packed={"f": A}, raw=differing, shown={"f": OTHER}),
    "rename differing": Scenario(lambda run: run.rename("f", "h"), packed={"f": A, "h": B},
                                 raw=differing, shown={"f": OTHER, "h": B}),
    "rename over differing": Scenario(lambda run: run.rename("h", "f"), packed={"f": A, "h": B},
                                      raw=differing, shown={"f": OTHER, "h": B}),
    "recover both": recovering(both, {"f": A}),
    "recover over": recovering(over_plain, {"f": A}, {"h": OTHER}, {"h": A}),
    "recover over, later": recovering(over_archive, {"f": A}, {"h": OTHER}, {"h": A}),
    "recover over packed": recovering(over_plain, {"f": A, "h": B}, None, {"h": A}),
    "recover old": recovering(old_beside_plain, {"f": A}, None, {"f": B}),
    "recover old alone": recovering(old_alone, {"f": A}),
    "recover partial": recovering(partial, plain={"f": OTHER}),
}


class Steps:
    """All scenarios with one program."""

    def __init__(self, report, bsz, folder):
        self.report, self.bsz, self.folder = report, bsz, folder
        self.number = 0
        self.reached = set()

    def template(self, scenario, name):
        """A directory as it is before the mount; packed files are packed by the program itself."""
        directory = os.path.join(self.folder, re.sub(r"\W+", "-", name))
        store = self.make(directory)
        for file, content in scenario.packed.items():
            self.write(directory, file, content)
        try:
            if scenario.packed:
                store.mount("now")
                Run(store, {}).pack(*scenario.packed)
                store.umount()
        finally:
            store.close()
        for file, content in scenario.plain.items():
            self.write(directory, file, content)
        if scenario.raw:
            scenario.raw(directory)
        return directory

    def make(self, directory):
        os.mkdir(directory)
        for inside in ["old", "new"]:
            os.mkdir(os.path.join(directory, inside))
        return tools.Store(self.bsz, directory)

    def write(self, directory, name, content):
        """A file of a while ago, so that nothing waits for it to settle."""
        path = os.path.join(directory, name)
        pathlib.Path(path).write_bytes(content)
        os.utime(path, (time.time() - 3600,) * 2)

    def run(self, scenario, template, step):
        """(whether the daemon ended at the step, problems) of one run; step None: no end."""
        self.number += 1
        directory = os.path.join(self.folder, f"run-{self.number}")
        subprocess.run(["cp", "-a", template, directory], check=True)
        store = tools.Store(self.bsz, directory)
        run = Run(store, scenario.shown)
        try:
            problems = []
            try:
                env = {"BSZ_END_AT_STEP": step} if step else None
                if scenario.pack == "recover":
                    store.recover(env)
                else:
                    store.mount(scenario.pack, env=env)
                scenario.calls(run)
                # What the daemon does after its answer may end it, too.
                ended = tools.wait_until(store.dead, 0.05) if step else False
            except Ended:
                ended = tools.wait_until(store.dead, 5)
                problems += [] if ended else ["ENOTCONN from a daemon that lives"]
            if ended and not step:
                problems.append(f"the daemon ended by itself: {store.log_tail()}")
            if ended:
                store.kill()
                store.detach()
            else:
                # On a busy machine, it may reach the step only now.
                ended = self.finish(store, problems, may_end=bool(step))
            # A step that this scenario does not reach leaves what the run without an end left.
            if ended or not step:
                problems += self.check(store, run)
        except (tools.Failed, OSError) as error:
            ended, problems = False, [str(error)]
        finally:
            store.close()
        if not problems:
            subprocess.run(["rm", "-rf", directory, store.log], check=False)
        return ended, problems

    def finish(self, store, problems, may_end=False):
        """Unmount. Returns whether the daemon ended at a step, if it may."""
        code = store.umount()
        ended = may_end and code == -signal.SIGABRT
        if ended:
            store.detach()
        elif code:
            problems.append(f"exit code {code} after umount")
        return ended

    def check(self, store, run):
        """Problems below, on a new mount, and below after it."""
        problems = self.compare("below", tools.read_below(self.bsz, store.below), run)
        store.recover()
        tools.wait_until(lambda: not self.unsettled(store), RECOVERY_SECONDS)
        problems += self.compare("mounted", tools.read_tree(store.directory), run)
        self.finish(store, problems)
        problems += self.compare("after", tools.read_below(self.bsz, store.below), run)
        return problems + self.unsettled(store)

    def unsettled(self, store):
        """What recovery has left, but for a pair that differs and that no call has changed."""
        problems = tools.unsettled(store.below)
        try:
            plain = pathlib.Path(store.below, "f").read_bytes()
        except FileNotFoundError:  # Recovery may remove it while this looks.
            return problems
        if plain == OTHER:
            problems = [what for what in problems if not what.startswith("f is there as ['', '.b")]
        return problems

    def compare(self, where, found, run):
        def fits(world):
            return all(crash_worker.allows(world.get(name), found.get(name))
                       for name in world.keys() | found.keys())
        if any(map(fits, run.worlds)):
            return []
        return [f"{where}: {({name: tools.describe(data) for name, data in found.items()})}"]

    def scenario(self, name, numbers, most_times, deadline):
        """One result for a scenario at all steps, or at those that there is time for."""
        scenario = SCENARIOS[name]
        problems, ends = [], 0
        try:
            template = self.template(scenario, name)
            problems += [f"without an end: {what}" for what in self.run(scenario, template,
                                                                         None)[1]]
        except (tools.Failed, OSError) as error:
            return self.report.fail(name, f"cannot be prepared: {error}")
        for number in numbers if not problems else []:
            for times in range(1, most_times + 1 if time.monotonic() < deadline else 1):
                ended, more = self.run(scenario, template, f"{number}:{times}")
                problems += [f"step {number}:{times}: {what}" for what in more]
                if not ended:
                    break
                ends += 1
                self.reached.add(number)
        self.report.check(f"{name}, ended {ends} times", problems)


def test(report, bsz, work, only, quick, seed):
    """All scenarios; quick: some, until the time is over."""
    numbers = steps(bsz)
    names = [only] if only else list(SCENARIOS)
    if quick:
        random.Random(seed).shuffle(names)
    end = time.monotonic() + (30 if quick else 24 * 3600)
    with tools.work_folder(work, report) as folder:
        tests = Steps(report, bsz, folder)
        for name in names:
            if time.monotonic() < end:
                tests.scenario(name, numbers, 1 if quick else MOST_TIMES, end)
    missed = [f"{number} {numbers[number]}".strip() for number in numbers
              if number not in tests.reached]
    if numbers is STEPS or only or quick:
        print(f"# steps reached: {sorted(tests.reached)}")
    else:
        report.check("all steps reached", missed)
