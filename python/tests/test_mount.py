"""`mount` and `python -m bszfs`, which run the command."""
import os
import shutil
import subprocess
import sys

import pytest

import bszfs


@pytest.fixture
def fuse():
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("/dev/fuse cannot be opened")
    if os.geteuid() != 0 and not shutil.which("fusermount3"):
        pytest.skip("fusermount3 is missing")


def mounted(path):
    with open("/proc/self/mounts", encoding="utf-8") as f:
        return any(line.split()[1] == str(path) for line in f)


def test_a_mount_lasts_as_long_as_the_block(fuse, model, tmp_path):
    plain = model.plain.read_bytes()
    with bszfs.mount(model.directory) as view:
        assert mounted(view)
        with open(os.path.join(view, "model.safetensors"), "rb") as f:
            assert f.read() == plain
    assert not mounted(view) and not os.path.exists(view)
    here = tmp_path / "view"
    here.mkdir()
    with pytest.raises(ZeroDivisionError), bszfs.mount(model.directory, here):
        assert mounted(here)
        1 / 0
    assert not mounted(here) and here.is_dir()


def test_a_mount_that_is_in_use_ends_all_the_same(fuse, model):
    plain = model.plain.read_bytes()
    with bszfs.mount(model.directory) as view:
        f = open(os.path.join(view, "model.safetensors"), "rb")
    assert not mounted(view)
    assert f.read() == plain
    f.close()


def test_the_error_is_that_of_the_command(model, tmp_path):
    with pytest.raises(OSError, match="bsz: .*none"), bszfs.mount(tmp_path / "none"):
        pass


def test_the_module_is_the_command(model):
    command = [sys.executable, "-m", "bszfs", "info", model.archive]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and "layers.2.weight" in done.stdout, done.stderr
    command[3:] = ["verify", model.directory / "none.bsz"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("bsz: ")
