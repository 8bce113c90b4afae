"""MC-SGD: the objective on the two lines, its gradient with the chain rule, the two phases, and several processes."""

import json
import os
import pickle
import socket
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from mcanalysis.errors import UserError
from mcanalysis.models.adapter_files import load_adapter
from mcanalysis.models.encoding import EncodedExample
from mcanalysis.strategies import make_strategy
from mcanalysis.strategies.mc_sgd import McSgd, McSgdConfig
from mcanalysis.training.config import Execution, TrainingConfig
from mcanalysis.training.continual_trainer import ContinualTrainer, train

REPOSITORY = Path(__file__).parents[2]


def numbers(point):
    return {k: v.detach().double().numpy().copy() for k, v in point.items()}


def on_line(start, end, alpha):
    return {k: start[k] + alpha * (end[k] - start[k]) for k in start}


@pytest.fixture
def second_phase(make_model, random_point):
    """second_phase(**settings) -> a model at w and a strategy in the second phase of the second task."""

    def make(model=None, **settings):
        model = model or make_model(alpha=12.0, target_modules=("all-linear",))  # scaling 3
        strategy = make_strategy("mc_sgd", seed=0, **settings)
        strategy.begin(model, 2)
        strategy.begin_task(model, 1, [])
        model.load_point(random_point(model, 1))
        strategy.begin_phase(model, 0)
        model.load_point(random_point(model, 2))
        strategy.begin_phase(model, 1)
        model.load_point(random_point(model, 3))
        return model, strategy

    return make


@pytest.fixture
def current(encode_examples):
    return encode_examples(3, seed=1)


@pytest.fixture
def replay(encode_examples):
    return encode_examples(4, seed=2)


# --- the objective


@pytest.mark.parametrize("num_alphas", [1, 2, 5])
def test_the_loss_is_the_mean_over_both_lines(
    second_phase, random_point, current, replay, alone, plain_model_at, make_step, num_alphas
):
    model, strategy = second_phase(num_alphas=num_alphas)
    old, task, here = (random_point(model, seed) for seed in (1, 2, 3))

    def cross_entropy(point, examples):
        network = plain_model_at(point)
        with torch.no_grad():
            return float(sum(alone(network, e)[0] for e in examples)) / sum(len(e.answer_ids) for e in examples)

    terms = []
    for k in range(1, num_alphas + 1):
        alpha = k / num_alphas
        terms.append(cross_entropy(on_line(old, here, alpha), replay) / 2)
        terms[-1] += cross_entropy(on_line(task, here, alpha), current) / 2
    loss = strategy.loss(make_step(model, current, replay)).item()
    assert loss == pytest.approx(sum(terms) / num_alphas, rel=1e-5)
    if num_alphas == 1:
        assert loss == make_strategy("er", seed=0).loss(make_step(model, current, replay)).item()


@pytest.mark.parametrize("with_replay", [True, False])
def test_the_gradient_has_the_factor_of_the_chain_rule(
    second_phase, random_point, current, replay, make_step, with_replay
):
    """Against autograd through w ↦ start + α(w − start), with functional calls."""
    model, strategy = second_phase(num_alphas=4)
    step = make_step(model, current, replay if with_replay else ())
    strategy.loss(step).backward()
    old, task = random_point(model, 1), random_point(model, 2)
    w = {k: v.requires_grad_() for k, v in model.point().items()}
    total = torch.zeros(())
    for alpha in (0.25, 0.5, 0.75, 1.0):
        on_current = model.forward_at(on_line(task, w, alpha), step.current_batch()).nll.sum()
        term = on_current / sum(len(e.answer_ids) for e in current)
        if with_replay:
            on_replay = model.forward_at(on_line(old, w, alpha), step.replay_batch()).nll.sum()
            term = (term + on_replay / sum(len(e.answer_ids) for e in replay)) / 2
        total = total + term / 4
    total.backward()
    for name, parameter in model.parameters.items():
        scaling = 3.0 if ".lora_B." in name else 1.0  # a point's B is three times the parameter
        expected = scaling * w[name].grad
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-4, atol=1e-6 * float(expected.abs().max()) + 1e-6)


