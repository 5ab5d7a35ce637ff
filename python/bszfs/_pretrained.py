"""Load models of transformers and diffusers from packed directories, by their own functions."""
from __future__ import annotations

import os
from typing import Any

from ._names import StrPath
from ._patch import patched


def from_pretrained(directory: StrPath, cls: Any, **options: Any) -> Any:
    """`cls.from_pretrained(directory, **options)`, where `directory` may hold archives.

    `cls` is any class with that method: of transformers, `AutoModel` and the like included, or of
    diffusers. The result is what `cls` itself makes of the plain directory.
    """
    with patched([directory]):
        return cls.from_pretrained(os.fsdecode(directory), **options)


def load_model(directory: StrPath, cls: Any, **options: Any) -> Any:
    """The same as `bszfs.stream.Loader(directory).load_model(cls, **options)`."""
    from .stream import Loader

    return Loader(directory).load_model(cls, **options)
