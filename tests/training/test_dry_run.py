"""What a dry run foretells, against what a run does, against autograd, and against known sizes."""

import json
import random
import shutil
from dataclasses import replace

import pytest
import torch

from mcanalysis.errors import DataError, UserError
from mcanalysis.models.encoding import collate, encode_all
from mcanalysis.models.forward import forward
from mcanalysis.runs.general import pretraining_text
from mcanalysis.training import task_trainer
from mcanalysis.training.config import Execution, RunConfig, TrainingConfig
from mcanalysis.training.continual_trainer import train
from mcanalysis.training.dry_run import dry_run


@pytest.fixture(scope="module")
def tasks(make_tasks):
    return make_tasks(("zeta", "alpha", "mu"), num_train=14, num_test=3)


@pytest.fixture
def without_weights(base_folder, tmp_path):
    """The tiny base's folder without its weights."""
    folder = tmp_path / "weightless"
    shutil.copytree(base_folder, folder)
    for file in folder.glob("*.safetensors"):
        file.unlink()
    return folder


@pytest.mark.parametrize(
    ("name", "grouped"),
    [
        pytest.param(name, grouped, marks=pytest.mark.slow if (name, grouped) == ("er", False) else ())
        for name in ("sequential", "er", "joint")
        for grouped in (True, False)
    ],
)
def test_steps_and_tokens_are_those_of_the_run(name, grouped, run_config, tasks, tmp_path, monkeypatch):
    config = run_config(name, tasks=None)
    training = replace(config.training, num_steps=3, gradient_accumulation=2, group_by_length=grouped)
    config = replace(config, training=training)
    seen = []
    real = task_trainer.collate
    monkeypatch.setattr(task_trainer, "collate", lambda rows, pad: seen.append(rows) or real(rows, pad))
    train(config, tmp_path / "run", device="cpu", tasks=tasks)
    batches = [[len(e) for e in rows] for rows in seen]
    plan = dry_run(config, tasks=tasks)
    stages = plan.stages
    assert list(stages.task) == (["JOINT"] if name == "joint" else ["zeta", "alpha", "mu"])
    assert stages.steps.sum() == 9 and len(batches) == 18
    assert stages.replayed.sum() == sum(map(len, batches)) - 18 * 4 == (2 * 3 * 8 if name == "er" else 0)
    assert stages.padded_to_max.sum() == sum(map(len, batches)) * 128
    per_stage = len(batches) // len(stages)
    for k, stage in enumerate(stages.itertuples()):
        own = batches[k * per_stage : (k + 1) * per_stage]
        if not stage.replayed:  # what replay draws is an estimate
            assert stage.tokens == sum(map(sum, own))
            assert stage.padded == sum(len(b) * max(b) for b in own)
            if not grouped:
                assert stage.padded == stage.padded_ungrouped
        assert stage.epochs == pytest.approx(stage.steps * 8 / (42 if name == "joint" else 14))
    assert plan.num_trained == json.loads((tmp_path / "run/tables/cost.json").read_text())["num_trained"]


def test_answers_cuts_and_generations(run_config, tasks, tokenizer):
    config = replace(run_config("ilora"), training=TrainingConfig(num_steps=2, batch_size=4, max_length=9), num_test=2)
    plan = dry_run(config, tasks=tasks, general=tasks[:1])
    for task, stage in zip(tasks, plan.stages.itertuples(), strict=True):
        answers = [len(tokenizer(e.answer)["input_ids"]) + 1 for e in task.splits["train"]]
        prompts = [len(tokenizer(e.prompt)["input_ids"]) for e in task.splits["train"]]
        assert stage.longest_answer == max(answers)
        assert stage.answer_tokens == pytest.approx(sum(answers) / 14)
        assert stage.cut == sum(p + a > 9 for p, a in zip(prompts, answers, strict=True)) > 0
    # the base, then fast and slow after each of three tasks, on three tasks and the general one
    assert plan.generations == (1 + 2 * 3) * 4 * 2
    assert dry_run(config, tasks=tasks, general=[pretraining_text()]).generations == (1 + 2 * 3) * 3 * 2  # only read
    assert plan.cut_tests == sum(encode_all(t.splits["test"][:2], tokenizer, 9)[1] for t in [*tasks, tasks[0]])
    individual = dry_run(replace(config, strategy="individual"), tasks=tasks)
    assert individual.generations == 3 * 2 + 3 * 2  # each adapter answers its own task


def test_grouping_and_more_processes_leave_less_padding(run_config, make_tasks):
    tasks = make_tasks(("zeta",), num_train=200)
    config = replace(
        run_config(), training=TrainingConfig(num_steps=20, batch_size=8, max_length=128, group_by_length=True)
    )
    stage = dry_run(config, tasks=tasks).stages.iloc[0]
    assert stage.tokens < stage.padded < stage.padded_ungrouped < stage.padded_to_max
    two = dry_run(config, tasks=tasks, processes=2).stages.iloc[0]
    assert two.tokens == stage.tokens and two.padded < stage.padded
    with pytest.raises(UserError, match="3 processes can share, got 8"):
        dry_run(config, tasks=tasks, processes=3)


