"""Compile src/gpu/kernel.cu to src/gpu/kernel.ptx with NVRTC, which needs neither a GPU nor a toolkit: ptx.py [--check]

With --check nothing is written: exits 1 where the PTX is not that of the source.
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
# The oldest architecture that drivers of today support (Turing, 2018), and the oldest version of PTX that knows it, so
# that older drivers take it.
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
    options = [f"--gpu-architecture={ARCHITECTURE}".encode(), b"--std=c++17",
               f"--include-path={SOURCE.parent}".encode()]
    try:
        call("nvrtcCompileProgram", program, len(options), (ctypes.c_char_p * len(options))(*options))
    except RuntimeError as e:
        raise SystemExit(f"{text('ProgramLog')}{e}") from e
    return text("PTX")


def ptx():
    text = compiled(SOURCE.read_bytes())
    text = re.sub(r"^\.version .*$", f".version {VERSION}", text, flags=re.MULTILINE)
    # Hints that older versions do not know, and what says of the compiler no more than the first line does.
    text = re.sub(r'^\s*\.pragma "used_bytes_mask.*\n', "", text, flags=re.MULTILINE)
    text = re.sub(r"\A(//.*\n)+", "", text)
    version = importlib.metadata.version(PACKAGE)
    return f"// From kernel.cu, by {PACKAGE} {version}: `make ptx`.\n" + re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE)


def main():
    new = ptx()
    if sys.argv[1:] != ["--check"]:
        PTX.write_text(new)
    elif not PTX.exists() or PTX.read_text() != new:
        raise SystemExit(f"{PTX.relative_to(ROOT)} is not that of kernel.cu: run `make ptx`")


main()
