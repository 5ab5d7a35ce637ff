"""Load a model one layer after another, with bounded memory."""
from __future__ import annotations

import atexit
import os
import threading
import weakref
from collections.abc import Iterator
from typing import Any, Literal

from . import _names, _native
from ._frameworks import Torch, parse_device
from ._names import StrPath
from ._open import safe_open
from ._pretrained import from_pretrained
from ._read import fill, fill_on_device

# Tensors in a ring begin at multiples of this, which suits every type and vector instructions.
_ALIGNMENT = 64


class Layer(dict[str, Any]):
    """The tensors of a layer by name."""

    name: str


class Loader:
    """The layers of a model, packed or plain, in the order of computation.

    `path` is the directory of a model, or a single file, which `load_model` does not take for
    classes that have `from_pretrained`.

    Tensors that belong to no numbered layer (embeddings, norms, heads) are layers of their own.
    """

    def __init__(self, path: StrPath, device: str | int = "cpu") -> None:
        self._path = os.fsdecode(path)
        self._torch = Torch(parse_device(device))
        self._files = [
            safe_open(file, "pt", self._torch.device)
            for file in _names.weight_files(self._path)
        ]
        self._file_of = {name: f for f in self._files for name in f.offset_keys()}
        names = list(self._file_of)
        groups = _native.layers(names)
        self._layers = {group: [names[i] for i in members] for group, members in groups}

    def layers(self) -> list[str]:
        """The names of the layers."""
        return list(self._layers)

    def names(self, layer: str) -> list[str]:
        """The names of a layer's tensors."""
        return list(self._layers[layer])

    def layer(self, name: str) -> Layer:
        """The tensors of one layer."""
        return self._load(name, None)

    def _archives(self, layer: str) -> Iterator[tuple[Any, list[str]]]:
        """The files that hold a layer, with the names of its tensors in each."""
        by_file: dict[int, tuple[Any, list[str]]] = {}
        for name in self._layers[layer]:
            file = self._file_of[name]
            by_file.setdefault(id(file), (file, []))[1].append(name)
        yield from by_file.values()

    def _load(self, name: str, slot: _Slot | None) -> Layer:
        layer = Layer()
        layer.name = name
        for file, names in self._archives(name):
            if not hasattr(file, "_opened"):
                loaded = {key: file.get_tensor(key) for key in names}
                layer.update(loaded if slot is None else slot.copies(loaded))
                continue
            opened = file._inner()
            infos = [opened.info(key) for key in names]
            if slot is None:
                layer.update(opened.tensors(infos))
            else:
                layer.update(slot.decode(opened.archive, infos))
        return layer

    def _size(self, name: str) -> int:
        """Bytes of a layer, with each tensor aligned."""
        total = 0
        for file, names in self._archives(name):
            for key in names:
                view = file.get_slice(key)
                dtype = self._torch.dtype(view.get_dtype())
                shape = self._torch.shape(view.get_dtype(), tuple(view.get_shape()))
                count = self._torch.torch.Size(shape).numel() * dtype.itemsize
                total += -(-count // _ALIGNMENT) * _ALIGNMENT
        return total

    def iter_layers(
        self, ahead: int = 2, into: Literal["ring"] | None = None
    ) -> Iterator[tuple[str, Layer]]:
        """Yield the name and the tensors of each layer, while a thread decodes the next ones.

        At most `ahead` + 1 layers are in memory, those that the caller has finished with aside: a
        layer is done with when its dictionary is dropped, at the latest when the second layer
        after it is asked for. With `into="ring"`, memory is reused, which is faster: the tensors of
        a layer are valid until the next one is asked for, and must be copied to be kept.
        """
        if ahead < 0:
            raise ValueError(f"ahead must not be negative: {ahead}")
        if into not in (None, "ring"):
            raise ValueError(f'into must be None or "ring": {into!r}')
        ring = None
        if into == "ring":
            ring = _Ring(self._torch, ahead + 1, {name: self._size(name) for name in self._layers})
        decoded = _Ahead(self, ahead, ring)
        try:
            for name in self._layers:
                yield name, decoded.next()
        finally:
            decoded.stop()

    def load_model(self, cls: Any, **options: Any) -> Any:
        """A model with these weights.

        If `cls` has `from_pretrained`, that loads them, and `options` are its arguments: the model
        is the one that it makes of the plain directory. Any other `torch.nn.Module` is made by
        `cls(**options)` and filled layer by layer.
        """
        if hasattr(cls, "from_pretrained"):
            return from_pretrained(self._path, cls, **options)
        model = cls(**options)
        left = set(model.state_dict())
        tied = _tied(model)
        for _, layer in self.iter_layers(into="ring"):
            unexpected = model.load_state_dict(layer, strict=False).unexpected_keys
            if unexpected:
                raise RuntimeError(f"{cls.__name__} has no {', '.join(unexpected)}")
            for name in layer:
                left -= tied.get(name, {name})
        if left:
            raise RuntimeError(f"{self._path} has no {', '.join(sorted(left))}")
        return model


def _tied(model: Any) -> dict[str, set[str]]:
    """For each name of a model's state, all names of the same tensor."""
    groups: dict[int, set[str]] = {}
    state = model.state_dict(keep_vars=True)
    for name, tensor in state.items():
        groups.setdefault(id(tensor), set()).add(name)
    return {name: groups[id(tensor)] for name, tensor in state.items()}


class _Slot:
    """Memory for one layer, filled from its beginning."""

    def __init__(self, torch: Torch, size: int) -> None:
        self._torch = torch
        empty = torch.empty_on_device if torch.is_cuda else torch.empty
        self._memory = empty("U8", (size,))
        self._used = 0

    def _view(self, code: str, shape: tuple[int, ...]) -> Any:
        torch = self._torch
        dtype = torch.dtype(code)
        shape = torch.shape(code, shape)
        nbytes = torch.torch.Size(shape).numel() * dtype.itemsize
        view = self._memory[self._used : self._used + nbytes].view(dtype).view(shape)
        self._used += -(-nbytes // _ALIGNMENT) * _ALIGNMENT
        return view

    def reuse(self) -> _Slot:
        self._used = 0
        return self

    def decode(self, archive: _native.Archive, infos: list[Any]) -> dict[str, Any]:
        views = [(info, self._view(info.dtype, info.shape)) for info in infos]
        if self._torch.is_cuda:
            fill_on_device(archive, views, self._torch)
        else:
            fill(archive, [(info, view.data_ptr()) for info, view in views])
        return {info.name: self._torch.finish(view) for info, view in views}

    def copies(self, tensors: dict[str, Any]) -> dict[str, Any]:
        """Plain files are mapped: a copy behaves as what is decoded does."""
        copied = {}
        for name, tensor in tensors.items():
            view = self._memory[self._used : self._used + self._torch.nbytes(tensor)]
            self._used += -(-view.numel() // _ALIGNMENT) * _ALIGNMENT
            copied[name] = view.view(tensor.dtype).view(tensor.shape).copy_(tensor)
        return copied


class _Ring:
    """Slots for layers that are used in turn."""

    def __init__(self, torch: Torch, count: int, sizes: dict[str, int]) -> None:
        self._torch = torch
        self._sizes = sizes
        self._free = list(range(count))
        # Embeddings may be many times as large as a layer; they get memory of their own.
        numbered = [size for name, size in sizes.items() if any(map(str.isdigit, name.split(".")))]
        self._size = max(numbered or sizes.values(), default=0)
        self._slots: list[_Slot | None] = [None] * count

    def take(self, name: str) -> tuple[_Slot, int | None]:
        if self._sizes[name] > self._size:
            return _Slot(self._torch, self._sizes[name]), None
        at = self._free.pop()
        slot = self._slots[at] or _Slot(self._torch, self._size)
        self._slots[at] = slot
        return slot.reuse(), at

    def give_back(self, at: int | None) -> None:
        if at is not None:
            self._free.append(at)


class _Ahead:
    """Decodes layers in a thread, and stays a bounded number of them ahead of the caller."""

    def __init__(self, loader: Loader, ahead: int, ring: _Ring | None) -> None:
        self._loader = loader
        self._ring = ring
        self._changed = threading.Condition(threading.RLock())
        self._ahead = ahead
        self._room = ahead + 1
        self._decoded: list[tuple[Layer, int | None]] = []
        self._error: BaseException | None = None
        self._stopped = False
        # What ends the use of the layers that the caller has, oldest first.
        self._releases: list[Any] = []
        # On a GPU, what the caller has started with a layer is done before its memory is reused.
        self._same_stream = loader._torch.same_stream()
        self.thread = threading.Thread(target=self._run, name="bszfs layers", daemon=True)
        _running.add(self)
        self.thread.start()

    def _run(self) -> None:
        try:
            with self._same_stream:
                self._decode_all()
        except BaseException as e:  # it is the caller's, whatever it is
            with self._changed:
                self._error = e
                self._changed.notify_all()

    def _decode_all(self) -> None:
        for name in self._loader.layers():
            with self._changed:
                self._changed.wait_for(lambda: self._room or self._stopped)
                if self._stopped:
                    return
                self._room -= 1
                slot, at = self._ring.take(name) if self._ring else (None, None)
            layer = self._loader._load(name, slot)
            with self._changed:
                self._decoded.append((layer, at))
                self._changed.notify_all()
            del layer, slot

    def _release(self, at: int | None) -> None:
        # May run in a finalizer, in any thread, and so the lock is one that can be taken twice.
        with self._changed:
            if self._ring:
                self._ring.give_back(at)
            self._room += 1
            self._changed.notify_all()

    def next(self) -> Layer:
        with self._changed:
            # The caller's variables may still hold the last layer, unless it is of a ring.
            kept = 0 if self._ring or self._ahead == 0 else 1
            while len(self._releases) > kept:
                self._releases.pop(0)()
            self._changed.wait_for(lambda: self._decoded or self._error)
            if not self._decoded:
                assert self._error is not None
                raise self._error
            layer, at = self._decoded.pop(0)
            if self._ring:
                self._releases.append(lambda: self._release(at))
            else:
                # Called by the garbage collector or from here, whichever is first.
                self._releases.append(weakref.finalize(layer, self._release, at))
            return layer

    def stop(self) -> None:
        """Decode no more layers. Does not wait for the one that is being decoded."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()


# A thread must not be inside the decoder when the interpreter is torn down.
_running: weakref.WeakSet[_Ahead] = weakref.WeakSet()


@atexit.register
def _end() -> None:
    for ahead in list(_running):
        ahead.stop()
        ahead.thread.join()
