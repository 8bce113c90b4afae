"""Gradient checkpointing: activations are computed again, and nothing else changes."""

import warnings

import pytest
import torch

from mcanalysis.errors import UserError
from mcanalysis.evaluation.engine import Engine
from mcanalysis.evaluation.objective import make_objective
from mcanalysis.models.adapter_files import LoraSettings
from mcanalysis.models.encoding import collate
from mcanalysis.models.lora_model import LoraModel
from mcanalysis.strategies import make_strategy
from mcanalysis.tasks.task import Task, TaskData
from mcanalysis.training import task_trainer
from mcanalysis.training.config import Execution, TrainingConfig
from mcanalysis.training.task_trainer import TaskTrainer

ATTENTION = {"llama": "self_attn", "gpt2": "attn", "gpt_neox": "attention", "gemma2": "self_attn", "opt": "self_attn"}
WITH, WITHOUT = Execution(gradient_checkpointing=True), Execution()


@pytest.fixture
def trained(tiny_base, tokenizer, encode_examples, tmp_path):
    """trained(architecture, execution, name="er") -> (trainer, passes of the first block's attention in training)."""

    def run(architecture, execution, name="er", base=None, **lora):
        base = base or tiny_base(architecture)
        model = LoraModel.attach(base, tokenizer, LoraSettings(4, **lora), 0, architecture)
        strategy = make_strategy(name, 0, replay_from_first_step=True)
        strategy.begin(model, 2)
        strategy.begin_task(model, 1, [])
        strategy.rehearsal.remember(encode_examples(6, seed=9), [True] * 6, 0)
        config = TrainingConfig(
            num_steps=3, batch_size=2, gradient_accumulation=2, warmup_ratio=0.0, learning_rate=1e-2
        )
        attention = next(m for n, m in base.named_modules() if n.endswith("0." + ATTENTION[architecture]))
        passes = []
        hook = attention.register_forward_hook(lambda module, *_: passes.append(module.training))
        arguments = (model, strategy, encode_examples(12), "zeta", config, "0", str(tmp_path / "scratch"))
        trainer = TaskTrainer(*arguments, execution=execution)
        trainer.train()
        hook.remove()
        return trainer, sum(passes)

    return run


@pytest.mark.parametrize("architecture", ATTENTION)
@pytest.mark.parametrize("name", ["er", "ilora"])
def test_losses_and_adapters_are_those_without_it_and_every_block_is_computed_twice(name, architecture, trained):
    """Some of these bases drop a tenth in training: the second pass must draw the same masks."""
    plain, once = trained(architecture, WITHOUT, name)
    checkpointed, twice = trained(architecture, WITH, name)
    assert once == 3 * 2  # micro-batches; the pass of the slow adapter is in evaluation mode and has no gradient
    assert twice == 2 * once
    assert checkpointed.losses == plain.losses
    assert len(set(plain.losses)) == 3
    ours, theirs = checkpointed.adapted.point(), plain.adapted.point()
    assert all(torch.equal(ours[k], theirs[k]) for k in theirs)
    assert all(bool((v != 0).any()) for v in ours.values())  # B has left zero, so gradients came through


def test_lora_dropout_draws_the_same_masks_again(trained):
    runs = [trained("llama", execution, dropout=0.3)[0] for execution in (WITHOUT, WITH)]
    assert runs[0].losses == runs[1].losses
    points = [run.adapted.point() for run in runs]
    assert all(torch.equal(points[0][k], points[1][k]) for k in points[0])


def test_a_second_task_and_the_evaluation_after_it_work_as_without(trained, make_examples, tokenizer):
    results = []
    for execution in (WITHOUT, WITH):
        first = trained("gpt2", execution)[0]
        model, strategy = first.adapted, first.strategy
        examples = first.train_dataset[0].current + first.train_dataset[1].current
        config = TrainingConfig(num_steps=2, batch_size=2)
        second = TaskTrainer(
            model, strategy, examples, "alpha", config, "1", first.args.output_dir, execution=execution
        )
        second.train()
        data = TaskData.of(Task("zeta", "en", "exact_match", 5), {"test": make_examples(4)})
        evaluation = Engine(model).evaluate(model.point(), [make_objective(data, "test", tokenizer)])[0]
        results.append((second.losses, evaluation.outputs, evaluation.measurement.nll.tolist()))
    assert results[0] == results[1]


@pytest.mark.parametrize("with_frozen", [False, True])
def test_the_gradient_at_another_point_is_taken_at_that_point(with_frozen, make_model, encode_examples, random_point):
    """The backward pass comes when the trainable adapter, and the fixed part, are back in place."""
    batch = collate(encode_examples(3), padding=0)
    gradients = []
    for checkpointing in (False, True):
        model = make_model()
        model.load_point(random_point(model, 1))
        if with_frozen:
            model.freeze(random_point(model, 2))
        model.peft.train()
        if checkpointing:
            _enable(model.base)
        leaves = {k: v.requires_grad_() for k, v in random_point(model, 3).items()}
        loss = model.forward_at(leaves, batch).nll.sum()
        gradients.append(torch.autograd.grad(loss, list(leaves.values())))
        assert any(getattr(m, "gradient_checkpointing", False) for m in model.base.modules()) == checkpointing
    for without, with_ in zip(*gradients, strict=True):
        torch.testing.assert_close(with_, without, rtol=1e-6, atol=1e-6)


def _enable(base):
    getattr(base, "activation_checkpointing_enable", base.gradient_checkpointing_enable)()


@pytest.mark.parametrize("execution", [WITHOUT, WITH], ids=["off", "on"])
def test_no_deprecated_name_is_used(execution, trained):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trained("llama", execution)
    assert not [w for w in caught if "checkpointing" in str(w.message)]


@pytest.mark.parametrize("known", ["activation_checkpointing", "gradient_checkpointing"])
def test_the_trainer_is_asked_by_the_name_its_version_knows(known, make_model, monkeypatch):
    """transformers renamed the setting between 5.17 and 5.23."""

    class Arguments:
        __dataclass_fields__ = dict.fromkeys([known, "gradient_checkpointing"])

    monkeypatch.setattr(task_trainer, "TrainingArguments", Arguments)
    expected = {known: True, f"{known}_kwargs": {"use_reentrant": False}}
    assert task_trainer._checkpointing(make_model()) == expected


def test_a_base_that_cannot_compute_again_is_refused(trained, tiny_base, monkeypatch):
    base = tiny_base("llama")
    monkeypatch.setattr(type(base), "supports_gradient_checkpointing", False)
    with pytest.raises(UserError, match="LlamaForCausalLM, which cannot"):
        trained("llama", WITH, base=base)
    trained("llama", WITHOUT, base=tiny_base("llama"))


def test_what_is_kept_for_the_backward_pass_is_less(make_model, encode_examples):
    kept = []
    for checkpointing in (False, True):
        model = make_model()
        model.peft.train()
        if checkpointing:
            _enable(model.base)
        sizes = {}
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, sizes=sizes: sizes.__setitem__(t.data_ptr(), t.numel()) or t, lambda t: t
        ):
            model.forward(collate(encode_examples(8), padding=0))
        kept.append(sum(sizes.values()))
    assert kept[1] < kept[0] / 2
