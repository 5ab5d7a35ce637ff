"""Decode tensors into memory that a framework has allocated."""
from __future__ import annotations

import ctypes
from collections.abc import Iterable
from typing import Any, TypeAlias

from . import _native
from ._archive import SafetensorError, TensorInfo
from ._frameworks import NumPy, Torch

# Smaller tensors share chunks with their neighbours. They are decoded together into scratch memory,
# so that no chunk is decoded twice, and copied out.
_SMALL = 1 << 20
_SCRATCH = 16 << 20
# The most that lies between small tensors that are decoded together.
_GAP = 64 << 10
# How much is pinned at a time on the way to a GPU.
_PINNED = 256 << 20

Target: TypeAlias = "tuple[TensorInfo, int]"


def _runs(targets: list[Target]) -> Iterable[list[Target]]:
    """Group neighbouring small tensors; `targets` are in the order of their offsets."""
    run: list[Target] = []
    for target in targets:
        info = target[0]
        joins = (
            run
            and info.nbytes < _SMALL
            and run[-1][0].nbytes < _SMALL
            and 0 <= info.start - run[-1][0].end <= _GAP
            and info.end - run[0][0].start <= _SCRATCH
        )
        if run and not joins:
            yield run
            run = []
        run.append(target)
    if run:
        yield run


def _blame(archive: _native.Archive, targets: list[Target]) -> None:
    """Raise for the first of these tensors that cannot be decoded, by its name."""
    for info, address in targets:
        try:
            archive.read_many([(info.start, info.nbytes, address)])
        except SafetensorError as e:
            why = f"Could not read tensor {info.name} from file: {e}"
            raise SafetensorError(why) from e


def fill(archive: _native.Archive, targets: Iterable[Target]) -> None:
    """Decode each tensor to its address; the caller keeps the memory alive."""
    todo = sorted((t for t in targets if t[0].nbytes), key=lambda target: target[0].start)
    scratch: Any = None
    used = 0
    parts: list[tuple[int, int, int]] = []
    copies: list[tuple[int, int, int]] = []
    reading: list[Target] = []

    def flush() -> None:
        nonlocal used
        try:
            archive.read_many(parts)
        except SafetensorError:
            _blame(archive, reading)
            raise
        for to, at, length in copies:
            ctypes.memmove(to, at, length)
        used = 0
        parts.clear()
        copies.clear()
        reading.clear()

    for run in _runs(todo):
        start, length = run[0][0].start, run[-1][0].end - run[0][0].start
        if len(run) == 1:
            parts.append((start, length, run[0][1]))
        else:
            if used + length > _SCRATCH:
                flush()
            if scratch is None:
                scratch = (ctypes.c_char * _SCRATCH)()
            at = ctypes.addressof(scratch) + used
            parts.append((start, length, at))
            copies += [(to, at + info.start - start, info.nbytes) for info, to in run]
            used += length
        reading += run
    if parts:
        flush()


def load(
    archive: _native.Archive, infos: Iterable[TensorInfo], framework: Torch | NumPy
) -> dict[str, Any]:
    """Decode whole tensors; a few calls to the decoder serve them all."""
    loaded: dict[str, Any] = {}
    batch: list[tuple[TensorInfo, Any]] = []

    def flush() -> None:
        fill(archive, [(info, framework.address(tensor)) for info, tensor in batch])
        while batch:
            info, tensor = batch.pop(0)
            loaded[info.name] = framework.finish(tensor)

    size = 0
    # Only what stays in the memory of the processor can be allocated all at once.
    most = None if framework.device == "cpu" else _PINNED
    for info in infos:
        if most is not None and batch and size + info.nbytes > most:
            flush()
            size = 0
        shape = framework.shape(info.dtype, info.shape)
        tensor = framework.empty(info.dtype, shape, pinned=framework.pinned)
        batch.append((info, tensor))
        size += info.nbytes
    flush()
    return loaded
