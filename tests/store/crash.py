#!/usr/bin/env python3
"""Kills the daemon at random moments, or at each step of its protocols; nothing may be lost.

    crash.py --bsz PATH [--kills N] [--seed S] [--without OPERATION]... [--work DIR] [--quick]
    crash.py --bsz PATH --steps [--only SCENARIO] [--quick]

Random kills: workers (crash_worker.py) download, write, rename, link and remove while the packer
packs whatever is closed. After kill -9, the files below must read as the workers know them, by the
order in which forms are shown; so must a new mount, which after recovery leaves one form of each
file. Some kills hit a daemon that is still recovering.

--steps: see crash_steps.py.
"""
import argparse
import multiprocessing
import os
import random
import signal
import resource
import subprocess
import time

import crash_steps
import crash_worker
import tools

WORKERS = 3
RECOVERY_SECONDS = 20


class Crashes:
    """A store, the workers' knowledge of it, and kills."""

    def __init__(self, report, store, folder, seed):
        self.report, self.store, self.folder = report, store, folder
        self.rng = random.Random(seed)
        self.files = [{} for _ in range(WORKERS)]
        self.times = [{} for _ in range(WORKERS)]
        self.calls = self.packed = self.recovering = self.unsettled = 0
        for name in crash_worker.FOLDERS[1:]:
            os.mkdir(os.path.join(store.directory, name))

    def round(self, number):
        """Work, a kill, and all checks; one line in the report."""
        self.store.mount("now", 0)
        reports = self.work_until_killed(self.rng.uniform(0.05, 1.2))
        self.packed += sum(".bsz" in all_forms
                           for all_forms in tools.forms(self.store.below).values())
        self.unsettled += bool(tools.unsettled(self.store.below))
        problems = [report["problem"] for report in reports if report["problem"]]
        problems += self.compare("below", tools.read_below(self.store.bsz, self.store.below),
                                 reports)
        while self.rng.random() < 0.3:
            self.kill_recovering()
        if self.rng.random() < 0.8:
            problems += self.recovered(reports)
        problems += self.store.panics()
        doing = ", ".join(report["doing"] for report in reports)
        name = f"kill {number} during {doing}"
        if problems:
            copy = os.path.join(self.folder, f"kill-{number}")
            subprocess.run(["cp", "-a", self.store.below, copy], check=False,
                           pass_fds=[self.store.fd])
        self.report.check(name, problems)
        self.learn(tools.read_below(self.store.bsz, self.store.below), reports)

    def work_until_killed(self, seconds):
        """What the workers know after the kill."""
        fork = multiprocessing.get_context("fork")
        workers = []
        for number in range(WORKERS):
            ours, theirs = fork.Pipe(duplex=False)
            process = fork.Process(target=crash_worker.main, args=(
                theirs, self.store.directory, number, self.rng.random(), self.files[number],
                self.times[number]))
            process.start()
            theirs.close()
            workers.append((process, ours))
        time.sleep(seconds)
        died = self.store.dead()
        self.store.kill()
        reports = []
        for number, (process, connection) in enumerate(workers):
            try:
                report = connection.recv()
            except EOFError:
                process.join()
                # A page of a mapping that was not there yet when the daemon was killed.
                lost = process.exitcode == -signal.SIGBUS
                problem = None if lost else f"worker ended with {process.exitcode}"
                report = {"files": {}, "pending": {}, "times": {}, "calls": 0, "doing": "?",
                          "problem": problem, "lost": lost}
            process.join()
            reports.append(report)
            self.calls += report["calls"]
        if died:
            reports[0]["problem"] = f"the daemon ended by itself: {self.store.log_tail()}"
        # Only now: a worker that still ran would have seen the directory below.
        self.store.detach()
        return reports

    def kill_recovering(self):
        self.recovering += 1
        self.store.mount(self.rng.choice(["off", "now"]), 0)
        time.sleep(self.rng.random() * 0.2)
        self.store.kill()
        self.store.detach()

    def recovered(self, reports):
        """Problems of a new mount once recovery has had its time."""
        self.store.recover()
        tools.wait_until(self.store.settled, RECOVERY_SECONDS, 0.02)
        problems = tools.unsettled(self.store.below)
        found = tools.read_tree(self.store.directory)
        problems += self.compare("mounted", found, reports)
        for report in reports:
            for name, stamp in report["times"].items():
                if name in found and name not in report["pending"]:
                    now = os.stat(os.path.join(self.store.directory, name)).st_mtime_ns
                    if now != stamp:
                        problems.append(f"mtime of {name}: {now} instead of {stamp}")
        code = self.store.umount()
        return problems + ([f"exit code {code} after umount"] if code else [])

    def compare(self, where, found, reports):
        """Problems of a tree against what the workers know."""
        problems = []
        # Of a worker that could not report, nothing is known.
        lost = tuple(f"w{number}-" for number, report in enumerate(reports) if report.get("lost"))
        known = {name for name in found if lost and os.path.basename(name).startswith(lost)}
        for report in reports:
            pending = report["pending"]
            for name, content in report["files"].items():
                known.add(name)
                if name not in pending and found.get(name) != content:
                    problems.append(f"{where}: {name} is {tools.describe(found.get(name))} "
                                    f"instead of {tools.describe(content)}")
            known |= pending.keys()
            before = {name: report["files"].get(name) for name in pending}
            if not any(all(crash_worker.allows(content, found.get(name))
                           for name, content in world.items()) for world in [before, pending]):
                now = {name: tools.describe(found.get(name)) for name in pending}
                was = {name: tools.describe(content) for name, content in before.items()}
                problems.append(f"{where}: {report['doing']} stopped between: {now} from {was}")
        return problems + [f"{where}: {name} should not be there"
                           for name in sorted(found.keys() - known)]

    def learn(self, found, reports):
        """Go on from what is there, so that one failure is not reported again."""
        for number, report in enumerate(reports):
            own = f"w{number}-"
            self.files[number] = {name: content for name, content in found.items()
                                  if os.path.basename(name).startswith(own)}
            self.times[number] = {name: stamp for name, stamp in report["times"].items()
                                  if name in self.files[number]}