def test_the_gradient_against_finite_differences(second_phase, current, replay, make_step, check_gradient):
    model, strategy = second_phase()
    step = make_step(model, current, replay)
    strategy.loss(step).backward()
    check_gradient(model, lambda: strategy.loss(step))


def test_the_loss_leaves_the_adapter_where_it_was(second_phase, current, replay, make_step):
    model, strategy = second_phase()
    before = {k: (p.data_ptr(), p.detach().clone()) for k, p in model.parameters.items()}
    strategy.loss(make_step(model, current, replay))
    for name, parameter in model.parameters.items():
        assert parameter.data_ptr() == before[name][0]
        assert torch.equal(parameter, before[name][1])
        assert parameter.grad is None


def test_rows_much_shorter_than_the_others(second_phase, random_point, replay, make_step):
    """Each line has a batch of its own, without the padding that only the other's rows asked for."""
    model, strategy = second_phase(num_alphas=2)
    word = replay[0].prompt_ids[0]
    long, short = [EncodedExample((word,), (word,) * 60)], replay
    halves = []
    for current, replayed in ((long, short), (long, long), (short, short), (short, long)):
        halves.append(strategy.loss(make_step(model, current, replayed)).item())
    assert halves[0] + halves[3] == pytest.approx(halves[1] + halves[2], rel=1e-5)


# --- the phases


class Recorded(McSgd):
    def __init__(self, config, seed=0):
        super().__init__(config, seed)
        self.at, self.drawn, self.losses, self.seen = {}, [], [], []

    def begin_phase(self, model, phase):
        self.at["before", self.task_index, phase] = numbers(model.point())
        super().begin_phase(model, phase)
        self.at["start", self.task_index, phase] = numbers(model.point())

    def end_task(self, model, examples):
        super().end_task(model, examples)
        self.at["end", self.task_index] = numbers(model.point())

    def draw_replay(self, number):
        drawn = super().draw_replay(number)
        self.drawn.append((self.task_index, self.phase, drawn))
        return drawn

    def after_step(self, model, examples, first_pass):
        super().after_step(model, examples, first_pass)
        self.seen.append((self.task_index, self.phase, list(examples)))


@pytest.fixture(scope="module")
def trained(make_model, make_tasks, tmp_path_factory):
    """trained(num_steps, **settings) -> the strategy of a run, not to be changed, and its directory: once for each."""

    @cache
    def run(num_steps=4, **settings):
        directory = tmp_path_factory.mktemp("trained") / "run"
        strategy = Recorded(McSgdConfig(**{"num_alphas": 2, **settings}))
        config = TrainingConfig(num_steps=num_steps, batch_size=4, learning_rate=1e-2, max_length=128)
        tasks = make_tasks(("zeta", "alpha", "mu"), num_train=10, num_test=1)
        ContinualTrainer(make_model(alpha=12.0), tasks, strategy, config, directory).run()
        return strategy, directory

    return run


def same(got, expected):
    return all(np.allclose(got[k], expected[k], rtol=1e-5, atol=1e-7) for k in expected)


def test_each_later_task_has_two_phases_between_the_right_points(trained):
    strategy, run = trained(init_position=0.25)
    at = strategy.at
    starts = [key[1:] for key in at if key[0] == "start"]
    assert starts == [(0, 0), (1, 0), (1, 1), (2, 0), (2, 1)]
    for k, name in enumerate(("1-zeta", "2-alpha", "3-mu")):
        saved = {n: numbers(load_adapter(run / "minima" / name / n).point) for n in strategy.learners}
        assert same(saved["fast"], at["end", k])
        if k == 0:
            assert same(saved["task_minimum"], saved["fast"])
            continue
        old, task = at["end", k - 1], at["before", k, 1]
        assert same(at["start", k, 0], old)
        assert same(saved["task_minimum"], task)
        assert same(at["start", k, 1], on_line(old, task, 0.25))
        assert not same(task, old) and not same(saved["fast"], at["start", k, 1])
        losses = json.loads((run / "losses" / f"{name}.json").read_text())
        assert len(losses) == 8
    assert strategy.answering_learner == "fast"


