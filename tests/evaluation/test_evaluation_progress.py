"""How far an evaluation is: told batch by batch, in units that add up, whoever shows it."""

import pytest
import torch

from mcanalysis.evaluation import engine as engine_module
from mcanalysis.evaluation.batch_plan import STEP_TOKENS
from mcanalysis.evaluation.engine import Engine, EngineSettings
from mcanalysis.evaluation.objective import make_objective
from mcanalysis.models.encoding import cut_by_length
from mcanalysis.progress import Pace
from mcanalysis.tasks.task import Task, TaskData


class Recorder:
    """A progress that remembers its bars: total, words, updates, and whether each was closed."""

    def __init__(self):
        self.bars = []

    def __call__(self, *, total, desc):
        bar = _Recorded(total, desc)
        self.bars.append(bar)
        return bar


class _Recorded:
    def __init__(self, total, desc):
        self.total, self.desc, self.updates, self.is_closed = total, desc, [], False

    def update(self, n=1):
        self.updates.append(n)

    def close(self):
        self.is_closed = True


@pytest.fixture
def objective(tokenizer, make_examples):
    data = TaskData.of(Task("zeta", "en", "exact_match", 5), {"test": make_examples(15, 1)})
    return make_objective(data, "test", tokenizer)


def test_each_batch_moves_the_bar_by_its_tokens_and_the_writing_of_its_longest_answer(make_model, objective):
    recorder, engine = Recorder(), Engine(make_model(), EngineSettings(token_budget=40, prefix="whole"))
    engine.evaluate(engine.model.point(), [objective], recorder, "a point")
    (bar,) = recorder.bars
    assert bar.desc == "a point (tokens)" and bar.is_closed
    expected = []
    lengths = [len(e.prompt_ids) + len(e.answer_ids) - 1 for e in objective.encoded]
    for rows in cut_by_length(lengths, 40):
        answers = [len(objective.encoded[i].answer_ids) for i in rows]
        expected.append(len(rows) * max(lengths[i] for i in rows) + STEP_TOKENS * min(5, max(answers)))
    assert len(expected) > 3  # batches
    assert bar.updates == expected and bar.total == sum(expected) == engine.work([objective])


def test_when_memory_runs_out_the_bar_begins_anew(make_model, objective, monkeypatch):
    run_batch = engine_module.run_batch

    def hungry(network, batch, *rest):
        if batch.input_ids.numel() > 100:
            raise torch.OutOfMemoryError("out of memory")
        return run_batch(network, batch, *rest)

    monkeypatch.setattr(engine_module, "run_batch", hungry)
    recorder, model = Recorder(), make_model()
    Engine(model, EngineSettings(token_budget=200)).evaluate(model.point(), [objective], recorder)
    assert len(recorder.bars) == 2 and all(bar.is_closed for bar in recorder.bars)
    assert sum(recorder.bars[-1].updates) == recorder.bars[-1].total


def test_the_time_left_follows_the_younger_half_of_a_job():
    pace = Pace(now=0.0)
    assert pace.left(rest=10.0, now=50.0) is None  # nothing is done
    for step in range(1, 101):
        pace.mark(now=float(step), done=step / 10)  # 0.1 a second
    assert pace.left(rest=10.0, now=100.0) == pytest.approx(100.0)
    for step in range(1, 301):
        pace.mark(now=100.0 + step, done=10.0 + step)  # ten times as fast
    assert pace.left(rest=10.0, now=400.0) == pytest.approx(10.0)
    assert pace.left(rest=10.0, now=404.0) == pytest.approx(6.0)  # it goes on while nothing is heard
    assert pace.left(rest=10.0, now=999.0) == 0.0
    assert len(pace._marks) < 250
