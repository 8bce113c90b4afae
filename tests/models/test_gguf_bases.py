"""A GGUF file as a base: its logits are those of a Llama that holds its weights, decoded and reordered here by hand."""

import json
import shutil
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from mcanalysis.errors import UserError
from mcanalysis.models import gguf_conversion
from mcanalysis.models.base_identity import base_identity
from mcanalysis.models.base_names import same_base
from mcanalysis.models.base_source import converted_folder, model_source
from mcanalysis.models.loading import load_base, load_shape, load_tokenizer
from mcanalysis.runs.run import load_run
from mcanalysis.store.cache_folder import CACHE_VARIABLE, cache_folder
from mcanalysis.training.config import RunConfig, TrainingConfig
from mcanalysis.training.continual_trainer import train
from mcanalysis.training.dry_run import dry_run

gguf = pytest.importorskip("gguf", reason="the extra gguf is not installed")
from gguf import GGMLQuantizationType as Kind  # noqa: E402

LOADERS = (load_base, load_shape, load_tokenizer)
TINY = TrainingConfig(num_steps=2, batch_size=2, max_length=64)
HEADS, KEY_HEADS, WIDTH = 4, 2, 16
TEXT = "seven rivers, Häuser 房子 in 1987\n\n12. stone"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache" / "bases"


def from_f32(data):
    return data


def from_f16(data):
    return data.view(np.float16).astype(np.float32)