def test_the_first_phase_may_start_from_the_last_tasks_minimum(trained):
    strategy, _ = trained(start_from="task_minimum")
    at = strategy.at
    assert same(at["start", 1, 0], at["end", 0])
    assert same(at["start", 2, 0], at["before", 1, 1])
    assert not same(at["start", 2, 0], at["end", 1])
    assert same(at["start", 2, 1], on_line(at["end", 1], at["before", 2, 1], 0.25))


def test_only_the_second_phase_replays_and_only_earlier_tasks(trained):
    strategy, _ = trained(num_steps=5)
    tasks = {}
    for k, phase, examples in strategy.seen:
        for e in examples if phase == 0 else ():
            tasks.setdefault(e, k)
    for k, phase, drawn in strategy.drawn:
        assert len(drawn) == (4 if phase == 1 else 0)
        assert all(tasks[e] < k for e in drawn)
    assert {tasks[e] for k, _, drawn in strategy.drawn for e in drawn if k == 2} == {0, 1}


def test_each_example_is_remembered_once_though_gone_through_twice(trained):
    strategy, _ = trained(num_steps=5)  # two passes in each phase
    held = [i.example for i in strategy.rehearsal.buffer.items]
    assert strategy.rehearsal.buffer.num_seen == len(held) == len(set(held)) == 30


def test_a_memory_of_the_current_task_alone_replays_nothing(make_model, encode_examples):
    model, strategy = make_model(), make_strategy("mc_sgd", seed=0, memory_size=1)
    strategy.begin(model, 2)
    strategy.task_index, strategy.phase = 1, 1
    strategy.rehearsal.remember(encode_examples(1), [True], 1)
    assert strategy.draw_replay(4) == []


def test_steps_bring_the_objective_down(second_phase, current, replay, make_step):
    model, strategy = second_phase()
    step = make_step(model, current, replay)
    optimiser = torch.optim.AdamW(model.parameters.values(), 1e-2)
    values = []
    for _ in range(12):
        optimiser.zero_grad()
        loss = strategy.loss(step)
        loss.backward()
        optimiser.step()
        values.append(loss.item())
    assert values[-1] < 0.7 * values[0]


def test_four_times_four_is_sixteen(second_phase, make_model, encode_examples, four_times_four):
    def start():
        model, strategy = second_phase(make_model(alpha=12.0), memory_size=40)
        strategy.rehearsal.remember(encode_examples(40, seed=7), [True] * 40, 0)
        return model, strategy

    four_times_four(start)


def test_activations_that_are_computed_again_are_those_of_the_place(make_tasks, mean_apart, run_config, tmp_path):
    """Gradient checkpointing computes in the backward pass what the forward pass threw away."""
    tasks, config = make_tasks(num_train=8, num_test=1), run_config("mc_sgd", 2, strategy_settings={"num_alphas": 2})
    for name, again in (("kept", False), ("again", True)):
        execution = Execution(gradient_checkpointing=again)
        train(config, tmp_path / name, device="cpu", tasks=tasks, execution=execution)
    kept, again = (load_adapter(tmp_path / n / "minima" / "2-alpha" / "fast").point for n in ("kept", "again"))
    assert mean_apart(kept, again) < 0.01 * config.training.learning_rate


