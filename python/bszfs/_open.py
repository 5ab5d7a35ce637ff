"""`safe_open`: the reader of safetensors, for archives, with the same results and errors."""
from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from typing import Any

from . import _names, _native
from ._archive import SafetensorError, TensorInfo
from ._frameworks import NumPy, Torch, adapter, parse_backend, parse_device, parse_framework
from ._names import StrPath
from ._read import batches, fill, load
from ._slices import Dim, Selection, of_safetensors, of_torch

# How much of a tensor is decoded at a time, if only some columns of it are wanted.
_BLOCK = 32 << 20
# Rows that are further apart than this are decoded one by one.
_FAR = 256 << 10


class Opened:
    """An archive, how its tensors are wanted, and what its header says of them."""

    def __init__(
        self, path: str, framework: str, device: str | int, backend: str, shown: str
    ) -> None:
        # The checks in the order in which safetensors makes them.
        if device != "cpu" and framework not in ("pytorch", "paddle"):
            why = f"Device {device} is not supported for framework {framework}"
            raise SafetensorError(why)
        try:
            self.archive = _native.Archive(path)
        except FileNotFoundError:
            raise FileNotFoundError(f"No such file or directory: {shown}") from None
        self.infos = {entry[0]: TensorInfo(*entry) for entry in self.archive.tensors()}
        self.framework = adapter(framework, device)
        self.backend = backend

    def info(self, name: str) -> TensorInfo:
        try:
            return self.infos[name]
        except KeyError:
            raise SafetensorError(f"File does not contain tensor {name}") from None

    def tensors(self, infos: list[TensorInfo]) -> dict[str, Any]:
        return load(self.archive, infos, self.framework)

    def batches(self, size: int) -> Iterator[list[TensorInfo]]:
        """All tensors in the order of their data, in groups of up to `size` bytes, or of one."""
        return batches(self.infos.values(), size, lambda info: info.nbytes)


