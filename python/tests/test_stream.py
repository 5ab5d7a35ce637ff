"""Layers, one after another: which, in what order, with which bytes, and in how much memory."""
import gc
import json
import os
import subprocess
import sys
import threading

import helpers
import pytest

import bszfs

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")
pytestmark = pytest.mark.frameworks


def llama(layers=12, hidden=64, shards=3):
    """The tensors of a Llama by shard; the layers are spread over the shards."""
    tensors = {"model.embed_tokens.weight": ("BF16", (1000, hidden))}
    for i in range(layers):
        for part in ("self_attn.q_proj", "mlp.up_proj", "input_layernorm"):
            shape = (hidden,) if part == "input_layernorm" else (hidden * 4, hidden)
            tensors[f"model.layers.{i}.{part}.weight"] = ("BF16", shape)
    tensors["model.norm.weight"] = ("F32", (hidden,))
    tensors["lm_head.weight"] = ("BF16", (1000, hidden))
    names = list(tensors)
    return [{name: tensors[name] for name in names[i::shards]} for i in range(shards)]


@pytest.fixture(params=[1, 3], ids=["one file", "shards"])
def directory(tmp_path, request):
    """A packed model, and all its tensors as safetensors reads them."""
    from safetensors.torch import load_file

    shards, expected, index = llama(shards=request.param), {}, {}
    packed = tmp_path / "packed"
    packed.mkdir()
    for i, tensors in enumerate(shards):
        name = f"model-{i + 1:05}-of-{len(shards):05}.safetensors"
        path = helpers.write(packed / ("model.safetensors" if len(shards) == 1 else name), tensors)
        expected |= load_file(path, backend="pread")
        index |= {tensor: path.name for tensor in tensors}
        helpers.packed(path)
    if len(shards) > 1:
        text = json.dumps({"weight_map": index})
        (packed / "model.safetensors.index.json").write_text(text)
    return packed, expected


def equal(one, other):
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other)


@pytest.mark.parametrize("into", [None, "ring"])
@pytest.mark.parametrize("ahead", [0, 1, 2, 30])
def test_layers_come_in_order_and_with_all_tensors(directory, into, ahead):
    packed, expected = directory
    loader = bszfs.stream.Loader(packed)
    seen, names = {}, []
    for name, layer in loader.iter_layers(ahead=ahead, into=into):
        names.append(name)
        assert layer.name == name and sorted(layer) == sorted(loader.names(name))
        for key, tensor in layer.items():
            assert equal(tensor, expected[key]), key
            seen[key] = tensor.clone()
    assert seen.keys() == expected.keys()
    assert names == loader.layers()
    numbers = [int(n) for name in names for n in name.split(".") if n.isdigit()]
    assert numbers == list(range(12))
    for name in names:
        for key, tensor in loader.layer(name).items():
            assert equal(tensor, expected[key])


def test_layers_that_are_kept_do_not_block_the_next(directory):
    packed, expected = directory
    kept = dict(bszfs.stream.Loader(packed).iter_layers(ahead=1))
    tensors = {key: tensor for layer in kept.values() for key, tensor in layer.items()}
    assert tensors.keys() == expected.keys()
    assert all(equal(tensor, expected[key]) for key, tensor in tensors.items())


def test_no_more_layers_than_allowed_are_decoded_ahead(directory, monkeypatch):
    packed, _ = directory
    loader = bszfs.stream.Loader(packed)
    loaded = []
    load = loader._load
    monkeypatch.setattr(loader, "_load", lambda *args: (loaded.append(args[0]), load(*args))[1])
    for ahead in (1, 2, 4):
        loaded.clear()
        settled = threading.Event()
        for at, (name, layer) in enumerate(loader.iter_layers(ahead=ahead)):
            settled.wait(0.02)
            assert len(loaded) <= at + 1 + ahead
            assert name in loaded
        del layer


def test_an_iterator_that_is_dropped_ends_its_thread(directory):
    packed, _ = directory
    before = threading.active_count()
    for into in (None, "ring"):
        for _ in bszfs.stream.Loader(packed).iter_layers(into=into):
            break
        gc.collect()
    for thread in threading.enumerate():
        if thread.name == "bszfs layers":
            thread.join(10)
    assert threading.active_count() == before


