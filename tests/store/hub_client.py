#!/usr/bin/env python3
"""What the checks do inside a client's own process: one call of the hub's library or transformers.

    hub_client.py FUNCTION [JSON]      prints what FUNCTION(**JSON) returns, as JSON

It runs with the Python of the client under test, whose versions differ, so it uses only what all of
them have. HF_HUB_CACHE, HF_ENDPOINT and the like come from the environment, as for any user.
"""
import hashlib
import json
import os
import pathlib
import sys


def download(repo, **options):
    """Download a snapshot; return its path."""
    import huggingface_hub
    return huggingface_hub.snapshot_download(repo, **options)


def download_all(repos):
    return [download(repo) for repo in repos]


def file(repo, name):
    """Download one file; return its path, or the name of the error."""
    import huggingface_hub
    try:
        return huggingface_hub.hf_hub_download(repo, name)
    except Exception as error:
        return type(error).__name__


def digest(tensors):
    """One hash of all tensors, with their names, and their number."""
    total = hashlib.sha256()
    for name, data in sorted(tensors.items()):
        total.update(name.encode() + hashlib.sha256(data).digest())
    return {"tensors": len(tensors), "sha256": total.hexdigest()}


def load(repo, revision="main"):
    """Load a model with transformers; return hashes of its tensors and of one forward pass."""
    import torch
    import transformers
    model = transformers.AutoModelForCausalLM.from_pretrained(repo, revision=revision, dtype="auto")
    tensors = {name: tensor.contiguous().view(torch.uint8).numpy()
               for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        logits = model(torch.arange(32).reshape(2, 16) * 7).logits
    return digest(tensors) | {"dtype": str(model.dtype), "finite": bool(logits.isfinite().all()),
                              "logits": hashlib.sha256(logits.float().numpy()).hexdigest()}


def load_numpy(repo):
    """Map a model's files with safetensors alone; return a hash of the tensors."""
    import ml_dtypes  # noqa: F401  registers bfloat16 with numpy
    import safetensors
    tensors = {}
    for path in sorted(pathlib.Path(download(repo)).glob("*.safetensors")):
        with safetensors.safe_open(path, framework="np") as file:
            tensors |= {name: file.get_tensor(name).tobytes() for name in file.keys()}
    return digest(tensors)


def scan():
    """What the library finds in the cache, as the `hf` program shows it, but exact."""
    import huggingface_hub
    cache = huggingface_hub.scan_cache_dir()
    repos = {}
    for repo in cache.repos:
        repos[repo.repo_id] = {
            "size": repo.size_on_disk, "files": repo.nb_files,
            "accessed": repo.last_accessed, "modified": repo.last_modified,
            "revisions": {revision.commit_hash: {
                "refs": sorted(revision.refs), "size": revision.size_on_disk,
                "files": sorted([str(file.file_name), str(file.blob_path), file.size_on_disk]
                                for file in revision.files)}
                for revision in repo.revisions}}
    return {"repos": repos, "size": cache.size_on_disk,
            "warnings": sorted(str(warning) for warning in cache.warnings)}


def delete(repos):
    """Delete all revisions of these repositories; return how many bytes that should free."""
    import huggingface_hub
    cache = huggingface_hub.scan_cache_dir()
    revisions = [revision.commit_hash for repo in cache.repos if repo.repo_id in repos
                 for revision in repo.revisions]
    strategy = cache.delete_revisions(*revisions)
    strategy.execute()
    return {"revisions": sorted(revisions), "freed": strategy.expected_freed_size}


if __name__ == "__main__":
    answer = globals()[sys.argv[1]](**json.loads(sys.argv[2] if len(sys.argv) > 2 else "{}"))
    # Some libraries write to standard output, so the answer has a line of its own.
    print(f"\n{json.dumps(answer)}", flush=True)
    # Without the libraries' own cleaning up, which takes longer than most checks.
    os._exit(0)
