"""The checks that tests/store/hub.py runs in each stage: small functions, and the table of them.

A check returns what must be the same on a plain directory, or raises Failed.
"""
import functools
import json
import os
import time

from hub_packed import nothing_left, pack, unmounted
from hub_stage import DAY, OWNER, expect, finish, folder, name


def downloads(stage, since, repo):
    """How often each file of the repository was sent since then: {path: times}."""
    sent = {}
    for entry in stage.hub.asked(since, "get", name(repo)):
        sent[entry["path"]] = sent.get(entry["path"], 0) + 1
    return sent


def nothing_sent(stage, since):
    sent = stage.hub.asked(since, "get") + stage.hub.asked(since, "xet-read-token")
    expect(not sent, f"downloaded again: {[(e['repo'], e['path']) for e in sent]}")


# ---- downloads

def download(stage, venv, repo, xet=False, **options):
    """A snapshot is downloaded, each file once; large ones by xet where that is on."""
    since = len(stage.hub.log)
    stage.client(venv, "download", repo=name(repo), xet=xet, **options)
    sent = downloads(stage, since, repo)
    expect(set(sent.values()) <= {1}, f"not each file was sent once: {sent}")
    tokens = stage.hub.asked(since, "xet-read-token")
    expect(bool(tokens) == xet, f"{len(tokens)} tokens for xet were asked for")
    return {"sent": sent, "tree": stage.tree(folder(repo), f".locks/{folder(repo)}", "blobs")}


def shared(stage):
    """A second repository with the same model takes it from the shared blobs."""
    since = len(stage.hub.log)
    stage.client("hub2", "download", repo=name("twin"))
    sent = downloads(stage, since, "twin")
    expect("model.safetensors" not in sent, "the model was sent again")
    expect(not stage.hub.asked(since, "xet-read-token"), "the model was downloaded again by xet")
    blobs = {os.path.realpath(path) for repo in ["gpt2", "twin"]
             for path in (stage.cache / folder(repo)).glob("snapshots/*/model.safetensors")}
    expect(len(blobs) == 1, f"the two repositories have {len(blobs)} blobs")
    return {"sent": sent, "tree": stage.tree(folder("twin"), "blobs")}


def resume(stage, venv, repo, across):
    """A download that was cut off goes on where it was; `across` means: in a second process."""
    since, cut = len(stage.hub.log), 20 << 20
    stage.hub.cut(name(repo), "model.safetensors", cut)
    if across:
        stage.client(venv, "download", repo=name(repo), xet=False, fails=True)
        (partial,) = (stage.cache / folder(repo) / "blobs").glob("*.incomplete")
        expect(0 < partial.stat().st_size <= cut, f"{partial.stat().st_size} bytes were kept")
    stage.client(venv, "download", repo=name(repo), xet=False)
    ranges = [entry["range"] for entry in stage.hub.asked(since, "get", name(repo))
              if entry["path"] == "model.safetensors"]
    expect(len(ranges) == 2 and ranges[0] is None, f"ranges asked for: {ranges}")
    expect(ranges[1] and ranges[1] != "bytes=0-", "the second request has no range")
    return {"ranges": ranges, "tree": stage.tree(folder(repo))}


def leftover(stage):
    """A download that was cut off and not taken up again leaves its part behind."""
    stage.hub.cut(name("leftover"), "model.safetensors", 20 << 20)
    stage.client("hub036", "download", repo=name("leftover"), xet=False, fails=True)
    return stage.tree(folder("leftover"))


def at_once(stage, venv, repo):
    """Two processes that download the same at once: one downloads, one waits for it."""
    since = len(stage.hub.log)
    waited = []

    def both(asked, path, blob):
        if asked == name(repo) and blob.large:
            end = time.monotonic() + 60
            while len(stage.hub.asked(since, "revision", asked)) < 2 and time.monotonic() < end:
                time.sleep(0.05)
            # Time for the second to come to the locks.
            time.sleep(2)
            waited.append(len(stage.hub.asked(since, "revision", asked)))

    stage.hub.before_body = both
    try:
        clients = [stage.start_client(venv, "download", {"repo": name(repo)}, xet=False)
                   for _ in range(2)]
        paths = {json.loads(finish(client).splitlines()[-1]) for client in clients}
    finally:
        stage.hub.before_body = lambda *_: None
    sent = downloads(stage, since, repo)
    expect(waited and min(waited) == 2, "the two were not at it at once")
    expect(len(paths) == 1, f"the two have different snapshots: {paths}")
    expect(set(sent.values()) == {1}, f"not each file was sent once: {sent}")
    return {"sent": sent, "tree": stage.tree(folder(repo))}


def absent(stage):
    """That a file does not exist is remembered in the cache."""
    answer = stage.client("hub2", "file", repo=name("llama"), name="adapter_config.json")
    return {"answer": answer, "tree": stage.tree(f"{folder('llama')}/.no_exist")}


