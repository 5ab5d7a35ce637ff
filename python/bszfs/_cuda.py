"""GPUs that decode into their own memory, until one of them fails; then the CPU does the rest."""
from __future__ import annotations

import os
import threading
import warnings
import weakref

from . import _native
from ._archive import BszError


class Gpu:
    """A GPU, and the staging memory that decoding takes on it and on the host."""

    def __init__(self, ordinal: int) -> None:
        self.ordinal = ordinal
        if ordinal not in _opened:
            _opened[ordinal] = _native.Cuda(ordinal)
        self._native = _opened[ordinal]
        weakref.finalize(self, self._native.release)

    def decode(
        self, archive: _native.Archive, parts: list[tuple[int, int, int]], stream: int
    ) -> bool:
        """Decode parts of an original, (offset, length, address), after the work of a stream.

        `False` if the GPU fails, or finds the archive damaged: that is for the CPU to tell.
        """
        try:
            self._native.decode(archive, parts, stream)
        except RuntimeError as e:
            self.give_up(str(e))
            return False
        except BszError:
            return False
        return True

    def give_up(self, why: str) -> None:
        """Decode on the CPU from now on."""
        with _lock:
            _give_up(self.ordinal, why)


# Until the process ends: the kernels are loaded once, and take little memory.
_opened: dict[int, _native.Cuda] = {}
# Those that files are open for, by their numbers: the staging memory is freed with the last file.
_in_use: weakref.WeakValueDictionary[int, Gpu] = weakref.WeakValueDictionary()
# Those that have failed.
_failed: set[int] = set()
_lock = threading.Lock()


def _give_up(ordinal: int, why: str) -> None:
    if ordinal not in _failed:
        _failed.add(ordinal)
        warnings.warn(f"cuda:{ordinal}: decoding on the CPU: {why}", RuntimeWarning, stacklevel=2)


def gpu(ordinal: int) -> Gpu | None:
    """The GPU with this number; `None`, after a warning, if it cannot decode.

    `BSZFS_CUDA=0` in the environment leaves all of them alone.
    """
    with _lock:
        if ordinal in _failed or os.environ.get("BSZFS_CUDA") == "0":
            return None
        found = _in_use.get(ordinal)
        if found is None:
            try:
                found = _in_use[ordinal] = Gpu(ordinal)
            except RuntimeError as e:
                _give_up(ordinal, str(e))
        return found
