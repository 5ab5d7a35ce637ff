"""Threads, forks, spawned processes, Ctrl-C, and thousands of opens."""
import gc
import hashlib
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time

import helpers
import pytest

import bszfs


def digest_of(path):
    archive = bszfs.Archive(path)
    return hashlib.sha256(archive.read(0, archive.size)).hexdigest()


def test_threads_may_share_an_archive(model):
    plain = model.plain.read_bytes()
    archive = bszfs.Archive(model.archive)
    failures = []

    def work(seed):
        try:
            for i in range(30):
                offset = (seed * 7919 + i * 104_729) % len(plain)
                buffer = bytearray(200_000)
                count = archive.read_into(buffer, offset)
                expected = plain[offset : offset + len(buffer)]
                assert count == len(expected) and buffer[:count] == expected
                parts = [(o, bytearray(1000)) for o in range(0, len(plain) - 1000, 500_000)]
                archive.read_many(parts)
                assert all(part == plain[o : o + 1000] for o, part in parts)
        except BaseException as e:
            failures.append(e)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_other_threads_run_while_one_decodes(tmp_path):
    path = helpers.write(tmp_path / "m.safetensors", {"x": ("BF16", (16 << 20,))})
    archive = bszfs.Archive(helpers.packed(path))
    buffer = bytearray(archive.size)
    done = threading.Event()
    ticks = 0

    def decode():
        for _ in range(10):
            archive.read_into(buffer, 0)
        done.set()

    thread = threading.Thread(target=decode)
    thread.start()
    while not done.wait(0.001):
        ticks += 1
    thread.join()
    assert ticks > 5


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_processes_of_every_kind_read(model, method):
    expected = digest_of(model.archive)  # the parent has decoded, with threads
    context = multiprocessing.get_context(method)
    with context.Pool(2) as pool:
        assert set(pool.map(digest_of, [str(model.archive)] * 6)) == {expected}


def test_an_open_archive_is_usable_after_a_fork(model):
    plain = model.plain.read_bytes()
    archive = bszfs.Archive(model.archive)
    archive.read(0, len(plain))
    stop = threading.Event()

    def keep_reading():
        while not stop.is_set():
            archive.read(0, len(plain))

    threads = [threading.Thread(target=keep_reading) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(20):
            child = os.fork()
            if child == 0:
                code = 1
                try:
                    signal.alarm(60)
                    code = 0 if archive.read(0, len(plain)) == plain else 2
                finally:
                    os._exit(code)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        stop.set()
        for thread in threads:
            thread.join()


INTERRUPTED = """
import os, signal, sys, threading, time
import bszfs

# Whoever runs the tests in the background may have it ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
archive = bszfs.Archive(sys.argv[1])
buffer = bytearray(archive.size)
archive.read_into(buffer, 0)
sent = []

def interrupt():
    time.sleep(0.3)
    sent.append(time.monotonic())
    os.kill(os.getpid(), signal.SIGINT)

threading.Thread(target=interrupt, daemon=True).start()
try:
    while True:
        archive.read_many([(0, buffer)])
except KeyboardInterrupt:
    print(time.monotonic() - sent[0])
archive.verify()
"""


def test_ctrl_c_ends_a_read(tmp_path):
    # No test asserts a time; but this read takes many times as long as the wait that is allowed.
    size = 512 << 20
    payload = helpers.repeat("big", size)
    path = helpers.write(tmp_path / "m.safetensors", {"x": ("U8", (size,), payload)})
    waited = float(helpers.python(INTERRUPTED, helpers.packed(path)))
    assert waited < 5
    print(f"Ctrl-C was noticed after {waited * 1000:.0f} ms")


def test_ten_thousand_opens_leak_nothing(model):
    def use():
        with bszfs.Archive(model.archive) as archive:
            archive.read(10, 10)
        bszfs.safe_open(model.archive, "np").keys()
        with bszfs.open(model.name) as f:
            f.read(1)

    pytest.importorskip("numpy")
    for _ in range(500):
        use()
    gc.collect()
    memory, descriptors = helpers.resident(), helpers.descriptors()
    for _ in range(10_000 // 3):
        use()
    gc.collect()
    assert helpers.descriptors() == descriptors
    assert helpers.resident() - memory < 8 << 20


def test_failed_opens_leak_nothing(model, tmp_path):
    damaged = tmp_path / "damaged.bsz"
    damaged.write_bytes(model.archive.read_bytes()[:-1] + b"\xff")

    def use():
        for path in (damaged, tmp_path / "none.bsz"):
            with pytest.raises((bszfs.SafetensorError, FileNotFoundError)):
                bszfs.Archive(path)

    for _ in range(100):
        use()
    gc.collect()
    memory, descriptors = helpers.resident(), helpers.descriptors()
    for _ in range(2000):
        use()
    gc.collect()
    assert helpers.descriptors() == descriptors
    assert helpers.resident() - memory < 8 << 20


def test_the_number_of_threads_follows_the_affinity_and_the_environment():
    show = "import bszfs._native as n; print(n.thread_limit())"
    cores = len(os.sched_getaffinity(0))
    limit = int(helpers.python(show))
    assert 1 <= limit <= cores
    one = "import os, sys; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
    one += "os.execv(sys.executable, [sys.executable, '-c', sys.argv[1]])"
    assert int(helpers.python(one, show)) == 1
    assert int(helpers.python(show, env=os.environ | {"BSZFS_THREADS": "1"})) == 1


def test_the_interpreter_ends_while_threads_decode(model):
    code = """
import sys, threading, time
import bszfs

def work():
    archive = bszfs.Archive(sys.argv[1])
    while True:
        archive.read(0, archive.size)

for _ in range(4):
    threading.Thread(target=work, daemon=True).start()
time.sleep(0.2)
print("end", flush=True)
"""
    for _ in range(5):
        begun = time.monotonic()
        done = subprocess.run([sys.executable, "-c", code, model.archive], capture_output=True,
                              text=True, timeout=60)
        assert (done.returncode, done.stdout) == (0, "end\n"), done.stderr
        assert time.monotonic() - begun < 60
