"""Self-replay against plain PyTorch: the loss, and that what is rehearsed is what the model itself writes."""

import json
import math

import pytest
import torch

from mcanalysis.errors import UserError
from mcanalysis.models.encoding import EncodedExample
from mcanalysis.strategies import make_strategy


def cross_entropy(network, examples, alone):
    with torch.no_grad():
        return float(sum(alone(network, e)[0] for e in examples)) / sum(len(e.answer_ids) for e in examples)


def prompt_nll(network, example, end):
    """The mean over a prompt's tokens and its end of −log p, behind the end token as the start."""
    ids = (end, *example.prompt_ids, end)
    with torch.no_grad():
        log_p = network(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return -sum(float(log_p[i, token]) for i, token in enumerate(ids[1:])) / (len(ids) - 1)


def begun(model, **settings):
    strategy = make_strategy("self_replay", 0, **settings)
    strategy.begin(model, 2)
    strategy.end = model.tokenizer.eos_token_id  # where no task begins
    return strategy


@pytest.mark.parametrize("weight", [0.0, 0.25, 3.0])
def test_the_loss_is_its_formula(
    weight, make_model, random_point, encode_examples, plain_model_at, alone, make_step, tokenizer
):
    model = make_model(alpha=12.0)
    model.load_point(random_point(model, 1))
    strategy, network = begun(model, lm_weight=weight), plain_model_at(model.point())
    current, replay = encode_examples(3, seed=1), encode_examples(3, seed=2)
    parts = [cross_entropy(network, examples, alone) for examples in (current, replay)]
    prompts = [[prompt_nll(network, e, tokenizer.eos_token_id) for e in examples] for examples in (current, replay)]
    expected = parts[0] + weight * sum(prompts[0]) / 3
    assert strategy.loss(make_step(model, current)).item() == pytest.approx(expected, rel=1e-5)
    expected = sum(parts) / 2 + weight * sum(map(sum, prompts)) / 6
    assert strategy.loss(make_step(model, current, replay)).item() == pytest.approx(expected, rel=1e-5)


def test_a_prompt_without_an_answer_is_no_longer_than_its_example(make_model, make_step, tokenizer):
    model = make_model()
    strategy, end = begun(model), tokenizer.eos_token_id
    text = strategy._as_text(EncodedExample((7, 8), (end,)))
    assert (text.prompt_ids, text.answer_ids) == ((end,), (7, 8))
    assert strategy.loss(make_step(model, [EncodedExample((7, 8), (end,))])).isfinite()


@pytest.fixture(scope="module")
def learned(make_model, encode_examples, tmp_path_factory):
    """A model that has learned four examples by heart, prompts too, and the strategy before its second task."""
    from mcanalysis.training.config import TrainingConfig
    from mcanalysis.training.task_trainer import TaskTrainer

    model, examples = make_model(rank=8, target_modules=("all-linear",)), encode_examples(4, seed=4)
    strategy = begun(model, lm_weight=1.0, generated_share=1.5, top_k=5)
    strategy.begin_task(model, 0, examples)
    config = TrainingConfig(num_steps=40, batch_size=4, learning_rate=1e-2)
    TaskTrainer(model, strategy, examples, "zeta", config, "0", str(tmp_path_factory.mktemp("scratch"))).train()
    strategy.end_task(model, examples)
    return model, strategy, examples


def test_what_is_rehearsed_is_what_the_model_writes(learned, encode_examples, plain_model_at, tokenizer):
    model, strategy, old = learned
    before = json.dumps(strategy.state()[1])
    new = encode_examples(8, seed=5)
    strategy.begin_task(model, 1, new)
    written, end, network = strategy.written, tokenizer.eos_token_id, plain_model_at(model.point())
    assert strategy.report == {"written": [12], "kept": [len(written)]} and 0 < len(written) <= 12
    assert sum(e in old for e in written) >= 2  # it recalls them
    for example in written:
        ids = (end, *example.prompt_ids, end)
        with torch.no_grad():
            of_prompt = network(input_ids=torch.tensor([ids])).logits[0]
            of_answer = network(input_ids=torch.tensor([example.prompt_ids + example.answer_ids])).logits[0]
        for logits, token in zip(of_prompt, ids[1:], strict=False):  # of the five likeliest, up to rounding
            assert logits[token] >= logits.topk(5).values[-1] - 1e-3
        for logits, token in zip(of_answer[len(example.prompt_ids) - 1 :], example.answer_ids, strict=False):
            assert logits[token] >= logits.max() - 1e-3
        assert example.answer_ids[-1] == end and end not in example.answer_ids[:-1] + example.prompt_ids
    drawn = strategy.draw_replay(4)
    assert len(drawn) == 4 and set(drawn) <= set(written)
    again = begun(model, lm_weight=1.0, generated_share=1.5, top_k=5)
    again.load_state(model, {}, json.loads(before))  # stopped between the tasks
    again.begin_task(model, 1, new)
    assert again.written == written and again.draw_replay(4) == drawn
    resumed = begun(model)
    resumed.load_state(model, {}, json.loads(json.dumps(strategy.state()[1])))  # within the second
    assert resumed.written == written and resumed.draw_replay(4) == drawn and resumed.report == strategy.report


def test_a_model_that_ends_no_prompt_trains_without_replay_and_says_so(make_model, encode_examples, caplog):
    model, examples = make_model(), [EncodedExample((7,), (8, 2))]
    strategy = begun(model, top_k=1)  # its likeliest first tokens are no end
    strategy.begin_task(model, 0, examples)
    strategy.begin_task(model, 1, encode_examples(11))
    assert strategy.report == {"written": [math.ceil(0.2 * 11)], "kept": [0]}
    assert strategy.draw_replay(4) == [] and "trains without replay" in caplog.text


def test_four_times_four_is_sixteen(make_model, encode_examples, four_times_four):
    old = encode_examples(20, seed=3)

    def start():
        model = make_model(alpha=12.0)
        strategy = begun(model, lm_weight=2.0)
        strategy.written = old
        return model, strategy

    four_times_four(start)


def test_prompts_that_bring_the_start_token_keep_it_once(make_model, tokenizer, monkeypatch):
    model = make_model()
    model.tokenizer.bos_token = model.tokenizer.convert_ids_to_tokens(9)
    strategy, end = begun(model), tokenizer.eos_token_id
    text = strategy._as_text(EncodedExample((9, 7, 8), (5, end)))
    assert (text.prompt_ids, text.answer_ids) == ((9,), (7, 8, end))
    monkeypatch.setattr(
        "mcanalysis.strategies.self_replay.write",
        lambda model, starts, limit, ends, choose: [(7, end)] * len(starts),
    )
    strategy.begin_task(model, 1, [EncodedExample((9, 4), (5, end))] * 5)
    assert strategy.written == [EncodedExample((9, 7), (7, end))]


def test_prompts_with_the_end_token_in_them_end_with_another_or_are_refused(make_model, tokenizer):
    end, other = tokenizer.eos_token_id, next(i for i in tokenizer.all_special_ids if i != tokenizer.eos_token_id)
    framed, all_in = EncodedExample((7, end, 8), (5, end)), EncodedExample((7, *tokenizer.all_special_ids), (5, end))
    model, strategy = make_model(), make_strategy("self_replay", 0)
    strategy.begin(model, 2)
    with pytest.raises(UserError, match="Expected a special token that is in no prompt"):
        strategy.begin_task(model, 0, [all_in])
    strategy.begin_task(model, 0, [framed])
    text = strategy._as_text(framed)
    assert (text.prompt_ids, text.answer_ids) == ((end,), (7, end, 8, other))
    with pytest.raises(UserError, match="pass --chat-template none"):  # the one chosen is kept to
        strategy.begin_task(model, 1, [EncodedExample((7, other), (5, end))])


@pytest.mark.parametrize("settings", [{"lm_weight": -1.0}, {"generated_share": 0.0}, {"top_k": 0}])
def test_impossible_settings_are_named(settings):
    with pytest.raises(UserError, match=next(iter(settings))):
        make_strategy("self_replay", 0, **settings)
