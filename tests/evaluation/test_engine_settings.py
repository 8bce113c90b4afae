"""What can be forced, what is chosen, and what happens when memory runs out."""

import gc
import logging
from dataclasses import replace

import numpy as np
import pytest
import torch

from mcanalysis.errors import UserError
from mcanalysis.evaluation import engine as engine_module
from mcanalysis.evaluation.batch_plan import longest, plan_readings
from mcanalysis.evaluation.engine import Engine, EngineSettings
from mcanalysis.evaluation.objective import make_objective
from mcanalysis.tasks.task import Example, Task, TaskData

INSTRUCTION = "colour of the north river stone and of the quiet paper: "


@pytest.fixture
def objectives(tokenizer, make_examples):
    def make(name, start, seed):
        examples = [Example(start + e.prompt, e.answer) for e in make_examples(7, seed)]
        return make_objective(TaskData.of(Task(name, "en", "exact_match", 5), {"test": examples}), "test", tokenizer)

    return [make("zeta", INSTRUCTION, 1), make("alpha", "", 2)]


def test_auto_merges_in_float32_and_shares_what_is_worth_it(make_model, objectives):
    chosen = Engine(make_model()).choices(objectives)
    assert chosen["adapter"] == "merged" and chosen["token_budget"] == 2048 and chosen["compile"] is False
    shared = chosen["shared_prefix_tokens"]
    assert shared["zeta"] > 8 and shared["alpha"] == 0
    assert Engine(make_model(dtype="bfloat16")).choices(objectives)["adapter"] == "unmerged"


@pytest.mark.parametrize("share", [None, True, False])
@pytest.mark.parametrize("budget", [60, 200, 5000])
def test_every_example_is_read_once_within_the_budget(objectives, share, budget):
    readings = plan_readings(objectives, budget, share, 0, torch.device("cpu"))
    batches = [b for r in readings for b in r.batches]
    assert sorted(row for b in batches for row in b.rows) == list(range(14))
    assert all(b.input_ids.numel() <= budget for b in batches)
    pool = [e for o in objectives for e in o.encoded]
    for reading in readings:
        prefix = () if reading.prefix_ids is None else tuple(reading.prefix_ids[0].tolist())
        for batch in reading.batches:
            for i, row in enumerate(batch.rows):
                whole = (*prefix, *batch.input_ids[i].tolist())
                wanted = pool[row].prompt_ids + pool[row].answer_ids[:-1]
                assert whole[: len(wanted)] == wanted
                assert tuple(batch.targets[batch.target_rows == i].tolist()) == pool[row].answer_ids


def test_a_budget_below_one_example_is_refused(make_model, objectives):
    needed = longest(objectives)
    Engine(make_model(), EngineSettings(token_budget=needed)).losses(make_model().point(), objectives)
    with pytest.raises(UserError, match=f"at least {needed}, the longest example, got {needed - 1}; raise it"):
        Engine(make_model(), EngineSettings(token_budget=needed - 1)).losses(make_model().point(), objectives)
    with pytest.raises(UserError, match="at least 1, got 0"):
        EngineSettings(token_budget=0)


def test_what_a_model_does_not_allow_is_refused(make_model):
    with pytest.raises(UserError, match="float32 or float64 weights to merge"):
        Engine(make_model(dtype="bfloat16"), EngineSettings(adapter="merged"))
    with pytest.raises(UserError, match="one of auto, merged, unmerged, got 'both'"):
        EngineSettings(adapter="both")  # type: ignore[arg-type]


