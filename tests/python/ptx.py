"""Compile src/gpu/kernel.cu to src/gpu/kernel.ptx:  ptx.py [--check]

The compiler is NVRTC, which needs neither a GPU nor a toolkit. With --check, nothing is written,
and the script exits with 1 if the PTX does not match the source.
"""

import ctypes
import importlib.metadata
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src/gpu/kernel.cu"
PTX = ROOT / "src/gpu/kernel.ptx"
PACKAGE = "nvidia-cuda-nvrtc-cu12"
# The oldest architecture that current drivers support (Turing, 2018), and the oldest version of PTX
# that has it, so that older drivers accept the PTX.
ARCHITECTURE = "compute_75"
VERSION = "6.3"


def library():
    files = importlib.metadata.files(PACKAGE) or []
    name = next(f for f in files if f.name.startswith("libnvrtc.so"))
    return ctypes.CDLL(str(name.locate()))


def compiled(source):
    nvrtc = library()

    def call(name, *arguments):
        status = getattr(nvrtc, name)(*arguments)
        nvrtc.nvrtcGetErrorString.restype = ctypes.c_char_p
        if status != 0:
            raise RuntimeError(f"{name}: {nvrtc.nvrtcGetErrorString(status).decode()}")

    def text(what):
        size = ctypes.c_size_t()
        call(f"nvrtcGet{what}Size", program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        call(f"nvrtcGet{what}", program, buffer)
        return buffer.value.decode()

    program = ctypes.c_void_p()
    call("nvrtcCreateProgram", ctypes.byref(program), source, b"kernel.cu", 0, None, None)
    # Lambdas are for the device, like everything else.
    options = [f"--gpu-architecture={ARCHITECTURE}".encode(), b"--std=c++17", b"-default-device",
               f"--include-path={SOURCE.parent}".encode()]
    try:
        arguments = (ctypes.c_char_p * len(options))(*options)
        call("nvrtcCompileProgram", program, len(options), arguments)
    except RuntimeError as e:
        raise SystemExit(f"{text('ProgramLog')}{e}") from e
    return text("PTX")


def ptx():
    text = compiled(SOURCE.read_bytes())
    text = re.sub(r"^\.version .*$", f".version {VERSION}", text, flags=re.MULTILINE)
    # Drop hints that older versions lack, and lines on the compiler that repeat the first one.
    text = re.sub(r'^\s*\.pragma "used_bytes_mask.*\n', "", text, flags=re.MULTILINE)
    text = re.sub(r"\A(//.*\n)+", "", text)
    version = importlib.metadata.version(PACKAGE)
    text = re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE)
    return f"// From kernel.cu, by {PACKAGE} {version}: `make ptx`.\n" + text


def main():
    new = ptx()
    if sys.argv[1:] != ["--check"]:
        PTX.write_text(new)
    elif not PTX.exists() or PTX.read_text() != new:
        raise SystemExit(f"{PTX.relative_to(ROOT)} is not that of kernel.cu: run `make ptx`")


main()
