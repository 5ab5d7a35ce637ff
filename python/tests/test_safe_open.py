"""`safe_open` on an archive does what safetensors does on the plain file, errors included.

Each test compares with safetensors itself, for NumPy and, where it is installed, for torch.
"""
import itertools
import os
import random

import helpers
import pytest

import bszfs

np = pytest.importorskip("numpy")
pytest.importorskip("ml_dtypes")
safetensors = pytest.importorskip("safetensors")

FRAMEWORKS = [
    pytest.param({"framework": "np"}, id="numpy"),
    pytest.param({"framework": "pt"}, id="torch", marks=pytest.mark.frameworks),
    pytest.param({"framework": "pt", "backend": "pread"}, id="torch-pread",
                 marks=pytest.mark.frameworks),
]  # fmt: skip


@pytest.fixture(params=FRAMEWORKS)
def options(request):
    if request.param["framework"] == "pt":
        pytest.importorskip("torch")
    return request.param


def both(plain, archive, options):
    """The same file opened by safetensors, and its archive by bszfs."""
    theirs = safetensors.safe_open(plain, **options)
    ours = bszfs.safe_open(archive, **options)
    assert type(ours) is bszfs.safe_open
    return theirs, ours


def raw(tensor):
    """Shape, type and bytes of a tensor."""
    if hasattr(tensor, "untyped_storage"):
        import torch

        # A tensor of one element may have any stride, which `view` refuses.
        flat = torch.empty(tensor.numel(), dtype=tensor.dtype).copy_(tensor.reshape(-1))
        data = flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
        return list(tensor.shape), tensor.dtype, data
    return list(tensor.shape), tensor.dtype, tensor.tobytes()


def outcome(use):
    """The tensor, or the error by its type and text."""
    try:
        return raw(use())
    except Exception as e:
        return type(e), str(e)


def test_names_and_metadata_are_those_of_safetensors(model, options):
    theirs, ours = both(model.plain, model.archive, options)
    assert ours.keys() == theirs.keys()
    assert ours.offset_keys() == theirs.offset_keys()
    assert ours.metadata() == theirs.metadata() == {"format": "pt", "who": "the tests"}
    for name in theirs.keys():
        mine, other = ours.get_slice(name), theirs.get_slice(name)
        assert mine.get_shape() == other.get_shape()
        assert mine.get_dtype() == other.get_dtype()


def test_tensors_are_those_of_safetensors(model, options):
    theirs, ours = both(model.plain, model.archive, options)
    together = ours.get_tensors()
    assert list(together) == list(theirs.get_tensors())
    for name in theirs.keys():
        expected = raw(theirs.get_tensor(name))
        assert raw(ours.get_tensor(name)) == expected
        assert raw(together[name]) == expected


@pytest.mark.parametrize("dtype", helpers.BITS)
@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (2,), (6, 4), (5, 2, 8), (40_000, 4)], ids=str)
def test_every_dtype_is_what_safetensors_makes_of_it(tmp_path, options, dtype, shape):
    if dtype == "F4" and (not shape or (shape[-1] % 2 and shape[-1])):
        pytest.skip("half a byte is no tensor")
    if dtype == "F4" and options.get("backend") == "pread":
        pytest.skip("safetensors itself cannot read F4 with this backend")
    tensors = {"before": ("U8", (3,)), "x": (dtype, shape), "after": ("F32", (2,))}
    plain = helpers.write(tmp_path / "x.safetensors", tensors)
    copy = tmp_path / "plain.safetensors"
    archive = helpers.packed(plain, keep=copy)
    theirs, ours = both(copy, archive, options)
    assert outcome(lambda: ours.get_tensor("x")) == outcome(lambda: theirs.get_tensor("x"))
    assert ours.get_slice("x").get_dtype() == theirs.get_slice("x").get_dtype() == dtype
    for index in (slice(None), slice(0, 1), Ellipsis):
        mine = outcome(lambda: ours.get_slice("x")[index])
        assert mine == outcome(lambda: theirs.get_slice("x")[index]), index


@pytest.mark.parametrize("padding", range(9))
def test_data_may_begin_at_any_offset(tmp_path, options, padding):
    tensors = {"a": ("F32", (1000,)), "b": ("I64", (3, 3)), "c": ("U8", (1,)), "d": ("F64", (9,))}
    plain = helpers.write(tmp_path / "m.safetensors", tensors, padding=padding)
    copy = tmp_path / "plain.safetensors"
    archive = helpers.packed(plain, keep=copy)
    ours = bszfs.safe_open(archive, **options)
    theirs = safetensors.safe_open(copy, framework="np")
    for name, tensor in ours.get_tensors().items():
        assert raw(tensor)[2] == raw(theirs.get_tensor(name))[2]
        assert raw(tensor)[2] == raw(ours.get_tensor(name))[2]


