"""A load format of vLLM: `vllm serve DIR --load-format bsz` reads archives in DIR.

vLLM calls `register` in each of its processes (entry point `vllm.general_plugins`).
"""
from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from typing import Any

FORMAT = "bsz"


def register() -> None:
    """Register the load format, once."""
    from vllm.model_executor import model_loader

    known = getattr(model_loader, "_LOAD_FORMAT_TO_MODEL_LOADER", {})
    if getattr(known.get(FORMAT), "__module__", None) != __name__:
        model_loader.register_model_loader(FORMAT)(_loader())


def _loader() -> type:
    """The class of the loader; vLLM must not be imported before it asks for plugins."""
    from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

    from .torch import iter_tensors

    class BszLoader(DefaultModelLoader):  # type: ignore[misc, unused-ignore]
        """The default loader, but for where tensors come from.

        Each tensor has memory of its own, so that a model may keep it.
        """

        def __init__(self, load_config: Any) -> None:
            super().__init__(dataclasses.replace(load_config, load_format="safetensors"))

        def download_model(self, model_config: Any) -> None:
            """Archives are read where they are."""

        def _get_weights_iterator(self, source: Any) -> Iterator[tuple[str, Any]]:
            directory = source.model_or_path
            if not os.path.isdir(directory):
                raise ValueError(f"--load-format {FORMAT} needs a directory: {directory}")
            subfolder = getattr(source, "subfolder", None)
            if subfolder:
                directory = os.path.join(directory, subfolder)
            for name, tensor in iter_tensors(directory, device="cpu"):
                yield source.prefix + name, tensor

    BszLoader.__module__ = __name__
    return BszLoader
