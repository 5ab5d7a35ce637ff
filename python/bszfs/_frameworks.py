"""The tensors of each framework: their types, and memory to decode into.

Errors have the types and the texts of safetensors 0.8.
"""
from __future__ import annotations

import importlib
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from . import _cuda, _native
from ._archive import SafetensorError

# The name of each dtype in torch; NumPy and ml_dtypes agree where they have it.
DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8",
    "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8",
    "BOOL": "bool", "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn", "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2": "float8_e5m2", "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu", "F4": "float4_e2m1fn_x2",
}  # fmt: skip
# Smaller memory seldom has a huge page inside.
_HUGE = 4 << 20
_ACCELERATORS = ("cuda", "musa", "npu", "xpu", "xla", "mlu", "hpu")
_NAMES = {
    "pt": "pytorch", "torch": "pytorch", "pytorch": "pytorch", "np": "numpy", "numpy": "numpy",
    "tf": "tensorflow", "tensorflow": "tensorflow", "jax": "flax", "flax": "flax",
    "mlx": "mlx", "paddle": "paddle",
}  # fmt: skip


def parse_framework(name: Any) -> str:
    if not isinstance(name, str):
        kind = type(name).__name__
        raise TypeError(f"argument 'framework': '{kind}' object is not an instance of 'str'")
    if name not in _NAMES:
        raise SafetensorError(f"framework {name} is invalid")
    return _NAMES[name]


def parse_device(device: Any) -> str | int:
    """The device in the notation that the framework takes."""
    if device is None:
        return "cpu"
    if isinstance(device, int) and device >= 0:
        return int(device)
    if not isinstance(device, str):
        raise SafetensorError(f"device {device!r} is invalid")
    kind, colon, index = device.partition(":")
    if device in ("cpu", "mps") or (kind in _ACCELERATORS and not colon):
        return device if device in ("cpu", "mps") else f"{device}:0"
    if kind in (*_ACCELERATORS, "mps") and ":" not in index:
        if kind == "mps":
            if _index(index) != 0:
                why = "only mps or mps:0 is supported"
                raise SafetensorError(f"device {device} is invalid: {why}")
            return "mps"
        return f"{kind}:{_index(index)}"
    raise SafetensorError(f"device {device} is invalid")


def _index(text: str) -> int:
    if not text:
        raise ValueError("cannot parse integer from empty string")
    if not (text.isascii() and text.removeprefix("+").isdigit()):
        raise ValueError("invalid digit found in string")
    return int(text)


def parse_backend(backend: Any) -> str:
    if backend is None:
        return "mmap"
    if backend not in ("mmap", "pread"):
        expected = 'expected one of: "mmap", "pread"'
        raise SafetensorError(f'backend "{backend}" is invalid ({expected})')
    return str(backend)


class Torch:
    """Tensors that `torch.empty` allocates, each with memory of its own."""

    def __init__(self, device: str | int = "cpu") -> None:
        import torch

        self.torch = torch
        self.device = device
        # A number without a kind is that of a CUDA device.
        name = f"cuda:{device}" if isinstance(device, int) else device
        self.is_cuda = name.startswith("cuda:")
        self._ordinal = int(name.removeprefix("cuda:")) if self.is_cuda else None

    def dtype(self, code: str) -> Any:
        if code not in DTYPES:
            raise SafetensorError(f"Dtype not understood: {code}")
        return getattr(self.torch, DTYPES[code])

    @staticmethod
    def shape(code: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the storage: torch packs two F4 into an element."""
        if code != "F4":
            return shape
        if not shape or shape[-1] % 2:
            why = "f4_x2 dtype requires that the last dim be divisible by 2 in torch: got"
            raise SafetensorError(f"{why} {list(shape)}")
        return (*shape[:-1], shape[-1] // 2)

    def empty(self, code: str, shape: tuple[int, ...], *, pinned: bool = False) -> Any:
        """Host memory for a tensor with this shape of the storage."""
        pin = {"pin_memory": True} if pinned else {}
        # An explicit device, since a `with torch.device(...)` may be in force.
        tensor = self.torch.empty(shape, dtype=self.dtype(code), device="cpu", **pin)
        nbytes = self.nbytes(tensor)
        if nbytes >= _HUGE and not pinned:
            _native.advise_huge(tensor.data_ptr(), nbytes)
        return tensor

    def empty_on_device(self, code: str, shape: tuple[int, ...]) -> Any:
        """The same in the memory of the device. Torch says why, if there is no such device."""
        return self.torch.empty(shape, dtype=self.dtype(code), device=self.device)

    def gpu(self) -> _cuda.Gpu | None:
        """What decodes into the memory of the device, if anything does."""
        if self._ordinal is None or self.torch.version.cuda is None:
            return None
        # Kept, so that its staging memory is not allocated for every tensor.
        self._gpu = _cuda.gpu(self._ordinal)
        return self._gpu

    def stream(self) -> int:
        """The handle of the stream that is current in this thread."""
        return int(self.torch.cuda.current_stream(self.device).cuda_stream)

    def same_stream(self) -> AbstractContextManager[Any]:
        """Within it, another thread uses the stream that is current now in this one."""
        if not self.is_cuda:
            return nullcontext()
        stream = self.torch.cuda.current_stream(self.device)
        context: AbstractContextManager[Any] = self.torch.cuda.stream(stream)
        return context

    @staticmethod
    def address(tensor: Any) -> int:
        return int(tensor.data_ptr())

    @staticmethod
    def nbytes(tensor: Any) -> int:
        return int(tensor.numel() * tensor.element_size())

    def finish(self, tensor: Any) -> Any:
        """The tensor on the device that was asked for."""
        return tensor if self.device == "cpu" else tensor.to(self.device)


class NumPy:
    """NumPy arrays, and what other frameworks make of them."""

    def __init__(self, framework: str, device: str | int = "cpu") -> None:
        import numpy

        self.numpy = numpy
        self.framework = framework
        self.device = device
        if framework in ("tensorflow", "flax", "paddle"):
            # They register bfloat16 with NumPy.
            try:
                importlib.import_module(framework)
            except ImportError:
                pass

    def dtype(self, code: str) -> Any:
        if code not in DTYPES:
            raise SafetensorError(f"Dtype not understood: {code}")
        if code == "BF16":
            return self.numpy.dtype("bfloat16")
        return bool if code == "BOOL" else getattr(self.numpy, DTYPES[code])

    @staticmethod
    def shape(code: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        return shape

    def empty(self, code: str, shape: tuple[int, ...]) -> Any:
        return self.numpy.empty(shape, dtype=self.dtype(code))

    @staticmethod
    def address(array: Any) -> int:
        return int(array.ctypes.data)

    @staticmethod
    def nbytes(array: Any) -> int:
        return int(array.nbytes)

    def finish(self, array: Any) -> Any:
        """The array as one of the framework."""
        if self.framework == "flax":
            return importlib.import_module("jax.numpy").array(array)
        if self.framework == "mlx":
            return importlib.import_module("mlx.core").array(array)
        if self.framework == "tensorflow":
            return importlib.import_module("tensorflow").convert_to_tensor(array)
        if self.framework == "paddle":
            place = str(self.device).replace("cuda", "gpu")
            return importlib.import_module("paddle").to_tensor(array, place=place)
        return array


def adapter(framework: str, device: str | int) -> Torch | NumPy:
    if framework == "pytorch":
        return Torch(device)
    if device != "cpu" and framework != "paddle":
        raise SafetensorError(f"Device {device} is not supported for framework {framework}")
    return NumPy(framework, device)
