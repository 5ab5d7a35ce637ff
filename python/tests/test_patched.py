"""`patched` and `run`: code that knows nothing of archives, without any framework."""
import builtins
import glob
import io
import json
import os
import pathlib
import subprocess
import sys
import threading

import helpers
import pytest

import bszfs

safetensors = pytest.importorskip("safetensors")


def bindings():
    """Everything that `patched` may replace."""
    found = {
        name: getattr(owner, name)
        for owner in (os, builtins, io, safetensors, safetensors._safetensors_rust)
        for name in ("stat", "listdir", "scandir", "open", "safe_open")
        if hasattr(owner, name)
    }
    for module in [m for name, m in sys.modules.items() if name.startswith(("pathlib", "glob"))]:
        for cls in [c for c in vars(module).values() if isinstance(c, type)]:
            found |= {(cls, key): value for key, value in vars(cls).items()}
    supported = [os.supports_dir_fd, os.supports_fd, os.supports_follow_symlinks]
    return found, [set(one) for one in supported]


@pytest.fixture(autouse=True)
def nothing_stays_patched():
    before = bindings()
    yield
    assert bindings() == before


def test_files_that_are_packed_are_found(model):
    size = model.plain.stat().st_size
    with bszfs.patched(model.directory):
        name = str(model.name)
        assert os.path.isfile(name) and os.path.exists(name) and not os.path.isdir(name)
        assert os.path.getsize(name) == os.stat(name).st_size == size
        assert os.stat(name).st_mtime_ns == os.stat(model.archive).st_mtime_ns
        assert model.name.exists() and model.name.is_file() and model.name.stat().st_size == size
        assert "model.safetensors" in os.listdir(model.directory)
        assert glob.glob(f"{model.directory}/*.safetensors") == [name]
        assert glob.glob("*.safetensors", root_dir=model.directory) == ["model.safetensors"]
        assert glob.glob(f"{model.directory}/**", recursive=True).count(name) == 1
        assert list(model.directory.glob("*.safetensors")) == [model.name]
        assert list(model.directory.rglob("*.safetensors")) == [model.name]
        assert model.name in list(model.directory.iterdir())
        assert [files for _, _, files in os.walk(model.directory)][0].count(model.name.name) == 1
        with os.scandir(model.directory) as entries:
            (entry,) = [e for e in entries if e.name == "model.safetensors"]
        assert entry.is_file() and not entry.is_dir() and not entry.is_symlink()
        assert os.fspath(entry) == name and entry.stat().st_size == size
        assert not os.path.exists(model.directory / "other.safetensors")
        with pytest.raises(FileNotFoundError):
            os.stat(model.directory / "other.safetensors")
    assert not os.path.exists(name) and not model.name.exists()
    assert os.listdir(model.directory) == ["model.bsz"]


def test_files_that_are_packed_are_opened(model):
    plain = model.plain.read_bytes()
    with bszfs.patched(model.directory):
        with open(model.name, "rb") as f:
            assert f.read() == plain
        with io.open(model.name, mode="rb", buffering=0) as f:
            assert f.read(9) == plain[:9]
        assert model.name.read_bytes() == plain
        with model.name.open("rb") as f:
            assert f.read() == plain
        for mode in ("r+b", "r+"):
            with pytest.raises(FileNotFoundError):
                open(model.name, mode)
        with pytest.raises(FileNotFoundError):
            open(model.directory / "other.safetensors", "rb")


def test_files_with_other_names_are_found(tmp_path):
    text = tmp_path / "notes.txt"
    text.write_text("some\r\ntext\n" * 1000)
    content = text.read_bytes()
    helpers.packed(text)
    with bszfs.patched(tmp_path):
        with open(text, encoding="utf-8") as f:
            assert f.read() == "some\ntext\n" * 1000
        assert text.read_bytes() == content


def test_links_into_a_packed_cache_are_followed(tmp_path):
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots/main"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    blob = helpers.write(blobs / "abcdef", {"x": ("BF16", (10, 10))})
    size = blob.stat().st_size
    link = snapshot / "model.safetensors"
    link.symlink_to("../../blobs/abcdef")
    helpers.packed(blob)
    with bszfs.patched(tmp_path):
        assert os.path.isfile(link) and link.stat().st_size == size
        assert safetensors.safe_open(link, "np").keys() == ["x"]


def test_safe_open_is_replaced_wherever_it_was_bound(model):
    import safetensors.numpy

    with bszfs.patched(model.directory):
        for module in (safetensors, safetensors.numpy, safetensors._safetensors_rust):
            with module.safe_open(model.name, "np") as f:
                assert "bias" in f.keys() and isinstance(f, module.safe_open)
        with safetensors.safe_open(model.plain, "np") as f:
            assert "bias" in f.keys() and isinstance(f, safetensors.safe_open)
    with pytest.raises(FileNotFoundError):
        safetensors.safe_open(model.name, "np")


