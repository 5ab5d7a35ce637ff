"""Reads the log of strace: its calls, their arguments, and which threads share a process."""
import re
import shutil
import sys

TRACED = ["open", "openat", "openat2", "creat", "close", "dup", "dup2", "dup3", "fcntl", "write",
          "writev", "pwrite64", "pwritev", "pwritev2", "ftruncate", "truncate", "fallocate",
          "copy_file_range", "sendfile", "splice", "ioctl", "link", "linkat", "rename", "renameat",
          "renameat2", "unlink", "unlinkat", "rmdir", "mkdir", "mkdirat", "symlink", "symlinkat",
          "fchmod", "fchmodat", "fchmodat2", "chmod", "utimensat", "fsetxattr", "setxattr",
          "fremovexattr", "removexattr", "fsync", "fdatasync", "sync", "syncfs", "sync_file_range",
          "clone", "clone3", "fork", "vfork"]
STARTS = {"clone", "clone3", "fork", "vfork"}
IGNORED = {"ioctl", "sync_file_range"} | STARTS
LINE = re.compile(r"^(\d+) +(\d+\.\d+) (.*)$")
CALL = re.compile(r"^(\w+)\((.*)\) += (-?\d+|\?)(.*?)(?: <(\d+\.\d+)>)?$")


class Unknown(Exception):
    """The log has something that cannot be replayed."""


def strace(log):
    """The start of a command line that records what follows it."""
    if not shutil.which("strace"):
        sys.exit("needs strace")
    calls = ",".join("?" + call for call in TRACED)
    return ["strace", "-f", "-xx", "-s", "2000000", "-ttt", "-T", "-e", f"trace={calls}",
            "-e", "signal=none", "-o", log]


class Call:
    """One finished call: name, arguments as printed, result, thread, and when it ran."""

    def __init__(self, thread, name, arguments, result, start, end):
        self.thread, self.name, self.arguments, self.result = thread, name, arguments, result
        self.start, self.end = start, end


def split(text):
    """Arguments at commas outside of brackets and strings; comments are dropped."""
    text = re.sub(r"/\*.*?\*/", "", text)
    parts, depth, quoted, last = [], 0, False, 0
    for match in re.finditer(r'["\[\](){}<>,]', text):
        char = match[0]
        if char == '"':
            quoted = not quoted
        elif quoted:
            continue
        elif char in "[({<":
            depth += 1
        elif char in "])}>":
            depth -= 1
        elif depth == 0:
            parts.append(text[last:match.start()].strip())
            last = match.end()
    return parts + [text[last:].strip()]


def plain(hexed):
    return bytes.fromhex(hexed.replace("\\x", ""))


def string(argument):
    """The bytes of a quoted argument."""
    match = re.match(r'^"((?:\\x..)*)"(\.\.\.)?$', argument)
    if not match or match[2]:
        raise Unknown(f"no full string: {argument[:80]}")
    return plain(match[1])


def read_calls(log):
    """All successful calls of the log, in the order in which they ended."""
    begun, calls = {}, []
    with open(log, encoding="ascii", errors="replace") as lines:
        for line in lines:
            match = LINE.match(line.rstrip("\n"))
            if not match:
                continue
            thread, moment, text = match[1], float(match[2]), match[3]
            if text.endswith("<unfinished ...>"):
                begun[thread] = (moment, text[:-len("<unfinished ...>")])
                continue
            start = moment
            resumed = re.match(r"^<\.\.\. \w+ resumed>(.*)$", text)
            if resumed:
                start, head = begun.pop(thread)
                text = head + resumed[1]
            found = CALL.match(text)
            if not found or found[3] == "?" or int(found[3]) < 0:
                continue
            end = start + float(found[5] or 0)
            calls.append(Call(thread, found[1], split(found[2]), int(found[3]), start, end))
    # A descriptor is free, and may be given to another thread, before close returns.
    return sorted(calls, key=lambda call: call.start if call.name == "close" else call.end)


def leaders(calls):
    """{thread: first thread of its process} of all that the calls started."""
    found = {}
    for call in sorted(calls, key=lambda call: call.start):
        if call.name in STARTS and call.result > 0:
            same = any("CLONE_THREAD" in argument for argument in call.arguments)
            child = str(call.result)
            found[child] = found.get(call.thread, call.thread) if same else child
    return found
