"""Adapters of strangers: what is wrong is said or refused in one line, and what is read has PEFT's own values."""

import json
import logging

import numpy as np
import pandas as pd
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM

from mcanalysis.connectivity.profile import Profile, profile
from mcanalysis.errors import UserError
from mcanalysis.evaluation.adapter_objective import attach_slot
from mcanalysis.evaluation.engine import Engine
from mcanalysis.evaluation.engine_settings import EngineSettings
from mcanalysis.evaluation.objective import make_objective
from mcanalysis.models.adapter_files import absorb_scaling, load_adapter, missing_modules, save_adapter
from mcanalysis.models.encoding import collate
from mcanalysis.params import content_hash
from mcanalysis.params.ema import ema_update_
from mcanalysis.store.measurements import Measurement
from mcanalysis.studies import adapters as study
from mcanalysis.studies.connectivity.over_seeds import barriers_over_seeds
from mcanalysis.studies.connectivity.tables import transition_rows

BARRIERS = ("chord_barrier", "mean_barrier", "max_barrier", "chord_dip")


@pytest.fixture
def saved(base_folder, tmp_path):
    """saved(**LoraConfig) -> the folder of an adapter with random A and B, α/r = 16/3, and PEFT's network."""

    def make(name="adapter", dtype=torch.float32, model=AutoModelForCausalLM, **settings):
        config = LoraConfig(**{"r": 3, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"], **settings})
        network = get_peft_model(model.from_pretrained(base_folder), config)
        generator = torch.Generator().manual_seed(1)
        for parameter_name, parameter in network.named_parameters():
            if ".lora_" in parameter_name:
                parameter.data = (0.1 * torch.randn(parameter.shape, generator=generator)).to(dtype)
        network.save_pretrained(tmp_path / name)
        return tmp_path / name

    return make


def change_tensors(folder, change):
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file(change(tensors), file)


def change_config(folder, **values):
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_an_adapter_that_is_in_order_says_nothing(saved, caplog):
    load_adapter(saved())
    assert not caplog.records


# NaN and infinity


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_an_adapter_with_nan_or_infinity_is_refused_by_name(saved, value, dtype):
    folder = saved(dtype=dtype)

    def spoil(tensors):
        tensors[next(k for k in tensors if "layers.1" in k and "lora_A" in k)][0, 2] = value
        return tensors

    change_tensors(folder, spoil)
    with pytest.raises(UserError, match=r"NaN or infinite in 1 of 8 tensors \('model\.layers\.1\..*lora_A"):
        load_adapter(folder)


@pytest.mark.parametrize("lost", [0, 1, 2, 4])
def test_a_nan_anywhere_on_a_path_makes_every_barrier_and_interval_nan(lost):
    rng = np.random.default_rng(0)
    ts = np.linspace(0, 1, 5)
    targets = np.array([2, 3, 1, 4])
    measured = []
    for i in range(5):
        nll, scores = rng.random(4), rng.random(4)
        nll[2] = np.nan if i == lost else nll[2]
        measured.append(Measurement.of(nll, targets, scores))
    found = Profile.of(ts, measured)
    for quantity in ("loss", "score"):  # greedy answers from logits that are no numbers are no answers
        for name in BARRIERS:
            assert np.isnan(getattr(found, name)(quantity)), (quantity, name)
            assert np.isnan(getattr(found, f"{name}_interval")(quantity)).all(), (quantity, name)
    _, rows = transition_rows({"test": {"A": found, "B": found}}, ["A"], "B", {}, np.zeros(5))
    frame = pd.DataFrame(rows)
    columns = [c for c in frame if c.startswith(BARRIERS)]
    assert len(columns) == 12 and frame[columns].isna().all(axis=None)
    assert set(frame.task) == {"A", "B", "mean", "mean_old"}
    plain = profile(lambda t: {"t": torch.tensor(t)}, lambda p: float("nan") if float(p["t"]) == 0.25 else 1.0, ts)
    assert all(np.isnan(getattr(plain, name)()) for name in BARRIERS)


def test_a_seed_that_was_lost_is_not_left_out_of_the_mean_over_seeds():
    fixed = {"strategy": "er", "learner": "fast", "space": "delta", "path": "linear", "split": "test"}
    fixed |= {"quantity": "loss", "task": "mean_old", "interpolation_gain": np.nan}
    rows = [
        {**fixed, "seed": seed, "start": start, "end": end, **dict.fromkeys(BARRIERS, value)}
        for seed, values in ((1, (0.5, 1.0)), (2, (np.nan, 2.0)), (3, (0.7, 3.0)))
        for (start, end), value in zip((("1-A", "2-B"), ("2-B", "3-C")), values, strict=True)
    ]
    found = barriers_over_seeds(pd.DataFrame(rows)).set_index("start").chord_barrier
    assert np.isnan(found["1-A"]) and np.isnan(found["all"])
    assert found["2-B"] == pytest.approx(2.0)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("adapter", ["merged", "unmerged"])
def test_a_point_that_is_not_finite_has_neither_loss_nor_score(
    make_model, make_tasks, random_point, tokenizer, value, adapter
):
    """PyTorch's attention on a CPU gives 0 for a query that is NaN: without a look at the point a loss comes out."""
    model = make_model()
    objective = make_objective(make_tasks()[0], "test", tokenizer)
    engine = Engine(model, EngineSettings(adapter=adapter))
    point = random_point(model)
    expected = engine.evaluate(point, [objective])[0].measurement
    point["model.layers.0.self_attn.q_proj.lora_A.weight"][0, 0] = value
    measured = engine.evaluate(point, [objective])[0].measurement
    assert np.isnan([measured.loss, measured.score, engine.losses(point, [objective])[0].loss]).all()
    assert np.isnan(measured.scores).all() and np.isnan(measured.nll).all()
    assert np.array_equal(measured.targets, expected.targets)


# What an adapter lacks


def test_fewer_layers_than_asked_for_are_said_as_by_peft(saved, base_folder, caplog, tmp_path, monkeypatch):
    folder = saved()
    whole = set(load_file(folder / "adapter_model.safetensors"))
    change_tensors(folder, lambda tensors: {k: v for k, v in tensors.items() if "layers.1" not in k})
    adapter, base = load_adapter(folder), AutoModelForCausalLM.from_pretrained(base_folder)
    absent = {k for k in whole if "layers.1" in k}
    expected = {k.removeprefix("base_model.model.").split(".lora_")[0] for k in absent}
    assert set(missing_modules(adapter, base)) == expected
    with pytest.warns(UserWarning, match="missing adapter keys"):
        loaded = PeftModel.from_pretrained(base, folder)
    zero = {k for k, v in get_peft_model_state_dict(loaded).items() if "lora_B" in k and not v.any()}
    assert zero == {k for k in absent if "lora_B" in k}

    def stop(*_):
        raise UserError("far enough")

    monkeypatch.setattr(study, "put_on", stop)
    data = tmp_path / "data.json"
    data.write_text('[{"prompt": "a", "answer": "b"}]')
    with pytest.raises(UserError, match="far enough"):
        opening = study.AdaptersOpening((str(folder),) * 2, str(base_folder), (str(data),), tmp_path / "out")
        study.connect_adapters(opening, study.AdapterConnectivity())
    assert "no tensors for 'model.layers.1.self_attn.q_proj' and 1 more of the base" in caplog.text


@pytest.mark.parametrize(
    ("settings", "number"),
    [
        ({}, 0),
        ({"layers_to_transform": [0]}, 0),
        ({"exclude_modules": ["k_proj"], "target_modules": "all-linear"}, 0),
        ({"exclude_modules": r".*\.0\..*"}, 0),
        ({"target_modules": r".*\.1\..*[qv]_proj"}, 0),
    ],
)
def test_what_the_settings_leave_out_is_not_missing(saved, base_folder, settings, number, caplog):
    adapter = load_adapter(saved(**settings))
    assert len(missing_modules(adapter, AutoModelForCausalLM.from_pretrained(base_folder))) == number
    assert not caplog.records


def test_a_layer_without_what_the_others_have_is_said(saved, caplog):
    folder = saved()
    change_tensors(folder, lambda t: {k: v for k, v in t.items() if "layers.1.self_attn.v_proj" not in k})
    load_adapter(folder)
    assert [r.getMessage() for r in caplog.records] == [
        f"the adapter in '{folder}' has no tensors for 'model.layers.1.self_attn.v_proj', which others of its layers "
        "have: there the base stays as it is"
    ]


def test_an_untrained_adapter_is_said(saved, caplog):
    folder = saved()
    change_tensors(folder, lambda t: {k: v * 0 if "lora_B" in k else v for k, v in t.items()})
    load_adapter(folder)
    assert "changes nothing" in caplog.text
    caplog.clear()
    change_config(other := saved("other"), lora_alpha=0)
    load_adapter(other)
    assert "changes nothing" in caplog.text


def test_another_rank_than_the_settings_say_is_said_and_scaled_by_its_own(saved, base_folder, caplog):
    folder = saved()
    raw = load_file(folder / "adapter_model.safetensors")
    change_config(folder, r=6)
    with pytest.raises(RuntimeError, match="size mismatch"):
        PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base_folder), folder)
    point = load_adapter(folder).point
    assert "rank 3 where its adapter_config.json says r = 6" in caplog.text
    key = "model.layers.0.self_attn.q_proj.lora_B.weight"
    assert torch.equal(point[key], raw[f"base_model.model.{key}"] * (16 / 3))