class SafeSlice:
    """A tensor of which only what an index selects is decoded."""

    def __init__(self, opened: Opened, info: TensorInfo) -> None:
        self._opened = opened
        self._info = info

    def get_shape(self) -> list[int]:
        return list(self._info.shape)

    def get_dtype(self) -> str:
        return self._info.dtype

    def __getitem__(self, index: Any) -> Any:
        framework = self._opened.framework
        if isinstance(framework, Torch) and self._opened.backend == "mmap":
            return framework.finish(self._index_as_torch(framework, index))
        bits = self._bits()
        selection = of_safetensors(index, self._info.shape, bits)
        if isinstance(framework, Torch):
            framework.dtype(self._info.dtype)
        tensor = self._select(framework, selection)
        return framework.finish(tensor.reshape(selection.shape))

    def _bits(self) -> int:
        count = math.prod(self._info.shape)
        return self._info.nbytes * 8 // count if count else 8

    def _index_as_torch(self, framework: Torch, index: Any) -> Any:
        """Index as with the tensor itself: torch says what is wrong with an index."""
        info = self._info
        shape = framework.shape(info.dtype, info.shape)
        dtype = framework.dtype(info.dtype)
        # For F4, whose storage has half as many elements, this is the error of safetensors, too.
        like = framework.torch.empty(shape, dtype=dtype, device="meta").reshape(info.shape)
        selection = None
        if not _has_tensors(index):
            like = like[index]
            selection = of_torch(index, info.shape)
        if selection is None:
            (whole,) = self._opened.tensors([info]).values()
            return whole.reshape(info.shape)[index]
        return self._select(framework, selection).reshape(like.shape)

    def _select(self, framework: Torch | NumPy, selection: Selection) -> Any:
        info = self._info
        out = framework.empty(info.dtype, tuple(len(dim) for dim in selection.dims))
        nbytes = framework.nbytes(out)
        if nbytes == 0:
            return out
        if nbytes == info.nbytes:
            self._fill([(info.start, info.nbytes)], framework.address(out))
            return out
        rows, *rest = selection.dims
        row = info.nbytes // info.shape[0]
        if all(dim[:3] == (0, size, 1) for dim, size in zip(rest, info.shape[1:])):
            if rows.step == 1:
                self._fill([(info.start + rows.start * row, nbytes)], framework.address(out))
                return out
            if rows.step * row >= _FAR:
                starts = range(rows.start, rows.stop, rows.step)
                parts = [(info.start + at * row, row) for at in starts]
                self._fill(parts, framework.address(out))
                return out
        self._by_blocks(framework, out, rows, row, rest)
        return out

    def _by_blocks(
        self, framework: Torch | NumPy, out: Any, rows: Dim, row: int, rest: list[Dim]
    ) -> None:
        """Decode a block of rows at a time, and copy from it what is selected."""
        info = self._info
        columns = tuple(slice(dim.start, dim.stop, dim.step) for dim in rest)
        per_block = max(_BLOCK // (row * rows.step), 1)
        most = min(per_block, len(rows)) * rows.step
        scratch = framework.empty(info.dtype, (min(most, info.shape[0]), *info.shape[1:]))
        for begin in range(0, len(rows), per_block):
            count = min(per_block, len(rows) - begin)
            first = rows.start + begin * rows.step
            covered = (count - 1) * rows.step + 1
            self._fill([(info.start + first * row, covered * row)], framework.address(scratch))
            chosen = scratch[:covered][(slice(None, None, rows.step), *columns)]
            out[begin : begin + count] = chosen

    def _fill(self, parts: list[tuple[int, int]], address: int) -> None:
        targets = []
        for start, length in parts:
            part = self._info._replace(start=start, end=start + length)
            targets.append((part, address))
            address += length
        fill(self._opened.archive, targets)


def _has_tensors(index: Any) -> bool:
    """Whether an index has anything but numbers, slices, `...` and `None`."""
    items = index if isinstance(index, tuple) else (index,)
    plain = (int, slice, type(None), type(Ellipsis))
    return not all(isinstance(item, plain) for item in items)


class _Reader(type):
    """Makes what safetensors has opened an instance of `safe_open`, too."""

    def __instancecheck__(cls, instance: Any) -> bool:
        theirs = original_safe_open()
        return type.__instancecheck__(safe_open, instance) or (
            theirs is not None and isinstance(instance, theirs)
        )


def original_safe_open() -> type | None:
    """The class of safetensors, or `None` where it is not installed."""
    try:
        from safetensors import _safetensors_rust  # type: ignore[attr-defined, unused-ignore]
    except ImportError:
        return None
    return _original or _safetensors_rust.safe_open


# Bound before `bszfs.patched` puts something else in its place.
_original: type | None = None
_original = original_safe_open()


class safe_open(metaclass=_Reader):
    """Open a file of tensors lazily, as `safetensors.safe_open` does.

    `filename` is an archive, `x.bsz`, or the name of the original, `x.safetensors`. If there is a
    plain file of this name, safetensors opens it; otherwise the archive beside it is read.
    Tensors are decoded, and checked, as they are asked for, each into memory of its own.
    """

    _opened: Opened | None

    def __new__(
        cls,
        filename: StrPath,
        framework: str,
        device: str | int | None = "cpu",
        *,
        backend: str | None = None,
    ) -> safe_open:
        archive = _names.archive_for(filename)
        if archive is None:
            theirs = original_safe_open()
            if theirs is not None:
                options = {} if backend is None else {"backend": backend}
                opened: safe_open = theirs(filename, framework, device, **options)
                return opened
            if not _names.exists(os.fsdecode(filename)):
                raise FileNotFoundError(f"No such file or directory: {os.fsdecode(filename)}")
            raise ImportError("a plain file is opened by safetensors: pip install safetensors")
        self = super().__new__(cls)
        parsed = parse_framework(framework), parse_device(device), parse_backend(backend)
        self._opened = Opened(archive, *parsed, os.fsdecode(filename))
        return self

    def _inner(self) -> Opened:
        if self._opened is None:
            raise SafetensorError("File is closed")
        return self._opened

    def keys(self) -> list[str]:
        """The names of the tensors, sorted."""
        return sorted(self._inner().infos)

    def offset_keys(self) -> list[str]:
        """The names of the tensors in the order of their data."""
        return list(self._inner().infos)

    def metadata(self) -> dict[str, str] | None:
        """What the header has under `__metadata__`, or `None`."""
        header: dict[str, Any] = json.loads(self._inner().archive.header())
        return header.get("__metadata__")

    def get_tensor(self, name: str) -> Any:
        opened = self._inner()
        (tensor,) = opened.tensors([opened.info(name)]).values()
        return tensor

    def get_tensors(self) -> dict[str, Any]:
        """All tensors, decoded together, in the order of their data."""
        opened = self._inner()
        return opened.tensors(list(opened.infos.values()))

    def get_slice(self, name: str) -> SafeSlice:
        """The tensor, to be indexed: only what the index selects is decoded."""
        opened = self._inner()
        return SafeSlice(opened, opened.info(name))

    def __enter__(self) -> safe_open:
        return self

    def __exit__(self, *exc_info: object) -> None:
        # Slices that were taken before stay usable, so the file is closed with the last of them.
        self._opened = None


