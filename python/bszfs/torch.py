"""Load archives into torch: `load_file` and `load_model` of safetensors, and an iterator."""
from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import torch

from . import _names
from ._names import StrPath
from ._open import Opened, safe_open

# How much is decoded at a time, so that all threads have work when tensors are small.
_BATCH = 64 << 20


@contextlib.contextmanager
def _opened(path: StrPath, device: str | int) -> Iterator[list[Any]]:
    """All files of a model. While they are open, a GPU's staging memory is kept."""
    with contextlib.ExitStack() as stack:
        files = (safe_open(file, "pt", device) for file in _names.weight_files(path))
        yield [stack.enter_context(file) for file in files]


def load_file(path: StrPath, device: str | int = "cpu") -> dict[str, torch.Tensor]:
    """All tensors of a file, or of all shards if `path` is the directory of a model."""
    tensors: dict[str, torch.Tensor] = {}
    with _opened(path, device) as files:
        for f in files:
            tensors.update(f.get_tensors())
    return tensors


def load(data: bytes) -> dict[str, torch.Tensor]:
    """All tensors of an archive, or of a safetensors file, that is in memory."""
    if not data.startswith(_names.MAGIC):
        from safetensors.torch import load as theirs

        return theirs(data)
    # The reader wants a file; this one has no name, and is gone once it is closed.
    fd = os.memfd_create("bszfs", os.MFD_CLOEXEC)
    with os.fdopen(fd, "wb") as f:
        f.write(data)
        f.flush()
        path = f"/proc/self/fd/{fd}"
        opened = Opened(path, "pytorch", "cpu", "mmap", path)
    return opened.tensors(list(opened.infos.values()))


def iter_tensors(
    path: StrPath, device: str | int = "cpu"
) -> Iterator[tuple[str, torch.Tensor]]:
    """One tensor after another, in the order of their data, each with memory of its own.

    Not much more than 64 MiB, or the largest tensor, is decoded ahead.
    """
    with _opened(path, device) as files:
        for f in files:
            opened = getattr(f, "_opened", None)
            if opened is None:  # a plain file
                for name in f.offset_keys():
                    yield name, f.get_tensor(name)
                continue
            for infos in opened.batches(_BATCH):
                loaded = opened.tensors(infos)
                for info in infos:
                    # The caller alone decides how long a tensor lives.
                    yield info.name, loaded.pop(info.name)


def load_model(
    model: torch.nn.Module, path: StrPath, strict: bool = True, device: str | int = "cpu"
) -> tuple[set[str], list[str]]:
    """Load a model's parameters in place, as `safetensors.torch.load_model` does.

    Returns the names that are missing in the file, and those that the model has not.
    """
    from safetensors.torch import _remove_duplicate_names

    tensors = load_file(path, device)
    tied = _remove_duplicate_names(model.state_dict(), preferred_names=list(tensors))
    missing_keys, unexpected = model.load_state_dict(tensors, strict=False)
    missing = set(missing_keys)
    for name in (name for group in tied.values() for name in group):
        if name in missing:
            missing.remove(name)
        else:
            unexpected.append(name)
    if strict and (missing or unexpected):
        error = f"Error(s) in loading state_dict for {type(model).__name__}:"
        for what, names in (("Missing", missing), ("Unexpected", unexpected)):
            if names:
                shown = ", ".join(f'"{name}"' for name in sorted(names))
                error += f"\n    {what} key(s) in state_dict: {shown}"
        raise RuntimeError(error)
    return missing, unexpected