# Low precision


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float32])
def test_the_scaling_is_multiplied_into_widened_tensors(saved, base_folder, dtype):
    folder = saved(dtype=dtype)
    raw = load_file(folder / "adapter_model.safetensors")
    point = load_adapter(folder).point
    by_hand = {
        k.removeprefix("base_model.model."): v.float() * (16 / 3) if "lora_B" in k else v.float()
        for k, v in raw.items()
    }
    assert content_hash(point) == content_hash(by_hand)  # for float32: the keys of version 0.1
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base_folder), folder)
    for name, tensor in get_peft_model_state_dict(loaded).items():
        assert tensor.dtype == torch.float32 and torch.equal(tensor, raw[name].float())


def test_wherever_scaling_is_put_in_or_taken_out_it_is_in_float32(make_model, random_point, encode_examples):
    model = make_model(alpha=12.0, rank=5)  # 2.4: no power of two
    wide = random_point(model)
    low = {k: v.bfloat16() for k, v in wide.items()}
    exact = {k: v.float() for k, v in low.items()}
    scaling = dict.fromkeys(model.scaling, 2.4)
    assert all(
        torch.equal(v, w) for v, w in zip(*(absorb_scaling(p, scaling).values() for p in (low, exact)), strict=True)
    )
    batch = collate(encode_examples(3), padding=0)
    with torch.no_grad():
        assert torch.equal(model.forward_at(low, batch).nll, model.forward_at(exact, batch).nll)
        with model.unmerged(low):
            within = {k: p.clone() for k, p in model.parameters.items()}
        with model.unmerged(exact):
            assert all(torch.equal(within[k], p) for k, p in model.parameters.items())
    model.load_point(low)
    after = {k: v.clone() for k, v in model.point().items()}
    model.load_point(exact)
    assert all(torch.equal(after[k], v) for k, v in model.point().items())
    slow = {k: torch.zeros_like(v) for k, v in exact.items()}
    ema_update_(slow, low, 0.0, dict.fromkeys(low, 2.4))
    assert all(torch.equal(slow[k], v * 2.4) for k, v in exact.items())


