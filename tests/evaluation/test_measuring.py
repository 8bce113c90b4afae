"""Objectives and measuring through the store: what is there is not computed again."""

import pytest

from mcanalysis.errors import DataError
from mcanalysis.evaluation.engine import Engine
from mcanalysis.evaluation.measuring import measure, measurement_key
from mcanalysis.evaluation.objective import make_objective
from mcanalysis.store.measurements import MeasurementStore
from mcanalysis.tasks.task import Example, Task, TaskData


def data(task=None, **splits):
    return TaskData.of(task or Task("zeta", "en", "exact_match", 4), splits)


EXAMPLES = [Example(f"apple {i}:", "green") for i in range(6)]


def forbidden():
    raise AssertionError("nothing was to be computed")


class Witness(Engine):
    """An engine that keeps what it was asked for."""

    def __init__(self, model):
        super().__init__(model)
        self.seen = []

    def measure(self, point, objectives):
        self.seen += objectives
        return super().measure(point, objectives)


def test_a_second_measure_computes_nothing(make_model, tokenizer, tmp_path):
    engine = Witness(make_model())
    objectives = [make_objective(data(test=EXAMPLES[:n]), "test", tokenizer) for n in (2, 3)]
    with MeasurementStore(tmp_path / "m.sqlite") as store:
        first = measure(lambda: engine, store, "here", engine.model.point, objectives)
    assert engine.seen == objectives
    with MeasurementStore(tmp_path / "m.sqlite") as store:
        second = measure(forbidden, store, "here", forbidden, objectives)
    assert first == second
    assert [m.num_examples for m in second] == [2, 3]


def test_only_what_is_missing_is_computed(make_model, tokenizer, tmp_path):
    engine = Witness(make_model())
    objectives = [make_objective(data(test=EXAMPLES[:n]), "test", tokenizer) for n in (2, 3)]
    with MeasurementStore(tmp_path / "m.sqlite") as store:
        for key, asked in (("here", objectives[:1]), ("here", objectives), ("there", objectives)):
            measure(lambda: engine, store, key, engine.model.point, asked)
    assert engine.seen == objectives + objectives


def test_whole_outputs_of_before_serve_and_nothing_is_measured_again(make_model, tokenizer, tmp_path):
    """What was stored of outputs written to their end is what measuring would give."""
    model = make_model()
    objective = make_objective(data(test=EXAMPLES), "test", tokenizer)
    whole = Engine(model).evaluate(model.point(), [objective])[0].measurement
    with MeasurementStore(tmp_path / "m.sqlite") as store:
        store.put_many([(measurement_key("here", objective), whole)])
        assert measure(forbidden, store, "here", forbidden, [objective]) == [whole]
    assert Engine(model).measure(model.point(), [objective]) == [whole]


def test_the_key_changes_with_all_that_can_change_a_number(tokenizer):
    def key(examples=EXAMPLES, task=None, split="test", max_length=64, number=None):
        made = make_objective(data(task, **{split: examples}), split, tokenizer, max_length, number)
        return (made.name, made.split, made.settings_key)

    keys = [
        key(),
        key(number=3),
        key(EXAMPLES[::-1]),
        key(task=Task("zeta", "en", "rouge_l", 4)),
        key(task=Task("zeta", "en", "exact_match", 5)),
        key(task=Task("eta", "en", "exact_match", 4)),
        key(split="eval"),
        key([Example(e.prompt + " ", e.answer) for e in EXAMPLES]),
        key(max_length=5),
    ]
    assert len(set(keys)) == len(keys)
    assert key() == key()


def test_the_first_examples_are_kept_and_cuts_counted(tokenizer):
    long = [Example("river " * 50, "green"), *EXAMPLES]
    objective = make_objective(data(test=long), "test", tokenizer, 40, 3)
    assert objective.examples == tuple(long[:3])
    assert len(objective.encoded) == 3
    assert objective.num_cut == 1
    assert len(make_objective(data(test=EXAMPLES), "test", tokenizer, 64, 100).examples) == 6


@pytest.mark.parametrize("splits", [{}, {"test": []}, {"eval": EXAMPLES}])
def test_a_missing_or_empty_split_is_named(tokenizer, splits):
    with pytest.raises(DataError, match="'test' of zeta"):
        make_objective(data(**splits), "test", tokenizer)
