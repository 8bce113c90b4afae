"""One task's training: what is visited, accumulated and refused; nothing of it is hidden."""

import itertools
from collections import Counter

import pytest
import torch

from mcanalysis.errors import UserError
from mcanalysis.strategies import make_strategy
from mcanalysis.strategies.sequential import Sequential
from mcanalysis.strategies.strategy import StrategyConfig
from mcanalysis.training.data_order import steps_of_examples
from mcanalysis.training.task_trainer import TaskTrainer


def started(name, model, task_index=0, **settings):
    strategy = make_strategy(name, seed=0, **settings)
    strategy.begin(model, 2)
    strategy.begin_task(model, task_index, [])
    return strategy


class Scripted(Sequential):
    """Changes the loss of one step."""

    def __init__(self, at, change):
        super().__init__(StrategyConfig(), 0)
        self.at, self.change, self.calls = at, change, 0

    def loss(self, step):
        self.calls += 1
        loss = super().loss(step)
        return self.change(loss) if self.calls == self.at else loss


class Witness(Sequential):
    """Keeps the examples of every step."""

    def __init__(self):
        super().__init__(StrategyConfig(), 0)
        self.steps = []

    def after_step(self, model, examples, first_pass):
        self.steps.append((list(examples), list(first_pass)))


@pytest.mark.parametrize(("batch_size", "accumulation"), [(4, 1), (3, 2), (2, 4), (16, 1)])
def test_every_example_is_visited_once_per_pass(make_model, encode_examples, train_task, batch_size, accumulation):
    size = batch_size * accumulation
    examples, witness = encode_examples(11), Witness()
    train_task(
        make_model(),
        witness,
        examples,
        num_steps=11,
        batch_size=batch_size,
        gradient_accumulation=accumulation,
    )
    assert [len(step[0]) for step in witness.steps] == [size] * 11
    assert Counter(e for step in witness.steps for e in step[0]) == dict.fromkeys(examples, size)
    first = [e for step in witness.steps for e, first in zip(*step, strict=True) if first]
    assert sorted(map(hash, first)) == sorted(map(hash, examples))


def test_equal_examples_are_each_their_own(make_model, encode_examples, train_task):
    examples, witness = encode_examples(2) * 3, Witness()
    train_task(make_model(), witness, examples, num_steps=3, batch_size=2)
    assert all(f for step in witness.steps for f in step[1])


@pytest.mark.parametrize("group", [True, False])
def test_the_order_depends_on_seed_and_pass_and_on_no_global_state(group):
    lengths = [3 + (7 * i) % 13 for i in range(20)]

    def passes(seed, noise):
        torch.manual_seed(noise)
        steps = steps_of_examples(lengths, 15, 4, seed, group)
        return [[i for step in steps[k : k + 5] for i, _ in step] for k in (0, 5, 10)]

    assert passes("1", 1) == passes("1", 2)
    assert passes("1", 1) != passes("2", 1)
    orders = passes("1", 1)
    assert all(sorted(o) == list(range(20)) for o in orders)
    assert all(a != b for a, b in itertools.combinations(orders, 2))


