"""Decoding on a GPU, with the stand-in for the CUDA driver of the library's tests."""
import os
import pathlib
import shutil
import subprocess
import sys

import helpers
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]

# Memory of the first device, by the driver itself.
MEMORY = """
import ctypes, gc, os, sys, threading, warnings
import bszfs
from bszfs import _native

driver = ctypes.CDLL("libcuda.so")
context = ctypes.c_void_p()
assert driver.cuInit(0) == 0 and driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0) == 0
thread = threading.local()

class Memory:
    def __init__(self, size):
        if not hasattr(thread, "context"):
            thread.context = context
            assert driver.cuCtxPushCurrent_v2(context) == 0
        at = ctypes.c_uint64()
        assert driver.cuMemAlloc_v2(ctypes.byref(at), ctypes.c_size_t(max(size, 1))) == 0
        self.at, self.size = at.value, size

    def bytes(self):
        out = ctypes.create_string_buffer(max(self.size, 1))
        source, size = ctypes.c_uint64(self.at), ctypes.c_size_t(self.size)
        assert driver.cuMemcpyDtoH_v2(out, source, size) == 0
        return out.raw[:self.size]

def parts(archive, ranges):
    memory = [Memory(length) for _, length in ranges]
    return memory, [(start, length, m.at) for (start, length), m in zip(ranges, memory)]
"""


@pytest.fixture(scope="session")
def driver(tmp_path_factory):
    """The directory that holds the stand-in."""
    compiler = os.environ.get("CXX", "c++")
    if shutil.which(compiler) is None:
        assert os.environ.get("BSZ_REQUIRE_CXX") != "1", f"{compiler} is missing"
        pytest.skip(f"{compiler} is missing: nothing is decoded by the stand-in for the GPU")
    path = tmp_path_factory.mktemp("driver") / "libcuda.so"
    subprocess.run([compiler, "-std=c++20", "-O2", "-shared", "-fPIC", "-Wno-unknown-pragmas",
                    "-o", path, ROOT / "tests/gpu/driver.cpp"], check=True)
    return path.parent


@pytest.fixture
def on_gpu(driver):
    """Runs a program with the stand-in."""

    def run(code, *args, **variables):
        env = os.environ | {"LD_LIBRARY_PATH": str(driver)} | variables
        return helpers.python(MEMORY + code, *args, env=env)

    return run


def test_any_parts_are_decoded(on_gpu, golden):
    on_gpu("""
for path in sys.argv[1:]:
    archive = _native.Archive(path)
    size = archive.size
    whole = archive.read(0, size)
    gpu = _native.Cuda(0)
    assert gpu.name
    cuts = sorted({0, size // 3, min(size // 2 + 1, size), size})
    ranges = [(a, b - a) for a, b in zip(cuts, cuts[1:])] + [(size // 2, 0)]
    memory, wanted = parts(archive, ranges)
    for stream in (None, 0):
        gpu.decode(archive, wanted, stream)
        assert b"".join(m.bytes() for m in memory) == whole, path
    try:
        gpu.decode(archive, [(size, 1, memory[0].at)])
    except _native.BszError as e:
        assert "after the original" in str(e)
    else:
        raise AssertionError("decoded what is not there")
""", *sorted(golden.glob("*.bsz")))