def test_a_file_without_metadata_or_tensors(tmp_path, options):
    plain = helpers.write(tmp_path / "none.safetensors", {})
    copy = tmp_path / "plain.safetensors"
    archive = helpers.packed(plain, keep=copy)
    theirs, ours = both(copy, archive, options)
    assert ours.metadata() is theirs.metadata() is None
    assert ours.keys() == ours.offset_keys() == theirs.keys() == []
    assert ours.get_tensors() == {}


def indices(shape):
    """Indices of all kinds for a shape, sensible ones and others."""
    choice = random.Random(repr(shape))
    fixed = [
        Ellipsis, slice(None), (), [], [0], [0, 1], 0, -1, shape[0] - 1, shape[0], -shape[0] - 1,
        True, None, "a", 1.5, slice(0, 0), slice(5, 2), slice(None, None, 3), slice(-3, None),
        slice(None, None, -1), slice(None, None, 0), slice(1, shape[0] + 7), slice(shape[0], None),
        (Ellipsis, Ellipsis), (Ellipsis, 0), (0, Ellipsis), (Ellipsis, slice(1, 2), 0),
        tuple([0] * len(shape)), tuple([0] * (len(shape) + 1)), tuple([slice(None)] * len(shape)),
        np.int64(1), (np.int32(0), slice(0, 1)), slice(np.int64(0), np.int64(2)), 1 << 40,
        slice(None, 1 << 40), ("a", 0), (slice(0, "b"),), (None, 0),
    ]  # fmt: skip
    if len(shape) > 1:
        last = shape[-1]
        fixed += [(slice(None), 0), (slice(None), -1), (slice(None), slice(1, 3)),
                  (slice(None), slice(0, last, 2)), (slice(None), last), (slice(None), -last - 1),
                  (slice(2, 900, 7), slice(0, last, 3)), (Ellipsis, slice(0, last - 1)),
                  (slice(None, 2), Ellipsis, -1)]  # fmt: skip
    for _ in range(40):
        index = []
        for size in shape[: choice.randint(1, len(shape))]:
            a, b = sorted(choice.sample(range(size + 1), 2))
            index.append(choice.choice([a % size, slice(a, b), slice(a, b, choice.randint(1, 5)),
                                        slice(None), slice(None, b), slice(a, None)]))
        fixed.append(tuple(index))
    return fixed


@pytest.mark.parametrize("shape", [(5,), (300, 7), (1000, 700), (3, 40, 5, 2), (1, 600_000)],
                         ids=str)
def test_every_index_selects_what_safetensors_selects(tmp_path, options, shape):
    plain = helpers.write(tmp_path / "m.safetensors", {"b": ("U8", (3,)), "x": ("F32", shape)})
    copy = tmp_path / "plain.safetensors"
    archive = helpers.packed(plain, keep=copy)
    theirs, ours = both(copy, archive, options)
    mine, other = ours.get_slice("x"), theirs.get_slice("x")
    for index in indices(shape):
        expected = outcome(lambda: other[index])
        if expected[0] is SystemError or getattr(expected[0], "__name__", "") == "PanicException":
            # Theirs is an arithmetic overflow: the slice ends before it begins.
            with pytest.raises(bszfs.SafetensorError):
                mine[index]
        else:
            assert outcome(lambda: mine[index]) == expected, index


