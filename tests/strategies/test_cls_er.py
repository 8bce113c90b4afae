"""CLS-ER against NumPy and one unpadded example at a time: teachers, their logits, and the two averages."""

import json
from random import Random
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mcanalysis.errors import UserError
from mcanalysis.models.adapter_files import load_adapter
from mcanalysis.models.encoding import EncodedExample, collate
from mcanalysis.strategies import make_strategy
from mcanalysis.strategies.cls_er import ClsEr, ClsErConfig
from mcanalysis.strategies.strategy import Step, Totals
from mcanalysis.training.config import TrainingConfig
from mcanalysis.training.continual_trainer import ContinualTrainer


def numbers(point):
    return {k: v.detach().double().numpy().copy() for k, v in point.items()}


@pytest.fixture
def three(make_model, random_point):
    """A model, and a strategy whose averages are somewhere else."""
    model = make_model(alpha=12.0, target_modules=("all-linear",))
    model.load_point(random_point(model, 1))
    strategy = make_strategy("cls_er", seed=0)
    strategy.begin(model, 2)
    strategy.plastic, strategy.stable = random_point(model, 2), random_point(model, 3)
    return model, strategy


@pytest.fixture
def current(encode_examples):
    return encode_examples(3, seed=1)


@pytest.fixture
def replay(encode_examples):
    return encode_examples(6, seed=2)


def answer_logits(network, example):
    ids = torch.tensor([example.prompt_ids + example.answer_ids])
    with torch.no_grad():
        return network(input_ids=ids).logits[0, len(example.prompt_ids) - 1 : -1].double().numpy()


def log_p(logits, example):
    """The sum over the answer's tokens of the log-probability, in NumPy."""
    top = logits.max(-1, keepdims=True)
    log_sum = np.log(np.exp(logits - top).sum(-1)) + top[:, 0]
    return float((logits[np.arange(len(logits)), list(example.answer_ids)] - log_sum).sum())


def expected_loss(fast, plastic, stable, current, replay, weight=0.1):
    """The loss by hand, and how many examples the stable one teaches."""
    nll = -sum(log_p(answer_logits(fast, e), e) for e in [*current, *replay])
    gaps, num_stable = [], 0
    for e in replay:
        by_plastic, by_stable = answer_logits(plastic, e), answer_logits(stable, e)
        is_stable = log_p(by_stable, e) > log_p(by_plastic, e)
        num_stable += is_stable
        gaps.append(answer_logits(fast, e) - (by_stable if is_stable else by_plastic))
    mse = float((np.concatenate(gaps) ** 2).mean())
    return nll / sum(len(e.answer_ids) for e in [*current, *replay]) + weight * mse, num_stable


@pytest.mark.parametrize("weight", [0.1, 2.0])
def test_the_loss_is_one_mean_and_the_gap_to_each_examples_better_teacher(
    three, current, replay, plain_model_at, make_step, weight
):
    model, strategy = three
    strategy.config = ClsErConfig(consistency_weight=weight)
    networks = [plain_model_at(p) for p in (model.point(), strategy.plastic, strategy.stable)]
    expected, num_stable = expected_loss(*networks, current, replay, weight)
    assert 0 < num_stable < len(replay)  # both teach
    assert strategy.loss(make_step(model, current, replay)).item() == pytest.approx(expected, rel=1e-5)


def test_without_replay_it_is_the_cross_entropy(three, current, make_step):
    model, strategy = three
    step = make_step(model, current)
    assert strategy.loss(step).item() == pytest.approx(make_strategy("sequential", 0).loss(step).item(), rel=1e-6)


def test_the_current_rows_have_no_teacher(three, replay, encode_examples, make_step):
    model, strategy = three
    gaps = []
    for seed in (5, 6):
        step = make_step(model, encode_examples(3, seed=seed), replay)
        off = make_strategy("cls_er", seed=0, consistency_weight=0.0)
        gaps.append(strategy.loss(step).item() - off.loss(step).item())
    assert gaps[0] > 1e-3
    assert gaps[0] == pytest.approx(gaps[1], rel=1e-4)


def test_replayed_rows_beside_much_longer_ones(three, replay, plain_model_at, make_step):
    model, strategy = three
    word = replay[0].prompt_ids[0]
    current = [EncodedExample((word,), (word,) * 60)]
    networks = [plain_model_at(p) for p in (model.point(), strategy.plastic, strategy.stable)]
    expected, _ = expected_loss(*networks, current, replay)
    assert strategy.loss(make_step(model, current, replay)).item() == pytest.approx(expected, rel=1e-5)


