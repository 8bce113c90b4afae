"""Adapters on disk: PEFT reads what we write, we read what PEFT writes, and what we cannot represent is refused."""

import json
import shutil

import pytest
import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model, get_peft_model_state_dict
from transformers import AutoModelForCausalLM

from mcanalysis.errors import UserError
from mcanalysis.models.adapter_files import load_adapter, save_adapter, warn_of_missing
from mcanalysis.models.encoding import collate
from mcanalysis.models.forward import forward
from mcanalysis.models.lora_model import LoraModel
from mcanalysis.params import delta_distance, delta_norm, flatten, unflatten
from mcanalysis.params.lora import delta_weights, ranks
from mcanalysis.params.low_rank import concatenate
from mcanalysis.paths import Bezier, Linear


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
    torch.testing.assert_close(nll(loaded, batch), expected, rtol=1e-5, atol=1e-5)
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
        ({"lora_bias": True}, "lora_bias True"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, "adapted embedding"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights 'pissa'"),
        ({"init_lora_weights": "olora"}, "init_lora_weights 'olora'"),
        ({"alora_invocation_tokens": [5, 6]}, r"alora_invocation_tokens \[5, 6\]"),
    ],
)
def test_what_the_algebra_does_not_cover_is_refused_by_name(fresh_base, tmp_path, settings, named):
    saved_by_peft(fresh_base(), tmp_path, **settings)
    with pytest.raises(UserError, match=named):
        load_adapter(tmp_path)


@pytest.mark.parametrize("setting", [{"layers_pattern": True}, {"exclude_modules": 3}, {"target_modules": [["a"]]}])
def test_settings_of_modules_that_peft_cannot_read_are_named(fresh_base, tmp_path, setting):
    """As the fuzzer found the first."""
    saved_by_peft(fresh_base(), tmp_path)
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | setting))
    with pytest.raises(UserError, match=r"that PEFT reads in adapter_config.json in .*, got: \w+Error"):
        warn_of_missing(load_adapter(tmp_path), fresh_base(), tmp_path)


@pytest.mark.parametrize("start", [True, False, "gaussian", "orthogonal"])
def test_initialisations_that_leave_the_base_alone_are_read(fresh_base, batch, tmp_path, plain_model_at, start):
    network = saved_by_peft(fresh_base(), tmp_path, init_lora_weights=start)
    torch.testing.assert_close(
        nll(plain_model_at(load_adapter(tmp_path).point), batch), nll(network, batch), rtol=1e-5, atol=1e-5
    )


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


def dense_truncation(point, rank):
    """The error of cutting every ΔW to a rank, from the singular values of the dense matrices."""
    deltas = delta_weights({k: v.double() for k, v in point.items()})
    singular = [torch.linalg.svdvals(d) for d in deltas.values()]
    lost = sum(float(s[rank:].square().sum()) for s in singular)
    return (lost / sum(float(s.square().sum()) for s in singular)) ** 0.5


@pytest.mark.parametrize("make_path", [Linear, Bezier])
@pytest.mark.parametrize("space", ["factor", "delta", "aligned"])
def test_any_point_of_any_path_is_saved_for_peft_without_a_model(
    make_model, random_point, fresh_base, batch, tmp_path, plain_model_at, make_path, space
):
    model = make_model()
    point = make_path(random_point(model, 1), random_point(model, 2), space=space)(0.5)
    assert save_adapter(point, tmp_path, "some/base") == 0.0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    loaded = PeftModel.from_pretrained(fresh_base(), tmp_path).eval()
    merged = plain_model_at(point)
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    with torch.no_grad():
        torch.testing.assert_close(loaded(**inputs).logits, merged(**inputs).logits, rtol=1e-5, atol=1e-4)
    with torch.no_grad(), model.merged(point) as network:
        torch.testing.assert_close(nll(loaded, batch), forward(network, batch).nll, rtol=1e-5, atol=1e-5)


