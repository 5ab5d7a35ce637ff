"""Decode tensors into memory that a framework has allocated."""
from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeAlias, TypeVar

from . import _native
from ._archive import SafetensorError, TensorInfo
from ._frameworks import NumPy, Torch

# How much host memory is taken at a time on the way to a device.
_PINNED = 256 << 20

Target: TypeAlias = "tuple[TensorInfo, int]"
T = TypeVar("T")


def _nbytes(target: tuple[TensorInfo, Any]) -> int:
    return target[0].nbytes


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


def fill_on_device(
    archive: _native.Archive, targets: list[tuple[TensorInfo, Any]], framework: Torch
) -> None:
    """Decode tensors in the memory of a GPU: on the GPU, or else on the CPU, and copy them."""
    gpu = framework.gpu()
    parts = [(info.start, info.nbytes, framework.address(tensor)) for info, tensor in targets]
    if gpu is not None and gpu.decode(archive, parts, framework.stream()):
        return
    for batch in batches(targets, _PINNED, _nbytes):
        hosts = [framework.empty(info.dtype, tensor.shape, pinned=True) for info, tensor in batch]
        fill(archive, [(info, host.data_ptr()) for (info, _), host in zip(batch, hosts)])
        for (_, tensor), host in zip(batch, hosts):
            tensor.copy_(host)
    if gpu is not None:
        gpu.give_up("it does not decode what the CPU decodes")


def batches(items: Iterable[T], size: int, nbytes: Callable[[T], int]) -> Iterator[list[T]]:
    """Groups of up to `size` bytes, or of one item, in their order."""
    batch: list[T] = []
    total = 0
    for item in items:
        if batch and total + nbytes(item) > size:
            yield batch
            batch, total = [], 0
        batch.append(item)
        total += nbytes(item)
    if batch:
        yield batch


def load(
    archive: _native.Archive, infos: Iterable[TensorInfo], framework: Torch | NumPy
) -> dict[str, Any]:
    """Decode whole tensors; a few calls to the decoder serve them all."""
    shapes = [(info, framework.shape(info.dtype, info.shape)) for info in infos]
    if isinstance(framework, Torch) and framework.is_cuda:
        there = [(info, framework.empty_on_device(info.dtype, shape)) for info, shape in shapes]
        fill_on_device(archive, there, framework)
        return {info.name: tensor for info, tensor in there}
    # Only what stays in the memory of the processor can be allocated all at once.
    most = sys.maxsize if framework.device == "cpu" else _PINNED
    loaded: dict[str, Any] = {}
    for batch in batches(shapes, most, _nbytes):
        here = [(info, framework.empty(info.dtype, shape)) for info, shape in batch]
        fill(archive, [(info, framework.address(tensor)) for info, tensor in here])
        while here:
            info, tensor = here.pop(0)
            loaded[info.name] = framework.finish(tensor)
    return loaded