def test_nothing_is_read_but_shapes_and_nothing_is_written_or_drawn(run_config, tasks, without_weights, monkeypatch):
    monkeypatch.chdir(without_weights.parent)
    before = sorted(without_weights.parent.rglob("*")), random.getstate(), torch.get_rng_state()
    config = run_config("ilora")
    bare = dry_run(replace(config, model=str(without_weights)), tasks=tasks)
    assert sorted(without_weights.parent.rglob("*")) == before[0]
    assert random.getstate() == before[1] and torch.equal(torch.get_rng_state(), before[2])
    whole = dry_run(config, tasks=tasks)
    assert bare.num_parameters == whole.num_parameters and bare.memory == whole.memory
    assert bare.stages.equals(whole.stages)


def test_parameters_are_those_of_the_model(make_model, base_folder, run_config, tasks):
    model = make_model()
    plan = dry_run(run_config(), tasks=tasks)
    trained = sum(p.numel() for p in model.parameters.values())
    assert plan.num_trained == trained
    assert plan.num_parameters == sum(p.numel() for p in model.peft.parameters()) - trained
    assert plan.memory.base == 4 * plan.num_parameters
    assert plan.memory.trained == 16 * trained and plan.memory.learners == 0
    assert dry_run(run_config("ilora"), tasks=tasks).memory.learners == 4 * trained
    half = dry_run(replace(run_config(), dtype="bfloat16"), tasks=tasks)
    assert half.memory.base == 2 * plan.num_parameters and half.memory.trained == plan.memory.trained


@pytest.fixture
def llama(without_weights):
    """A folder that says it is Llama-2-7B."""
    from transformers import LlamaConfig

    config = LlamaConfig(
        vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32,
        dtype="float16",
    )  # fmt: skip
    config.save_pretrained(without_weights)
    return str(without_weights)


def test_seven_billion_parameters_are_planned_in_no_time(llama, tasks):
    config = RunConfig(model=llama, strategy="sequential", training=TrainingConfig(num_steps=1, max_length=128))
    plan = dry_run(config, tasks=tasks)
    assert plan.num_parameters == 6_738_415_616  # what Meta's model has
    assert plan.num_trained == 32 * 4 * 8 * (4096 + 4096)
    assert plan.memory.base == 2 * 6_738_415_616
    in_linear = 32 * (4 * 4096 * 4096 + 3 * 4096 * 11008)
    rest = 2 * (6_738_415_616 - in_linear)
    for bits, size in (("4bit", 0.516), ("8bit", 1.0)):
        assert dry_run(replace(config, quantization=bits), tasks=tasks).memory.base == int(rest + size * in_linear)


def test_checkpointing_keeps_less(llama, tasks):
    config = RunConfig(model=llama, strategy="er", training=TrainingConfig(num_steps=3, max_length=128))
    kept = dry_run(config, tasks=tasks).memory
    again = dry_run(config, Execution(gradient_checkpointing=True), tasks=tasks).memory
    assert again.activations < kept.activations / 10
    assert again.total < kept.total and again.base == kept.base
    dropped = dry_run(replace(config, lora_dropout=0.1), tasks=tasks).memory
    assert dropped.activations > kept.activations


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_activations_are_what_autograd_keeps(dtype, base_folder, run_config, tasks, make_model, encode_examples):
    """Within a fifth: the bytes of all distinct tensors saved for backward, but for the weights and the head's."""
    model = make_model(dtype=dtype)
    examples = encode_examples(14, "0/0")[:4]
    saved = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = (storage.nbytes(), tuple(tensor.shape))
        return tensor

    weights = {p.untyped_storage().data_ptr() for p in model.peft.parameters()}
    model.peft.train()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        result = forward(model.peft, collate(examples, 0))
        result.nll.sum()
    head = (len(model.tokenizer),)
    measured = sum(n for key, (n, shape) in saved.items() if key not in weights and shape[-1:] != head)
    plan = dry_run(replace(run_config(num_steps=1), dtype=dtype), tasks=[tasks[0].first({"train": 4})])
    assert plan.stages.padded[0] == 4 * max(map(len, examples))
    assert plan.memory.activations == pytest.approx(measured, rel=1 / 5)


def test_what_a_run_would_refuse_is_refused(run_config, tasks):
    with pytest.raises(UserError, match="LoRA-able layers"):
        dry_run(run_config(target_modules=("no_such_proj",)), tasks=tasks)
    with pytest.raises(DataError, match="Expected train examples for zeta"):
        dry_run(run_config(), tasks=[replace(tasks[0], splits={**tasks[0].splits, "train": ()})])
    with pytest.raises(UserError, match=r"Did you mean 'embedded'|model folder"):
        dry_run(replace(run_config(), model="./nowhere"), tasks=tasks)


def test_zero_shot_trains_nothing(run_config, tasks):
    plan = dry_run(run_config("zero_shot"), tasks=tasks)
    assert plan.num_trained == 0 and len(plan.stages) == 0 and plan.generations == 9
    assert plan.memory.activations == plan.memory.passing == 0
