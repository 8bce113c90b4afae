"""SuRe against plain PyTorch: surprise of one unpadded example at a time, shares of the memory, and the average."""

import json

import pytest
import torch
from safetensors.torch import load, save

from mcanalysis.errors import UserError
from mcanalysis.strategies import make_strategy


def surprise_by_hand(network, example, of):
    """The mean over the counted tokens of −log p, float64."""
    ids = example.prompt_ids + example.answer_ids
    with torch.no_grad():
        log_p = network(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
    first = 1 if of == "sequence" else len(example.prompt_ids)
    return -sum(float(log_p[i - 1, ids[i]]) for i in range(first, len(ids))) / (len(ids) - first)


def cross_entropy(network, examples, alone):
    with torch.no_grad():
        return float(sum(alone(network, e)[0] for e in examples)) / sum(len(e.answer_ids) for e in examples)


@pytest.fixture
def model(make_model, random_point):
    model = make_model(alpha=12.0, dropout=0.5)
    model.load_point(random_point(model, 1))
    model.peft.train()
    return model


@pytest.mark.parametrize("of", ["sequence", "answer"])
@pytest.mark.parametrize("at", ["start", "end"])
def test_each_task_keeps_its_share_of_what_surprised_most(of, at, model, random_point, encode_examples, plain_model_at):
    strategy = make_strategy("sure", 0, memory_size=7, surprise_of=of, surprise_at=at)
    strategy.begin(model, 3)
    tasks, ranked = [encode_examples(9, seed=s) for s in (1, 2, 3)], []
    for k, examples in enumerate(tasks):
        model.load_point(random_point(model, 10 + k))  # what earlier training made
        at_start = plain_model_at(model.point())
        strategy.begin_task(model, k, [*examples, examples[0]])  # one twice
        model.load_point(random_point(model, 20 + k))
        network = at_start if at == "start" else plain_model_at(model.point())
        strategy.end_task(model, [*examples, examples[0]])
        ranked.append(sorted(examples, key=lambda e: surprise_by_hand(network, e, of), reverse=True))
        room = 7 // (k + 1)
        assert strategy.memory == {i: order[:room] for i, order in enumerate(ranked)}
    assert model.peft.training


def test_replay_on_every_second_step_from_the_second_task_on(
    make_model, encode_examples, train_task, plain_model_at, make_step, alone, random_point
):
    model, strategy = make_model(), make_strategy("sure", 0)
    strategy.begin(model, 2)
    drawn, draw = [], strategy.draw_replay
    strategy.draw_replay = lambda number: drawn.append(draw(number)) or drawn[-1]
    for k in range(2):
        examples = encode_examples(9, seed=k)
        strategy.begin_task(model, k, examples)
        train_task(model, strategy, examples, num_steps=5, seed=k)
    assert [len(d) for d in drawn] == [0] * 5 + [4, 0, 4, 0, 4]  # the sixth step of all is an even one
    assert {e for d in drawn for e in d} <= {e for memory in strategy.memory.values() for e in memory}
    model.load_point(random_point(model, 2))
    current, replay, network = encode_examples(3, seed=5), encode_examples(3, seed=6), plain_model_at(model.point())
    parts = [cross_entropy(network, examples, alone) for examples in (current, replay)]
    assert strategy.loss(make_step(model, current, replay)).item() == pytest.approx(sum(parts) / 2, rel=1e-5)
    assert strategy.loss(make_step(model, current)).item() == pytest.approx(parts[0], rel=1e-5)


def test_replay_from_the_first_step_where_it_is_asked_for(make_model, encode_examples):
    model, strategy = make_model(), make_strategy("sure", 0, replay_from_first_step=True, replay_every=1)
    strategy.begin(model, 2)
    examples = encode_examples(3)
    strategy.begin_task(model, 0, examples)
    assert sorted(map(str, strategy.draw_replay(3))) == sorted(map(str, examples))
    assert len(strategy.draw_replay(8)) == 8  # more than there are


def test_slow_is_the_average_of_what_was_trained_and_persists(make_model, encode_examples, train_task):
    model, strategy = make_model(alpha=12.0), make_strategy("sure", 0, ema_decay=0.7)
    strategy.begin(model, 2)
    expected = {k: v.double() for k, v in model.point().items()}
    after_step = strategy.after_step

    def watched(*args):
        for k, v in model.point().items():
            expected[k] = 0.7 * expected[k] + 0.3 * v.double()
        after_step(*args)

    strategy.after_step = watched
    for k in range(2):
        examples = encode_examples(8, seed=k)
        strategy.begin_task(model, k, examples)
        train_task(model, strategy, examples, seed=k, learning_rate=1e-2)
        strategy.end_task(model, examples)
    fast = model.point()
    for k, v in strategy.slow.items():
        torch.testing.assert_close(v.double(), expected[k], rtol=1e-5, atol=1e-7)
        assert not torch.allclose(v, fast[k], rtol=1e-3, atol=1e-5)


def test_fast_answers_where_it_is_asked_to():
    assert make_strategy("sure", 0, answering="fast").answering_learner == "fast"


def test_the_state_goes_through_files(model, encode_examples):
    strategy, other = (make_strategy("sure", 0, memory_size=6) for _ in range(2))
    for s in (strategy, other):
        s.begin(model, 2)
    for k in range(2):
        strategy.begin_task(model, k, encode_examples(5, seed=k))
        strategy.after_step(model, [], [])
    tensors, values = strategy.state()
    other.load_state(model, load(save(tensors)), json.loads(json.dumps(values)))
    other.task_index = 1
    assert other.memory == strategy.memory and other.num_steps == 2
    assert all(torch.equal(v, other.slow[k]) for k, v in strategy.slow.items())
    other.num_steps = strategy.num_steps = 3
    assert other.draw_replay(4) == strategy.draw_replay(4) != []


@pytest.mark.parametrize(
    "settings",
    [
        {"memory_size": 0},
        {"replay_every": 0},
        {"ema_decay": 1.1},
        {"surprise_of": "prompt"},
        {"surprise_at": "never"},
        {"answering": "blend"},
    ],
)
def test_impossible_settings_are_named(settings):
    with pytest.raises(UserError, match=next(iter(settings))):
        make_strategy("sure", 0, **settings)
