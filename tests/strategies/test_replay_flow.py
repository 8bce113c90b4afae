"""What enters the reservoir and when: after its step, once, and replayed from the second task on."""

from collections import Counter

import pytest

from mcanalysis.errors import UserError
from mcanalysis.strategies import make_strategy
from mcanalysis.strategies.er import Er, ErConfig
from mcanalysis.strategies.ilora import Ilora, IloraConfig


def recorded(kind, config):
    """A strategy of this kind that writes down every draw, loss and finished step."""

    class Recorded(kind):
        def __init__(self):
            super().__init__(config, seed=0)
            self.events = []

        def held(self):
            return [i.example for i in self.rehearsal.buffer.items]

        def draw_replay(self, number):
            drawn = super().draw_replay(number)
            self.events.append(("draw", number, drawn, self.held()))
            return drawn

        def loss(self, step):
            self.events.append(("loss", step.num_current, step.num_replay, self.held()))
            return super().loss(step)

        def after_step(self, model, examples, first_pass):
            super().after_step(model, examples, first_pass)
            self.events.append(("step", list(examples), list(first_pass), self.held()))

        def of(self, kind):
            return [e for e in self.events if e[0] == kind]

    return Recorded()


KINDS = pytest.mark.parametrize(("kind", "config"), [(Er, ErConfig), (Ilora, IloraConfig)], ids=["er", "ilora"])


@KINDS
def test_a_batch_enters_the_buffer_only_after_its_own_step(kind, config, make_model, encode_examples, train_task):
    model, strategy = make_model(), recorded(kind, config(replay_from_first_step=True))
    strategy.begin(model, 2)
    strategy.begin_task(model, 0, [])
    train_task(model, strategy, encode_examples(12), num_steps=3)
    finished = []
    for what, first, second, held in strategy.events:
        if what == "step":
            assert second == [True] * len(first)
            finished += first
        assert held == finished
    assert [(e[1], e[2]) for e in strategy.of("loss")] == [(4, 0), (4, 4), (4, 4)]
    assert Counter(finished) == Counter(encode_examples(12))


@KINDS
def test_each_example_enters_once_over_several_passes(kind, config, make_model, encode_examples, train_task):
    model, strategy = make_model(), recorded(kind, config(memory_size=100))
    strategy.begin(model, 2)
    strategy.begin_task(model, 0, [])
    train_task(model, strategy, encode_examples(10), num_steps=15)  # six passes in steps of 4
    assert Counter(strategy.held()) == Counter(encode_examples(10))
    assert strategy.rehearsal.buffer.num_seen == 10
    seen = Counter(e for step in strategy.of("step") for e in step[1])
    assert set(seen.values()) == {6}


@KINDS
def test_replay_starts_with_the_second_task_and_matches_the_batch_in_number(
    kind, config, make_model, encode_examples, train_task
):
    model, strategy = make_model(), recorded(kind, config())
    strategy.begin(model, 2)
    first, second = encode_examples(6, seed=1), encode_examples(6, seed=2)
    for k, examples in enumerate((first, second)):
        strategy.begin_task(model, k, [])
        train_task(model, strategy, examples, num_steps=2, seed=k)  # the second step begins another pass
    assert [(e[1], e[2]) for e in strategy.of("loss")] == [(4, 0), (4, 0), (4, 4), (4, 4)]
    assert set(strategy.of("draw")[2][2]) <= set(first)
    assert set(strategy.of("draw")[3][2]) <= set(first) | set(strategy.of("step")[2][1])
    tasks = {i.example: i.task_index for i in strategy.rehearsal.buffer.items}
    assert tasks == {**dict.fromkeys(first, 0), **dict.fromkeys(second, 1)}


@KINDS
def test_the_buffer_never_outgrows_its_size(kind, config, make_model, encode_examples, train_task):
    model, strategy = make_model(), recorded(kind, config(memory_size=5))
    strategy.begin(model, 2)
    strategy.begin_task(model, 0, [])
    train_task(model, strategy, encode_examples(12), num_steps=3)
    assert len(strategy.rehearsal.buffer) == 5
    assert strategy.rehearsal.buffer.num_seen == 12
    assert (ErConfig().memory_size, IloraConfig().memory_size) == (500, 500)


@pytest.mark.parametrize("factor", [2, 0.5])
def test_another_number_of_replayed_examples_than_asked_for_is_refused(factor, make_model, train_task, encode_examples):
    """More would be counted and not computed, which weakens each; fewer would leave micro-batches without."""
    strategy = make_strategy("er", 0)
    model = make_model()
    strategy.begin(model, 2)
    for task in (0, 1):
        strategy.begin_task(model, task, ())
        strategy.draw_replay = lambda n, task=task: strategy.rehearsal.draw(int(factor * n), task)
        if task:
            with pytest.raises(
                UserError, match=r"from draw_replay of er as it was asked for, 4, or none, got [28]; corr"
            ):
                train_task(model, strategy, encode_examples(8, seed=task))
        else:
            train_task(model, strategy, encode_examples(8, seed=task))
