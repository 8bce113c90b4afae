"""The loss of L2P by hand, what trains, and which tokens decide which prompts are read."""

import numpy as np
import pytest
import torch
from torch.nn.functional import cosine_similarity

from mcanalysis.errors import UserError
from mcanalysis.models.adapter_files import LoraSettings
from mcanalysis.models.encoding import EncodedExample, collate
from mcanalysis.models.loading import load_base
from mcanalysis.strategies import make_strategy
from mcanalysis.strategies.strategy import Step, Totals


@pytest.fixture
def started(base_folder):
    def start(seed=0, **settings):
        strategy = make_strategy("l2p", seed, **settings)
        base, tokenizer = load_base(str(base_folder))
        model = strategy.attach(base, tokenizer, LoraSettings(), "base")
        strategy.begin(model, 2)
        strategy.begin_task(model, 0, [])
        return strategy, model

    return start


def step_of(model, examples, totals, share):
    batch = collate(examples, model.tokenizer.pad_token_id)
    return Step(model.network, model, batch, len(examples), totals, share)


@torch.no_grad()
def parts_by_hand(model, example):
    """(nll, Σ cos) of one unpadded example; the prompts are chosen by sorting."""
    embed = model.base.get_input_embeddings()
    query = embed(torch.tensor(example.prompt_ids)).double().mean(0)
    keys, prompts = model.parameters["keys"].double(), model.parameters["prompts"]
    cosines = keys @ query / keys.norm(dim=1) / query.norm()
    chosen = sorted(range(len(keys)), key=lambda i: -float(cosines[i]))[: model.prompts.num_selected]
    ids = example.prompt_ids + example.answer_ids
    inputs = torch.cat([*(prompts[i] for i in chosen), embed(torch.tensor(ids))])[None]
    log_p = model.base(inputs_embeds=inputs).logits[0, -len(example.answer_ids) - 1 : -1].double().log_softmax(-1)
    nll = -sum(float(row[token]) for row, token in zip(log_p, example.answer_ids, strict=True))
    return nll, sum(float(cosines[i]) for i in chosen)


@pytest.mark.parametrize("key_weight", [0.0, 0.1, 2.0])
@pytest.mark.parametrize("num_micro", [1, 2, 4])
def test_micro_batches_add_up_to_the_published_loss(started, encode_examples, key_weight, num_micro):
    strategy, model = started(key_weight=key_weight, pool_size=6, prompt_length=2, num_selected=3)
    examples = encode_examples(8)
    totals = Totals(sum(len(e.answer_ids) for e in examples), 0, 0)
    size = 8 // num_micro
    steps = [step_of(model, examples[i : i + size], totals, 1 / num_micro) for i in range(0, 8, size)]
    loss = sum(float(strategy.loss(s).detach()) for s in steps)
    parts = np.array([parts_by_hand(model, e) for e in examples])
    expected = parts[:, 0].sum() / totals.current_targets - key_weight * parts[:, 1].mean()
    assert loss == pytest.approx(expected, rel=1e-4)


def test_the_answers_do_not_choose_the_prompts(started, encode_examples):
    strategy, model = started()
    examples = encode_examples(6)
    longer = [EncodedExample(e.prompt_ids, e.answer_ids * 3) for e in examples]
    seen = []
    for group in (examples, longer):
        strategy.loss(step_of(model, group, Totals(1, 0, 0), 1.0))
        seen.append(model.prompts.similarity.detach())
        with torch.no_grad():  # what is chosen when the answer is not known
            batch = collate([EncodedExample(e.prompt_ids, ()) for e in group], 0)
            model.network(batch.input_ids, batch.attention_mask, batch.position_ids)
        torch.testing.assert_close(model.prompts.similarity, seen[-1])
    torch.testing.assert_close(seen[0], seen[1])


def test_gradients_reach_what_was_selected_and_nothing_else(started, encode_examples):
    strategy, model = started(pool_size=12, prompt_length=2, num_selected=2)
    example = encode_examples(1)
    strategy.loss(step_of(model, example, Totals(len(example[0].answer_ids), 0, 0), 1.0)).backward()
    embed = model.base.get_input_embeddings()
    query = embed(torch.tensor(example[0].prompt_ids)).mean(0)
    chosen = set(cosine_similarity(query[None], model.parameters["keys"]).topk(2).indices.tolist())
    for name, gradient in model.gradient().items():
        assert {i for i, g in enumerate(gradient) if bool(g.abs().sum() > 0)} == chosen, name


@pytest.mark.parametrize("key_weight", [0.0, 0.5])
def test_training_lowers_the_loss_and_pulls_keys_to_queries(started, encode_examples, train_task, key_weight):
    strategy, model = started(key_weight=key_weight)
    examples, before = encode_examples(8), model.point()
    start = np.array([parts_by_hand(model, e) for e in examples])
    train_task(model, strategy, examples, num_steps=15, batch_size=8, learning_rate=0.1)
    end, after = np.array([parts_by_hand(model, e) for e in examples]), model.point()
    assert end[:, 0].sum() < 0.8 * start[:, 0].sum()
    assert not torch.equal(before["prompts"], after["prompts"])
    if key_weight:
        assert end[:, 1].mean() > start[:, 1].mean() + 1
    else:
        assert torch.equal(before["keys"], after["keys"])


def test_four_times_four_prompted_examples_are_sixteen(started, four_times_four):
    four_times_four(lambda: started()[::-1], learning_rate=1e-2)


@pytest.mark.parametrize(
    "settings",
    [
        {"pool_size": 0},
        {"prompt_length": 0},
        {"num_selected": 0},
        {"num_selected": 11},
        {"key_weight": -0.1},
        {"key_weight": float("nan")},
        {"learning_rate_factor": 0.0},
    ],
)
def test_impossible_pools_are_refused_by_name(settings):
    with pytest.raises(UserError, match=next(iter(settings))):
        make_strategy("l2p", 0, **settings)