def test_teachers_get_no_gradient_and_fast_gets_that_of_the_loss(three, current, replay, make_step, check_gradient):
    model, strategy = three
    for teacher in (strategy.plastic, strategy.stable):
        for tensor in teacher.values():
            tensor.requires_grad_()
    step = make_step(model, current, replay)
    strategy.loss(step).backward()
    assert all(t.grad is None for p in (strategy.plastic, strategy.stable) for t in p.values())
    check_gradient(model, lambda: strategy.loss(step))


def test_teachers_answer_without_dropout(three, current, replay, make_step, monkeypatch):
    model, strategy = three
    seen, forward_at = [], model.forward_at
    monkeypatch.setattr(model, "forward_at", lambda *a, **k: seen.append(model.peft.training) or forward_at(*a, **k))
    model.peft.train()
    strategy.loss(make_step(model, current, replay))
    assert seen == [False, False]
    assert model.peft.training
    model.peft.eval()


def test_parts_of_a_batch_add_up(three, encode_examples):
    model, strategy = three
    current, replay = encode_examples(4, seed=1), encode_examples(4, seed=2)
    totals = Totals(
        sum(len(e.answer_ids) for e in current), sum(len(e.answer_ids) for e in replay), sum(len(e) for e in replay)
    )

    def loss(rows):
        batch = collate([*current[rows], *replay[rows]], 0)
        return strategy.loss(Step(model.peft, model, batch, len(current[rows]), totals)).item()

    assert loss(slice(0, 1)) + loss(slice(1, 4)) == pytest.approx(loss(slice(0, 4)), rel=1e-5)


# --- the two averages


class Recorded(ClsEr):
    def begin(self, model, num_tasks):
        super().begin(model, num_tasks)
        self.start, self.fast = numbers(model.point()), []

    def after_step(self, model, examples, first_pass):
        super().after_step(model, examples, first_pass)
        self.fast.append(numbers(model.point()))


def averages(start, fasts, seed, plastic=(0.999, 0.9), stable=(0.999, 0.7)):
    """(plastic, stable) by NumPy: two draws per step, and a ramp that counts steps."""
    rng, both = Random(f"cls_er/{seed}"), [start, start]
    for k, fast in enumerate(fasts, start=1):
        for i, (top, probability) in enumerate((plastic, stable)):
            if rng.random() < probability:
                decay = min(1 - 1 / (k + 1), top)
                both[i] = {n: decay * both[i][n] + (1 - decay) * fast[n] for n in fast}
    return both


@pytest.mark.parametrize(
    ("settings", "how"),
    [
        ({}, {}),
        (
            {"plastic_decay": 0.8, "stable_decay": 0.9, "plastic_probability": 0.6, "stable_probability": 0.3},
            {"plastic": (0.8, 0.6), "stable": (0.9, 0.3)},
        ),
    ],
    ids=["default", "others"],
)
def test_the_averages_follow_the_recursion_over_the_whole_sequence(make_model, make_tasks, tmp_path, settings, how):
    strategy, model = Recorded(ClsErConfig(**settings), seed=4), make_model(alpha=12.0)
    config = TrainingConfig(num_steps=8, batch_size=4, learning_rate=1e-2, max_length=128)
    ContinualTrainer(model, make_tasks(num_test=1), strategy, config, tmp_path / "run").run()
    assert len(strategy.fast) == 16
    for label, steps in (("1-zeta", 8), ("2-alpha", 16)):
        plastic, stable = averages(strategy.start, strategy.fast[:steps], 4, **how)
        for learner, expected in (("fast", strategy.fast[steps - 1]), ("slow", stable), ("plastic", plastic)):
            got = numbers(load_adapter(tmp_path / "run" / "minima" / label / learner).point)
            for name in expected:
                np.testing.assert_allclose(got[name], expected[name], rtol=2e-5, atol=2e-6)
    assert max(np.abs(plastic[k] - stable[k]).max() for k in plastic) > 1e-4
    assert strategy.answering_learner == "slow"


def test_each_average_is_updated_as_often_as_its_probability_says():
    parameters = {"q.lora_A.weight": torch.ones(1, 1), "q.lora_B.weight": torch.ones(1, 1)}
    model = SimpleNamespace(
        parameters=parameters, scaling={"q": 1.0}, point=lambda: {k: torch.zeros(1, 1) for k in parameters}
    )
    strategy, counts, number = ClsEr(ClsErConfig(plastic_decay=0.5, stable_decay=0.5), seed=1), [0, 0], 4000
    strategy.begin(model, 1)
    for _ in range(number):
        before = [p["q.lora_A.weight"].zero_() for p in (strategy.plastic, strategy.stable)]
        strategy.after_step(model, [], [])
        for i, tensor in enumerate(before):
            assert tensor.item() in (0.0, 0.5)
            counts[i] += tensor.item() == 0.5
    for count, p in zip(counts, (0.9, 0.7), strict=True):
        assert abs(count / number - p) < 4 * (p * (1 - p) / number) ** 0.5


