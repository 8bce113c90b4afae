"""One memory per task: the last examples of each, each once; the state goes through JSON."""

import json

import pytest

from mcanalysis.errors import UserError
from mcanalysis.models.encoding import EncodedExample
from mcanalysis.replay.task_memory import TaskMemory


def numbered(numbers):
    return [EncodedExample((i, i + 1), (i,)) for i in numbers]


@pytest.mark.parametrize("step", [1, 2, 7, 20])
def test_the_last_examples_of_each_task_are_kept_in_order(step):
    memory = TaskMemory(5)
    for task, first in ((0, 0), (1, 100)):
        stream = numbered(range(first, first + 13))
        for start in range(0, 13, step):
            part = stream[start : start + step]
            memory.remember(part, [True] * len(part), task)
    assert memory.examples == {0: numbered(range(8, 13)), 1: numbered(range(108, 113))}


def test_an_example_enters_on_its_first_pass_only():
    memory = TaskMemory(10)
    memory.remember(numbered(range(4)), [True, False, True, False], 0)
    memory.remember(numbered(range(4)), [False] * 4, 0)
    assert memory.examples[0] == numbered([0, 2])


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
    assert memory.examples == other.examples == {0: numbered([2, 3, 4]), 1: numbered([3, 4, 9])}


def test_a_memory_of_nothing_is_refused():
    with pytest.raises(UserError, match="memory_per_task"):
        TaskMemory(0)