# ---- what is there

def contents(stage):
    """Every file of the cache, with its bytes."""
    return stage.tree()


def load(stage, venv, repo, offline=True, **options):
    """transformers loads the model: all tensors, and one forward pass."""
    since = len(stage.hub.log)
    answer = stage.client(venv, "load", repo=name(repo), offline=offline, **options)
    expect(answer["dtype"] == "torch.bfloat16" and answer["finite"], f"loaded: {answer}")
    if offline:
        expect(len(stage.hub.log) == since, "the hub was asked, though offline")
    nothing_sent(stage, since)
    return answer


def load_numpy(stage, repo):
    """safetensors maps the files."""
    return stage.client("hub2", "load_numpy", repo=name(repo), offline=True)


def listed(stage):
    """`hf cache ls`, and exact: sizes, times that make sense, no inconsistencies."""
    def entries(*words):
        found = json.loads(stage.hf("hub2", "cache", "ls", "--format", "json", *words))
        return [{key: value for key, value in entry.items() if not key.startswith("last_")}
                for entry in found]
    return {"repos": entries(), "revisions": entries("--revisions"),
            "warnings": stage.hf("hub2", "cache", "ls", "--quiet", "--show-warnings"),
            "scan": scan(stage, "hub2")}


def scan(stage, venv):
    found = stage.client(venv, "scan")
    now = time.time()
    for repo, about in found["repos"].items():
        for key in ["accessed", "modified"]:
            expect(stage.started - 5 < about.pop(key) < now + 5, f"{repo}: {key} at a wrong time")
    return found


def scanned(stage):
    """`hf cache scan` of 0.36, and exact."""
    text = stage.hf("hub036", "cache", "scan", "-v")
    rows = sorted(" ".join(line.split()) for line in text.splitlines() if line.startswith(OWNER))
    expect(rows, f"nothing was found: {text}")
    return {"rows": rows, "scan": scan(stage, "hub036")}


def verified(stage, repos):
    """`hf cache verify`: all checksums."""
    return [stage.hf("hub2", "cache", "verify", name(repo), "--fail-on-missing-files",
                     "--fail-on-extra-files") for repo in repos]


def offline(stage, venv, repos):
    """Without the hub, each snapshot is found complete."""
    since = len(stage.hub.log)
    paths = stage.client(venv, "download_all", repos=[name(repo) for repo in repos], offline=True)
    expect(len(stage.hub.log) == since, "the hub was asked, though offline")
    return paths


def nothing_twice(stage, venv, repos):
    """With the hub, nothing is downloaded again."""
    since = len(stage.hub.log)
    paths = [stage.client(venv, "download_all", repos=[name(repo) for repo in repos], xet=xet)
             for xet in [False, True]]
    nothing_sent(stage, since)
    return paths


def accessed(stage):
    """The time of the last access says what was not read for long, and moves with a read."""
    for path in (stage.cache / folder("llama") / "blobs").iterdir():
        status = path.stat()
        os.utime(path, ns=(time.time_ns() - 2 * DAY * 10 ** 9, status.st_mtime_ns))
        expect(path.stat().st_mtime_ns == status.st_mtime_ns, "setting atime moved mtime")
        # What nobody read for two days is in no page cache.
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def old():
        return stage.hf("hub2", "cache", "ls", "--quiet", "--filter", "accessed>1d")
    before = old()
    expect(name("llama") in before, "the last access is not long ago")
    stage.hf("hub2", "cache", "verify", name("llama"))
    return [before, old()]


# ---- changes

def update(stage, venv, repo, xet=False):
    """A new revision: what changed is downloaded, the old revision stays."""
    stage.hub.main(name(repo), 2)
    return download(stage, venv, repo, xet=xet)


def both_revisions(stage, venv, repo):
    """The old and the new revision load, each its own tensors."""
    answers = [load(stage, venv, repo, revision=commit)
               for commit in stage.hub.repos[name(repo)].order]
    expect(answers[0]["sha256"] != answers[1]["sha256"], "the two revisions are the same")
    return answers


def force(stage, repo, xet):
    """A forced download replaces each blob by itself."""
    return download(stage, "hub2", repo, xet=xet, force_download=True)


def prune(stage):
    """`hf cache prune` removes old revisions and what downloads left; then there is nothing."""
    said = [stage.hf("hub2", "cache", "prune", "--yes") for _ in range(2)]
    expect("Nothing to prune" in said[1], f"after pruning: {said[1]}")
    return {"said": said, "tree": stage.tree()}


