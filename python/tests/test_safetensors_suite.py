"""The tests of safetensors' own Python binding, with every file that they open packed first.

They are taken from the source distribution on PyPI, at a pinned release, and run by pytest with the
plugin in suite_plugin.py, which also names those that cannot apply.
"""
import pathlib
import re
import subprocess
import sys
import tarfile

import pytest

RELEASE = "0.8.0"
HERE = pathlib.Path(__file__).resolve().parent
# The module that each file of tests needs, beside torch and NumPy.
NEEDS = {"test_flax_comparison": ["jax", "flax"], "test_tf_comparison": ["tensorflow", "h5py"],
         "test_handle": ["fsspec"]}

pytestmark = pytest.mark.frameworks
pytest.importorskip("torch")


@pytest.fixture(scope="module")
def binding(tmp_path_factory):
    """The folder of the binding, with its tests."""
    safetensors = pytest.importorskip("safetensors")
    if safetensors.__version__ != RELEASE:
        pytest.skip(f"the tests are those of safetensors {RELEASE}, not {safetensors.__version__}")
    into = tmp_path_factory.mktemp("safetensors")
    # Only its own sources: the tools that build it may come as wheels.
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary",
               "safetensors", "--dest", into, f"safetensors=={RELEASE}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    archives = list(into.glob("*.tar.gz"))
    if done.returncode or not archives:
        pytest.skip(f"cannot be downloaded: {(done.stderr.strip().splitlines() or [''])[-1]}")
    with tarfile.open(archives[0]) as tar:
        tar.extractall(into, filter="data")
    return into / f"safetensors-{RELEASE}/bindings/python"


def test_the_tests_of_safetensors_pass_on_archives(binding):
    ignored = []
    for name, modules in NEEDS.items():
        for module in modules:
            try:
                __import__(module)
            except ImportError:
                print(f"{name}: {module} is not installed")
                ignored.append(f"--ignore=tests/{name}.py")
                break
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "suite_plugin",
               "-o", f"pythonpath={HERE}", *ignored, "tests"]
    done = subprocess.run(command, cwd=binding, capture_output=True, text=True, timeout=900)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    (opened,) = re.findall(r"(\d+) files opened as archives", done.stdout)
    assert int(opened) >= 100
