"""What the command `bsz` does, as functions; `mount` runs the command itself."""
from __future__ import annotations

import contextlib
import os
import subprocess
import sys
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


# The command, whether or not its script is in PATH.
_BSZ = [sys.executable, "-I", "-S", os.path.join(os.path.dirname(__file__), "_cli.py")]


def _run(*args: str) -> None:
    done = subprocess.run([*_BSZ, *args], stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        why = done.stderr.strip() or f"bsz {args[0]}: exit code {done.returncode}"
        raise OSError(why)


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