def test_a_model_that_keeps_more_than_keys_and_values_shares_nothing(tokenizer, objectives):
    import transformers as t

    from mcanalysis.models.adapter_files import LoraSettings
    from mcanalysis.models.lora_model import LoraModel

    config = t.MambaConfig(vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, state_size=4)
    config.eos_token_id = tokenizer.eos_token_id
    settings = LoraSettings(2, target_modules=("in_proj",))
    model = LoraModel.attach(t.MambaForCausalLM(config).eval(), tokenizer, settings, 0, "mamba")
    assert not any(Engine(model).choices(objectives)["shared_prefix_tokens"].values())
    with pytest.raises(UserError, match="keys and values only"):
        Engine(model, EngineSettings(prefix="shared"))


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("can't allocate memory")])
def test_out_of_memory_halves_the_budget_says_so_once_and_changes_no_number(
    make_model, objectives, random_point, monkeypatch, caplog, error
):
    model = make_model()
    point = random_point(model)
    expected = Engine(model).losses(point, objectives)
    run_batch = engine_module.run_batch

    def hungry(network, batch, *rest):
        if batch.input_ids.numel() > 100:
            raise error
        return run_batch(network, batch, *rest)

    monkeypatch.setattr(engine_module, "run_batch", hungry)
    engine = Engine(model, EngineSettings(token_budget=200))
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            for found, wanted in zip(engine.losses(point, objectives), expected, strict=True):
                np.testing.assert_allclose(found.nll, wanted.nll, rtol=1e-5)
    assert [r.message for r in caplog.records] == ["Out of memory with 200 tokens at once: going on with 100."]


def test_a_budget_that_memory_has_lowered_is_no_mistake_of_the_users(make_model, objectives, monkeypatch):
    """What is evaluated next may have a longer example than what memory ran out on."""
    model = make_model()
    short = replace(objectives[1], examples=objectives[1].examples[:3], encoded=objectives[1].encoded[:3])
    most, run_batch = [longest([short])], engine_module.run_batch
    assert most[0] < longest(objectives)

    def hungry(network, batch, *rest):
        if batch.input_ids.numel() > most[0]:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return run_batch(network, batch, *rest)

    monkeypatch.setattr(engine_module, "run_batch", hungry)
    engine = Engine(model)
    engine.losses(model.point(), [short])
    most[0] = 10_000
    found = engine.losses(model.point(), objectives)
    for measured, expected in zip(found, Engine(model).losses(model.point(), objectives), strict=True):
        np.testing.assert_allclose(measured.nll, expected.nll, rtol=1e-5)


def test_batches_of_old_objectives_are_let_go(make_model, objectives, monkeypatch):
    monkeypatch.setattr(engine_module, "MOST_PLANS", 2)
    model = make_model()
    engine = Engine(model)
    for _ in range(5):
        engine.evaluate(model.point(), [replace(objectives[0])])
    gc.collect()
    assert len(engine._plans) == len(engine._scored) == 2


def test_no_memory_for_one_example_is_told_in_one_line(make_model, objectives, monkeypatch):
    def starving(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(engine_module, "run_batch", starving)
    with pytest.raises(UserError, match="Expected memory for one example of"):
        Engine(make_model()).losses(make_model().point(), objectives)


def test_another_error_is_not_taken_for_it(make_model, objectives, monkeypatch):
    def broken(*_):
        raise RuntimeError("shape mismatch")

    monkeypatch.setattr(engine_module, "run_batch", broken)
    with pytest.raises(RuntimeError, match="shape mismatch"):
        Engine(make_model()).losses(make_model().point(), objectives)


@pytest.mark.slow
def test_a_compiled_model_gives_the_same_losses_at_several_points(make_model, objectives, random_point):
    model = make_model()
    engine, plain = Engine(model, EngineSettings(compile=True)), Engine(model)
    for seed in range(3):
        point = random_point(model, seed)
        for found, wanted in zip(engine.evaluate(point, objectives), plain.evaluate(point, objectives), strict=True):
            np.testing.assert_allclose(found.measurement.nll, wanted.measurement.nll, rtol=1e-5, atol=1e-5)
            assert found.outputs == wanted.outputs
    assert "forward" not in vars(model.base.model)  # nothing is left behind
