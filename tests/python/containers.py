#!/usr/bin/env python3
"""The weights of .safetensors files in every other container: what packing each of them saves.

    containers.py BSZ FILE.safetensors...     BSZ is the program to test

The containers are written by the libraries to which they belong, except PyTorch's, which is made by
hand: a stored zip archive around a pickle of protocol 2, as torch.save writes it. Each is packed,
unpacked and compared. Fails where one takes over 0.2 points more than the .safetensors file does,
or a quantised one more than its bound.
"""
import collections
import io
import pathlib
import pickle
import subprocess
import sys
import tempfile
import types
import zipfile

import gguf
import ml_dtypes
import numpy as np
import onnx
from safetensors import safe_open

MARGIN = 0.2
QUANTISED = {"Q8_0": 93.4, "Q4_0": 94.5}
CLASSES = {np.dtype(np.float32): "FloatStorage", np.dtype(np.float16): "HalfStorage",
           np.dtype(ml_dtypes.bfloat16): "BFloat16Storage", np.dtype(np.int64): "LongStorage"}
GGML = {np.dtype(np.float32): "F32", np.dtype(np.float16): "F16",
        np.dtype(ml_dtypes.bfloat16): "BF16", np.dtype(np.int64): "I64"}


def load(path):
    with safe_open(path, "numpy") as f:
        return {name: f.get_tensor(name) for name in f.offset_keys()}


def write_gguf(path, tensors, quantised=None):
    writer = gguf.GGUFWriter(path, "bert")
    writer.add_array("tokenizer.ggml.tokens", [f"token{i}" for i in range(30522)])
    for name, a in tensors.items():
        kind = GGML[a.dtype]
        # llama.cpp's converter keeps these as F32.
        keeps = "position" in name or "token_type" in name
        if quantised and not keeps and a.ndim == 2 and a.shape[1] % 32 == 0:
            kind = quantised
            a = gguf.quants.quantize(a.astype(np.float32), gguf.GGMLQuantizationType[kind])
        elif a.dtype == ml_dtypes.bfloat16:
            a = a.view(np.uint8)
        writer.add_tensor(name, np.ascontiguousarray(a),
                          raw_dtype=gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def torch_modules():
    """Stand-ins by whose names the pickle refers to PyTorch."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")

    def _rebuild_tensor_v2(*_):
        raise NotImplementedError

    _rebuild_tensor_v2.__module__ = "torch._utils"
    _rebuild_tensor_v2.__qualname__ = "_rebuild_tensor_v2"
    utils._rebuild_tensor_v2 = _rebuild_tensor_v2
    for name in CLASSES.values():
        setattr(torch, name, type(name, (), {"__module__": "torch"}))
    sys.modules.update({"torch": torch, "torch._utils": utils})
    return torch, _rebuild_tensor_v2


def write_torch(path, tensors):
    torch, rebuild = torch_modules()

    class Storage:
        def __init__(self, key, a):
            self.id = ("storage", getattr(torch, CLASSES[a.dtype]), key, "cpu", a.size)

    class Tensor:
        def __init__(self, key, a):
            strides = tuple(s // a.itemsize for s in a.strides)
            self.parts = (Storage(key, a), 0, a.shape, strides, False, collections.OrderedDict())

        def __reduce__(self):
            return rebuild, self.parts

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj):
            return obj.id if isinstance(obj, Storage) else None

    folder = path.stem
    state = {name: Tensor(str(i), a) for i, (name, a) in enumerate(tensors.items())}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        out = io.BytesIO()
        Pickler(out, protocol=2).dump(collections.OrderedDict(state))
        archive.writestr(f"{folder}/data.pkl", out.getvalue())
        archive.writestr(f"{folder}/byteorder", "little")
        for i, a in enumerate(tensors.values()):
            archive.writestr(f"{folder}/data/{i}", np.ascontiguousarray(a).tobytes())
        archive.writestr(f"{folder}/version", "3\n")


def write_npz(path, tensors):
    np.savez(path, **tensors)


def write_onnx(path, tensors, data=None):
    kinds = {np.dtype(np.float32): 1, np.dtype(np.float16): 10, np.dtype(np.int64): 7,
             np.dtype(ml_dtypes.bfloat16): 16}
    initializers = [onnx.helper.make_tensor(name, kinds[a.dtype], a.shape, a.tobytes(), raw=True)
                    for name, a in tensors.items()]
    graph = onnx.helper.make_graph([], "model", [], [], initializers)
    model = onnx.helper.make_model(graph)
    if data:
        onnx.save(model, path, save_as_external_data=True, location=data)
    else:
        onnx.save(model, path)


def percent(bsz, path):
    """What packing leaves of a file, which must come back as it was."""
    with tempfile.TemporaryDirectory(dir=path.parent) as tmp:
        archive, back = pathlib.Path(tmp) / "x.bsz", pathlib.Path(tmp) / "back"
        subprocess.run([bsz, "--quiet", "pack", path, "-o", archive], check=True)
        subprocess.run([bsz, "--quiet", "unpack", archive, "-o", back], check=True)
        assert back.read_bytes() == path.read_bytes(), f"{path} came back changed"
        return 100 * archive.stat().st_size / path.stat().st_size


def main(bsz, *files):
    failed = False
    for file in map(pathlib.Path, files):
        tensors = load(file)
        plain = percent(bsz, file)
        print(f"{file.stem}: safetensors {plain:.2f}")
        floats = {a.dtype for a in tensors.values()} - {np.dtype(np.int64)}
        with tempfile.TemporaryDirectory(dir=file.parent) as tmp:
            tmp = pathlib.Path(tmp)
            writers = {"gguf": write_gguf, "pt": write_torch, "npz": write_npz,
                       "onnx": write_onnx}
            rows = [(suffix, tmp / f"model.{suffix}", write, plain + MARGIN)
                    for suffix, write in writers.items()]
            external = tmp / "external.onnx_data"
            rows.append(("onnx_data", external,
                         lambda path, t: write_onnx(tmp / "external.onnx", t, path.name),
                         plain + MARGIN))
            if np.dtype(np.float32) in floats:
                for kind, most in QUANTISED.items():
                    rows.append((kind, tmp / f"{kind}.gguf",
                                 lambda path, t, kind=kind: write_gguf(path, t, kind), most))
            for what, path, write, most in rows:
                write(path, tensors)
                got = percent(bsz, path)
                verdict = "" if got <= most else f"  more than {most:.2f}"
                failed |= bool(verdict)
                print(f"  {what:10} {got:.2f}{verdict}", flush=True)
                path.unlink()
    sys.exit(failed)


if __name__ == "__main__":
    main(*sys.argv[1:])
