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


CODES = {"I": 0, "U": 1, "F": 2, "BF": 4, "C": 5, "BOOL": 6, "F8_E4M3": 10, "F8_E5M2": 12}
# Types that DLPack lacks, as this script plays a framework that does not know F8_E5M2 either.
AS_BYTES = {"F4", "F8_E5M2"}


def main():
    archive, plain = sys.argv[1:]
    plain = pathlib.Path(plain).read_bytes()
    begin = 8 + int.from_bytes(plain[:8], "little")
    header = json.loads(plain[8:begin])
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype = ctypes.c_void_p
    pointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
    header.pop("__metadata__", None)

    def consume(capsule, as_bytes):
        at = pointer(capsule, b"dltensor")
        tensor = Managed.from_address(at)
        if tensor.code == CODES["F8_E5M2"]:
            tensor.deleter(at)
            raise BufferError("an unknown type")
        return at, tensor

    # Take all of them, and free the archive before reading any.
    found = {name: rest for name, *rest in torch_dlpack.tensors(archive, 1, consume)}
    assert found.keys() == header.keys(), (found.keys(), header.keys())
    for name, ((at, tensor), as_bytes) in found.items():
        dtype, shape = header[name]["dtype"], header[name]["shape"]
        first, last = header[name]["data_offsets"]
        assert as_bytes == (dtype in AS_BYTES), name
        if as_bytes:
            dtype, shape = "U8", [last - first]
        kind = dtype if dtype in CODES else dtype.rstrip("0123456789")
        bits = 8 if kind == "BOOL" or kind.startswith("F8") else int(dtype.lstrip("IUBFC"))
        assert (tensor.code, tensor.bits, tensor.lanes) == (CODES[kind], bits, 1), name
        assert (tensor.device_type, tensor.device_id) == (2, 1), name
        assert tensor.shape[: tensor.ndim] == shape and tensor.strides is None, name
        bytes_ = ctypes.string_at(tensor.data + tensor.byte_offset, last - first)
        assert bytes_ == plain[begin + first : begin + last], f"{name} differs"
        tensor.deleter(at)
    try:
        list(torch_dlpack.tensors(archive, 2, consume))
        raise AssertionError("there is no such device")
    except OSError as e:
        assert "there is no GPU 2" in str(e), e
    print(len(found), "tensors are the same")


main()
