"""Adapters on disk: PEFT reads what we write, we read what PEFT writes, and what we cannot represent is refused."""

import json

import pytest
import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM

from mcanalysis.errors import UserError
from mcanalysis.models.adapter_files import load_adapter
from mcanalysis.models.encoding import collate
from mcanalysis.models.forward import forward
from mcanalysis.models.lora_model import LoraModel
from mcanalysis.params.lora import concatenate


@pytest.fixture
def fresh_base(base_folder):
    return lambda: AutoModelForCausalLM.from_pretrained(base_folder)


@pytest.fixture
def batch(encode_examples):
    return collate(encode_examples(4), padding=0)


def randomise(network, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if ".lora_" in name:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return network.eval()


def saved_by_peft(base, folder, **settings):
    config = LoraConfig(**{"r": 4, "lora_alpha": 12, "target_modules": ["q_proj", "v_proj"], **settings})
    network = randomise(get_peft_model(base, config))
    network.save_pretrained(folder)
    return network


def nll(network, batch):
    with torch.no_grad():
        return forward(network, batch).nll


@pytest.mark.parametrize("kind", ["trainable", "point", "other rank"])
def test_peft_loads_what_is_saved_and_gives_the_same_loss(make_model, random_point, fresh_base, batch, tmp_path, kind):
    model = make_model(alpha=12.0)
    a, b = random_point(model, 1), random_point(model, 2)
    model.load_point(a)
    point = {"trainable": None, "point": b, "other rank": concatenate([a, b], [0.5, 0.5])}[kind]
    model.save(tmp_path / "adapter", point)
    assert sorted(p.name for p in (tmp_path / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    with torch.no_grad():
        expected = model.forward_at(a if point is None else point, batch).nll
    loaded = PeftModel.from_pretrained(fresh_base(), tmp_path / "adapter").eval()
    torch.testing.assert_close(nll(loaded, batch), expected, rtol=1e-6, atol=1e-6)
    if kind == "point":
        assert all(torch.allclose(v, a[k]) for k, v in model.point().items())  # saving moves nothing


def test_a_saved_adapter_reads_back_as_the_same_point(make_model, random_point, tmp_path):
    model = make_model(alpha=12.0)
    point = random_point(model)
    model.save(tmp_path, point)
    read = load_adapter(tmp_path)
    assert set(read.point) == set(point)
    for name in point:
        torch.testing.assert_close(read.point[name], point[name], rtol=1e-6, atol=1e-8)
    assert (read.settings.rank, read.settings.alpha, read.base_name) == (4, 12.0, model.name)


def test_saving_twice_writes_the_same_bytes(make_model, tmp_path):
    for name in ("a", "b"):
        make_model(seed=3).save(tmp_path / name)
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_rslora": True},
        {"rank_pattern": {"q_proj": 2}},
        {"alpha_pattern": {"q_proj": 20}},
        {"alpha_pattern": {r"layers\.0\.self_attn\.[qk]_proj": 20}},
        {"use_rslora": True, "rank_pattern": {"v_proj": 2}, "alpha_pattern": {"layers.1.self_attn.v_proj": 5}},
    ],
    ids=["plain", "rank-stabilised", "rank pattern", "alpha pattern", "alpha regular expression", "all at once"],
)
def test_the_scaling_of_adapters_from_elsewhere_is_pefts_own(fresh_base, batch, tmp_path, plain_model_at, settings):
    network = saved_by_peft(fresh_base(), tmp_path, **settings)
    point = load_adapter(tmp_path).point
    torch.testing.assert_close(nll(plain_model_at(point), batch), nll(network, batch), rtol=1e-5, atol=1e-5)


def test_a_rank_stabilised_model_evaluates_loads_and_saves_with_its_own_scaling(
    fresh_base, batch, tmp_path, tokenizer, random_point, plain_model_at
):
    config = LoraConfig(r=4, lora_alpha=12, use_rslora=True, target_modules=["q_proj", "v_proj"])
    model = LoraModel(get_peft_model(fresh_base(), config), tokenizer, "base")
    assert set(model.scaling.values()) == {6.0}
    point = random_point(model)
    expected = nll(plain_model_at(point), batch)
    with torch.no_grad():
        torch.testing.assert_close(model.forward_at(point, batch).nll, expected, rtol=1e-5, atol=1e-5)
        model.load_point(point)
        torch.testing.assert_close(model.forward(batch).nll, expected, rtol=1e-5, atol=1e-5)
    both = concatenate([point, point], [0.5, 0.5])
    for name, saved in (("same", point), ("other", both)):
        model.save(tmp_path / name, saved)
        loaded = PeftModel.from_pretrained(fresh_base(), tmp_path / name).eval()
        torch.testing.assert_close(nll(loaded, batch), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"use_dora": True}, "got one with DoRA"),
        ({"modules_to_save": ["norm"]}, "modules_to_save"),
        ({"bias": "all"}, "bias 'all'"),
        ({"bias": "lora_only"}, "bias 'lora_only'"),
        ({"lora_bias": True}, "lora_B.bias"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, "LoRA factors"),
    ],
)
def test_what_the_algebra_does_not_cover_is_refused_by_name(fresh_base, tmp_path, settings, named):
    saved_by_peft(fresh_base(), tmp_path, **settings)
    with pytest.raises(UserError, match=named):
        load_adapter(tmp_path)


def test_other_kinds_of_adapter_are_refused_by_name(fresh_base, tmp_path):
    get_peft_model(fresh_base(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)).save_pretrained(
        tmp_path
    )
    with pytest.raises(UserError, match="PROMPT_TUNING"):
        load_adapter(tmp_path)


def test_a_folder_without_an_adapter_and_a_damaged_one_are_user_errors(make_model, tmp_path):
    with pytest.raises(UserError, match="Expected a PEFT adapter"):
        load_adapter(tmp_path / "nothing")
    make_model().save(tmp_path)
    weights = tmp_path / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(UserError, match="Expected a PEFT adapter"):
        load_adapter(tmp_path)


def test_the_written_configuration_is_for_inference_and_sorted(make_model, tmp_path):
    make_model().save(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA"
    assert config["inference_mode"] is True
    assert config["target_modules"] == sorted(config["target_modules"])
