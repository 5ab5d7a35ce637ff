"""The record of a run of tests/gpu/run: its steps, their time limits, and one JSON file."""

import json
import os
import pathlib
import signal
import subprocess
import tempfile
import time

# Seconds for a killed process to end, and the least that a step is started with.
GRACE = 5
# Characters of a failed step's output that are kept.
KEPT = 3000


class Skipped(Exception):
    """A step cannot be done here; the argument says why."""


class Failed(Exception):
    """A step failed; the argument says why."""


class Card:
    """Runs steps, each within its time limit, and saves the record after each of them."""

    def __init__(self, path, budget, about):
        self.path = pathlib.Path(path)
        self.begun = time.monotonic()
        self.budget = budget
        self.record = about | {"steps": []}
        self.deadline = self.begun + budget
        self.output = ""
        self.running = None

    def step(self, name, limit, work, *needs):
        """Do `work`, which returns the figures, in at most `limit` seconds. Each of `needs` is a
        reason to skip the step, or nothing. Whether it passed."""
        begun = time.monotonic()
        self.output = ""
        figures, state = {}, "passed"
        try:
            for why in filter(None, needs):
                raise Skipped(why)
            if self.begun + self.budget - begun < GRACE:
                raise Skipped("no time left")
            self.deadline = min(begun + limit, self.begun + self.budget)
            figures = work() or {}
        except Skipped as why:
            state = f"skipped: {why}"
        except Failed as why:
            state = f"failed: {why}"
        except (OSError, ValueError, KeyError, IndexError, subprocess.SubprocessError) as error:
            state = f"failed: {type(error).__name__}: {error}"
        seconds = round(time.monotonic() - begun, 2)
        step = {"step": name, "state": state, "seconds": seconds, "limit_s": limit} | figures
        if state.startswith("failed") and self.output:
            step["output"] = self.output[-KEPT:]
        self.record["steps"].append(step)
        self.save()
        print(f"{seconds:7.1f} s  {name}: {state}", flush=True)
        return state == "passed"

    def run(self, command, limit=None, check=True, **environment):
        """Run a command within the step's time, or `limit` seconds if that is less. Returns its
        exit status, standard output, and both outputs together. With `check`, the status must
        be 0."""
        left = self.deadline - time.monotonic()
        left = max(1, left if limit is None else min(left, limit))
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            # In a session of its own, so that its children can be ended along with it.
            process = subprocess.Popen(
                [str(word) for word in command], stdin=subprocess.DEVNULL, stdout=out, stderr=err,
                env=os.environ | {k: str(v) for k, v in environment.items()},
                start_new_session=True)
            self.running = process
            try:
                status = process.wait(left)
            except subprocess.TimeoutExpired:
                status = None
                self.kill()
            self.running = None
            texts = []
            for file in (out, err):
                file.seek(0)
                texts.append(file.read().decode(errors="replace"))
        self.output = "".join(texts)
        if status is None:
            raise Failed(f"{pathlib.Path(command[0]).name} took more than {left:.0f} seconds")
        if check and status != 0:
            raise Failed(f"{pathlib.Path(command[0]).name} exited with {status}")
        return status, texts[0], self.output

    def kill(self):
        """End the command that is running."""
        if self.running is None:
            return
        try:
            os.killpg(self.running.pid, signal.SIGKILL)
            # A process that waits for a driver may never end.
            self.running.wait(GRACE)
        except (OSError, subprocess.TimeoutExpired):
            pass

    def count(self, state):
        """The number of steps in this state."""
        return sum(step["state"].startswith(state) for step in self.record["steps"])

    def save(self):
        """Write the record, so that a run that is cut off leaves what it has found."""
        self.record["seconds"] = round(time.monotonic() - self.begun, 1)
        for state in ("passed", "failed", "skipped"):
            self.record[state] = self.count(state)
        new = self.path.with_name(self.path.name + ".new")
        new.write_text(json.dumps(self.record, indent=1) + "\n", encoding="utf-8")
        new.replace(self.path)
