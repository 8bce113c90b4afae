"""Loading a base: what is there, and one clear line for what is not."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from mcanalysis.errors import UnknownNameError, UserError
from mcanalysis.models.base_identity import base_identity
from mcanalysis.models.base_source import EMBEDDED, EMBEDDED_DIRECTORY
from mcanalysis.models.loading import check_device, load_base, load_tokenizer


def test_a_saved_folder_loads_in_evaluation_mode(base_folder):
    model, tokenizer = load_base(str(base_folder))
    assert not model.training
    assert tokenizer.decode(tokenizer.encode("Häuser 房子")) == "Häuser 房子"


def test_the_tokenizer_of_the_shipped_base_is_what_transformers_chooses_itself():
    ours, theirs = load_tokenizer(EMBEDDED), AutoTokenizer.from_pretrained(EMBEDDED_DIRECTORY)
    assert type(ours) is type(theirs) and ours.init_kwargs == theirs.init_kwargs
    assert ours.backend_tokenizer.to_str() == theirs.backend_tokenizer.to_str()
    assert ours.special_tokens_map == theirs.special_tokens_map and ours.padding_side == theirs.padding_side


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_the_dtype_asked_for_is_the_one_loaded(base_folder, dtype):
    model, _ = load_base(str(base_folder), dtype)
    assert {p.dtype for p in model.parameters()} == {getattr(torch, dtype)}


def test_the_shipped_base_loads_without_a_bar_and_leaves_the_users_setting(capfd):
    from transformers.utils import logging

    was_on = logging.is_progress_bar_enabled()
    try:
        for wanted in (True, False):
            (logging.enable_progress_bar if wanted else logging.disable_progress_bar)()
            load_base()
            assert logging.is_progress_bar_enabled() == wanted
    finally:
        (logging.enable_progress_bar if was_on else logging.disable_progress_bar)()
    assert "Loading weights" not in capfd.readouterr().err


def test_an_unknown_model_suggests_the_known_one():
    with pytest.raises(UnknownNameError, match="Did you mean 'embedded'"):
        load_base("embeded")


def test_a_hub_that_cannot_be_reached_is_told_at_once(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "https://localhost:9")  # where nobody listens
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match=r"'no/such'.*no connection to localhost"):
        load_base("no/such")


@pytest.mark.parametrize("name", ["./no/such/folder", "models/no-such.gguf", "no-such.GGUF"])
def test_a_folder_or_file_that_is_not_there_is_named(name):
    with pytest.raises(UserError, match=rf"'{name}'.*does not exist"):
        load_base(name)


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(UserError, match="Expected a causal language model"):
        load_base(str(tmp_path))


def test_weights_that_are_not_there_are_not_made_up(base_folder, tmp_path):
    """transformers draws them at random."""
    folder = shutil.copytree(base_folder, tmp_path / "base")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        UserError, match=r"Expected all weights .* none for 1, model\.layers\.1\.mlp\.up_proj\.weight say"
    ):
        load_base(str(folder))


def test_unknown_dtype_and_device_name_the_choices(base_folder):
    with pytest.raises(UnknownNameError, match="Did you mean 'float32'"):
        load_base(str(base_folder), "float23")
    with pytest.raises(UserError, match="cpu"):
        check_device("cuda:99")


def test_the_hash_of_a_base_depends_on_its_weights(base_folder, tmp_path):
    model, tokenizer = load_base(str(base_folder))
    for name in ("a", "b"):
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        with torch.no_grad():
            model.get_input_embeddings().weight[0, 0] += 1
    assert base_identity(str(tmp_path / "a")) != base_identity(str(tmp_path / "b"))
    assert base_identity(str(tmp_path / "a")) == base_identity(str(tmp_path / "a"))


def test_a_model_that_sees_later_tokens_is_refused(tokenizer, tmp_path):
    """transformers loads BERT as a causal LM and only warns; the oracle is the model's own output for two endings."""
    from transformers import BertConfig, BertLMHeadModel

    shape = {"vocab_size": len(tokenizer), "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    for folder, is_decoder in (("encoder", False), ("decoder", True)):
        BertLMHeadModel(BertConfig(intermediate_size=64, is_decoder=is_decoder, **shape)).save_pretrained(
            tmp_path / folder
        )
        tokenizer.save_pretrained(tmp_path / folder)
    with pytest.raises(UserError, match="depend on later tokens"):
        load_base(str(tmp_path / "encoder"))
    model, _ = load_base(str(tmp_path / "decoder"))
    with torch.no_grad():
        one, other = model(torch.tensor([[3, 5, 7]])).logits, model(torch.tensor([[3, 5, 8]])).logits
    torch.testing.assert_close(one[:, :2], other[:, :2])
