"""The checks that are about packing: what clients see stays as it is, and takes less room."""
import time

from hub_stage import MOUNT_PACKING, expect, name

# A packed model in BF16 takes at most this part of what it takes plainly.
LIMIT = 0.68


def pack(stage):
    """Packing changes nothing that a client sees, and the models take less room."""
    before = stage.models()
    if stage.packing:
        stage.unmount()
        stage.mount(MOUNT_PACKING)
        numbers = {path: status.st_ino for path, status in stage.models().items()}
        stage.run(stage.packing)
        # For a second, the kernel shows the blocks that it has cached.
        time.sleep(1.2)
        after = stage.models()
        same_stat(before, after)
        expect(numbers == {path: status.st_ino for path, status in after.items()},
               "inode numbers changed")
        enough(stage, after)
        below(stage, after)
        same_stat(before, stage.models())
    return {path: status.st_size for path, status in before.items()}


def same_stat(before, after):
    keep = ["st_size", "st_mode", "st_uid", "st_gid", "st_nlink", "st_mtime_ns", "st_atime_ns"]
    expect(before.keys() == after.keys(), f"names: {before.keys() ^ after.keys()}")
    for path, old in before.items():
        for field in keep:
            pair = getattr(old, field), getattr(after[path], field)
            expect(pair[0] == pair[1], f"{path}: {field} was {pair[0]}, now {pair[1]}")


def enough(stage, models):
    """The blocks shown are at most LIMIT of the plain size."""
    taken = sum(status.st_blocks * 512 for status in models.values())
    plainly = sum(status.st_size for status in models.values())
    stage.notes.append(f"{taken / plainly:.1%} of the plain size")
    expect(taken <= LIMIT * plainly, f"packed models take {taken / plainly:.1%}, over {LIMIT:.0%}")


def below(stage, models):
    """So are the blocks on disk, seen without the mount, where each model is an archive only."""
    if not stage.mounting:
        return
    stage.unmount()
    try:
        plain = [path for path in models if (stage.cache / path).exists()]
        temporary = list(stage.cache.rglob("*.bsz-*"))
        taken = sum((stage.cache / f"{path}.bsz").stat().st_blocks * 512 for path in models
                    if path not in plain)
    finally:
        stage.mount(MOUNT_PACKING)
    expect(not plain, f"not packed: {plain}")
    expect(not temporary, f"left behind: {temporary}")
    plainly = sum(status.st_size for status in models.values())
    expect(taken <= LIMIT * plainly, f"archives take {taken / plainly:.1%} on disk")


def unmounted(stage):
    """Without the mount, clients take models for missing, and leave the archives alone."""
    if not (stage.mounting and stage.packing):
        return
    stage.unmount()
    try:
        before = stage.tree()
        expect(any(path.endswith(".bsz") for path in before), "nothing is packed")
        for repo in ["llama", "gpt2"]:
            stage.hf("hub2", "cache", "rm", f"model/{name(repo)}", "--yes")
            stage.client("hub2", "download", repo=name(repo), offline=True, fails=True)
        stage.client("hub036", "delete", repos=[name("llama-036"), name("gpt2-036")])
        said = stage.hf("hub2", "cache", "prune", "--dry-run")
        after = stage.tree()
    finally:
        stage.mount(MOUNT_PACKING)
    expect(" 1 incomplete download(s) (" in said, f"to be pruned: {said}")
    expect(before == after, f"clients changed {[p for p in before if before[p] != after.get(p)]}")


def nothing_left(stage):
    """In the end no model is left, on the directory below either."""
    expect(not stage.models(), f"still there: {list(stage.models())}")
    shown = sorted(stage.tree())
    stage.unmount()
    on_disk = sorted(stage.tree())
    expect(shown == on_disk, f"below, but not shown: {set(on_disk) ^ set(shown)}")
    return shown
