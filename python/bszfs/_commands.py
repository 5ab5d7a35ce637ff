"""What the command `bsz` does, as functions; `mount` runs the command itself."""
from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

from . import _native
from ._names import StrPath


def pack(
    path: StrPath,
    output: StrPath | None = None,
    *,
    remove: bool = False,
    threads: int | None = None,
) -> dict[str, Any]:
    """Pack a file, or every safetensors file of a directory; returns what was done.

    Every archive is decoded and compared before it appears. `remove` then removes the original.
    """
    return _native.pack(path, output, remove=remove, threads=threads)


def unpack(path: StrPath, output: StrPath | None = None) -> str:
    """Restore the original of an archive, or those of a directory; returns its path."""
    return _native.unpack(path, output)


def verify(path: StrPath) -> None:
    """Decode an archive and compare it with its checksums; raises if they differ."""
    _native.verify(path)


def info(path: StrPath) -> dict[str, Any]:
    """Describe an archive, as `bsz info --json` does."""
    return _native.info(path)


def command() -> str:
    """The path of the command `bsz`: this environment's, else the first of `PATH`."""
    beside = [sysconfig.get_path("scripts"), os.path.dirname(sys.executable)]
    found = shutil.which("bsz", path=os.pathsep.join(beside)) or shutil.which("bsz")
    if found is None:
        raise FileNotFoundError("the command bsz is neither beside python nor in PATH")
    return found


def _run(*args: str) -> None:
    done = subprocess.run([command(), *args], stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        why = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise OSError("\n".join(why))


@contextlib.contextmanager
def mount(
    directory: StrPath, mountpoint: StrPath | None = None, *, options: Sequence[str] = ()
) -> Iterator[str]:
    """Mount a packed directory as long as the block runs; yields the path of the mount.

    Without a `mountpoint`, it is a temporary directory. `options` are arguments of `bsz mount`.
    Raises `OSError` with the command's message, for example where there is no FUSE.
    """
    with contextlib.ExitStack() as undo:
        if mountpoint is None:
            target = tempfile.mkdtemp(prefix="bszfs-")
            undo.callback(os.rmdir, target)
        else:
            target = os.fsdecode(mountpoint)
        _run("mount", *options, os.fsdecode(directory), target)
        undo.callback(_unmount, target)
        yield target


def _unmount(target: str) -> None:
    try:
        _run("umount", target)
    except OSError:
        # Files of it are still open: it ends with the last of them.
        _run("umount", "--lazy", target)