def test_only_the_directories_that_are_named_are_patched(model, tmp_path):
    other = tmp_path / "model-2"
    other.mkdir()
    path = helpers.write(other / "x.safetensors", {"x": ("U8", (3,))})
    helpers.packed(path)
    link = tmp_path / "link"
    link.symlink_to(model.directory)
    with bszfs.patched([model.directory]):
        assert model.name.exists()
        assert not path.exists()
        with pytest.raises(FileNotFoundError):
            safetensors.safe_open(path, "np")
    with bszfs.patched([link]):
        assert (link / "model.safetensors").exists() and model.name.exists()
        assert not path.exists()
    with bszfs.patched():
        assert model.name.exists() and path.exists()


def test_relative_paths_are_found(model, monkeypatch):
    monkeypatch.chdir(model.directory)
    with bszfs.patched("."):
        assert os.path.isfile("model.safetensors") and glob.glob("*.safetensors")
        assert "model.safetensors" in os.listdir()
        assert safetensors.safe_open("model.safetensors", "np").keys()


def test_modules_that_are_imported_inside_do_not_stay_patched(model, tmp_path, monkeypatch):
    (tmp_path / "late_module.py").write_text(
        "from os import stat, scandir\nfrom safetensors import safe_open\nfrom io import open\n"
        "kept = [stat, safe_open]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with bszfs.patched(model.directory):
        import late_module

        assert late_module.stat(model.name).st_size
        assert late_module.safe_open(model.name, "np").keys()
    assert late_module.stat is os.stat and late_module.scandir is os.scandir
    assert late_module.open is io.open
    assert late_module.safe_open is safetensors.safe_open
    # What cannot be put back does nothing of its own any more.
    stat, opener = late_module.kept
    with pytest.raises(FileNotFoundError):
        stat(model.name)
    with pytest.raises(FileNotFoundError):
        opener(model.name, "np")
    assert type(opener(model.plain, "np")) is safetensors.safe_open
    del sys.modules["late_module"]


def test_blocks_may_be_nested_and_end_in_any_order(model, tmp_path):
    first, second = bszfs.patched(model.directory), bszfs.patched(tmp_path / "none")
    first.__enter__()
    second.__enter__()
    assert model.name.exists()
    first.__exit__(None, None, None)
    assert not model.name.exists() and os.stat is not bszfs._shown.os_stat
    second.__exit__(None, None, None)
    with pytest.raises(ZeroDivisionError), bszfs.patched(model.directory):
        1 / 0
    assert not model.name.exists()


def test_threads_may_have_blocks_at_the_same_time(model):
    failures = []

    def work():
        try:
            for _ in range(50):
                with bszfs.patched(model.directory):
                    assert os.path.isfile(model.name)
                    assert safetensors.safe_open(model.name, "np").keys()
        except BaseException as e:
            failures.append(e)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert not model.name.exists()


def test_a_damaged_archive_is_an_error_and_not_a_missing_file(model):
    content = bytearray(model.archive.read_bytes())
    content[-100] ^= 1
    model.archive.write_bytes(content)
    with bszfs.patched(model.directory), pytest.raises(bszfs.SafetensorError):
        os.path.isfile(model.name)


PROGRAM = """
import json, multiprocessing, os, subprocess, sys
from safetensors import safe_open

def keys(path):
    return len(safe_open(path, "np").keys()), os.path.isfile(path)

if __name__ == "__main__":
    path = sys.argv[1]
    found = {"argv": sys.argv[1:], "here": keys(path), "name": __name__}
    for method in ("fork", "spawn"):
        with multiprocessing.get_context(method).Pool(1) as pool:
            found[method] = pool.map(keys, [path])[0]
    code = "import os, sys; print(os.path.isfile(sys.argv[1]))"
    child = [sys.executable, "-c", code, path]
    found["child"] = subprocess.run(child, capture_output=True, text=True).stdout.strip()
    print(json.dumps(found))
"""


def run(*args, **options):
    done = subprocess.run([sys.executable, "-m", "bszfs", "run", *map(str, args)],
                          capture_output=True, text=True, timeout=300, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_run_runs_a_program_and_its_children(model, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    for args in ([], ["--dir", model.directory]):
        found = json.loads(run(*args, program, model.name, "--flag"))
        assert found["argv"] == [str(model.name), "--flag"] and found["name"] == "__main__"
        assert found["child"] == "True"
        for how in ("here", "fork", "spawn"):
            assert found[how] == [10, True], how
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    code = "import os, sys; print(os.path.isfile(sys.argv[1]))"
    (tmp_path / "ask.py").write_text(code)
    assert run("--dir", elsewhere, tmp_path / "ask.py", model.name) == "False\n"
    assert run("-m", "ask", model.name, cwd=tmp_path) == "True\n"


def test_run_imports_the_sitecustomize_that_was_there(model, tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.customized = True\n")
    program = tmp_path / "program.py"
    code = "import sys, os; print(hasattr(sys, 'customized'), os.path.isfile(sys.argv[1]))"
    program.write_text(
        "import subprocess, sys\n"
        f"code = {code!r}\n"
        "subprocess.run([sys.executable, '-c', code, sys.argv[1]], check=True)\n"
    )
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    assert run(program, model.name, env=env) == "True True\n"


def test_run_reports_the_exit_code_of_the_program(tmp_path):
    program = tmp_path / "program.py"
    program.write_text("import sys; sys.exit(7)")
    done = subprocess.run([sys.executable, "-m", "bszfs", "run", program])
    assert done.returncode == 7
    assert pathlib.Path(program).exists()
