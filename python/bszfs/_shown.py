"""What a directory looks like when archives are shown as their originals: stat, list, open.

Only the functions that `bszfs.patched` puts in place of those of `os` and `io` use this.
"""
from __future__ import annotations

import builtins
import io
import os
import stat
from collections.abc import Callable, Iterator
from typing import Any

from . import _native
from ._archive import open as open_original
from ._names import SUFFIX, original_name, stand_in

# The real ones, whatever is in their place later.
os_stat, os_listdir, os_scandir = os.stat, os.listdir, os.scandir
io_open = builtins.open

_sizes: dict[tuple[int, int, int, int], int] = {}


def _size_of_original(archive: str, found: os.stat_result) -> int:
    key = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
    if key not in _sizes:
        opened = _native.Archive(archive)
        _sizes[key] = opened.size
        opened.close()
    return _sizes[key]


def stat_of_original(archive: str) -> os.stat_result:
    """The stat of an archive, but with the size of its original."""
    found = os_stat(archive)
    # The first ten values are those of POSIX; the others, such as times in nanoseconds, have names.
    reduced: Any = found.__reduce__()
    values, named = list(found), reduced[1][1]
    values[stat.ST_SIZE] = _size_of_original(archive, found)
    return os.stat_result(values, named)


class Entry:
    """An `os.DirEntry` for an original of which there is only the archive."""

    def __init__(self, directory: str, name: str, archive: str) -> None:
        self.name = name
        self.path = os.path.join(directory, name) if directory else name
        self._archive = archive

    def is_file(self, *, follow_symlinks: bool = True) -> bool:
        return True

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        return False

    def is_symlink(self) -> bool:
        return False

    def is_junction(self) -> bool:
        return False

    def inode(self) -> int:
        return os_stat(self._archive).st_ino

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        return stat_of_original(self._archive)

    def __fspath__(self) -> str:
        return self.path

    def __repr__(self) -> str:
        return f"<DirEntry {self.name!r}>"


class Scan:
    """The iterator of `os.scandir`, with entries for originals at its end."""

    def __init__(self, directory: str, entries: Any) -> None:
        self._entries = entries
        self._all = self._iterate(directory)

    def _iterate(self, directory: str) -> Iterator[Any]:
        names = []
        for entry in self._entries:
            names.append(entry.name)
            yield entry
        for name, archive in originals(directory, names):
            yield Entry(directory, name, os.path.join(directory, archive))

    def __iter__(self) -> Scan:
        return self

    def __next__(self) -> Any:
        return next(self._all)

    def __enter__(self) -> Scan:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        self._entries.close()


def originals(directory: str, names: list[str]) -> list[tuple[str, str]]:
    """The originals that are not in a directory while their archives are, with the latter."""
    present = set(names)
    found = []
    for name in names:
        if name.endswith(SUFFIX):
            original = original_name(os.path.join(directory, name))
            if original is not None and original not in present:
                found.append((original, name))
    return found


Covers = Callable[[Any], "str | None"]


def replacements(covers: Covers) -> dict[str, Any]:
    """Functions for those of `os` and `io`; `covers(path)` is its text if they apply to it."""

    def new_stat(
        path: Any, *, dir_fd: int | None = None, follow_symlinks: bool = True
    ) -> os.stat_result:
        try:
            return os_stat(path, dir_fd=dir_fd, follow_symlinks=follow_symlinks)
        except FileNotFoundError:
            name = covers(path) if dir_fd is None else None
            archive = stand_in(name) if name else None
            if archive is None:
                raise
            return stat_of_original(archive)

    def new_listdir(path: Any = ".") -> list[Any]:
        names = os_listdir(path)
        name = covers(path)
        if name is not None and names and isinstance(names[0], str):
            names += [original for original, _ in originals(name, names)]
        return names

    def new_scandir(path: Any = ".") -> Any:
        entries = os_scandir(path)
        name = covers(path)
        # Entries for a path of bytes have names of bytes; nothing that loads models asks so.
        return entries if name is None or isinstance(path, bytes) else Scan(name, entries)

    def new_open(file: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
        try:
            return io_open(file, mode, *args, **options)
        except FileNotFoundError:
            name = covers(file) if not set(mode) & set("wax+") else None
            archive = stand_in(name) if name else None
            if archive is None:
                raise
            return _open_as(archive, mode, *args, **options)

    return {"stat": new_stat, "listdir": new_listdir, "scandir": new_scandir, "open": new_open}


def _open_as(
    archive: str,
    mode: str,
    buffering: int = -1,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
    closefd: bool = True,
    opener: Any = None,
) -> Any:
    binary = open_original(archive, **({} if buffering == -1 else {"buffering": buffering}))
    if "b" in mode:
        return binary
    return io.TextIOWrapper(binary, encoding, errors, newline)
