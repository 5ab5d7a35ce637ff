"""`Archive`, `open` and the commands: the bytes of the original, or an error."""
import hashlib
import io
import json
import os
import shutil
import struct

import helpers
import pytest

import bszfs


def test_all_ways_to_read_give_the_bytes_of_the_original(model):
    plain = model.plain.read_bytes()
    with bszfs.Archive(model.archive) as archive:
        assert archive.path == str(model.archive)
        assert archive.size == len(plain)
        assert archive.stored_size == model.archive.stat().st_size
        assert archive.sha256() == hashlib.sha256(plain).hexdigest()
        assert archive.read(0, len(plain) + 5) == plain
        assert archive.read(len(plain), 1) == archive.read(len(plain) + 9, 1) == b""
        for offset, length in [(0, 1), (7, 300_000), (262_143, 2), (len(plain) - 3, 3)]:
            assert archive.read(offset, length) == plain[offset : offset + length]
            buffer = bytearray(length)
            assert archive.read_into(buffer, offset) == length
            assert buffer == plain[offset : offset + length]
        archive.verify()


def test_read_many_fills_every_buffer(model):
    plain = model.plain.read_bytes()
    parts = [(offset, bytearray(length)) for offset, length in
             [(5, 700_000), (0, 1), (262_140, 8), (9, 0), (len(plain) - 1, 1)]]
    archive = bszfs.Archive(model.archive)
    archive.read_many(parts)
    for offset, buffer in parts:
        assert buffer == plain[offset : offset + len(buffer)]
    for beyond in [(len(plain), bytearray(1)), (len(plain) - 1, bytearray(2))]:
        with pytest.raises((ValueError, OSError, bszfs.SafetensorError)):
            archive.read_many([beyond])
    with pytest.raises((TypeError, BufferError)):
        archive.read_many([(0, b"constant")])


def test_a_closed_archive_reads_nothing(model):
    archive = bszfs.Archive(model.archive)
    archive.close()
    archive.close()
    for use in (lambda: archive.read(0, 1), archive.verify, archive.header,
                lambda: archive.read_many([(0, bytearray(1))])):
        with pytest.raises(ValueError, match="closed"):
            use()


def test_the_header_and_the_tensors_are_those_of_the_original(model):
    plain = model.plain.read_bytes()
    (length,) = struct.unpack("<Q", plain[:8])
    archive = bszfs.Archive(model.archive)
    header = json.loads(plain[8 : 8 + length])
    assert archive.header() == header
    tensors = {info.name: info for info in archive.tensors()}
    assert tensors.keys() == header.keys() - {"__metadata__"}
    for name, info in tensors.items():
        start, end = header[name]["data_offsets"]
        assert (info.start, info.end) == (8 + length + start, 8 + length + end)
        assert [info.dtype, list(info.shape)] == [header[name]["dtype"], header[name]["shape"]]
    starts = [info.start for info in archive.tensors()]
    assert starts == sorted(starts)


def test_golden_archives_are_readable(golden):
    for path in sorted(golden.glob("*.bsz")):
        archive = bszfs.Archive(path)
        data = archive.read(0, archive.size)
        assert hashlib.sha256(data).hexdigest() == archive.sha256(), path
        archive.verify()


def test_the_file_object_is_one_of_python(model):
    plain = model.plain.read_bytes()
    reference = io.BytesIO(plain)
    with bszfs.open(model.name) as f:
        assert f.readable() and f.seekable() and not f.writable()
        for offset, whence in [(0, 0), (300_000, 0), (-5, 1), (-100, 2), (3, 2), (10, 0)]:
            assert f.seek(offset, whence) == reference.seek(offset, whence) == f.tell()
            assert f.read(7) == reference.read(7)
        f.seek(0)
        assert f.read() == plain
        f.seek(1)
        buffer = bytearray(500_000)
        assert f.readinto(buffer) == len(buffer) and buffer == plain[1 : 1 + len(buffer)]
        with pytest.raises(ValueError):
            f.seek(-1)
        with pytest.raises(io.UnsupportedOperation):
            f.write(b"x")
    with pytest.raises(ValueError):
        f.read(1)
    with bszfs.open(model.archive, buffering=0) as f:
        assert f.readall() == plain


