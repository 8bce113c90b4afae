"""Algorithm R: every item of the stream is kept with the same probability; state survives as JSON."""

import json

import pytest

from mcanalysis.models.encoding import EncodedExample
from mcanalysis.replay.reservoir import Rehearsal, ReplayItem, ReservoirBuffer


def item(i, task_index=0):
    return ReplayItem(EncodedExample((i, i + 1), (i,)), task_index)


def number_of(replayed):
    return replayed.example.answer_ids[0]


def test_all_is_kept_in_order_until_the_buffer_is_full():
    buffer = ReservoirBuffer(5, seed=0)
    for i in range(5):
        buffer.add(item(i))
    assert [number_of(i) for i in buffer.items] == [0, 1, 2, 3, 4]


def test_each_item_of_the_stream_is_kept_equally_often():
    # 3000 streams of 30 items into 6 places: each is kept 600 times on average, with variance 3000·p(1-p) = 480.
    kept = [0] * 30
    for seed in range(3000):
        buffer = ReservoirBuffer(6, seed)
        for i in range(30):
            buffer.add(item(i))
        assert len(buffer) == 6
        assert len(set(buffer.items)) == 6
        for i in buffer.items:
            kept[number_of(i)] += 1
    assert sum(kept) == 3000 * 6
    chi_square = sum((n - 600) ** 2 / 480 for n in kept) * 29 / 30
    assert chi_square < 58.3  # the 0.999 quantile of chi² with 29 degrees of freedom


def test_samples_are_distinct_and_uniform():
    buffer = ReservoirBuffer(8, seed=3)
    for i in range(8):
        buffer.add(item(i))
    drawn = [0] * 8
    for _ in range(2000):
        sample = buffer.sample(4)
        assert len(set(sample)) == 4
        for i in sample:
            drawn[number_of(i)] += 1
    chi_square = sum((n - 1000) ** 2 / (2000 * 0.25) for n in drawn) * 7 / 8
    assert chi_square < 24.3  # the 0.999 quantile with 7 degrees of freedom


def test_more_than_there_is_can_be_drawn():
    buffer = ReservoirBuffer(2, seed=0)
    buffer.add(item(1))
    buffer.add(item(2))
    assert len(buffer.sample(7)) == 7


def test_the_state_goes_through_json_and_on_exactly():
    buffer = ReservoirBuffer(4, seed=1)
    for i in range(9):
        buffer.add(item(i, task_index=i // 5))
    buffer.sample(2)
    state = json.loads(json.dumps(buffer.state()))
    other = ReservoirBuffer(4, seed=77)
    other.load_state(state)
    assert other.items == buffer.items
    assert other.num_seen == buffer.num_seen == 9
    assert {i.task_index for i in other.items} <= {0, 1}
    for i in range(9, 60):
        buffer.add(item(i, 1))
        other.add(item(i, 1))
        assert other.sample(3) == buffer.sample(3)
    assert other.items == buffer.items


def test_the_stream_depends_on_the_seed_and_on_no_global_state():
    import random

    results = []
    for seed, noise in ((0, 1), (0, 2), (1, 1)):
        random.seed(noise)
        buffer = ReservoirBuffer(3, seed)
        for i in range(40):
            random.random()
            buffer.add(item(i))
        results.append(buffer.items)
    assert results[0] == results[1] != results[2]


@pytest.mark.parametrize("from_first_step", [False, True])
def test_when_replay_starts(from_first_step):
    rehearsal = Rehearsal(10, seed=0, from_first_step=from_first_step)
    assert rehearsal.draw(2, task_index=0) == []
    assert rehearsal.draw(2, task_index=1) == []  # nothing to replay yet
    rehearsal.remember([item(1).example, item(2).example], [True, True], task_index=0)
    assert len(rehearsal.draw(2, task_index=0)) == (2 if from_first_step else 0)
    assert len(rehearsal.draw(2, task_index=1)) == 2


def test_only_first_passes_are_remembered():
    rehearsal = Rehearsal(10, seed=0)
    examples = [item(i).example for i in range(4)]
    rehearsal.remember(examples, [True, False, True, False], task_index=2)
    assert [number_of(i) for i in rehearsal.buffer.items] == [0, 2]
    assert rehearsal.buffer.num_seen == 2
    assert {i.task_index for i in rehearsal.buffer.items} == {2}