def test_damage_is_told_from_failure(on_gpu, model, tmp_path):
    damaged = tmp_path / "damaged.bsz"
    stored = bytearray(model.archive.read_bytes())
    stored[len(stored) // 2] ^= 1
    damaged.write_bytes(stored)
    code = """
archive = _native.Archive(sys.argv[1])
gpu = _native.Cuda(0)
memory, wanted = parts(archive, [(0, archive.size)])
for expected in sys.argv[2:]:
    try:
        gpu.decode(archive, wanted)
        said = "nothing"
    except _native.BszError as e:
        said = "damage"
        assert "chunk" in str(e), e
    except RuntimeError as e:
        said = "failure"
    assert said == expected, said
"""
    on_gpu(code, damaged, "damage", "damage")
    on_gpu(code, model.archive, "nothing", "nothing")
    # After a failure, CUDA is not used again.
    on_gpu(code, model.archive, "failure", "failure", BSZ_FAKE_FAIL="cuLaunchKernel:1")


def test_a_child_does_not_use_the_parents_gpu(on_gpu, model):
    on_gpu("""
archive = _native.Archive(sys.argv[1])
gpu = _native.Cuda(0)
if os.fork() == 0:
    try:
        gpu.decode(archive, [])
    except RuntimeError as e:
        # Exits like any other process, and so drops what it has inherited.
        sys.exit(0 if "fork" in str(e) else 2)
    sys.exit(1)
assert os.waitstatus_to_exitcode(os.wait()[1]) == 0
""", model.archive)


def test_without_a_driver_the_error_says_so():
    code = "from bszfs import _native; _native.Cuda(0)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if ran.returncode == 0:
        pytest.skip("this machine has a GPU")
    assert "RuntimeError: CUDA" in ran.stderr


# What a package of torch without CUDA has not: memory of a device. The rest is the package's code.
TORCH = """
import torch
from bszfs import _frameworks, _open, stream

class Emulated(_frameworks.Torch):
    def __init__(self, device="cuda:0"):
        super().__init__(device)
        self.all = []

    def gpu(self):
        self._gpu = _frameworks._cuda.gpu(0)
        return self._gpu

    def empty(self, code, shape, pinned=False):
        return super().empty(code, shape)

    def empty_on_device(self, code, shape):
        size = torch.Size(shape).numel() * self.dtype(code).itemsize
        memory = Memory(size)
        data = bytearray(b"?") if size == 0 else (ctypes.c_char * size).from_address(memory.at)
        tensor = torch.frombuffer(data, dtype=torch.uint8)[:size].view(self.dtype(code)).view(shape)
        self.all.append(memory)
        return tensor

    def finish(self, tensor):
        return tensor

    def stream(self):
        return 0

    def same_stream(self):
        return _frameworks.nullcontext()

def opened():
    file = _open.Opened(sys.argv[1], "pytorch", "cuda:0", "mmap", sys.argv[1])
    file.framework = Emulated()
    return file

def compare(loaded):
    with bszfs.safe_open(sys.argv[1], "pt") as f:
        for name in f.keys():
            expected = f.get_tensor(name)
            same = loaded[name].dtype == expected.dtype and torch.equal(loaded[name], expected)
            assert same, name
"""


@pytest.mark.frameworks
@pytest.mark.parametrize("variables", [
    {}, {"BSZ_FAKE_FAIL": "cuLaunchKernel:1"}, {"BSZ_FAKE_FAIL": "cuModuleLoadData:1"},
    {"BSZFS_CUDA": "0"},
], ids=["works", "fails late", "fails early", "off"])  # fmt: skip
def test_tensors_come_from_the_gpu_or_else_from_the_cpu(on_gpu, model, variables):
    pytest.importorskip("torch")
    on_gpu(TORCH + """
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    file = opened()
    compare(file.tensors(list(file.infos.values())))
    compare(file.tensors(list(file.infos.values())))
    fails = "BSZ_FAKE_FAIL" in os.environ
    assert [str(w.message)[:7] for w in caught] == ["cuda:0:"] * fails, caught
    assert (file.framework.gpu() is None) == (fails or "BSZFS_CUDA" in os.environ)
    assert len(_frameworks._cuda._in_use) == (not fails and "BSZFS_CUDA" not in os.environ)
    del file
    gc.collect()
    assert not _frameworks._cuda._in_use, "staging memory is kept"
""", model.archive, **variables)


@pytest.mark.frameworks
def test_layers_come_from_the_gpu(on_gpu, model):
    pytest.importorskip("torch")
    on_gpu(TORCH + """
warnings.simplefilter("error")
for into in ("ring", None):
    loader = stream.Loader(os.path.dirname(sys.argv[1]))
    loader._torch = Emulated()
    for file in loader._files:
        file._opened.framework = loader._torch
    loaded = {}
    for name, layer in loader.iter_layers(ahead=1, into=into):
        loaded |= {key: tensor.clone() for key, tensor in layer.items()}
    compare(loaded)
    assert loader._torch.gpu() is not None and loader._torch.all
""", model.archive)


@pytest.mark.frameworks
def test_staging_memory_is_allocated_once_for_all_files(on_gpu, model, tmp_path):
    pytest.importorskip("torch")
    directory = tmp_path / "two"
    directory.mkdir()
    on_gpu(TORCH + """
import bszfs.torch
warnings.simplefilter("error")
made = []
cuda = _frameworks._cuda.Gpu
class Counted(cuda):
    def __init__(self, ordinal):
        made.append(ordinal)
        super().__init__(ordinal)
_frameworks._cuda.Gpu = Counted

def open_emulated(path, framework, device):
    file = bszfs.safe_open(path, framework)
    file._opened.framework = Emulated()
    return file

bszfs.torch.safe_open = open_emulated
for name in ("a.bsz", "b.bsz"):
    os.link(sys.argv[1], os.path.join(sys.argv[2], name))
compare(bszfs.torch.load_file(sys.argv[2], "cuda:0"))
compare(dict(bszfs.torch.iter_tensors(sys.argv[2], "cuda:0")))
assert made == [0, 0], made
""", model.archive, directory)


@pytest.mark.frameworks
def test_the_kernels_are_loaded_once(on_gpu, model):
    pytest.importorskip("torch")
    on_gpu(TORCH + """
warnings.simplefilter("error")
for _ in range(2):
    file = opened()
    compare(file.tensors(list(file.infos.values())))
    assert file.framework.gpu() is not None
    del file
    gc.collect()
""", model.archive, BSZ_FAKE_FAIL="cuModuleLoadData:2")
