"""The slow adapter of I-LoRA against a NumPy recursion over the recorded fast points."""

import numpy as np
import pytest
import torch

from mcanalysis.models.adapter_files import load_adapter
from mcanalysis.strategies.ilora import Ilora, IloraConfig
from mcanalysis.training.config import TrainingConfig
from mcanalysis.training.continual_trainer import ContinualTrainer


class RecordedIlora(Ilora):
    """Keeps where slow began, the fast point after every step, and how slow stood when each task began."""

    def begin(self, model, num_tasks):
        super().begin(model, num_tasks)
        self.fast_at_start = numbers(model.point())
        self.slow_at_start = numbers(self.slow)
        self.fast, self.slow_at_task = [], []

    def begin_task(self, model, task_index, examples):
        super().begin_task(model, task_index, examples)
        self.slow_at_task.append(numbers(self.slow))

    def after_step(self, model, examples, first_pass):
        self.fast.append(numbers(model.point()))
        super().after_step(model, examples, first_pass)
        assert all(np.array_equal(v, self.fast[-1][k]) for k, v in numbers(model.point()).items())


def numbers(point):
    return {k: v.detach().double().numpy().copy() for k, v in point.items()}


def recursion(start, fasts, ema_decay):
    slow = {k: v.copy() for k, v in start.items()}
    for k, fast in enumerate(fasts, start=1):
        decay = min(1 - 1 / (k + 1), ema_decay)
        slow = {name: decay * slow[name] + (1 - decay) * fast[name] for name in slow}
    return slow


def assert_close(got, expected):
    for name in expected:
        np.testing.assert_allclose(got[name], expected[name], rtol=2e-5, atol=2e-6)


@pytest.fixture
def trained(make_model, make_tasks, tmp_path):
    def run(names=("zeta", "alpha"), num_steps=5, **settings):
        strategy = RecordedIlora(IloraConfig(**settings), seed=0)
        model = make_model(alpha=12.0)
        config = TrainingConfig(num_steps=num_steps, batch_size=4, learning_rate=1e-2, max_length=128)
        ContinualTrainer(model, make_tasks(names, num_test=1), strategy, config, tmp_path / "run").run()
        return strategy, model, tmp_path / "run"

    return run


@pytest.mark.parametrize("ema_decay", [0.8, 0.25, 0.999])
def test_slow_is_the_average_of_the_fast_points_over_the_whole_sequence(trained, ema_decay):
    strategy, _, run = trained(ema_decay=ema_decay)
    assert len(strategy.fast) == strategy.num_updates == 10
    start = strategy.slow_at_start
    assert_close(numbers(strategy.slow), recursion(start, strategy.fast, ema_decay))
    for label, steps in (("1-zeta", 5), ("2-alpha", 10)):
        saved = {n: numbers(load_adapter(run / "minima" / label / n).point) for n in ("fast", "slow")}
        assert_close(saved["fast"], strategy.fast[steps - 1])
        assert_close(saved["slow"], recursion(start, strategy.fast[:steps], ema_decay))
    moved = max(np.abs(strategy.fast[-1][k] - start[k]).max() for k in start)
    apart = max(np.abs(numbers(strategy.slow)[k] - strategy.fast[-1][k]).max() for k in start)
    assert moved > 1e-3
    assert apart > 1e-4  # slow averages, it is not fast


def test_slow_starts_as_an_exact_copy_of_fast_and_not_at_the_base(trained):
    strategy, _, _ = trained(num_steps=1)
    for name, value in strategy.slow_at_start.items():
        assert np.array_equal(value, strategy.fast_at_start[name])
        assert value.any() == (".lora_A." in name)


def test_slow_starts_from_the_fast_adapter_wherever_that_stands(make_model, random_point):
    model = make_model(alpha=12.0)
    model.load_point(random_point(model))
    strategy = Ilora(IloraConfig(), seed=0)
    strategy.begin(model, 2)
    fast = model.point()
    assert all(torch.equal(strategy.slow[k], fast[k]) for k in fast)
    assert all(strategy.slow[k].data_ptr() != p.data_ptr() for k, p in model.parameters.items())


def test_slow_persists_at_a_task_boundary_unless_asked_to_be_reset(trained):
    strategy, _, _ = trained(ema_decay=0.9)
    assert_close(strategy.slow_at_task[1], recursion(strategy.slow_at_start, strategy.fast[:5], 0.9))


def test_reset_overwrites_slow_with_fast_when_a_later_task_begins(trained):
    strategy, _, _ = trained(ema_decay=0.9, reset_at_task=True)
    assert_close(strategy.slow_at_task[1], strategy.fast[4])


@pytest.mark.parametrize("names", [("C-STANCE", "FOMC"), ("FOMC", "C-STANCE"), ("x", "0")])
def test_no_name_of_a_task_means_anything(trained, names):
    strategy, _, run = trained(names=names, num_steps=2, ema_decay=0.7)
    assert_close(numbers(strategy.slow), recursion(strategy.slow_at_start, strategy.fast, 0.7))
    assert sorted(p.name for p in (run / "minima").iterdir()) == [f"1-{names[0]}", f"2-{names[1]}"]


def test_the_answering_learner_is_a_setting():
    assert Ilora(IloraConfig(), 0).answering_learner == "slow"
    assert Ilora(IloraConfig(answering="fast"), 0).answering_learner == "fast"


def test_the_state_round_trips(make_model, random_point, encode_examples):
    model = make_model()
    strategy = Ilora(IloraConfig(memory_size=3), seed=0)
    strategy.begin(model, 2)
    strategy.begin_task(model, 0, [])
    for seed in range(3):
        model.load_point(random_point(model, seed))
        strategy.after_step(model, encode_examples(4, seed), [True] * 4)
    tensors, values = strategy.state()
    other = Ilora(IloraConfig(memory_size=3), seed=9)
    other.begin(model, 2)
    other.load_state(model, {k: v.clone() for k, v in tensors.items()}, values)
    for s in (strategy, other):
        s.begin_task(model, 1, [])
        model.load_point(random_point(model, 5))
        s.after_step(model, encode_examples(4, 8), [True] * 4)
    assert all(torch.equal(strategy.slow[k], other.slow[k]) for k in strategy.slow)
    assert strategy.num_updates == other.num_updates == 4
    assert strategy.draw_replay(3) == other.draw_replay(3)
