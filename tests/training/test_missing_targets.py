"""Nothing to learn from: empty answers are answers, but no targets and no examples are errors that say so."""

import pytest
import torch

from mcanalysis.errors import DataError
from mcanalysis.models.encoding import EncodedExample, collate, encode_all
from mcanalysis.strategies import make_strategy
from mcanalysis.tasks.task import Example, TaskData
from mcanalysis.training.continual_trainer import train


def started(name, model):
    strategy = make_strategy(name, 0, replay_from_first_step=True)
    strategy.begin(model, 1)
    strategy.begin_task(model, 0, [])
    return strategy


@pytest.mark.parametrize("name", ["er", "ilora"])
def test_empty_answers_train_the_end_token(
    name, make_model, tokenizer, make_examples, train_task, alone, plain_model_at
):
    model = make_model()
    encoded, _ = encode_all([Example(e.prompt, "") for e in make_examples(8)], tokenizer, 64)
    assert all(e.answer_ids == (tokenizer.eos_token_id,) for e in encoded)
    losses = train_task(model, started(name, model), encoded, num_steps=12, batch_size=8, learning_rate=1e-2).losses
    with torch.no_grad():
        expected = sum(float(alone(plain_model_at(), e)[0]) for e in encoded) / len(encoded)
    assert losses[0] == pytest.approx(expected, rel=1e-5)
    assert losses[-1] < losses[0]


def test_one_empty_answer_among_longer_ones_counts_as_one_target(
    make_model, tokenizer, make_examples, train_task, alone, plain_model_at
):
    examples = make_examples(3)
    encoded, _ = encode_all([*examples, Example("apple:", "")], tokenizer, 64)
    model = make_model()
    losses = train_task(model, started("er", model), encoded, num_steps=1).losses
    with torch.no_grad():
        total = sum(float(alone(plain_model_at(), e)[0]) for e in encoded)
    assert losses[0] == pytest.approx(total / sum(len(e.answer_ids) for e in encoded), rel=1e-5)


@pytest.mark.parametrize("number", [1, 6])
def test_examples_without_a_target_are_refused_before_a_step(number, make_model, encode_examples, train_task):
    bare = [EncodedExample(e.prompt_ids, ()) for e in encode_examples(6)[:number]]
    examples = [*encode_examples(6)[number:], *bare]
    model = make_model()
    with pytest.raises(DataError, match=rf"one token to predict for task zeta, got {number} of 6 without"):
        train_task(model, started("er", model), examples)


def test_a_task_without_examples_is_refused_and_not_waited_for(make_model, train_task):
    model = make_model()
    with pytest.raises(DataError, match="task zeta, got no examples"):
        train_task(model, started("er", model), [])


def test_prompts_alone_have_no_loss(make_model, encode_examples):
    model = make_model()
    batch = collate([EncodedExample(e.prompt_ids, ()) for e in encode_examples(4)], padding=0)
    with torch.no_grad():
        result = model.forward(batch, hidden_states=True)
        whole = model.forward(collate(encode_examples(4), padding=0), hidden_states=True)
    assert result.nll.tolist() == [0.0] * 4
    assert result.num_targets.tolist() == [0] * 4
    assert result.logits.shape[0] == len(result.rows) == 0
    for row, example in enumerate(encode_examples(4)):
        number = len(example.prompt_ids)
        first = result.hidden_states[-1][row, -number:]
        second = whole.hidden_states[-1][row, -len(example) :][:number]
        torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_task_with_no_examples_left_is_named_before_anything_is_written(split, run_config, make_tasks, tmp_path):
    first, second = make_tasks()
    emptied = TaskData.of(second.task, {**second.splits, split: ()})
    with pytest.raises(DataError, match=rf"(?=.*alpha)(?=.*{split}).*got none"):
        train(run_config("er"), tmp_path / "run", device="cpu", tasks=[first, emptied])
    assert not (tmp_path / "run").exists()
