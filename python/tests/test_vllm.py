"""The load format of vLLM: with vLLM's own classes where it is installed."""
import os
import subprocess
import sys
import types

import helpers
import pytest

import bszfs

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.frameworks


@pytest.fixture
def directory(tmp_path):
    for i in range(2):
        tensors = {f"model.layers.{i}.w": ("BF16", (20, 10)), f"b{i}": ("F32", (4,))}
        path = helpers.write(tmp_path / f"model-0000{i + 1}-of-00002.safetensors", tensors)
        helpers.packed(path)
    return tmp_path


def check(loader, directory):
    """What a loader yields is what is in the files."""
    source = types.SimpleNamespace(
        model_or_path=str(directory), revision=None, subfolder=None, prefix="lm.",
        fall_back_to_pt=False, allow_patterns_overrides=None,
    )  # fmt: skip
    expected = bszfs.torch.load_file(directory)
    found = list(loader._get_weights_iterator(source))
    assert sorted(name for name, _ in found) == sorted(f"lm.{name}" for name in expected)
    for name, tensor in found:
        assert torch.equal(tensor, expected[name.removeprefix("lm.")])
    assert len({tensor.data_ptr() for _, tensor in found}) == len(found)
    source.model_or_path = "org/model"
    with pytest.raises(ValueError, match="needs a directory: org/model"):
        next(loader._get_weights_iterator(source))


REAL = """
import sys
sys.path[:0] = sys.argv[2:]
import pathlib, torch
import bszfs.vllm
from vllm.config import DeviceConfig, VllmConfig, set_current_vllm_config
from vllm.config.load import LoadConfig
from vllm.model_executor.model_loader import get_model_loader
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader
from vllm.plugins import load_general_plugins
import test_vllm

load_general_plugins()
bszfs.vllm.register()
bszfs.vllm.register()
loader = get_model_loader(LoadConfig(load_format="bsz"))
assert type(loader).__name__ == "BszLoader" and isinstance(loader, DefaultModelLoader)
test_vllm.check(loader, pathlib.Path(sys.argv[1]))

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.b0 = torch.nn.Parameter(torch.zeros(4))
    def load_weights(self, weights):
        for name, tensor in weights:
            if name == "b0":
                self.b0.data.copy_(tensor)
        return {"b0"}

model = Model()
class Config:
    model = model_weights = sys.argv[1]
    revision = quantization = None
    hf_config = None
    def __getattr__(self, name):
        return None
loader.download_model(Config())
with set_current_vllm_config(VllmConfig(device_config=DeviceConfig(device="cpu"))):
    loader.load_weights(model, Config())
assert torch.equal(model.b0.data, bszfs.torch.load_file(sys.argv[1])["b0"])
print("real classes of vLLM")
"""


def test_the_classes_of_vllm_load_archives(directory):
    code = "import vllm.model_executor.model_loader.default_loader"
    if subprocess.run([sys.executable, "-c", code], capture_output=True).returncode:
        pytest.skip("vLLM is not installed, or does not work on this machine")
    args = [directory, os.path.dirname(__file__)]
    assert helpers.python(REAL, *args).splitlines()[-1] == "real classes of vLLM"


def test_the_published_interface_is_enough(directory, monkeypatch):
    """The part of vLLM 0.33 that the plugin uses, as published."""
    import dataclasses

    registered = {}

    class DefaultModelLoader:
        def __init__(self, load_config):
            self.load_config = load_config

    @dataclasses.dataclass
    class LoadConfig:
        load_format: str = "bsz"
        device: str | None = None

    def register_model_loader(load_format):
        return lambda cls: registered.setdefault(load_format, cls)

    package = "vllm.model_executor.model_loader"
    module = types.ModuleType(package)
    module.register_model_loader = register_model_loader
    module._LOAD_FORMAT_TO_MODEL_LOADER = registered
    default = types.ModuleType(f"{package}.default_loader")
    default.DefaultModelLoader = DefaultModelLoader
    executor = types.ModuleType("vllm.model_executor")
    executor.model_loader = module
    for name, one in {"vllm": types.ModuleType("vllm"), "vllm.model_executor": executor,
                      package: module, default.__name__: default}.items():
        monkeypatch.setitem(sys.modules, name, one)
    bszfs.vllm.register()
    first = registered["bsz"]
    bszfs.vllm.register()
    assert registered == {"bsz": first} and issubclass(first, DefaultModelLoader)
    loader = first(LoadConfig())
    assert loader.load_config.load_format == "safetensors"
    assert loader.download_model(None) is None
    check(loader, directory)
