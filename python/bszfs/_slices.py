"""What an index of `get_slice(name)[...]` selects, by the rules of safetensors and of torch.

With torch, safetensors indexes a tensor; everywhere else it has rules of its own, which are fewer.
"""
from __future__ import annotations

import operator
from typing import Any, NamedTuple

from ._archive import SafetensorError


class Dim(NamedTuple):
    """The range of a dimension that is selected; one that is not kept is dropped."""

    start: int
    stop: int
    step: int
    kept: bool

    def __len__(self) -> int:
        return len(range(self.start, self.stop, self.step))


class Selection(NamedTuple):
    """What is selected of every dimension, and the shape of the result."""

    dims: list[Dim]
    shape: list[int]


class _Narrow(NamedTuple):
    start: int | None
    stop: int | None
    step: int

    def __str__(self) -> str:
        bound = ["" if n is None else str(n) for n in (self.start, self.stop)]
        return ":".join(bound if self.step == 1 else [*bound, str(self.step)])


def _unsigned(value: Any) -> int | None:
    if value is None:
        return None
    number = operator.index(value)
    if number < 0:
        raise OverflowError("can't convert negative int to unsigned")
    return number


def _narrow(item: slice) -> _Narrow:
    start, stop = _unsigned(item.start), _unsigned(item.stop)
    step = 1 if item.step is None else operator.index(item.step)
    if step <= 0:
        raise SafetensorError(f"Slice step must be a positive integer, got {step}")
    return _Narrow(start, stop, step)


def _select(item: Any, at: int, shape: tuple[int, ...]) -> int:
    try:
        index = operator.index(item)
        if not -(1 << 31) <= index < 1 << 31:
            raise OverflowError
    except (TypeError, OverflowError):
        expected = "expected slice, int, or ellipsis"
        raise SafetensorError(f"Unsupported slice index at position {at}: {expected}") from None
    size = shape[at] if at < len(shape) else 0
    if index < 0 and size + index < 0:
        raise SafetensorError(f"Invalid index {index} for dimension {at} of size {size}")
    return index if index >= 0 else size + index


def _parse(index: Any, shape: tuple[int, ...]) -> list[_Narrow | int]:
    if isinstance(index, list):
        if index:
            raise SafetensorError("Non empty lists are not implemented")
        return [_Narrow(0, 0, 1)]
    items = index if isinstance(index, tuple) else (index,)
    ellipses = sum(item is Ellipsis for item in items)
    if ellipses > 1:
        raise SafetensorError("Only one ellipsis (...) is allowed in slice index")
    parsed: list[_Narrow | int] = []
    for item in items:
        if item is Ellipsis:
            missing = max(len(shape) - (len(items) - ellipses), 0)
            parsed += [_Narrow(None, None, 1)] * missing
        elif isinstance(item, slice):
            parsed.append(_narrow(item))
        else:
            parsed.append(_select(item, len(parsed), shape))
    return parsed


def _fails(parsed: list[_Narrow | int], shape: tuple[int, ...], why: str) -> SafetensorError:
    shown = ", ".join(map(str, parsed))
    return SafetensorError(f"Error during slicing [{shown}] with shape {list(shape)}: {why}")


def of_safetensors(index: Any, shape: tuple[int, ...], element_bits: int) -> Selection:
    """Select by the rules of safetensors: bounds are not clipped, and there is little else."""
    parsed = _parse(index, shape)
    if len(parsed) > len(shape):
        raise _fails(parsed, shape, "more slicing indexes than dimensions in tensor")
    dims = [Dim(0, size, 1, True) for size in shape]
    span = element_bits
    for at in reversed(range(len(shape))):
        size = shape[at]
        if at < len(parsed):
            item = parsed[at]
            if isinstance(item, int):
                dim = Dim(item, item + 1, 1, False)
            else:
                start = 0 if item.start is None else item.start
                dim = Dim(start, size if item.stop is None else item.stop, item.step, True)
            if dim.start >= size or dim.stop > size or dim.stop < dim.start:
                asked = dim.start if dim.start >= size else max(dim.stop - 1, 0)
                out = f"index {asked} out of bounds for tensor dimension #{at} of size {size}"
                raise _fails(parsed, shape, out)
            if dim[:3] != (0, size, 1) and (dim.start * span % 8 or dim.stop * span % 8):
                why = "The slice is slicing for subbytes dtypes, and the slice does not end up"
                raise _fails(parsed, shape, f"{why} at a byte boundary, this is invalid.")
            dims[at] = dim
        span *= size
    return Selection(dims, [len(dim) for dim in dims if dim.kept])


def of_torch(index: Any, shape: tuple[int, ...]) -> Selection | None:
    """Select as torch does; `None` if only torch itself can say what the index means.

    The index must be one that torch accepts for this shape.
    """
    items = index if isinstance(index, tuple) else (index,)
    if not all(
        item is Ellipsis or isinstance(item, slice) or (type(item) is int) for item in items
    ):
        return None
    dims: list[Dim] = []
    for item in items:
        if item is Ellipsis:
            count = len(shape) - (len(items) - sum(other is Ellipsis for other in items))
            dims += [Dim(0, size, 1, True) for size in shape[len(dims) : len(dims) + count]]
            continue
        size = shape[len(dims)]
        if isinstance(item, slice):
            dims.append(Dim(*item.indices(size), True))
        else:
            dims.append(Dim(item % size, item % size + 1, 1, False))
    dims += [Dim(0, size, 1, True) for size in shape[len(dims) :]]
    return Selection(dims, [len(dim) for dim in dims if dim.kept])
