"""Load archives into NumPy: `load_file` of safetensors."""
from __future__ import annotations

import numpy

from . import _names
from ._names import StrPath
from ._open import safe_open


def load_file(path: StrPath) -> dict[str, numpy.ndarray]:
    """All tensors of a file, or of all shards if `path` is the directory of a model.

    For BF16, `import ml_dtypes` first: NumPy has no such type of its own.
    """
    tensors: dict[str, numpy.ndarray] = {}
    for file in _names.weight_files(path):
        with safe_open(file, "np") as f:
            tensors.update(f.get_tensors())
    return tensors