def test_an_error_in_a_layer_reaches_the_caller(directory):
    packed, _ = directory
    archive = sorted(packed.glob("*.bsz"))[-1]
    content = bytearray(archive.read_bytes())
    content[len(content) // 2] ^= 1
    archive.write_bytes(content)
    names = []
    with pytest.raises(bszfs.SafetensorError, match="chunk"):
        for name, _ in bszfs.stream.Loader(packed).iter_layers():
            names.append(name)
    assert len(names) < 15


def test_wrong_arguments(directory):
    packed, _ = directory
    loader = bszfs.stream.Loader(packed)
    with pytest.raises(ValueError):
        next(loader.iter_layers(ahead=-1))
    with pytest.raises(ValueError):
        next(loader.iter_layers(into="pond"))
    with pytest.raises(KeyError):
        loader.layer("none")
    with pytest.raises(FileNotFoundError):
        bszfs.stream.Loader(packed / "none")


def test_a_plain_directory_has_the_same_layers(directory, tmp_path):
    packed, expected = directory
    plain = tmp_path / "plain"
    plain.mkdir()
    for path in packed.iterdir():
        if path.suffix == ".bsz":
            bszfs.unpack(path, plain / f"{path.stem}.safetensors")
        else:
            (plain / path.name).write_bytes(path.read_bytes())
    for into in (None, "ring"):
        loader = bszfs.stream.Loader(plain)
        assert loader.layers() == bszfs.stream.Loader(packed).layers()
        for _, layer in loader.iter_layers(into=into):
            assert all(equal(tensor, expected[key]) for key, tensor in layer.items())


def test_a_single_file_has_layers(directory, tmp_path):
    packed, expected = directory
    for archive in packed.glob("*.bsz"):
        plain = tmp_path / f"{archive.stem}.safetensors"
        bszfs.unpack(archive, plain)
        of_archive, of_plain = map(bszfs.stream.Loader, (archive, plain))
        assert of_archive.layers() == of_plain.layers() != []
        for loader in (of_archive, of_plain):
            for _, layer in loader.iter_layers(into="ring"):
                assert all(equal(tensor, expected[key]) for key, tensor in layer.items())


PEAK = """
import json, sys
import torch
import bszfs, helpers

torch.set_num_threads(1)
loader = bszfs.stream.Loader(sys.argv[1])
into = sys.argv[3] if len(sys.argv) > 3 else None
before = helpers.resident()
with open("/proc/self/clear_refs", "w") as f:
    f.write("5")  # resets the peak
total = 0
for name, layer in loader.iter_layers(ahead=int(sys.argv[2]), into=into):
    for tensor in layer.values():
        total += tensor.numel() * tensor.element_size()
with open("/proc/self/status") as f:
    (peak,) = [int(line.split()[1]) << 10 for line in f if line.startswith("VmHWM")]
print(json.dumps({"peak": peak - before, "total": total}))
"""


LAYER, LAYERS, EMBEDDINGS = 12 << 20, 20, 48 << 20


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A packed model that is larger than what may be in memory."""
    directory = tmp_path_factory.mktemp("large")
    tensors = {"model.embed_tokens.weight": ("BF16", (EMBEDDINGS // 2048, 1024))}
    for i in range(LAYERS):
        for part in ("a", "b", "c"):
            tensors[f"model.layers.{i}.{part}.weight"] = ("BF16", (LAYER // 3 // 2048, 1024))
    helpers.packed(helpers.write(directory / "model.safetensors", tensors))
    return directory


@pytest.mark.parametrize("into", [None, "ring"])
@pytest.mark.parametrize("ahead", [1, 2])
def test_the_peak_of_memory_is_that_of_the_layers_ahead(large, ahead, into):
    env = os.environ | {"PYTHONPATH": os.pathsep.join([os.path.dirname(__file__), *sys.path])}
    args = [large, ahead, *([into] if into else [])]
    done = subprocess.run([sys.executable, "-c", PEAK, *map(str, args)], env=env,
                          capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    print(f"ahead={ahead} into={into}: {found['peak'] / 2**20:.0f} MiB")
    bound = (ahead + 1) * LAYER + EMBEDDINGS + (64 << 20)
    assert found["total"] == EMBEDDINGS + LAYERS * LAYER > 1.5 * bound
    assert found["peak"] <= bound


class Small(torch.nn.Module):
    """A module of no framework, with tied weights and a buffer that no file has."""

    def __init__(self, width=8):
        super().__init__()
        self.embedding = torch.nn.Embedding(10, width)
        self.layers = torch.nn.ModuleList([torch.nn.Linear(width, width) for _ in range(3)])
        self.head = torch.nn.Linear(width, 10, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("scale", torch.ones(1), persistent=False)


def test_modules_of_no_framework_are_loaded_in_place(tmp_path):
    from safetensors.torch import save_model

    torch.manual_seed(1)
    source = Small()
    save_model(source, str(tmp_path / "model.safetensors"))
    helpers.packed(tmp_path / "model.safetensors")
    loaded = bszfs.load_model(tmp_path, Small, width=8)
    assert loaded.head.weight is loaded.embedding.weight
    for (name, one), (other, two) in zip(source.state_dict().items(), loaded.state_dict().items()):
        assert name == other and equal(one, two)
    by_function = Small()
    assert bszfs.torch.load_model(by_function, tmp_path / "model.safetensors") == (set(), [])
    assert equal(by_function.layers[2].weight, source.layers[2].weight)

    class Larger(Small):
        def __init__(self, width):
            super().__init__(width)
            self.more = torch.nn.Linear(1, 1)

    with pytest.raises(RuntimeError, match="more.bias, more.weight"):
        bszfs.load_model(tmp_path, Larger, width=8)
    with pytest.raises(RuntimeError, match="Missing key.*more.bias"):
        bszfs.torch.load_model(Larger(8), tmp_path / "model.safetensors")


def test_iter_tensors_yields_what_load_file_loads(directory):
    packed, expected = directory
    tensors = dict(bszfs.torch.iter_tensors(packed))
    loaded = bszfs.torch.load_file(packed)
    assert tensors.keys() == loaded.keys() == expected.keys()
    for name, tensor in tensors.items():
        assert equal(tensor, expected[name]) and equal(loaded[name], expected[name])
        assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()


def test_load_takes_the_bytes_of_an_archive_or_of_a_file(directory):
    packed, expected = directory
    for archive in packed.glob("*.bsz"):
        loaded = bszfs.torch.load(archive.read_bytes())
        assert all(equal(tensor, expected[name]) for name, tensor in loaded.items())
        with bszfs.open(archive) as f:
            again = bszfs.torch.load(f.read())
        assert loaded.keys() == again.keys()
    with pytest.raises(bszfs.SafetensorError):
        bszfs.torch.load(b"\x89BSZ\r\n\x1a\n" + bytes(300))


class Names(torch.utils.data.Dataset):
    """Reads a tensor in the worker that asks for it; the file is open in the parent already."""

    def __init__(self, path):
        self.path = path
        self.names = bszfs.safe_open(path, "pt").keys()

    def __len__(self):
        return len(self.names)

    def __getitem__(self, at):
        with bszfs.safe_open(self.path, "pt") as f:
            return self.names[at], f.get_tensor(self.names[at]).float().sum()


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_of_a_data_loader_read_archives(tmp_path, method):
    tensors = {f"t{i}": ("BF16", (50, 50)) for i in range(12)}
    archive = helpers.packed(helpers.write(tmp_path / "m.safetensors", tensors))
    expected = {k: v.float().sum() for k, v in bszfs.torch.load_file(archive).items()}
    data = torch.utils.data.DataLoader(Names(str(archive)), num_workers=2, batch_size=None,
                                       multiprocessing_context=method)
    found = {name: float(total) for name, total in data}
    assert found == {name: float(total) for name, total in expected.items()}