def test_a_point_in_bfloat16_is_saved_and_read_with_its_values(saved, tmp_path):
    point = {k: v.bfloat16() for k, v in load_adapter(saved()).point.items()}
    save_adapter(point, tmp_path / "low", "base")
    read = load_adapter(tmp_path / "low").point
    assert all(torch.equal(read[k], v.float()) for k, v in point.items())


# Settings, files and folders

PATHOLOGICAL = "((a|aa)+)+b"


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"r": None}, "a whole number r of 1 or more in '.*', got r: null; write"),
        ({"r": "8"}, 'r: "8"'),
        ({"r": 0}, "r: 0"),
        ({"r": 8.5}, r"r: 8\.5"),
        ({"lora_alpha": None}, "a number lora_alpha in '.*', got lora_alpha: null; write"),
        ({"lora_alpha": "16"}, 'lora_alpha: "16"'),
        ({"lora_alpha": True}, "lora_alpha: true"),
        ({"lora_alpha": float("nan")}, "lora_alpha: NaN"),
        ({"rank_pattern": ["q_proj"]}, r'rank_pattern: \["q_proj"\]'),
        ({"alpha_pattern": {"q_proj": "4"}}, r'alpha_pattern: \{"q_proj": "4"\}'),
        ({"alpha_pattern": {"(q_proj": 4}}, r"Expected regular expressions .* got '.*\(q_proj"),
        ({"alpha_pattern": {PATHOLOGICAL: 4}}, "which takes longer on 'model.layers.0"),
        ({"use_later": True}, "use_later True, which is not known here"),
        ({"later_config": {"kind": 2}}, "later_config .*, which is not known here"),
        ({"use_bdlora": {}}, "use_bdlora"),
        ({"peft_type": "lora"}, "peft_type lora"),
    ],
    ids=str,
)
def test_settings_that_cannot_be_read_are_named_in_one_line(saved, values, named):
    folder = saved()
    if PATHOLOGICAL in str(values):
        change_tensors(folder, lambda tensors: {k.replace("q_proj", "a" * 60): v for k, v in tensors.items()})
    change_config(folder, **values)
    with pytest.raises(UserError, match=named) as caught:
        load_adapter(folder)
    assert "\n" not in str(caught.value)


