"""`Archive` and `open`: the bytes of the original file of an archive."""
from __future__ import annotations

import builtins
import ctypes
import io
import json
import os
from collections.abc import Iterable
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from . import _names, _native
from ._names import StrPath

BszError = _native.BszError
if TYPE_CHECKING:

    class SafetensorError(Exception):
        """Damage, or what else is wrong with a file: of safetensors, where that is installed."""

else:
    try:
        from safetensors import SafetensorError
    except ImportError:
        SafetensorError = BszError


class TensorInfo(NamedTuple):
    """A tensor of the header. `start` and `end` are offsets in the original file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def nbytes(self) -> int:
        return self.end - self.start


class Archive:
    """An archive. It may be used by several threads at a time.

    Every decoded chunk is checked before any of its bytes is returned. Damage raises
    `SafetensorError`, and what the operating system refuses raises `OSError`.
    """

    def __init__(self, path: StrPath) -> None:
        self._native = _native.Archive(path)

    @property
    def path(self) -> str:
        return self._native.path

    @property
    def size(self) -> int:
        """The length of the original in bytes."""
        return self._native.size

    @property
    def stored_size(self) -> int:
        """The length of the archive in bytes."""
        return self._native.stored_size

    def sha256(self) -> str:
        """The SHA-256 of the original, in hexadecimal."""
        return self._native.sha256

    def header(self) -> dict[str, Any]:
        """The safetensors header of the original."""
        header: dict[str, Any] = json.loads(self._native.header())
        return header

    def tensors(self) -> list[TensorInfo]:
        """The tensors of the original, in the order of their data."""
        return [TensorInfo(*entry) for entry in self._native.tensors()]

    def read(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes of the original, fewer only at its end."""
        return self._native.read(offset, length)

    def read_into(self, buffer: Any, offset: int) -> int:
        """Fill a writable buffer; returns the number of bytes, fewer only at the end."""
        return self._native.read_into(buffer, offset)

    def read_many(self, parts: Iterable[tuple[int, Any]]) -> None:
        """Fill writable buffers, given as (offset, buffer), with all threads together.

        A part that is not wholly inside the original is an error.
        """
        held, addresses = [], []
        for offset, buffer in parts:
            view = memoryview(buffer).cast("B")
            if view.nbytes:
                exported = ctypes.c_char.from_buffer(view)
                held.append(exported)
                addresses.append((offset, view.nbytes, ctypes.addressof(exported)))
        self._native.read_many(addresses)

    def verify(self) -> None:
        """Decode everything and compare it with the checksums; raises if they differ."""
        self._native.verify()

    def close(self) -> None:
        """Close the archive; what is called later raises `ValueError`."""
        self._native.close()

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<bszfs.Archive {self.path!r}>"


class _RawFile(io.RawIOBase):
    """The original as an unbuffered file."""

    def __init__(self, path: str) -> None:
        self._archive = _native.Archive(path)
        self._size = self._archive.size
        self._at = 0
        self.name = path

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self.closed:
            raise ValueError("I/O operation on closed file.")
        count = self._archive.read_into(buffer, self._at)
        self._at += count
        return count

    def readall(self) -> bytes:
        if self.closed:
            raise ValueError("I/O operation on closed file.")
        data = self._archive.read(self._at, max(self._size - self._at, 0))
        self._at += len(data)
        return data

    def tell(self) -> int:
        if self.closed:
            raise ValueError("I/O operation on closed file.")
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        bases = {os.SEEK_SET: 0, os.SEEK_CUR: self.tell(), os.SEEK_END: self._size}
        if whence not in bases:
            raise ValueError(f"invalid whence ({whence}, should be 0, 1 or 2)")
        if bases[whence] + offset < 0:
            raise ValueError(f"negative seek position {bases[whence] + offset}")
        self._at = bases[whence] + offset
        return self._at

    def close(self) -> None:
        if not self.closed:
            self._archive.close()
        super().close()


# Large enough that reads in sequence do not decode a chunk twice.
_BUFFER = 1 << 20


def open(path: StrPath, *, buffering: int = _BUFFER) -> IO[bytes]:
    """Open the original of an archive for reading, as a binary file that can seek.

    `path` is an archive, or the name of an original. A plain file wins over an archive beside it.
    """
    archive = _names.archive_for(path)
    if archive is None:
        return builtins.open(path, "rb")
    raw = _RawFile(archive)
    return raw if buffering == 0 else io.BufferedReader(raw, buffering)  # type: ignore