def test_what_is_saved_reads_back_bit_for_bit(make_model, random_point, tmp_path):
    model = make_model()
    a, b = random_point(model, 1), random_point(model, 2)
    for folder, point in {
        "delta": Linear(a, b, space="delta")(0.3),
        "float64": {k: v.double() for k, v in a.items()},
        "views of one vector": unflatten(flatten(a), a),
        "replaced": b,
        "live": {k: torch.nn.Parameter(v) for k, v in a.items()},
    }.items():
        if folder == "replaced":
            save_adapter(a, tmp_path / folder, "base")
        save_adapter(point, tmp_path / folder, "some/base")
        read = load_adapter(tmp_path / folder)
        assert read.base_name == "some/base" and set(read.point) == set(point)
        assert all(torch.equal(read.point[k], point[k]) and read.point[k].dtype == point[k].dtype for k in point)


def test_a_delta_point_is_saved_at_the_sum_of_the_ranks_or_truncated_with_its_error(
    make_model, random_point, fresh_base, batch, tmp_path, plain_model_at
):
    model = make_model()
    point = Linear(random_point(model, 1), random_point(model, 2), space="delta")(0.5)
    assert save_adapter(point, tmp_path / "whole", "base") == 0.0
    assert load_adapter(tmp_path / "whole").settings.rank == 8
    error = save_adapter(point, tmp_path / "small", "base", rank=3)
    read = load_adapter(tmp_path / "small")
    assert set(ranks(read.point).values()) == {3} == {read.settings.rank}
    assert 0.1 < error == pytest.approx(dense_truncation(point, 3), rel=1e-9)
    assert delta_distance(point, read.point) / delta_norm(point) == pytest.approx(error, rel=1e-5)
    loaded = PeftModel.from_pretrained(fresh_base(), tmp_path / "small").eval()
    torch.testing.assert_close(nll(loaded, batch), nll(plain_model_at(read.point), batch), rtol=1e-5, atol=1e-5)
    assert save_adapter(point, tmp_path / "more", "base", rank=20) <= 1e-12


def test_modules_of_different_ranks_and_targets_are_saved_for_peft(
    make_model, random_point, fresh_base, batch, tmp_path, plain_model_at
):
    """Ranks 4 + 2, 4 and 2 in one adapter, and one module that looks like the end of another's name."""
    wide = random_point(make_model(target_modules=("q_proj", "k_proj")), 1)
    narrow = random_point(make_model(rank=2, target_modules=("q_proj", "v_proj")), 2)
    point = Linear(wide, narrow, space="delta")(0.5)
    assert set(ranks(point).values()) == {2, 4, 6}
    save_adapter(point, tmp_path, "base")
    loaded = PeftModel.from_pretrained(fresh_base(), tmp_path).eval()
    torch.testing.assert_close(nll(loaded, batch), nll(plain_model_at(point), batch), rtol=1e-5, atol=1e-5)
    read = load_adapter(tmp_path).point
    assert all(torch.equal(read[k], point[k]) for k in point)
    nothing = {k: v[:0] if ".lora_A." in k else v[:, :0] for k, v in point.items() if "layers.0" in k}
    save_adapter({**point, **nothing}, tmp_path, "base")
    assert set(load_adapter(tmp_path).point) == {k for k in point if "layers.0" not in k}
    with pytest.raises(UserError, match="rank 0 in every module"):
        save_adapter(nothing, tmp_path / "none", "base")


def test_a_rank_pattern_fits_its_own_module_only(tmp_path):
    """PEFT looks for patterns at the end of names: `proj` must not stand for `inner.proj`."""
    network = torch.nn.ModuleDict({"proj": torch.nn.Linear(5, 5), "inner": torch.nn.ModuleDict()})
    network["inner"]["proj"] = torch.nn.Linear(5, 5)
    network["inner"]["other"] = torch.nn.Linear(5, 5)
    point = {}
    for module, rank in {"proj": 3, "inner.proj": 2, "inner.other": 2}.items():
        point |= {f"{module}.lora_A.weight": torch.randn(rank, 5), f"{module}.lora_B.weight": torch.randn(5, rank)}
    save_adapter(point, tmp_path, "base")
    config = LoraConfig.from_pretrained(tmp_path)
    config.task_type = None
    loaded = get_peft_model(network, config)
    widths = {n.split(".lora_A")[0]: p.shape[0] for n, p in loaded.named_parameters() if "lora_A" in n}
    assert {n.removeprefix("base_model.model."): r for n, r in widths.items()} == {
        "proj": 3,
        "inner.proj": 2,
        "inner.other": 2,
    }