def random_kills(report, bsz, kills, seed, work, seconds):
    """So many kills, or fewer if the time is over."""
    end = time.monotonic() + seconds
    with tools.work_folder(work, report) as folder:
        directory = os.path.join(folder, "d")
        os.mkdir(directory)
        store = tools.Store(bsz, directory)
        try:
            crashes = Crashes(report, store, folder, seed)
            for number in range(1, kills + 1):
                if time.monotonic() > end or report.failed >= 10:
                    break
                crashes.round(number)
            print(f"# {crashes.calls} calls; archives seen at kills: {crashes.packed}; kills that "
                  f"left work for recovery: {crashes.unsettled}; during recovery: "
                  f"{crashes.recovering}")
            report.check("something was packed", [] if crashes.packed else ["no archive at all"])
        except tools.Failed as error:
            report.fail("crash", error)
        finally:
            store.close()


def main():
    tools.start()
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--bsz", required=True, help="the program")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", action="store_true", help="end at each step instead")
    parser.add_argument("--without", action="append", default=[], metavar="OPERATION",
                        help="leave an operation of the workers out, to narrow a failure down")
    parser.add_argument("--only", help="with --steps: only this scenario")
    parser.add_argument("--work", help="where to put the directories (default: temporary files)")
    parser.add_argument("--quick", action="store_true", help="stop after 40 s")
    arguments = parser.parse_args()
    tools.need_root()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for name in arguments.without:
        crash_worker.Worker.OPERATIONS[getattr(crash_worker.Worker, name)] = 0
    report = tools.Report()
    seconds = 40 if arguments.quick else 24 * 3600
    if arguments.steps:
        crash_steps.test(report, arguments.bsz, arguments.work, arguments.only, arguments.quick,
                         arguments.seed)
    else:
        random_kills(report, arguments.bsz, arguments.kills, arguments.seed, arguments.work,
                     seconds)
    report.exit()


if __name__ == "__main__":
    main()
