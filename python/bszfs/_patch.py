"""`patched`: code that knows nothing of archives finds and loads them, while a block runs.

It replaces `safetensors.safe_open` and the functions with which loaders look for files, wherever
modules have bound them. Afterwards the originals are put back everywhere, also into modules that
were imported meanwhile; what still holds a replacement, such as a closure, gets the original's
behaviour from it, since it asks at each call whether a block is running.
"""
from __future__ import annotations

import builtins
import contextlib
import glob
import io
import os
import pathlib
import shutil
import sys
import threading
from collections.abc import Iterable, Iterator
from typing import Any

from . import _shown
from ._names import StrPath
from ._open import original_safe_open, safe_open

# `shutil` looks at the functions of `os` when it is imported, which must not be in a block.
_ = shutil

_lock = threading.RLock()
# What each running block covers: directories, or None for all.
_blocks: list[tuple[str, ...] | None] = []


def _covers(path: Any) -> str | None:
    """The text of a path, if one of the running blocks applies to it."""
    if not _blocks or not isinstance(path, (str, bytes, os.PathLike)):
        return None
    name = os.fsdecode(path)
    absolute = os.path.abspath(name)
    for dirs in tuple(_blocks):
        if dirs is None or any(absolute == d or absolute.startswith(d + os.sep) for d in dirs):
            return name
    return None


def _directories(dirs: StrPath | Iterable[StrPath] | None) -> tuple[str, ...] | None:
    if dirs is None:
        return None
    if isinstance(dirs, (str, bytes, os.PathLike)):
        dirs = [dirs]
    named = [os.path.abspath(os.fsdecode(one)) for one in dirs]
    # Frameworks resolve links on their own.
    return tuple({name.rstrip(os.sep) for one in named for name in (one, os.path.realpath(one))})


class _Patched(safe_open):
    """Put in the place of `safetensors.safe_open`."""

    def __new__(cls, filename: Any, *args: Any, **options: Any) -> Any:
        if _covers(filename) is None:
            theirs = original_safe_open()
            assert theirs is not None  # it was replaced
            return theirs(filename, *args, **options)
        return safe_open(filename, *args, **options)


_Patched.__name__ = _Patched.__qualname__ = "safe_open"

_NEW = _shown.replacements(_covers)
_OLD = {
    "stat": _shown.os_stat,
    "listdir": _shown.os_listdir,
    "scandir": _shown.os_scandir,
    "open": _shown.io_open,
}
# Sets of functions with which `os` says what they support.
_SUPPORT = ("supports_dir_fd", "supports_fd", "supports_follow_symlinks")


def _pairs() -> list[tuple[Any, Any]]:
    """Originals and their replacements."""
    pairs = [(_OLD[name], _NEW[name]) for name in _OLD]
    theirs = original_safe_open()
    return pairs if theirs is None else [*pairs, (theirs, _Patched)]


# What `pathlib` and `glob` have bound in their classes, as it was: class, name, value.
_bound: list[tuple[type, str, Any]] = []


def _swap(pairs: list[tuple[Any, Any]]) -> None:
    """Replace old by new in all modules."""
    new_of = {id(old): new for old, new in pairs}
    ours = {__name__, _shown.__name__, f"{__package__}._names", f"{__package__}._open"}
    for name, module in list(sys.modules.items()):
        # Modules that load lazily define attributes on demand; this looks only at what is there.
        attributes = getattr(module, "__dict__", None)
        if name in ours or not isinstance(attributes, dict):
            continue
        for key, value in list(attributes.items()):
            if id(value) in new_of:
                attributes[key] = new_of[id(value)]


def _swap_in_classes() -> None:
    """Some releases of Python bind functions of `os` in classes of `pathlib` and `glob`."""
    new_of = {id(_OLD[name]): _NEW[name] for name in _OLD}
    classes = {
        cls
        for name, module in list(sys.modules.items())
        if name.split(".")[0] in (pathlib.__name__, glob.__name__)
        for cls in list(vars(module).values())
        if isinstance(cls, type) and cls.__module__ == name
    }
    for cls in classes:
        for key, value in list(vars(cls).items()):
            function = value.__func__ if isinstance(value, staticmethod) else value
            if id(function) in new_of:
                _bound.append((cls, key, value))
                # A function of Python would otherwise become a method.
                setattr(cls, key, staticmethod(new_of[id(function)]))


def _install() -> None:
    _swap(_pairs())
    _swap_in_classes()
    for name in _SUPPORT:
        supported = getattr(os, name)
        supported.update(_NEW[key] for key, old in _OLD.items() if old in supported)


def _remove() -> None:
    _swap([(new, old) for old, new in _pairs()])
    while _bound:
        setattr(*_bound.pop())
    for name in _SUPPORT:
        getattr(os, name).difference_update(_NEW.values())


@contextlib.contextmanager
def patched(dirs: StrPath | Iterable[StrPath] | None = None) -> Iterator[None]:
    """Let all code of the process load archives below `dirs` as if their originals were there.

    `dirs` is one directory or several; by default, it applies to all. Blocks may be nested, and run
    in several threads; the last one to end puts everything back.
    """
    covered = _directories(dirs)
    with _lock:
        _blocks.append(covered)
        if len(_blocks) == 1:
            _install()
    try:
        yield
    finally:
        with _lock:
            _blocks.remove(covered)
            if not _blocks:
                _remove()


def install(dirs: Iterable[StrPath] | None) -> None:
    """The same until the process ends."""
    block = patched(dirs)
    block.__enter__()
    _installed.append(block)


_installed: list[Any] = []
assert builtins.open is io.open
