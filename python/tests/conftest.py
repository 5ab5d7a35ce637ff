"""Fixtures of all tests. Tests of frameworks are marked, and skipped where these are missing."""
import pathlib

import helpers
import pytest

MIXED = {
    "layers.0.weight": ("BF16", (300, 513)),
    "layers.1.weight": ("F32", (1000, 700)),
    "layers.10.weight": ("F16", (64, 3, 11)),
    "bias": ("F32", (17,)),
    "a scalar": ("F64", ()),
    "nothing": ("I32", (0, 4)),
    "flags": ("BOOL", (5,)),
    "layers.2.weight": ("BF16", (4096, 512)),
    "counts": ("I64", (3, 5)),
    "layers.9.weight": ("U8", (7, 7)),
}


def pytest_configure(config):
    config.addinivalue_line("markers", "frameworks: needs torch, transformers and others")


@pytest.fixture
def model(tmp_path):
    """A packed file with tensors of many sizes; the plain one is in another directory."""

    class Model:
        directory = tmp_path / "model"
        name = directory / "model.safetensors"
        plain = tmp_path / "plain.safetensors"

    Model.directory.mkdir()
    helpers.write(Model.name, MIXED, {"format": "pt", "who": "the tests"})
    Model.archive = helpers.packed(Model.name, keep=Model.plain)
    return Model


@pytest.fixture
def golden():
    """Archives of the first version, which must stay readable."""
    return pathlib.Path(__file__).resolve().parents[2] / "tests/data/v1"