def test_rows_decode_only_their_chunks(tmp_path, options):
    plain = helpers.write(tmp_path / "m.safetensors", {"x": ("F32", (4096, 1024))})
    copy = tmp_path / "plain.safetensors"
    archive = helpers.packed(plain, keep=copy)
    # Everything but the first quarter is destroyed.
    with open(archive, "r+b") as f:
        size = os.path.getsize(archive)
        index = size - len(tail(archive, size))
        for at in range(index // 2, index, 512):
            f.seek(at)
            f.write(b"\xff" * 64)
    ours = bszfs.safe_open(archive, **options).get_slice("x")
    theirs = safetensors.safe_open(copy, **options).get_slice("x")
    for index in (0, slice(0, 100), (slice(7, 50), slice(3, 9)), slice(0, 400, 101)):
        assert raw(ours[index]) == raw(theirs[index])
    for index in (-1, slice(None), slice(4000, 4001)):
        with pytest.raises(bszfs.SafetensorError, match="tensor x"):
            ours[index]


def tail(archive, size):
    """What follows the stored chunks: the index and the footer."""
    with open(archive, "rb") as f:
        f.seek(size - 128 + 64)
        start = int.from_bytes(f.read(8), "little")
        f.seek(start)
        return f.read()


def test_a_closed_file_says_so(model, options):
    with bszfs.safe_open(model.archive, **options) as ours:
        part = ours.get_slice("bias")
    uses = [ours.keys, ours.offset_keys, ours.metadata, ours.get_tensors,
            lambda: ours.get_tensor("bias"), lambda: ours.get_slice("bias")]
    for use in uses:
        with pytest.raises(bszfs.SafetensorError, match="^File is closed$"):
            use()
    # As with safetensors, a slice outlives the file.
    assert part[:].shape == (17,)


def test_arguments_are_refused_with_the_words_of_safetensors(model):
    theirs = safetensors.safe_open
    cases = [
        dict(framework="nothing"), dict(framework=3), dict(framework="np", device="cuda"),
        dict(framework="np", device="nothing"), dict(framework="np", backend="nothing"),
        dict(framework="np", device="mps:1"), dict(framework="np", device="cuda:x"),
        dict(framework="jax", device=0), dict(framework="np", device="cuda:1:2"),
    ]  # fmt: skip
    for case in cases:
        with pytest.raises(Exception) as expected:
            theirs(model.plain, **case)
        with pytest.raises(expected.type) as found:
            bszfs.safe_open(model.archive, **case)
        assert str(found.value) == str(expected.value), case
    with pytest.raises(bszfs.SafetensorError, match="File does not contain tensor none"):
        bszfs.safe_open(model.archive, "np").get_tensor("none")
    with pytest.raises(bszfs.SafetensorError, match="File does not contain tensor none"):
        bszfs.safe_open(model.archive, "np").get_slice("none")
    for name in ("none.bsz", "none.safetensors"):
        with pytest.raises(FileNotFoundError, match=f"^No such file or directory: {name}$"):
            bszfs.safe_open(name, "np")
    with pytest.raises(TypeError):
        bszfs.safe_open(7, "np")


def test_names_of_originals_and_links_to_them_find_the_archive(model, tmp_path):
    for path in (model.archive, model.name, str(model.name), os.fsencode(model.name)):
        assert type(bszfs.safe_open(path, "np")) is bszfs.safe_open
    link = tmp_path / "link.safetensors"
    link.symlink_to(model.name)
    assert bszfs.safe_open(link, "np").keys()
    model.name.write_bytes(model.plain.read_bytes())
    plain = bszfs.safe_open(model.name, "np")
    assert type(plain) is safetensors.safe_open and isinstance(plain, bszfs.safe_open)
    assert isinstance(bszfs.safe_open(model.archive, "np"), bszfs.safe_open)
    assert not isinstance(3, bszfs.safe_open)


def test_the_error_class_is_that_of_safetensors():
    assert bszfs.SafetensorError is safetensors.SafetensorError


def test_arrays_are_writable_and_own_their_memory(model, options):
    ours = bszfs.safe_open(model.archive, **options)
    first, again = ours.get_tensors(), ours.get_tensors()
    expected = {name: raw(tensor) for name, tensor in again.items()}
    for tensor in first.values():
        if hasattr(tensor, "untyped_storage"):
            assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
            tensor.zero_()
        else:
            assert tensor.flags.writeable
            tensor[...] = 0
    for one, other in itertools.combinations([*first.values(), *again.values()], 2):
        address = [t.data_ptr() if hasattr(t, "data_ptr") else t.ctypes.data for t in (one, other)]
        assert address[0] != address[1] or 0 in (len(raw(one)[2]), len(raw(other)[2]))
    assert {name: raw(tensor) for name, tensor in again.items()} == expected


def test_numpy_load_file_loads_files_and_directories(tmp_path):
    import bszfs.numpy

    for i in range(2):
        tensors = {f"t{i}": ("F32", (10, 10)), f"s{i}": ("I8", (3,))}
        path = helpers.write(tmp_path / f"model-0000{i}-of-00002.safetensors", tensors)
        if i == 0:
            helpers.packed(path)
    loaded = bszfs.numpy.load_file(tmp_path)
    assert sorted(loaded) == ["s0", "s1", "t0", "t1"]
    one = bszfs.numpy.load_file(tmp_path / "model-00000-of-00002.safetensors")
    assert sorted(one) == ["s0", "t0"]
    with pytest.raises(FileNotFoundError):
        (tmp_path / "empty").mkdir()
        bszfs.numpy.load_file(tmp_path / "empty")
