"""Compare the tensors that examples/dlpack.rs exports with the plain file:  dlpack.py ARCHIVE PLAIN

The script reads what the DLPack capsules point to. That works with the stand-in driver, whose
device memory is that of this process.
"""

import ctypes
import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "examples"))
import torch_dlpack  # noqa: E402


class Managed(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.c_void_p),
        ("byte_offset", ctypes.c_uint64),
        ("manager_ctx", ctypes.c_void_p),
        ("deleter", ctypes.CFUNCTYPE(None, ctypes.c_void_p)),
    ]


CODES = {"I": 0, "U": 1, "F": 2, "BF": 4, "C": 5, "BOOL": 6}


def main():
    archive, plain = sys.argv[1:]
    plain = pathlib.Path(plain).read_bytes()
    begin = 8 + int.from_bytes(plain[:8], "little")
    header = json.loads(plain[8:begin])
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype = ctypes.c_void_p
    pointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
    # Take all of them, and free the archive before reading any.
    capsules = dict(torch_dlpack.tensors(archive))
    assert capsules.keys() == header.keys(), (capsules.keys(), header.keys())
    for name, capsule in capsules.items():
        at = pointer(capsule, b"dltensor")
        tensor = Managed.from_address(at)
        dtype, shape = header[name]["dtype"], header[name]["shape"]
        kind = "U" if dtype.startswith("F8") else dtype.rstrip("0123456789")
        bits = 8 if kind in ("BOOL", "U") else int(dtype.lstrip("IBFC"))
        assert (tensor.code, tensor.bits, tensor.lanes) == (CODES[kind], bits, 1), name
        assert (tensor.device_type, tensor.device_id) == (2, 0), name
        assert tensor.shape[: tensor.ndim] == shape and tensor.strides is None, name
        first, last = header[name]["data_offsets"]
        found = ctypes.string_at(tensor.data + tensor.byte_offset, last - first)
        assert found == plain[begin + first : begin + last], f"{name} differs"
        tensor.deleter(at)
    print(len(capsules), "tensors are the same")


main()
