"""Print what the CUDA driver says of the first device, as JSON; exit with 3 if there is none."""

import ctypes
import json
import sys

# Names in the JSON, and the numbers of `CUdevice_attribute` with the units that the driver uses.
ATTRIBUTES = {
    "multiprocessors": 16,
    "compute_major": 75,
    "compute_minor": 76,
    "clock_khz": 13,
    "memory_clock_khz": 36,
    "memory_bus_bits": 37,
    "l2_bytes": 38,
    "registers_per_multiprocessor": 82,
    "shared_bytes_per_multiprocessor": 81,
    "copy_engines": 40,
    "ecc": 32,
    "integrated": 18,
}


def none(why):
    print(why)
    sys.exit(3)


def library():
    for name in ("libcuda.so.1", "libcuda.so"):
        try:
            return ctypes.CDLL(name)
        except OSError:
            pass
    return none("no NVIDIA driver is installed")


def main():
    cuda = library()

    def call(name, *arguments):
        # The stand-in driver of tests/gpu/driver.cpp has only a part of the functions.
        function = getattr(cuda, name, None)
        return -1 if function is None else function(*arguments)

    number, device = ctypes.c_int(), ctypes.c_int()
    status = call("cuInit", 0)
    if status != 0:
        none(f"the driver cannot be initialised (error {status})")
    if call("cuDeviceGetCount", ctypes.byref(number)) != 0 or number.value == 0:
        none("the driver reports no device")
    found = {"devices": number.value}
    if call("cuDeviceGet", ctypes.byref(device), 0) != 0:
        none("the first device cannot be opened")
    name = ctypes.create_string_buffer(200)
    call("cuDeviceGetName", name, len(name), device)
    found["name"] = name.value.decode(errors="replace")
    if call("cuDriverGetVersion", ctypes.byref(number)) == 0:
        found["cuda_version"] = f"{number.value // 1000}.{number.value % 1000 // 10}"
    memory = ctypes.c_size_t()
    if call("cuDeviceTotalMem_v2", ctypes.byref(memory), device) == 0:
        found["memory_bytes"] = memory.value
    for field, attribute in ATTRIBUTES.items():
        if call("cuDeviceGetAttribute", ctypes.byref(number), attribute, device) == 0:
            found[field] = number.value
    print(json.dumps(found))


main()