def test_a_transposed_layer_is_saved_like_any_other(tiny_base, tokenizer, random_point, batch, tmp_path, add_by_hand):
    """GPT-2 keeps its weights transposed (Conv1D)."""
    from mcanalysis.models.adapter_files import LoraSettings

    model = LoraModel.attach(tiny_base("gpt2"), tokenizer, LoraSettings(rank=4), 0, "base")
    point = random_point(model)
    save_adapter(point, tmp_path, "base")
    loaded = PeftModel.from_pretrained(tiny_base("gpt2"), tmp_path).eval()
    torch.testing.assert_close(
        nll(loaded, batch), nll(add_by_hand(tiny_base("gpt2"), point), batch), rtol=1e-5, atol=1e-5
    )


def test_target_modules_can_be_named_and_have_to_fit(make_model, random_point, fresh_base, batch, tmp_path):
    point = random_point(make_model(target_modules=("q_proj", "v_proj")))
    save_adapter(point, tmp_path, "base", target_modules=["v_proj", "q_proj"])
    assert json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"] == ["q_proj", "v_proj"]
    PeftModel.from_pretrained(fresh_base(), tmp_path)
    with pytest.raises(UserError, match=r"got q_proj, which miss model\.layers\.0\.self_attn\.v_proj"):
        save_adapter(point, tmp_path / "other", "base", target_modules=["q_proj"])


def test_what_cannot_be_saved_is_refused_before_anything_is_written(make_model, random_point, tmp_path):
    point = random_point(make_model())
    for wrong, options, message in (
        ({"weight": torch.ones(2, 2)}, {}, "Expected only LoRA factors"),
        ({**point, "model.layers.0.self_attn.q_proj.lora_magnitude_vector": torch.ones(2)}, {}, "magnitude"),
        (point, {"rank": 0}, "rank of at least 1, got 0"),
    ):
        with pytest.raises(UserError, match=message):
            save_adapter(wrong, tmp_path / "new", "base", **options)
    assert not (tmp_path / "new").exists()


def test_a_folder_that_holds_a_model_gets_no_adapter(make_model, random_point, base_folder, tmp_path):
    """AutoModelForCausalLM would load the two as one: the base would never be the base again."""
    folder = shutil.copytree(base_folder, tmp_path / "base")
    before = sorted(file.name for file in folder.iterdir())
    with pytest.raises(UserError, match=r"for an adapter, got .*base', which holds a model .*another folder"):
        save_adapter(random_point(make_model()), folder, "base")
    assert sorted(file.name for file in folder.iterdir()) == before
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "config.json").write_text('{"lr": 0.001}')  # of somebody's training script
    save_adapter(random_point(make_model()), notes, "base")


def test_tensors_of_a_peft_state_dict_are_not_saved_as_a_point(make_model, tmp_path):
    raw = get_peft_model_state_dict(make_model().peft)
    with pytest.raises(UserError, match=r"got 'base_model\.model\..*of a PEFT state dict.*load_adapter"):
        save_adapter(raw, tmp_path / "new", "base")
    assert not (tmp_path / "new").exists()


def test_a_kill_while_saving_leaves_no_adapter_of_two_halves(make_model, random_point, tmp_path, monkeypatch):
    from mcanalysis.models import adapter_files

    point = random_point(make_model(), 1)
    save_adapter(point, tmp_path, "base")
    monkeypatch.setattr(adapter_files, "write_json_atomic", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        save_adapter(Linear(point, random_point(make_model(), 2), space="delta")(0.5), tmp_path, "base")
    with pytest.raises(UserError, match="Expected a PEFT adapter"):
        load_adapter(tmp_path)
