"""Decode tensors into memory that a framework has allocated."""
from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeAlias

from . import _native
from ._archive import SafetensorError, TensorInfo
from ._frameworks import NumPy, Torch

# How much is pinned at a time on the way to a GPU.
_PINNED = 256 << 20

Target: TypeAlias = "tuple[TensorInfo, int]"


def _blame(archive: _native.Archive, targets: list[Target]) -> None:
    """Raise for the first of these tensors that cannot be decoded, by its name."""
    for info, address in targets:
        try:
            archive.read_many([(info.start, info.nbytes, address)])
        except SafetensorError as e:
            why = f"Could not read tensor {info.name} from file: {e}"
            raise SafetensorError(why) from e


def fill(archive: _native.Archive, targets: Iterable[Target]) -> None:
    """Decode each tensor to its address; the caller keeps the memory alive.

    One call serves them all, since a chunk starts at each tensor, and neighbours are read together.
    """
    todo = [target for target in targets if target[0].nbytes]
    try:
        archive.read_many([(info.start, info.nbytes, address) for info, address in todo])
    except SafetensorError:
        _blame(archive, todo)
        raise


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