def test_settings_of_others_that_change_nothing_are_said_or_let_pass(saved, caplog):
    folder = saved()
    expected = content_hash(load_adapter(folder).point)
    change_config(folder, lora_dtype="bf16", later=None, rank_pattern=None, alpha_pattern=None, init_lora_weights=None)
    assert content_hash(load_adapter(folder).point) == expected
    assert [r.getMessage() for r in caplog.records] == [
        f"the adapter in '{folder}' has a setting 'lora_dtype', which is unknown here and is ignored"
    ]


def test_a_byte_order_mark_does_no_harm_and_other_json_is_named(saved):
    folder = saved()
    file = folder / "adapter_config.json"
    expected = content_hash(load_adapter(folder).point)
    file.write_text(file.read_text(), encoding="utf-8-sig")
    assert content_hash(load_adapter(folder).point) == expected
    for text, named in (("[1]", "a list instead of an object"), ("{", "cannot be read"), ("", "cannot be read")):
        file.write_text(text)
        with pytest.raises(UserError, match=named):
            load_adapter(folder)


def test_a_folder_of_adapters_names_them(saved, tmp_path, base_folder):
    for name in ("run/checkpoint-20", "run/checkpoint-100", "run/checkpoint-3"):
        saved(name)
    with pytest.raises(UserError, match="a folder of adapters: checkpoint-3, checkpoint-20, checkpoint-100; name one"):
        load_adapter(tmp_path / "run")
    with pytest.raises(UserError, match="got a whole model"):
        load_adapter(base_folder)
    with pytest.raises(UserError, match="got a file"):
        load_adapter(tmp_path / "run" / "checkpoint-3" / "adapter_model.safetensors")
    with pytest.raises(UserError, match="got no such folder"):
        load_adapter(tmp_path / "nowhere")


def test_a_pickled_adapter_is_not_opened_and_the_line_says_how_to_go_on(saved, base_folder):
    folder = saved()
    expected, file = content_hash(load_adapter(folder).point), folder / "adapter_model.safetensors"
    torch.save(load_file(file), folder / "adapter_model.bin")
    assert content_hash(load_adapter(folder).point) == expected  # the other file counts, as with PEFT
    file.unlink()
    with pytest.raises(
        UserError, match=r"got adapter_model\.bin, a pickle.*load the adapter with PEFT and save it again"
    ):
        load_adapter(folder)
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base_folder), folder)
    loaded.save_pretrained(folder)
    assert content_hash(load_adapter(folder).point) == expected


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda v: v.to(torch.int8), "dtype torch.int8"),
        (lambda v: v.new_zeros(0), "empty or flat .*DeepSpeed"),
        (lambda v: v[..., None], "factors of convolutions"),
    ],
    ids=["whole numbers", "shards", "a convolution"],
)
def test_tensors_that_are_no_factors_are_named(saved, change, named):
    folder = saved()
    change_tensors(folder, lambda t: {k: change(v).contiguous() if "layers.1" in k else v for k, v in t.items()})
    with pytest.raises(UserError, match=named):
        load_adapter(folder)


@pytest.mark.parametrize("extra", ["base_model.model.model.norm.weight", "base_model.model.x.lora_A.default.weight"])
def test_a_tensor_beyond_the_factors_is_named(saved, extra):
    folder = saved()
    change_tensors(folder, lambda t: {**t, extra: torch.ones(2, 2)})
    with pytest.raises(UserError, match=f"not LoRA factors \\('{extra}'\\)"):
        load_adapter(folder)


# On a base


def test_an_adapter_of_a_model_without_its_head_is_refused_in_one_line(saved, base_folder):
    """PEFT loads nothing of it into a causal LM, and warns."""
    point = load_adapter(saved(model=AutoModel, task_type="FEATURE_EXTRACTION")).point
    with pytest.raises(UserError, match=r"calls it 'model\.layers\.0\.self_attn\.q_proj'; .*\(AutoModel\)") as caught:
        attach_slot(AutoModelForCausalLM.from_pretrained(base_folder), None, [point], "base")
    assert "\n" not in str(caught.value)


def test_modules_that_the_base_lacks_or_that_are_no_linear_layers_are_named(saved, base_folder):
    base = AutoModelForCausalLM.from_pretrained(base_folder)
    point = load_adapter(saved()).point
    for old, new, named in (
        ("self_attn.q_proj", "attention.wq", "the base has none of that name"),
        ("self_attn.q_proj", "input_layernorm", "it is a LlamaRMSNorm"),
    ):
        with pytest.raises(UserError, match=named):
            attach_slot(base, None, [{k.replace(old, new): v for k, v in point.items()}], "base")


@pytest.fixture(autouse=True)
def warnings_are_seen(caplog):
    caplog.set_level(logging.WARNING, logger="mcanalysis")
