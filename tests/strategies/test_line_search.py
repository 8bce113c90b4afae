"""The study's own strategy, which lies beside the scripts: its point is the best of those that it may choose from."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from mcanalysis import strategies
from mcanalysis.errors import UserError
from mcanalysis.models.encoding import EncodedExample
from mcanalysis.replay.reservoir import ReplayItem
from mcanalysis.training.continual_trainer import train
from mcanalysis.training.stopping import Stopped

FOLDER = Path(__file__).parents[2] / "analyses" / "strategies"


@pytest.fixture(scope="module")
def module():
    spec = importlib.util.spec_from_file_location("line_search_of_the_study", FOLDER / "line_search.py")
    made = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


@pytest.fixture
def encoded(tokenizer):
    def make(number, answer):
        return [
            EncodedExample(tuple(tokenizer.encode(f"paper {i} {answer}")), tuple(tokenizer.encode(f" {answer}")))
            for i in range(number)
        ]

    return make


def plain_loss(model, point, of_tasks):
    """Mean over tasks of the mean over tokens of the cross entropy, one example at a time, by torch alone."""
    model.load_point(point)
    means = []
    for examples in of_tasks:
        nll, count = 0.0, 0
        for example in examples:
            ids = torch.tensor([*example.prompt_ids, *example.answer_ids])
            with torch.no_grad():
                logits = model.peft(input_ids=ids[None]).logits[0].double()
            number = len(example.answer_ids)
            nll -= float(logits[-number - 1 : -1].log_softmax(-1).gather(1, ids[-number:, None]).sum())
            count += number
        means.append(nll / count)
    return sum(means) / len(means)


def run_two_tasks(module, make_model, encoded, **settings):
    """(strategy, its model, points: chosen before, trained), at the end of a second task that undid the first."""
    model = make_model(rank=2)
    strategy = module.LineSearch(module.LineSearchConfig(memory_size=8, **settings), 0)
    strategy.begin(model, 2)
    tasks = encoded(4, "apple river"), encoded(4, "stone")
    generator = torch.Generator().manual_seed(5)
    for k, examples in enumerate(tasks):
        strategy.begin_task(model, k, examples)
        before = strategy.chosen
        trained = {n: p + 0.15 * torch.randn(p.shape, generator=generator) for n, p in model.point().items()}
        model.load_point(trained)
        strategy.after_step(model, examples, [True] * 4)
        strategy.end_task(model, examples)
    return strategy, model, before, trained, tasks


def test_one_t_is_the_best_of_the_grid(module, make_model, encoded):
    strategy, model, before, trained, tasks = run_two_tasks(module, make_model, encoded)
    losses = [
        plain_loss(model, {n: (1 - t) * before[n] + t * trained[n] for n in trained}, tasks) for t in module.ALONG
    ]
    t = strategy.report["t"][1]
    assert t == pytest.approx(module.ALONG[losses.index(min(losses))]) and 0 < t < 1
    for name, value in strategy.chosen.items():
        torch.testing.assert_close(value, (1 - t) * before[name] + t * trained[name])
    assert strategy.report["t"][0] == 1.0  # the first task has nothing to be between


@pytest.mark.parametrize("by", ["layer", "module"])
def test_several_t_are_no_worse_than_one(module, make_model, encoded, by):
    one, model, *_, tasks = run_two_tasks(module, make_model, encoded)
    several, *_ = run_two_tasks(module, make_model, encoded, by=by)
    assert plain_loss(model, several.chosen, tasks) < plain_loss(model, one.chosen, tasks) - 1e-3


def test_what_is_held_out_is_never_replayed_and_alone_judges(module, make_model, encoded):
    """From the first example on, whatever comes and goes; a task of which nothing is held out is judged by all."""
    strategy = module.LineSearch(module.LineSearchConfig(memory_size=24, held_out=0.25), 0)
    model, replayed, judged = make_model(rank=2), set(), set()
    strategy.begin(model, 4)
    for k, word in enumerate(("apple", "stone", "river", "Haus")):
        strategy.begin_task(model, k, examples := encoded(30, word))
        for first in range(0, 30, 3):
            replayed |= set(strategy.draw_replay(5))
            strategy.after_step(model, examples[first : first + 3], [True] * 3)
        strategy.end_task(model, examples)
        judges = strategy._judges()
        assert set(judges) == {item.task_index for item in strategy.rehearsal.buffer.items}
        held_out = {i.example for i in strategy.rehearsal.buffer.items if strategy._is_held_out(i)}
        judged |= held_out
        for of_task in judges.values():
            assert set(of_task) <= held_out or not set(of_task) & held_out
    assert len(judged) > 4 and len(replayed) > 10 and not judged & replayed
    kept = [strategy._is_held_out(ReplayItem(e, 0)) for e in encoded(400, "paper")]
    assert 0.18 < sum(kept) / 400 < 0.32


def test_training_goes_on_from_the_chosen_point_if_it_is_told_to(module, make_model, encoded):
    for go_on_from in ("trained", "chosen"):
        strategy, model, _, trained, _ = run_two_tasks(module, make_model, encoded, go_on_from=go_on_from)
        strategy.begin_task(model, 2, encoded(2, "green"))
        wanted = strategy.chosen if go_on_from == "chosen" else trained
        assert all(torch.equal(v, wanted[n]) for n, v in model.point().items())


def test_a_run_that_is_stopped_ends_with_the_same_bytes(
    module, monkeypatch, run_config, make_tasks, stop_after, tmp_path
):
    strategies.strategy_names()  # all are known, so that another can be put beside them for a while
    monkeypatch.setitem(strategies._STRATEGIES._loaders, "line_search", lambda: module.LineSearch)
    config = run_config("line_search", num_steps=4, strategy_settings={"memory_size": 9, "held_out": 0.3})
    tasks = make_tasks(("zeta", "alpha", "mu"), num_train=10, num_test=2)
    train(config, tmp_path / "whole", device="cpu", tasks=tasks)
    with pytest.raises(Stopped):
        train(config, tmp_path / "run", device="cpu", tasks=tasks, progress=stop_after(10))
    train(config, tmp_path / "run", device="cpu", tasks=tasks, resume=True)
    ends = [
        {f.relative_to(tmp_path / n): f.read_bytes() for f in (tmp_path / n).glob("minima/*/*/*.safetensors")}
        for n in ("whole", "run")
    ]
    assert ends[0] == ends[1] and len(ends[0]) == 6


def test_what_is_trained_is_experience_replay_to_the_bit(module, monkeypatch, run_config, make_tasks, tmp_path):
    strategies.strategy_names()
    monkeypatch.setitem(strategies._STRATEGIES._loaders, "line_search", lambda: module.LineSearch)
    tasks = make_tasks(("zeta", "alpha"), num_train=10, num_test=2)
    for name in ("line_search", "er"):
        config = run_config(name, num_steps=4, strategy_settings={"memory_size": 9})
        train(config, tmp_path / name, device="cpu", tasks=tasks)
    for label in ("1-zeta", "2-alpha"):
        ours, theirs = (
            (tmp_path / run / "minima" / label / learner / "adapter_model.safetensors").read_bytes()
            for run, learner in (("line_search", "trained"), ("er", "fast"))
        )
        assert ours == theirs


def test_a_share_that_is_none_is_refused(module):
    with pytest.raises(UserError, match="held_out"):
        module.LineSearchConfig(held_out=1.0)
