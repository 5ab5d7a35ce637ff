#!/usr/bin/env python3
"""Make the repositories that the hub serves: small models in BF16 that compress like real ones.

    hub_models.py [--small] DIRECTORY      writes DIRECTORY/bsz/NAME/REVISION/...

Weights are drawn from a normal distribution whose scale differs from tensor to tensor, as in
trained models, from a fixed seed. Needs numpy only, so that the quick check does not need torch.
Where repositories hold the same file, it is one file with several links.
"""
import json
import os
import pathlib
import struct
import sys

import numpy as np

VOCABULARY = 8000
LAYERS = 6
WIDTH = 384
LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16",
    "hidden_size": WIDTH, "intermediate_size": 1024, "num_hidden_layers": LAYERS,
    "num_attention_heads": 6, "num_key_value_heads": 2, "vocab_size": VOCABULARY,
    "max_position_embeddings": 512, "rms_norm_eps": 1e-6, "tie_word_embeddings": False,
    "bos_token_id": 1, "eos_token_id": 2,
}
GPT2 = {
    "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "torch_dtype": "bfloat16",
    "n_embd": WIDTH, "n_layer": LAYERS, "n_head": 6, "n_positions": 256, "vocab_size": VOCABULARY,
    "bos_token_id": 1, "eos_token_id": 2,
}
# Repositories with the content of another, each for one check that must find nothing in the cache.
# The names say the version of the client, and how it downloads.
COPIES = {"llama": ["llama-036", "race", "race-036"],
          "gpt2": ["gpt2-036", "cut", "cut-036", "leftover"]}


def llama_shapes():
    """The tensors of the Llama model: {name: shape}."""
    shapes = {"model.embed_tokens.weight": (VOCABULARY, WIDTH)}
    for layer in range(LAYERS):
        at = f"model.layers.{layer}"
        shapes |= {f"{at}.self_attn.{name}_proj.weight": (rows, WIDTH)
                   for name, rows in [("q", WIDTH), ("k", 128), ("v", 128), ("o", WIDTH)]}
        shapes |= {f"{at}.mlp.gate_proj.weight": (1024, WIDTH),
                   f"{at}.mlp.up_proj.weight": (1024, WIDTH),
                   f"{at}.mlp.down_proj.weight": (WIDTH, 1024),
                   f"{at}.input_layernorm.weight": (WIDTH,),
                   f"{at}.post_attention_layernorm.weight": (WIDTH,)}
    return shapes | {"model.norm.weight": (WIDTH,), "lm_head.weight": (VOCABULARY, WIDTH)}


def gpt2_shapes():
    """The tensors of the GPT-2 model: {name: shape}."""
    shapes = {"transformer.wte.weight": (VOCABULARY, WIDTH), "transformer.wpe.weight": (256, WIDTH)}
    for layer in range(LAYERS):
        at = f"transformer.h.{layer}"
        for name, rows, columns in [("attn.c_attn", 1, 3), ("attn.c_proj", 1, 1),
                                    ("mlp.c_fc", 1, 4), ("mlp.c_proj", 4, 1)]:
            shapes |= {f"{at}.{name}.weight": (rows * WIDTH, columns * WIDTH),
                       f"{at}.{name}.bias": (columns * WIDTH,)}
        for name in ["ln_1", "ln_2"]:
            shapes |= {f"{at}.{name}.weight": (WIDTH,), f"{at}.{name}.bias": (WIDTH,)}
    return shapes | {"transformer.ln_f.weight": (WIDTH,), "transformer.ln_f.bias": (WIDTH,)}


def weights(name, shape, seed):
    """The bytes of one tensor, in BF16."""
    # The name is part of the seed, so that a revision can redraw some tensors only.
    random = np.random.default_rng([seed, *name.encode()])
    norm = len(shape) == 1 and name.endswith("weight")
    scale = 0.1 if norm else 0.01 * 2 ** random.uniform(0, 3)
    values = random.standard_normal(shape, dtype=np.float32) * np.float32(scale) + np.float32(norm)
    bits = values.view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16).tobytes()


def save(path, shapes, seed):
    """Write a file in the format of safetensors; return its names of tensors."""
    header, data = {"__metadata__": {"format": "pt"}}, []
    at = 0
    for name, shape in sorted(shapes.items()):
        data.append(weights(name, shape, seed))
        header[name] = {"dtype": "BF16", "shape": list(shape),
                        "data_offsets": [at, at + len(data[-1])]}
        at += len(data[-1])
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(data))
    return list(shapes)


def describe(directory, config, words):
    (directory / "config.json").write_text(json.dumps(config, indent=2))
    (directory / "README.md").write_text(f"# {words}\n")


def llama(directory, seeds, words):
    """A model in three shards, one for each seed."""
    shapes, index = llama_shapes(), {}
    names = sorted(shapes)
    for number, seed in enumerate(seeds):
        file = f"model-{number + 1:05}-of-{len(seeds):05}.safetensors"
        part = names[number::len(seeds)]
        index |= dict.fromkeys(save(directory / file, {n: shapes[n] for n in part}, seed), file)
    size = sum(2 * int(np.prod(shape)) for shape in shapes.values())
    (directory / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": size}, "weight_map": index}))
    describe(directory, LLAMA, words)


def gpt2(directory, seed, words):
    """A model in one file."""
    save(directory / "model.safetensors", gpt2_shapes(), seed)
    describe(directory, GPT2, words)


def copy(source, target):
    """The same revisions again, with links to the files."""
    for path in source.rglob("*"):
        if path.is_file():
            to = target / path.relative_to(source)
            to.parent.mkdir(parents=True, exist_ok=True)
            os.link(path, to)


def main():
    small = "--small" in sys.argv
    root = pathlib.Path(sys.argv[-1]) / "bsz"
    gpt2(root / "gpt2/1", 1, "The first revision")
    if small:
        return
    gpt2(root / "gpt2/2", 2, "The second revision")
    llama(root / "llama/1", [1, 1, 1], "The first revision")
    # The second revision changes one shard, and the page.
    llama(root / "llama/2", [1, 2, 1], "The second revision")
    for name, copies in COPIES.items():
        for to in copies:
            copy(root / name, root / to)
    # The same model under another page: with xet, the two repositories share the blob.
    copy(root / "gpt2/1", root / "twin/1")
    (root / "twin/1/README.md").unlink()
    (root / "twin/1/README.md").write_text("# A twin\n")


if __name__ == "__main__":
    main()