@pytest.mark.parametrize("group", [True, False])
@pytest.mark.parametrize("number", [7, 16, 50])
def test_passes_run_into_each_other_without_a_loss(number, group):
    """Whatever the steps' size, after n draws every example has been drawn n // number times or once more."""
    lengths = [1 + (5 * i) % 11 for i in range(number)]
    steps = steps_of_examples(lengths, 24, 6, "x", group)
    drawn = [i for step in steps for i, _ in step]
    complete = len(drawn) // number * number
    assert set(Counter(drawn).values()) <= {complete // number, complete // number + 1}
    if number > 6:
        assert sum(len(set(i for i, _ in step)) < 6 for step in steps) <= len(drawn) // number
    assert sorted(i for step in steps for i, first in step if first) == list(range(number))


def test_grouping_by_length_saves_padding():
    from random import Random

    rng = Random(3)
    lengths = [rng.randrange(5, 200) for _ in range(640)]

    def padded(group):
        steps = steps_of_examples(lengths, 40, 16, "x", group)
        return sum(16 * max(lengths[i] for i, _ in s) for s in steps) / sum(lengths[i] for s in steps for i, _ in s)

    assert padded(True) < 1.1 < 1.5 < padded(False)


@pytest.mark.parametrize("name", ["sequential", "er", "ilora"])
def test_four_times_four_is_sixteen(make_model, encode_examples, four_times_four, random_point, name):
    """The adapter after three steps, with replay and consistency, whatever a step is cut into."""

    def start():
        model = make_model(alpha=12.0)
        model.load_point(random_point(model, 1))
        strategy = started(name, model, task_index=1, **({} if name == "sequential" else {"memory_size": 40}))
        if name != "sequential":
            strategy.rehearsal.remember(encode_examples(40, seed=7), [True] * 40, 0)
        if name == "ilora":
            strategy.slow = random_point(model, 2)
        return model, strategy

    def end(model, strategy):
        return {**model.point(), **{f"slow.{k}": v for k, v in getattr(strategy, "slow", {}).items()}}

    four_times_four(start, end)


def test_no_example_is_replayed_twice_within_one_step(make_model, encode_examples, train_task):
    model = make_model()
    strategy = started("er", model, task_index=1)
    strategy.rehearsal.remember(encode_examples(20, seed=7), [True] * 20, 0)
    replayed = []
    loss = strategy.loss
    strategy.loss = lambda step: replayed.append(step.replay_batch().input_ids) or loss(step)
    train_task(model, strategy, encode_examples(8), num_steps=1, batch_size=2, gradient_accumulation=4)
    rows = [tuple(i for i in r if i != model.tokenizer.pad_token_id) for b in replayed for r in b.tolist()]
    assert len(rows) == len(set(rows)) == 8


def test_every_step_has_its_loss_and_the_first_is_that_of_the_base(
    make_model, encode_examples, train_task, alone, plain_model_at
):
    examples = encode_examples(4)
    trainer = train_task(make_model(), started("sequential", make_model()), examples, num_steps=4, batch_size=4)
    with torch.no_grad():
        expected = sum(float(alone(plain_model_at(), e)[0]) for e in examples)
    assert trainer.losses[0] == pytest.approx(expected / sum(len(e.answer_ids) for e in examples), rel=1e-5)
    assert len(trainer.losses) == 4
    assert trainer.losses[-1] < trainer.losses[0]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_stops_with_step_and_task(make_model, encode_examples, train_task, bad):
    strategy = Scripted(3, lambda loss: loss * bad)
    with pytest.raises(UserError, match=r"step 3 of task zeta.*learning-rate"):
        train_task(make_model(), strategy, encode_examples(16), num_steps=4)
    assert strategy.calls == 3


def test_a_gradient_that_is_no_number_stops_even_in_the_last_step(make_model, encode_examples, train_task):
    def poisoned(loss):  # the value is finite, its derivative is not
        return loss + (loss - loss).sqrt()

    with pytest.raises(UserError, match="zeta"):
        train_task(make_model(), Scripted(2, poisoned), encode_examples(8), num_steps=2)


def test_gradients_are_clipped_as_by_the_trainer_itself(make_model, encode_examples, train_task, monkeypatch):
    def trained():
        model = make_model()
        train_task(model, started("er", model), encode_examples(16), num_steps=4, learning_rate=1e-2, max_grad_norm=0.1)
        return model.point()

    ours = trained()
    monkeypatch.delattr(TaskTrainer, "_clip_grad_norm")
    theirs = trained()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    monkeypatch.setattr(TaskTrainer, "_clip_grad_norm", lambda self, model: torch.zeros(()))
    assert not all(torch.equal(value, theirs[name]) for name, value in trained().items()), "it matters here"


def test_an_exception_in_the_loss_comes_through(make_model, encode_examples, train_task):
    def broken(loss):
        raise RuntimeError("broken on purpose")

    strategy = Scripted(2, broken)
    with pytest.raises(RuntimeError, match="broken on purpose"):
        train_task(make_model(), strategy, encode_examples(8), num_steps=3)
    assert strategy.calls == 2


def test_only_the_adapter_is_trained(make_model, encode_examples, train_task):
    model = make_model()
    before = {k: v.clone() for k, v in model.peft.state_dict().items()}
    train_task(model, started("sequential", model), encode_examples(8), learning_rate=1e-2)
    changed = {k for k, v in model.peft.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {k for k in before if ".lora_" in k}


def test_weights_in_low_precision_train_a_float32_adapter(make_model, encode_examples, train_task):
    model = make_model(dtype="bfloat16")
    strategy = started("ilora", model, replay_from_first_step=True)
    start = model.point()
    train_task(model, strategy, encode_examples(8), num_steps=2)
    moved = model.point()
    assert all(v.dtype == torch.float32 for v in (*moved.values(), *strategy.slow.values()))
    assert all(not torch.equal(start[k], moved[k]) for k in start if ".lora_B." in k)