def test_averages_start_as_copies_of_fast_and_persist(make_model, random_point):
    model = make_model(alpha=12.0)
    model.load_point(random_point(model))
    strategy = make_strategy("cls_er", seed=0)
    strategy.begin(model, 2)
    fast = model.point()
    for point in (strategy.plastic, strategy.stable):
        assert all(torch.equal(point[k], fast[k]) for k in fast)
    model.load_point(random_point(model, 5))
    for k in range(2):
        strategy.begin_task(model, k, [])
        strategy.end_task(model, [])
    assert all(torch.equal(strategy.stable[k], fast[k]) for k in fast)


# --- in a run


def test_four_times_four_is_sixteen(make_model, encode_examples, four_times_four, random_point):
    def start():
        model = make_model(alpha=12.0)
        model.load_point(random_point(model, 1))
        strategy = make_strategy("cls_er", seed=0, memory_size=40)
        strategy.begin(model, 2)
        strategy.begin_task(model, 1, [])
        strategy.rehearsal.remember(encode_examples(40, seed=7), [True] * 40, 0)
        strategy.plastic, strategy.stable = random_point(model, 2), random_point(model, 3)
        return model, strategy

    four_times_four(
        start, lambda model, cls_er: {**model.point(), **{f"stable.{k}": v for k, v in cls_er.stable.items()}}
    )


def test_replay_starts_with_the_second_task_or_at_once(make_model, encode_examples, train_task):
    for at_once, expected in ((False, [0, 0]), (True, [0, 4])):
        model, seen = make_model(), []
        strategy = make_strategy("cls_er", seed=0, replay_from_first_step=at_once)
        strategy.begin(model, 2)
        strategy.begin_task(model, 0, [])
        loss = strategy.loss
        strategy.loss = lambda step, seen=seen, loss=loss: seen.append(step.num_replay) or loss(step)
        train_task(model, strategy, encode_examples(8), num_steps=2)
        assert seen == expected
        assert strategy.rehearsal.buffer.num_seen == 8


def test_the_state_round_trips(make_model, random_point, encode_examples):
    model, config = make_model(), ClsErConfig(memory_size=3)
    strategy, other = ClsEr(config, seed=0), ClsEr(config, seed=9)
    strategy.begin(model, 2)
    strategy.begin_task(model, 0, [])
    for seed in range(3):
        model.load_point(random_point(model, seed))
        strategy.after_step(model, encode_examples(4, seed), [True] * 4)
    tensors, values = strategy.state()
    other.begin(model, 2)
    other.load_state(model, {k: v.clone() for k, v in tensors.items()}, json.loads(json.dumps(values)))
    for s in (strategy, other):
        s.begin_task(model, 1, [])
        for seed in range(5, 15):
            model.load_point(random_point(model, seed))
            s.after_step(model, encode_examples(4, 8), [True] * 4)
    for ours, theirs in ((strategy.plastic, other.plastic), (strategy.stable, other.stable)):
        assert all(torch.equal(ours[k], theirs[k]) for k in ours)
    assert strategy.num_steps == other.num_steps == 13
    assert strategy.draw_replay(3) == other.draw_replay(3)


def test_weights_in_low_precision_and_dropout(make_model, encode_examples, train_task):
    model = make_model(dtype="bfloat16", dropout=0.1)
    strategy = make_strategy("cls_er", seed=0, replay_from_first_step=True)
    strategy.begin(model, 1)
    strategy.begin_task(model, 0, [])
    start = model.point()
    train_task(model, strategy, encode_examples(8), num_steps=3)
    moved = model.point()
    assert all(v.dtype == torch.float32 for v in (*moved.values(), *strategy.stable.values()))
    assert all(not torch.equal(start[k], moved[k]) for k in start if ".lora_B." in k)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("plastic_decay", 1.1),
        ("stable_decay", -0.1),
        ("plastic_probability", 2.0),
        ("stable_probability", -1.0),
        ("consistency_weight", -0.1),
        ("memory_size", 0),
    ],
)
def test_impossible_settings_are_refused_by_name(setting, value):
    with pytest.raises(UserError, match=setting):
        make_strategy("cls_er", seed=0, **{setting: value})


def test_published_defaults():
    c = ClsErConfig()
    assert (c.consistency_weight, c.plastic_decay, c.stable_decay) == (0.1, 0.999, 0.999)
    assert (c.plastic_probability, c.stable_probability, c.memory_size) == (0.9, 0.7, 500)