def from_bf16(data):
    return (data.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


def from_q8_0(data):
    """Blocks of 32: a half-precision scale d and 32 signed bytes q; d·q."""
    blocks = data.reshape(-1, 34)
    scale = blocks[:, :2].copy().view(np.float16).astype(np.float32)
    return scale * blocks[:, 2:].view(np.int8).astype(np.float32)


def from_q4_1(data):
    """Blocks of 32: d and m in half precision, 16 bytes whose low halves come first; d·q + m."""
    blocks = data.reshape(-1, 20)
    scale, least = (blocks[:, i : i + 2].copy().view(np.float16).astype(np.float32) for i in (0, 2))
    codes = np.concatenate([blocks[:, 4:] & 15, blocks[:, 4:] >> 4], axis=1)
    return scale * codes + least


DECODERS = {Kind.F32: from_f32, Kind.F16: from_f16, Kind.BF16: from_bf16, Kind.Q8_0: from_q8_0, Kind.Q4_1: from_q4_1}
NAMES = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


def gguf_name(name):
    top = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    stem = name.removesuffix(".weight")
    if stem in top:
        return f"{top[stem]}.weight"
    layer, part = stem.removeprefix("model.layers.").split(".", 1)
    return f"blk.{layer}.{NAMES[part]}.weight"


def rows_of_pairs(heads):
    """GGUF keeps rows i and i + width/2 of a head, which are turned together, side by side."""
    return [h * WIDTH + i + half for h in range(heads) for i in range(WIDTH // 2) for half in (0, WIDTH // 2)]


@pytest.fixture
def make_gguf(tmp_path, tokenizer):
    """make_gguf(kind) -> (file, the Llama that it is of, with its weights as they are in the file).

    `change(writer)` writes more; `leave_out`: a tensor's name; `pre`: what splits text before it is merged.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    def make(
        kind=Kind.F32, tied=True, name="tiny", change=lambda writer: None, leave_out=None, pre="gpt-2", arch="llama"
    ):
        config = LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=HEADS * WIDTH, num_hidden_layers=2, num_attention_heads=HEADS,
            num_key_value_heads=KEY_HEADS, intermediate_size=96, max_position_embeddings=128, rms_norm_eps=1e-3,
            rope_parameters={"rope_type": "default", "rope_theta": 70.0}, tie_word_embeddings=tied,
        )  # fmt: skip
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = LlamaForCausalLM(config).eval()
        file = tmp_path / f"{name}.gguf"
        writer = gguf.GGUFWriter(file, arch)
        writer.add_context_length(128)
        writer.add_embedding_length(HEADS * WIDTH)
        writer.add_block_count(2)
        writer.add_feed_forward_length(96)
        writer.add_head_count(HEADS)
        writer.add_head_count_kv(KEY_HEADS)
        writer.add_layer_norm_rms_eps(1e-3)
        writer.add_rope_dimension_count(WIDTH)
        writer.add_rope_freq_base(70.0)
        writer.add_vocab_size(len(tokenizer))
        tree = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
        words = sorted(tree["vocab"], key=tree["vocab"].__getitem__)
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(pre)
        writer.add_token_list(words)
        writer.add_token_types([3 if word in (tokenizer.eos_token, tokenizer.pad_token) else 1 for word in words])
        writer.add_token_merges([" ".join(pair) for pair in tree["merges"]])
        writer.add_eos_token_id(tokenizer.eos_token_id)
        writer.add_pad_token_id(tokenizer.pad_token_id)
        writer.add_add_bos_token(False)
        change(writer)
        with torch.no_grad():
            for parameter_name, parameter in model.named_parameters():
                parameter.copy_(
                    torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(parameter_name)))
                )
                parameter.mul_(0.3)
                values = parameter.numpy().copy()
                own = kind if values.ndim == 2 else Kind.F32
                order = list(range(len(values)))
                if "q_proj" in parameter_name or "k_proj" in parameter_name:
                    order = rows_of_pairs(HEADS if "q_proj" in parameter_name else KEY_HEADS)
                data = gguf.quantize(values[order], own)
                read = DECODERS[own](data).reshape(values.shape)
                assert abs(read - values[order]).max() < 0.2  # what was decoded is what was meant
                values[order] = read
                parameter.copy_(torch.from_numpy(values))
                if gguf_name(parameter_name) != leave_out:
                    writer.add_tensor(gguf_name(parameter_name), data, raw_dtype=own)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return file, model

    return make


def logits(model):
    with torch.no_grad():
        return model(input_ids=torch.arange(3, 90).reshape(3, 29)).logits.float()


KINDS = ((Kind.F32, True), (Kind.F16, True), (Kind.Q8_0, True), (Kind.Q4_1, True), (Kind.Q4_1, False))


@pytest.mark.parametrize(("kind", "tied"), KINDS)
def test_a_base_is_the_model_whose_weights_the_file_holds(make_gguf, kind, tied):
    file, expected = make_gguf(kind, tied)
    base, _ = load_base(str(file))
    assert base.dtype == torch.float32 and not base.training
    assert base.num_parameters() == expected.num_parameters()
    assert (base.get_output_embeddings().weight is base.get_input_embeddings().weight) == tied
    for (name, weight), (_, wanted) in zip(base.named_parameters(), expected.named_parameters(), strict=True):
        torch.testing.assert_close(weight, wanted, rtol=1e-6, atol=1e-7, msg=name)  # d·q + m rounds once more or less
    torch.testing.assert_close(logits(base), logits(expected), rtol=1e-4, atol=1e-4)


def test_weights_that_bfloat16_holds_exactly_are_kept_in_it_and_others_are_not(make_gguf):
    file, _ = make_gguf(Kind.BF16)
    base, _ = load_base(str(file))  # its norms are of float32 and no bfloat16 numbers
    assert base.dtype == torch.float32
    file, expected = make_gguf(Kind.BF16, name="rounded")
    reader = gguf.GGUFReader(file, "r+")
    for tensor in reader.tensors:
        if tensor.tensor_type == Kind.F32:
            tensor.data[:] = 1.25
    reader.data.flush()
    base, _ = load_base(str(file))
    assert {p.dtype for p in base.parameters()} == {torch.bfloat16}
    name = "model.layers.1.self_attn.k_proj.weight"
    assert torch.equal(base.get_parameter(name).float(), expected.get_parameter(name))


@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "starcoder"])
def test_text_is_split_as_the_file_says(make_gguf, tokenizer, pre):
    from tokenizers import Tokenizer, models, pre_tokenizers

    file, _ = make_gguf(pre=pre)
    tree = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    plain = Tokenizer(models.BPE(tree["vocab"], [tuple(pair) for pair in tree["merges"]]))
    split = [pre_tokenizers.ByteLevel(add_prefix_space=False)]
    if pre != "gpt-2":
        split.insert(0, pre_tokenizers.Digits(individual_digits=True))
    plain.pre_tokenizer = pre_tokenizers.Sequence(split)
    for read in (load_tokenizer(str(file)), load_base(str(file))[1]):  # from the file, then from the folder
        assert read(TEXT)["input_ids"] == plain.encode(TEXT).ids
        assert read.decode(read(TEXT)["input_ids"]) == TEXT
        assert read.eos_token == tokenizer.eos_token and read.pad_token == tokenizer.pad_token
        assert read(tokenizer.eos_token)["input_ids"] == [tokenizer.eos_token_id]


@pytest.mark.parametrize("load", [load_base, load_tokenizer])
def test_a_way_of_splitting_text_that_is_not_known_is_refused(make_gguf, cache, load):
    """transformers would take GPT-2's in silence, as of this file; llama-bpe it knows."""
    assert load_tokenizer(str(make_gguf(pre="llama-bpe")[0]))("a\n\n1")["input_ids"]
    with pytest.raises(UserError, match=r"got 'tiny.gguf' with 'deepseek-llm'.* the model's own folder"):
        load(str(make_gguf(pre="deepseek-llm")[0]))
    assert not list(cache.glob("*"))


def test_the_file_is_converted_once_into_a_plain_model(make_gguf, cache, monkeypatch, caplog):
    from transformers import AutoModelForCausalLM

    file, _ = make_gguf(Kind.Q8_0)
    base, _ = load_base(str(file))
    (folder,) = cache.iterdir()
    assert str(folder) == model_source(str(file)) and folder.name.startswith("tiny-")
    assert [r.getMessage() for r in caplog.records] == [f"'tiny.gguf' is dequantised, once, into '{folder}'"]
    plain = AutoModelForCausalLM.from_pretrained(folder)
    assert torch.equal(logits(plain), logits(base))
    monkeypatch.setattr(gguf_conversion, "_convert", None)  # is not called again
    assert torch.equal(logits(load_base(str(file))[0]), logits(base))
    assert same_base(str(file), str(folder)) is True
    renamed = file.rename(file.with_name("tiny"))  # known by its first bytes
    assert torch.equal(logits(load_base(str(renamed))[0]), logits(base))


def test_a_base_is_known_by_what_the_file_holds_whatever_happens_to_the_cache(make_gguf, cache, monkeypatch):
    one, _ = make_gguf(Kind.Q8_0)
    known = base_identity(str(one))
    assert known.startswith("files-2:")
    shutil.rmtree(cache)
    monkeypatch.setattr("transformers.configuration_utils.__version__", "5.999.0")  # written by another version
    assert base_identity(str(one)) == known
    two, _ = make_gguf(Kind.Q4_1, name="two")
    assert base_identity(str(two)) != known
    shutil.copy(one, two)
    assert base_identity(str(two)) == known


def test_where_the_cache_lies(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    monkeypatch.setenv(CACHE_VARIABLE, "/mine")
    assert cache_folder() == Path("/mine")
    monkeypatch.delenv(CACHE_VARIABLE)
    assert cache_folder() == Path("/x/mcanalysis")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "mcanalysis"


def test_two_at_once_convert_once(make_gguf, cache, monkeypatch):
    file, _ = make_gguf()
    plain, calls, begun = gguf_conversion._convert, [], threading.Barrier(2)

    def slowly(*arguments):
        calls.append(1)
        plain(*arguments)

    def run():
        begun.wait()
        gguf_conversion.plain_folder(file)

    monkeypatch.setattr(gguf_conversion, "_convert", slowly)
    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1 and [f.name for f in cache.iterdir()] == [converted_folder(file).name]


def test_a_conversion_that_stops_half_way_leaves_nothing(make_gguf, cache, monkeypatch):
    file, _ = make_gguf()

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(gguf_conversion, "tokenizer_as_trained", stop)
        with pytest.raises(KeyboardInterrupt):
            load_base(str(file))
    assert not list(cache.iterdir())
    load_base(str(file))


def test_a_cache_that_cannot_be_written_is_named(make_gguf, tmp_path, monkeypatch):
    file, _ = make_gguf()
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "file"))
    with pytest.raises(
        UserError, match=f"a cache that can be written at .*file.*set {CACHE_VARIABLE} to another folder"
    ):
        load_base(str(file))


def test_a_run_on_a_gguf_file_finds_its_base_again(make_gguf, make_tasks, tmp_path, cache):
    file, _ = make_gguf(Kind.Q8_0)
    config = RunConfig(strategy="sequential", model=str(file), lora_rank=2, training=TINY)
    tasks = make_tasks(("zeta", "alpha"), num_train=4, num_test=2)
    train(config, tmp_path / "run", device="cpu", tasks=tasks)
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["config"]["model"] == str(file) and "revision" not in manifest["config"]
    source = manifest["hashes"]["base_source"]
    digest = gguf_conversion.converted_folder(file).name.rpartition("-")[2]
    assert source["file"] == "tiny.gguf" and source["sha256"].startswith(digest) and len(source["weights"]) == 64
    run = load_run(tmp_path / "run", "cpu")
    before = logits(run.model.base)
    shutil.rmtree(cache)
    run = load_run(tmp_path / "run", "cpu")
    assert run.base_marker == ""
    assert torch.equal(logits(run.model.base), before)
    assert not train(config, tmp_path / "run", resume=True, device="cpu", tasks=tasks)
    other, _ = make_gguf(Kind.Q4_1, name="other")
    shutil.copy(other, file)
    with pytest.raises(UserError, match=r"Expected the base model .* with content"):
        _ = load_run(tmp_path / "run", "cpu").model


def test_a_plan_converts_nothing(make_gguf, make_tasks, cache):
    file, expected = make_gguf(Kind.Q8_0)
    config = RunConfig(strategy="sequential", model=str(file), lora_rank=2, training=TINY)
    plan = dry_run(config, tasks=make_tasks(num_train=4, num_test=2))
    assert plan.num_parameters == expected.num_parameters() and not cache.exists()
    assert plan.memory.base == 4 * expected.num_parameters()


def test_adapters_on_a_gguf_file(script, make_gguf, make_model, random_point, tmp_path, monkeypatch):
    from mcanalysis.models.adapter_files import LoraSettings, save_adapter
    from mcanalysis.models.lora_model import LoraModel

    monkeypatch.setattr("mcanalysis.studies.adapters.AdapterConnectivity.pictures", lambda *_: ())
    file, _ = make_gguf(Kind.Q8_0)
    model = LoraModel.attach(*load_base(str(file)), LoraSettings(rank=2), 0, str(file))
    for seed in (1, 2):
        save_adapter(random_point(model, seed), tmp_path / f"a{seed}", str(file))
    (tmp_path / "data.json").write_text(json.dumps([{"prompt": f"{i} river:", "answer": "stone"} for i in range(3)]))
    flags = ("--minima", f"{tmp_path}/a1,{tmp_path}/a2", "--data", tmp_path / "data.json", "--num-points", 2)
    flags += ("--paths", "linear-factor")
    code, _, err = script("connectivity", "--model", file, *flags, "--output-dir", tmp_path / "out", "--device", "cpu")
    assert code == 0, err
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["hashes"]["base_source"]["file"] == "tiny.gguf"


# --- what cannot be read


def cut(file):
    file.write_bytes(file.read_bytes()[:-1000])


def cut_header(file):
    file.write_bytes(file.read_bytes()[:100])


def another_type(file, number=31):
    """The type of the first tensor: an integer beside its offset, after its name and two dimensions."""
    content = bytearray(file.read_bytes())
    place = content.index(b"token_embd.weight") + len(b"token_embd.weight") + 4 + 2 * 8
    content[place : place + 4] = number.to_bytes(4, "little")
    file.write_bytes(content)


BROKEN = {
    "cut": (cut, "whole GGUF file"),
    "its header cut": (cut_header, "whole GGUF file"),
    "no GGUF": (lambda file: file.write_text("hello"), "GGUF magic invalid"),
    "empty": (lambda file: file.write_bytes(b""), "whole GGUF file"),
    "a type that nobody knows": (lambda file: another_type(file, 199), "199"),
    "a type that is not dequantised": (lambda file: another_type(file, int(Kind.I8)), "I8"),
}
UNREAD = {
    "another architecture": ({"arch": "rwkv7"}, "rwkv7"),
    "a tensor too few": ({"leave_out": "blk.1.ffn_up.weight"}, "none for 1, model.layers.1.mlp.up_proj.weight say"),
    "a tensor too many": (
        {"change": lambda w: w.add_tensor("rope_freqs.weight", np.ones(8, np.float32))},
        r"8 weights more than the model has, rope_freqs\.weight say",
    ),
    "rotary scaling": (
        {"change": lambda w: w.add_string("llama.rope.scaling.type", "linear")},
        "rotary scaling 'linear'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_file_that_cannot_be_read_is_one_line(script, make_gguf, tmp_path, cache, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    file, _ = make_gguf()
    damage, words = BROKEN[name]
    damage(file)
    code, _, err = script("train", "--model", file)
    assert code == 2 and err.count("\n") == 1 and words in err and "tiny.gguf" in err, err
    for load in LOADERS:
        with pytest.raises(UserError, match=words):
            load(str(file))
    assert not (tmp_path / "runs").exists() and not list(cache.glob("*"))


@pytest.mark.parametrize("name", UNREAD)
def test_a_file_that_would_become_another_model_is_refused(make_gguf, cache, name):
    how, words = UNREAD[name]
    file, _ = make_gguf(**how)
    with pytest.raises(UserError, match=words) as refusal:
        load_base(str(file))
    assert "\n" not in str(refusal.value) and not list(cache.glob("*"))


def test_without_the_package_the_remedy_is_said(make_gguf, monkeypatch):
    file, _ = make_gguf()
    monkeypatch.setitem(sys.modules, "gguf", None)
    for load in LOADERS:
        with pytest.raises(
            UserError, match=r"Expected the package gguf to read 'tiny\.gguf', got none; run pip install"
        ):
            load(str(file))


def test_a_base_that_has_no_room_is_refused_with_what_it_needs(make_gguf, base_folder, monkeypatch, cache):
    from mcanalysis.models import free_memory

    file, expected = make_gguf(Kind.Q4_1)
    monkeypatch.setattr(free_memory, "free_memory", lambda: 300_000)
    needed = 4 * expected.num_parameters()
    with pytest.raises(UserError, match=rf"Expected {needed / 1e6:.1f} MB of free memory .*tiny\.gguf.*got 0\.3 MB"):
        load_base(str(file))
    assert not list(cache.glob("*"))
    monkeypatch.setattr(free_memory, "free_memory", lambda: 10_000)
    with pytest.raises(UserError, match=r"Expected 0\.1 MB of free memory for the weights of .*, got 10000 bytes"):
        load_base(str(base_folder))
    with pytest.raises(UserError, match=r"Expected \d+ bytes of free memory"):
        load_base(str(base_folder), "bfloat16")
    monkeypatch.setattr(free_memory, "free_memory", lambda: None)
    load_base(str(base_folder))


def test_what_lies_beside_the_file_is_not_read(make_gguf):
    """transformers would take the tokenizer beside it, and an adapter."""
    file, _ = make_gguf()
    wanted = load_base(str(file))[1](TEXT)["input_ids"]
    shutil.rmtree(converted_folder(file))
    (file.parent / "tokenizer_config.json").write_text('{"tokenizer_class": "T5Tokenizer", "auto_map": {}}')
    (file.parent / "adapter_config.json").write_text('{"base_model_name_or_path": "x", "peft_type": "LORA"}')
    assert load_base(str(file))[1](TEXT)["input_ids"] == wanted