def test_the_plain_file_wins(model):
    model.name.write_bytes(b"plain")
    with bszfs.open(model.name) as f:
        assert f.read() == b"plain"
    with bszfs.open(model.archive) as f:
        assert f.read() == model.plain.read_bytes()


def test_pack_unpack_verify_and_info_are_those_of_the_command(tmp_path):
    plain = helpers.write(tmp_path / "m.safetensors", {"a": ("BF16", (1000, 300))})
    content = plain.read_bytes()
    bszfs.pack(plain)
    archive = tmp_path / "m.bsz"
    bszfs.verify(archive)
    described = bszfs.info(archive)
    assert isinstance(described, dict) and "a" in json.dumps(described)
    plain.unlink()
    assert bszfs.unpack(archive) == str(plain)
    assert plain.read_bytes() == content
    archive.unlink()
    bszfs.pack(plain, remove=True)
    assert archive.exists() and not plain.exists()
    bszfs.unpack(archive, tmp_path / "elsewhere")
    assert (tmp_path / "elsewhere").read_bytes() == content


def test_what_is_not_there_or_no_archive_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError) as e:
        bszfs.Archive(tmp_path / "none.bsz")
    assert e.value.errno == 2
    with pytest.raises(FileNotFoundError):
        bszfs.open(tmp_path / "none.safetensors")
    with pytest.raises(IsADirectoryError):
        bszfs.open(tmp_path)
    (tmp_path / "text.bsz").write_text("no archive, but a text that is long enough for one\n" * 9)
    for use in (bszfs.Archive, bszfs.verify, bszfs.open):
        with pytest.raises(bszfs.SafetensorError, match="text.bsz"):
            use(tmp_path / "text.bsz")


def test_an_archive_that_is_replaced_or_removed_while_open_stays_readable(model, tmp_path):
    plain = model.plain.read_bytes()
    archive = bszfs.Archive(model.archive)
    other = helpers.write(tmp_path / "other.safetensors", {"x": ("BF16", (9, 9))})
    os.replace(helpers.packed(other), model.archive)
    assert archive.read(0, len(plain)) == plain
    model.archive.unlink()
    assert archive.read(0, len(plain)) == plain


def test_a_truncated_archive_is_an_error_and_never_a_wrong_byte(model):
    plain = model.plain.read_bytes()
    archive = bszfs.Archive(model.archive)
    stored = archive.stored_size
    for left in (stored - 1, stored // 2, 100, 0):
        os.truncate(model.archive, left)
        with pytest.raises((bszfs.SafetensorError, OSError)):
            bszfs.Archive(model.archive)
    # The index is in memory, but the data is gone.
    with pytest.raises((bszfs.SafetensorError, OSError)):
        archive.read(0, len(plain))
    for offset in range(0, len(plain), 100_000):
        try:
            assert archive.read(offset, 10) == plain[offset : offset + 10]
        except (bszfs.SafetensorError, OSError):
            pass


def damage(archive, at):
    content = bytearray(archive.read_bytes())
    content[at] ^= 0x10
    archive.write_bytes(content)


def test_damage_is_never_served(model, tmp_path):
    plain = model.plain.read_bytes()
    size = model.archive.stat().st_size
    copy = tmp_path / "copy.bsz"
    refused = 0
    for at in range(0, size, size // 60):
        shutil.copy(model.archive, copy)
        damage(copy, at)
        try:
            data = bszfs.Archive(copy).read(0, len(plain))
        except (bszfs.SafetensorError, OSError):
            refused += 1
        else:
            assert data == plain
    assert refused > 50


def test_the_error_for_a_damaged_chunk_names_the_tensor_and_the_chunk(model):
    pytest.importorskip("ml_dtypes")  # NumPy has no BF16 of its own
    damage(model.archive, model.archive.stat().st_size // 2)
    intact, damaged = [], []
    with bszfs.safe_open(model.name, "np") as f:
        for name in f.offset_keys():
            try:
                f.get_tensor(name)
                intact.append(name)
            except bszfs.SafetensorError as e:
                assert name in str(e) and "chunk" in str(e)
                damaged.append(name)
        assert intact and damaged
        with pytest.raises(bszfs.SafetensorError, match=f"tensor {damaged[0]} .*chunk"):
            f.get_tensors()