def remove(stage, repo):
    """`hf cache rm` removes a repository, and the shared blobs that no other has."""
    said = stage.hf("hub2", "cache", "rm", f"model/{name(repo)}", "--yes")
    expect(not (stage.cache / folder(repo)).exists(), "the repository is still there")
    return {"said": said, "tree": stage.tree("blobs")}


def delete(stage, repos):
    """The library of 0.36 removes repositories, as its program does after asking."""
    answer = stage.client("hub036", "delete", repos=[name(repo) for repo in repos])
    expect(not any((stage.cache / folder(repo)).exists() for repo in repos), "not all is gone")
    return answer


HUB2 = ["llama", "gpt2", "twin", "race", "cut"]
HUB036 = ["llama-036", "gpt2-036", "race-036", "cut-036"]
CHECKS = [
    ("hub2-http-download", download, {"venv": "hub2", "repo": "llama"}),
    ("hub2-xet-download", download, {"venv": "hub2", "repo": "gpt2", "xet": True}),
    ("hub2-xet-shared", shared, {}),
    ("hub036-http-download", download, {"venv": "hub036", "repo": "llama-036"}),
    ("hub036-xet-download", download, {"venv": "hub036", "repo": "gpt2-036", "xet": True}),
    ("hub2-resume", resume, {"venv": "hub2", "repo": "cut", "across": False}),
    ("hub036-resume", resume, {"venv": "hub036", "repo": "cut-036", "across": True}),
    ("hub036-leftover", leftover, {}),
    ("hub2-two-at-once", at_once, {"venv": "hub2", "repo": "race"}),
    ("hub036-two-at-once", at_once, {"venv": "hub036", "repo": "race-036"}),
    ("hub2-absent", absent, {}),
    ("pack", pack, {}),
    ("unmounted", unmounted, {}),
    ("contents", contents, {}),
    ("hub2-ls", listed, {}),
    ("hub036-scan", scanned, {}),
    ("hub2-verify", verified, {"repos": HUB2 + HUB036}),
    ("hub2-offline", offline, {"venv": "hub2", "repos": HUB2 + HUB036}),
    ("hub036-offline", offline, {"venv": "hub036", "repos": HUB2 + HUB036}),
    ("hub2-load-online", load, {"venv": "hub2", "repo": "llama", "offline": False}),
    ("hub2-load", load, {"venv": "hub2", "repo": "llama"}),
    ("hub2-load-xet", load, {"venv": "hub2", "repo": "gpt2"}),
    ("hub036-load", load, {"venv": "hub036", "repo": "llama-036"}),
    ("hub036-load-xet", load, {"venv": "hub036", "repo": "gpt2-036"}),
    ("hub2-nothing-twice", nothing_twice, {"venv": "hub2", "repos": HUB2 + HUB036}),
    ("hub036-nothing-twice", nothing_twice, {"venv": "hub036", "repos": HUB2 + HUB036}),
    ("hub2-accessed", accessed, {}),
    ("hub2-http-update", update, {"venv": "hub2", "repo": "llama"}),
    ("hub2-xet-update", update, {"venv": "hub2", "repo": "gpt2", "xet": True}),
    ("hub036-http-update", update, {"venv": "hub036", "repo": "llama-036"}),
    ("pack-again", pack, {}),
    ("hub2-both-revisions", both_revisions, {"venv": "hub2", "repo": "llama"}),
    ("hub036-both-revisions", both_revisions, {"venv": "hub036", "repo": "llama-036"}),
    ("hub2-force-http", force, {"repo": "race", "xet": False}),
    ("hub2-force-xet", force, {"repo": "twin", "xet": True}),
    ("hub2-prune", prune, {}),
    ("contents-after-prune", contents, {}),
    ("hub2-rm", remove, {"repo": "llama"}),
    ("hub2-rm-xet", remove, {"repo": "gpt2"}),
    ("hub2-rm-shared", remove, {"repo": "twin"}),
    ("hub036-delete", delete, {"repos": ["race", "cut", *HUB036]}),
    ("hub2-rm-leftover", remove, {"repo": "leftover"}),
    ("nothing-left", nothing_left, {}),
]
QUICK = [
    ("hub2-http-download", download, {"venv": "hub2", "repo": "gpt2"}),
    ("pack", pack, {}),
    ("contents", contents, {}),
    ("hub2-load-numpy", load_numpy, {"repo": "gpt2"}),
    ("hub2-ls", listed, {}),
    ("hub2-verify", verified, {"repos": ["gpt2"]}),
    ("hub2-nothing-twice", nothing_twice, {"venv": "hub2", "repos": ["gpt2"]}),
    ("hub2-rm", remove, {"repo": "gpt2"}),
    ("nothing-left", nothing_left, {}),
]


def checks(quick):
    """The checks of a stage: [(name, function of a stage)]."""
    return [(check, functools.partial(function, **arguments))
            for check, function, arguments in (QUICK if quick else CHECKS)]
