"""Which archive stands for a path, and which files of a directory hold a model's weights.

`X.bsz` stands for `X.safetensors` or for `X`; its footer says which (docs/FORMAT.md). The functions
of `os` are bound here before `bszfs.patched` replaces any of them, so that what it shows to others
is never taken for a file.
"""
from __future__ import annotations

import json
import os
import struct
from builtins import open as _open
from os import listdir as _listdir
from os import stat as _stat
from typing import TypeAlias

SUFFIX = ".bsz"
WEIGHTS = ".safetensors"
MAGIC = b"\x89BSZ\r\n\x1a\n"
FOOTER_LEN = 128
NAMING_AT = 56

StrPath: TypeAlias = "str | bytes | os.PathLike[str] | os.PathLike[bytes]"


def exists(path: str) -> bool:
    """Whether there is a file, whatever `bszfs.patched` shows."""
    try:
        _stat(path)
    except (OSError, ValueError):
        return False
    return True


def original_name(archive: str) -> str | None:
    """The name of the file that an archive was made from; `None` if it is no archive."""
    if not archive.endswith(SUFFIX):
        return None
    try:
        with _open(archive, "rb") as f:
            if f.read(len(MAGIC)) != MAGIC:
                return None
            f.seek(-FOOTER_LEN, os.SEEK_END)
            (naming,) = struct.unpack_from("<Q", f.read(FOOTER_LEN), NAMING_AT)
    except (OSError, struct.error):
        return None
    stem = os.path.basename(archive)[: -len(SUFFIX)]
    if not stem or naming > 1:
        return None
    return stem + WEIGHTS if naming == 0 else stem


def _beside(path: str) -> str | None:
    """The archive that stands for `path` in the same directory."""
    candidates = [path + SUFFIX]
    if path.endswith(WEIGHTS):
        candidates.insert(0, path[: -len(WEIGHTS)] + SUFFIX)
    for archive in candidates:
        if original_name(archive) == os.path.basename(path):
            return archive
    return None


def stand_in(path: str) -> str | None:
    """The archive that stands for a file that is not there, or `None`.

    A link whose target is packed counts: a hub's cache names its files by such links.
    """
    if not os.path.basename(path):
        return None
    found = _beside(path)
    if found is None and os.path.islink(path):
        found = _beside(os.path.realpath(path))
    return found


def archive_for(path: StrPath) -> str | None:
    """The archive to read for `path`, or `None` if `path` itself is to be opened.

    A plain file wins over the archive beside it.
    """
    name = os.fsdecode(path)
    if name.endswith(SUFFIX):
        return name
    return None if exists(name) else stand_in(name)


def _shards_of_index(directory: str, index: str) -> list[str]:
    with _open(os.path.join(directory, index), encoding="utf-8") as f:
        shards = sorted(set(json.load(f)["weight_map"].values()))
    for shard in shards:
        if os.path.isabs(shard) or ".." in shard.split("/"):
            raise ValueError(f"{index}: a shard outside of the directory: {shard}")
    return shards


def weight_files(path: StrPath) -> list[str]:
    """The paths of a model's weights: plain files, or archives where only these are.

    In a directory, as in frameworks, the shards of an index come before `model.safetensors`, and
    that before all files with the suffix of safetensors. Any other path is that of a single file.
    """
    top = os.fsdecode(path)
    if not os.path.isdir(top):
        return [top]
    names = sorted(_listdir(top))
    shown: dict[str, str] = {}
    for name in names:
        original = original_name(os.path.join(top, name)) if name.endswith(SUFFIX) else name
        if original and original.endswith(WEIGHTS) and (name == original or original not in names):
            shown[original] = os.path.join(top, name)
    indices = [name for name in names if name.endswith(WEIGHTS + ".index.json")]
    # A repository may have the same weights twice, under the names of another framework.
    for index in sorted(indices, key=lambda name: not name.startswith("model.")):
        shards = _shards_of_index(top, index)
        if all(archive_for(os.path.join(top, s)) or exists(os.path.join(top, s)) for s in shards):
            plain = (os.path.join(top, shard) for shard in shards)
            return [archive_for(name) or name for name in plain]
    if "model" + WEIGHTS in shown:
        return [shown["model" + WEIGHTS]]
    if not shown:
        raise FileNotFoundError(f"No weights in the directory: {top}")
    return [shown[name] for name in sorted(shown)]
