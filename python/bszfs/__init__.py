"""Read models that are packed as .bsz archives, in the process and without FUSE.

    bszfs.safe_open             the reader of safetensors, for archives
    bszfs.torch, bszfs.numpy    load_file and its like
    bszfs.stream.Loader         one layer after another, with bounded memory
    bszfs.from_pretrained       a transformers or diffusers model from a packed directory
    bszfs.patched               the same for code that cannot be changed
    bszfs.Archive, bszfs.open   the bytes of the original
    bszfs.pack, unpack, verify, info, mount
"""
from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

if sys.byteorder != "little":
    raise ImportError("bszfs needs a little-endian machine: archives hold little-endian tensors")

from ._archive import Archive, SafetensorError, TensorInfo, open
from ._commands import info, mount, pack, unpack, verify
from ._native import __version__
from ._open import safe_open
from ._patch import patched
from ._pretrained import from_pretrained, load_model

if TYPE_CHECKING:
    from . import numpy as numpy
    from . import stream as stream
    from . import torch as torch

__all__ = [
    "Archive",
    "SafetensorError",
    "TensorInfo",
    "__version__",
    "from_pretrained",
    "info",
    "load_model",
    "mount",
    "open",
    "pack",
    "patched",
    "safe_open",
    "unpack",
    "verify",
]

_LAZY = ("numpy", "stream", "torch", "vllm")


def __getattr__(name: str) -> Any:
    # They import a framework, and so only when they are used.
    if name in _LAZY:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
