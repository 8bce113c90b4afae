"""One memory per task: the last examples of each, each once; the state goes through JSON."""

import json

import numpy as np
import pytest

from mcanalysis.errors import UserError
from mcanalysis.models.encoding import EncodedExample
from mcanalysis.replay.task_memory import TaskMemory


def numbered(numbers):
    return [EncodedExample((i, i + 1), (i,)) for i in numbers]


@pytest.mark.parametrize("step", [1, 2, 7, 20])
def test_the_examples_of_the_last_steps_of_each_task_are_kept(step):
    memory = TaskMemory(5)
    for task, first in ((0, 0), (1, 100)):
        stream = numbered(range(first, first + 13))
        for start in range(0, 13, step):
            part = stream[start : start + step]
            memory.remember(part, [True] * len(part), task)
    whole = 13 - -(-5 // step) * step if 13 % step == 0 else 13 // step * step - -(-(5 - 13 % step) // step) * step
    for task, first in ((0, 0), (1, 100)):
        numbers = [e.answer_ids[0] - first for e in memory.examples[task]]
        assert len(set(numbers)) == 5 and min(numbers) >= max(whole, 0)


def test_an_example_enters_on_its_first_pass_only():
    memory = TaskMemory(10)
    memory.remember(numbered(range(4)), [True, False, True, False], 0)
    memory.remember(numbered(range(4)), [False] * 4, 0)
    assert sorted(memory.examples[0], key=str) == numbered([0, 2])


def test_only_earlier_tasks_that_hold_something_are_handed_out():
    memory = TaskMemory(3)
    assert memory.before(2) == []
    for task in (2, 0, 1):  # whatever the order they came in
        memory.remember(numbered([task]), [task != 1], task)
    assert memory.before(0) == []
    assert memory.before(2) == [numbered([0])]
    assert memory.before(3) == [numbered([0]), numbered([2])]


def test_the_state_goes_through_json_and_on():
    memory, other = TaskMemory(3), TaskMemory(3)
    for task in (0, 1):
        memory.remember(numbered(range(5)), [True] * 5, task)
    other.load_state(json.loads(json.dumps(memory.state())))
    for m in (memory, other):
        m.remember(numbered([9]), [True], 1)
    assert memory.examples == other.examples and [len(of) for of in memory.examples.values()] == [3, 3]
    assert memory.examples[1][-1:] == numbered([9]) and len(set(memory.examples[0])) == 3


def test_a_memory_of_nothing_is_refused():
    with pytest.raises(UserError, match="memory_per_task"):
        TaskMemory(0)


def test_short_examples_of_a_step_are_kept_as_often_as_long_ones():
    """Steps come sorted by length, and 12 of 16 have room: the shortest four would always be lost."""
    kept = np.zeros(16)
    for seed in range(400):
        memory = TaskMemory(12, seed)
        memory.remember([EncodedExample((n,) * (n + 1), (seed,)) for n in range(16)], [True] * 16, 0)
        for example in memory.examples[0]:
            kept[example.prompt_ids[0]] += 1
    assert kept.sum() == 400 * 12
    assert np.abs(kept / 400 - 0.75).max() < 4.5 * np.sqrt(0.75 * 0.25 / 400)


def test_what_is_kept_follows_from_seed_and_examples_alone():
    step = [EncodedExample((n,), (1,)) for n in range(16)]
    found = []
    for seed in (0, 0, 1):
        memory = TaskMemory(5, seed)
        memory.remember(step, [True] * 16, 0)
        found.append(memory.examples[0])
    assert found[0] == found[1] != found[2]
