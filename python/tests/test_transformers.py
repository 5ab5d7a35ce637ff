"""Models from packed directories are those that the frameworks make of the plain ones."""
import pathlib
import shutil
import sys

import pytest

import bszfs

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.frameworks

LLAMA = dict(hidden_size=64, intermediate_size=176, num_hidden_layers=4, num_attention_heads=4,
             num_key_value_heads=2, vocab_size=320)  # fmt: skip
GPT2 = dict(n_embd=64, n_layer=3, n_head=4, vocab_size=320, n_positions=64)
BERT = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128,
            vocab_size=320)  # fmt: skip


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Plain and packed directories by name."""
    top = tmp_path_factory.mktemp("models")
    torch.manual_seed(7)
    made = {
        "llama": transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA)).bfloat16(),
        "tied": transformers.LlamaForCausalLM(
            transformers.LlamaConfig(**LLAMA, tie_word_embeddings=True)
        ),
        "gpt2": transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2)),
        "bert": transformers.BertModel(transformers.BertConfig(**BERT)).half(),
    }
    found = {}
    for name, model in made.items():
        # As sharded as can be, or in one file.
        size = "100KB" if name in ("llama", "tied") else "5GB"
        model.save_pretrained(top / name, max_shard_size=size)
        found[name] = pack_directory(top / name, top / f"{name}-packed")
    assert len(list((top / "llama-packed").glob("*.bsz"))) > 2
    assert len(list((top / "gpt2-packed").glob("*.bsz"))) == 1
    return found


def pack_directory(plain, packed):
    packed.mkdir(parents=True)
    for path in sorted(plain.iterdir()):
        if path.is_dir():
            pack_directory(path, packed / path.name)
        elif path.suffix == ".safetensors":
            bszfs.pack(path, packed / f"{path.stem}.bsz")
        else:
            shutil.copy(path, packed)
    assert not list(packed.glob("*.safetensors"))
    return plain, packed


def assert_identical(one, other):
    """The same parameters and buffers, bit for bit, with the same ties."""
    for kind in ("named_parameters", "named_buffers"):
        mine = dict(getattr(one, kind)(remove_duplicate=False))
        theirs = dict(getattr(other, kind)(remove_duplicate=False))
        assert mine.keys() == theirs.keys()
        for name, tensor in mine.items():
            expected = theirs[name]
            assert tensor.dtype == expected.dtype and tensor.shape == expected.shape, name
            assert tensor.device == expected.device and tensor.stride() == expected.stride(), name
            assert tensor.requires_grad == expected.requires_grad, name
            assert torch.equal(tensor.contiguous().view(torch.uint8),
                               expected.contiguous().view(torch.uint8)), name
        assert ties(mine) == ties(theirs)
    assert one.training == other.training


def ties(tensors):
    groups = {}
    for name, tensor in tensors.items():
        groups.setdefault(id(tensor), []).append(name)
    return sorted(groups.values())


OPTIONS = [
    {}, {"dtype": "auto"}, {"dtype": torch.float32}, {"dtype": torch.float16},
    {"device_map": "cpu"}, {"low_cpu_mem_usage": True},
]  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("name", ["llama", "tied", "gpt2", "bert"])
def test_from_pretrained_is_identical(models, name, options):
    plain, packed = models[name]
    auto = transformers.AutoModel if name == "bert" else transformers.AutoModelForCausalLM
    expected = auto.from_pretrained(plain, **options)
    found = bszfs.from_pretrained(packed, auto, **options)
    assert_identical(found, expected)
    with torch.inference_mode():
        ids = torch.arange(16)[None]
        mine, theirs = found.eval()(ids), expected.eval()(ids)
    assert torch.equal(mine[0], theirs[0])


def test_load_model_of_a_loader_is_identical(models):
    plain, packed = models["gpt2"]
    cls = transformers.GPT2LMHeadModel
    assert_identical(bszfs.stream.Loader(packed).load_model(cls), cls.from_pretrained(plain))
    assert_identical(bszfs.load_model(packed, cls), cls.from_pretrained(plain))


def test_loading_reports_what_is_missing_as_transformers_does(models):
    plain, packed = models["bert"]
    cls, options = transformers.BertForSequenceClassification, {"output_loading_info": True}
    _, expected = cls.from_pretrained(plain, **options)
    _, found = bszfs.from_pretrained(packed, cls, **options)
    assert found == expected and found["missing_keys"]


def test_unchanged_code_loads_inside_a_block(models):
    plain, packed = models["llama"]
    cls = transformers.AutoModelForCausalLM
    with bszfs.patched(packed):
        found = cls.from_pretrained(packed, dtype="auto", disable_mmap=True)
    assert_identical(found, cls.from_pretrained(plain, dtype="auto"))
    with pytest.raises(OSError):
        cls.from_pretrained(packed)


def test_nothing_of_transformers_stays_patched(models):
    import safetensors

    bszfs.from_pretrained(models["llama"][1], transformers.AutoModelForCausalLM)
    bound = [m.safe_open for m in list(sys.modules.values())
             if "safe_open" in getattr(m, "__dict__", {}) and not m.__name__.startswith("bszfs")]
    assert len(bound) > 2 and all(one is safetensors.safe_open for one in bound)


def test_a_damaged_shard_is_an_error(models, tmp_path):
    _, packed = models["llama"]
    copy = shutil.copytree(packed, tmp_path / "copy")
    archive = sorted(copy.glob("*.bsz"))[1]
    content = bytearray(archive.read_bytes())
    content[200] ^= 4
    archive.write_bytes(content)
    with pytest.raises(bszfs.SafetensorError, match="chunk"):
        bszfs.from_pretrained(copy, transformers.AutoModelForCausalLM)


def test_accelerate_loads_checkpoints(models):
    accelerate = pytest.importorskip("accelerate")
    for name in ("llama", "gpt2"):
        plain, packed = models[name]
        config = transformers.AutoConfig.from_pretrained(plain)
        filled = []
        for directory in (plain, packed):
            with accelerate.init_empty_weights(include_buffers=False):
                model = transformers.AutoModelForCausalLM.from_config(config)
            model.tie_weights()
            with bszfs.patched(directory):
                file = directory / "model.safetensors" if name == "gpt2" else directory
                accelerate.load_checkpoint_in_model(model, str(file), device_map={"": "cpu"})
            model.tie_weights()
            filled.append(model)
        assert_identical(filled[1], filled[0])


def test_safetensors_loads_models(models):
    import safetensors.torch

    plain, packed = models["gpt2"]
    loaded = []
    for directory in (plain, packed):
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2))
        with bszfs.patched(packed):
            safetensors.torch.load_model(model, directory / "model.safetensors")
        loaded.append(model)
    assert_identical(*loaded)
    own = transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2))
    bszfs.torch.load_model(own, packed / "model.safetensors")
    assert_identical(own, loaded[0])


def test_diffusers_loads_models_and_pipelines(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(3)
    unet = diffusers.UNet2DModel(sample_size=8, block_out_channels=(32, 32), layers_per_block=1,
                                 down_block_types=("DownBlock2D", "DownBlock2D"),
                                 up_block_types=("UpBlock2D", "UpBlock2D"))
    pipeline = diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler())
    pipeline.save_pretrained(tmp_path / "plain")
    plain, packed = pack_directory(tmp_path / "plain", tmp_path / "packed")
    expected = diffusers.UNet2DModel.from_pretrained(plain / "unet")
    assert_identical(bszfs.from_pretrained(packed / "unet", diffusers.UNet2DModel), expected)
    loaded = bszfs.from_pretrained(packed, diffusers.DDPMPipeline)
    assert_identical(loaded.unet, expected)


def test_sentence_transformers_loads_models(models, tmp_path):
    SentenceTransformer = pytest.importorskip("sentence_transformers").SentenceTransformer
    tokenizers = pytest.importorskip("tokenizers")
    plain = shutil.copytree(models["bert"][0], tmp_path / "bert")
    words = {f"w{i}": i for i in range(300)} | {"[PAD]": 300, "[UNK]": 301, "[CLS]": 302,
                                              "[SEP]": 303, "[MASK]": 304}  # fmt: skip
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
        sep_token="[SEP]", mask_token="[MASK]",
    ).save_pretrained(plain)
    made = SentenceTransformer(str(plain), device="cpu")
    # A module with weights of its own, in a folder of its own.
    torch.manual_seed(5)
    dense = pytest.importorskip("sentence_transformers.base.modules.dense").Dense
    made.append(dense(64, 32))
    made.save(str(tmp_path / "plain"))
    plain, packed = pack_directory(tmp_path / "plain", tmp_path / "packed")
    assert len(list(packed.rglob("*.bsz"))) == 2
    texts = ["w1 w2 w3", "w7"]
    expected = SentenceTransformer(str(plain), device="cpu").encode(texts)
    with bszfs.patched(packed):
        found = SentenceTransformer(str(packed), device="cpu").encode(texts)
    assert (found == expected).all()


def test_a_program_that_knows_nothing_of_archives_runs(models, tmp_path):
    import subprocess

    _, packed = models["gpt2"]
    program = pathlib.Path(tmp_path / "program.py")
    program.write_text(
        "import sys, transformers\n"
        "model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1])\n"
        "print(float(model.transformer.wte.weight.double().sum()))\n"
    )
    done = subprocess.run([sys.executable, "-m", "bszfs", "run", program, packed],
                          capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    expected = transformers.AutoModelForCausalLM.from_pretrained(models["gpt2"][0])
    assert float(done.stdout) == float(expected.transformer.wte.weight.double().sum())