def test_weights_in_low_precision_and_dropout(make_model, second_phase, encode_examples, train_task, random_point):
    model, strategy = second_phase(make_model(dtype="bfloat16", dropout=0.1))
    strategy.rehearsal.remember(encode_examples(8, seed=7), [True] * 8, 0)
    train_task(model, strategy, encode_examples(8), num_steps=2)
    start, moved = random_point(model, 3), model.point()
    assert all(v.dtype == torch.float32 for v in moved.values())
    assert all(not torch.equal(start[k], moved[k]) for k in start)


# --- stopping and resuming


def test_the_state_round_trips(second_phase, make_model, encode_examples):
    model, strategy = second_phase(memory_size=9)
    strategy.rehearsal.remember(encode_examples(20), [True] * 20, 0)
    strategy.draw_replay(3)
    tensors, values = strategy.state()
    other = make_strategy("mc_sgd", seed=5, memory_size=9)
    other.begin(model, 2)
    other.load_state(model, {k: v.clone() for k, v in tensors.items()}, json.loads(json.dumps(values)))
    other.task_index = 1
    assert other.phase == 1
    assert [strategy.draw_replay(4) for _ in range(3)] == [other.draw_replay(4) for _ in range(3)]
    for ours, theirs in ((strategy.previous, other.previous), (strategy.minimum, other.minimum)):
        assert ours.keys() == theirs.keys() == model.parameters.keys()
        assert all(torch.equal(ours[k], theirs[k]) for k in ours)


@pytest.fixture(scope="module")
def whole(run_config, make_tasks, adapter_bytes, tmp_path_factory):
    """(configuration, tasks, bytes of an undisturbed run)."""
    tasks, config = make_tasks(num_train=10, num_test=1), run_config("mc_sgd", 4, strategy_settings={"num_alphas": 2})
    folder = tmp_path_factory.mktemp("mc_sgd") / "whole"
    train(config, folder, device="cpu", tasks=tasks)
    return config, tasks, adapter_bytes(folder)


# --- several processes

WORKER = """
import pickle, sys
import torch
from mcanalysis.training.continual_trainer import train

with open(sys.argv[1], "rb") as file:
    config, tasks, folder = pickle.load(file)
train(config, folder, device="cpu", tasks=tasks)
"""


@pytest.mark.slow  # training/test_two_processes.py trains this strategy, too, in make test
def test_two_processes_train_what_one_does(run_config, make_tasks, mean_apart, tmp_path):
    """Each computes half of the rows, on both lines; the gradients of all places are added up."""
    tasks = make_tasks(num_train=10, num_test=1)
    config = run_config("mc_sgd", 3, strategy_settings={"num_alphas": 3})
    train(config, tmp_path / "one", device="cpu", tasks=tasks)
    (tmp_path / "job").write_bytes(pickle.dumps((config, tasks, str(tmp_path / "two"))))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    workers = []
    for rank in ("0", "1"):
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        environment |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2"}
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        command = [sys.executable, "-c", WORKER, str(tmp_path / "job")]
        workers.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT))
    try:
        outputs = [w.communicate(timeout=600)[0].decode() for w in workers]
    finally:
        for w in workers:
            w.kill()
    assert [w.returncode for w in workers] == [0, 0], outputs[0][-2000:] + outputs[1][-2000:]
    for label in ("1-zeta", "2-alpha"):
        for learner in McSgd.learners:
            one, two = (load_adapter(tmp_path / n / "minima" / label / learner).point for n in ("one", "two"))
            assert mean_apart(one, two) < 0.01 * config.training.learning_rate
        losses = [json.loads((tmp_path / n / "losses" / f"{label}.json").read_text()) for n in ("one", "two")]
        assert losses[0] == pytest.approx(losses[1], rel=1e-4)


# --- settings


@pytest.mark.parametrize(
    ("setting", "value"),
    [("num_alphas", 0), ("init_position", 1.1), ("init_position", -0.1), ("start_from", "slow"), ("memory_size", 0)],
)
def test_impossible_settings_are_refused_by_name(setting, value):
    with pytest.raises(UserError, match=setting):
        make_strategy("mc_sgd", seed=0, **{setting: value})
