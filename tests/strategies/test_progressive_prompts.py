"""Progressive Prompts: only the newest prompt and its MLP train, what was frozen stays as it was put out."""

import pytest
import torch

from mcanalysis.errors import UserError
from mcanalysis.models.adapter_files import LoraSettings
from mcanalysis.models.encoding import collate
from mcanalysis.models.forward import forward
from mcanalysis.models.loading import load_base
from mcanalysis.strategies import make_strategy

NAME = "prompt_embeddings"


@pytest.fixture
def begun(base_folder):
    def begin(seed=0, num_tasks=3, **settings):
        strategy = make_strategy("progressive_prompts", seed, **{"prompt_length": 4, "bottleneck": 6, **settings})
        base, tokenizer = load_base(str(base_folder))
        model = strategy.attach(base, tokenizer, LoraSettings(), "base")
        strategy.begin(model, num_tasks)
        return strategy, model

    return begin


def test_each_task_trains_a_new_prompt_before_the_frozen_ones(begun, encode_examples, train_task):
    strategy, model = begun()
    base = {k: v.clone() for k, v in model.base.state_dict().items()}
    ends = []
    for task in range(3):
        strategy.begin_task(model, task, encode_examples(8, seed=task))
        start = model.point()[NAME]
        assert start.shape == (4 * (task + 1), 32)
        raw = {k: v.clone() for k, v in model.raw().items()}
        train_task(model, strategy, encode_examples(8, seed=task), learning_rate=0.05)
        strategy.end_task(model, [])
        end = model.point()[NAME]
        assert bool((start[:4] != end[:4]).any(1).all())
        if ends:
            assert torch.equal(end[4:], ends[-1]) and torch.equal(start[4:], ends[-1])
        assert all(not torch.equal(model.raw()[k], raw[k]) for k in raw if k != "frozen")
        ends.append(end)
    assert all(torch.equal(v, base[k]) for k, v in model.base.state_dict().items())


def test_an_update_is_that_of_plain_gradient_descent_on_the_prefix(begun, encode_examples):
    """∂L/∂P and ∂L/∂MLP by autograd through a prefix built by hand equal the ones the network gets."""
    strategy, model = begun()
    strategy.begin_task(model, 0, [])
    with torch.no_grad():
        for parameter in model.prompts.up.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(3)).mul_(0.2)
    strategy.begin_task(model, 1, [])
    with torch.no_grad():
        model.prompts.up.weight.normal_(generator=torch.Generator().manual_seed(4)).mul_(0.2)
    example = encode_examples(1)[0]
    p = {k: v.detach().double().requires_grad_(k != "frozen") for k, v in model.raw().items()}
    base = model.base.double()
    hidden = (p["prompt"] @ p["down.weight"].T + p["down.bias"]).relu()
    prefix = torch.cat([p["prompt"] + hidden @ p["up.weight"].T + p["up.bias"], p["frozen"]])
    ids = torch.tensor(example.prompt_ids + example.answer_ids)
    logits = base(inputs_embeds=torch.cat([prefix, base.get_input_embeddings()(ids)])[None]).logits[0]
    number = len(example.answer_ids)
    loss = torch.nn.functional.cross_entropy(logits[-number - 1 : -1], ids[-number:], reduction="sum")
    trained = [k for k in p if k != "frozen"]
    expected = dict(zip(trained, torch.autograd.grad(loss, [p[k] for k in trained]), strict=True))
    base.float()
    forward(model.network, collate([example], 0)).nll.sum().backward()
    assert set(model.gradient()) == set(expected)
    for name, gradient in model.gradient().items():
        assert float(expected[name].abs().max()) > 1e-3
        torch.testing.assert_close(gradient.double(), expected[name], rtol=1e-3, atol=1e-4)


def test_a_task_starts_from_the_seed_and_its_number_alone(begun, encode_examples, train_task):
    starts = []
    for learning_rate, tasks in ((0.01, 3), (0.1, 2)):
        strategy, model = begun(num_tasks=tasks)
        strategy.begin_task(model, 0, [])
        train_task(model, strategy, encode_examples(8), learning_rate=learning_rate)
        strategy.begin_task(model, 1, [])
        starts.append({k: v.clone() for k, v in model.raw().items()})
    assert {k for k, v in starts[0].items() if not torch.equal(v, starts[1][k])} == {"frozen"}


def test_training_lowers_the_loss_of_a_task(begun, encode_examples, train_task):
    strategy, model = begun()
    strategy.begin_task(model, 0, [])
    trainer = train_task(model, strategy, encode_examples(8), num_steps=15, batch_size=8, learning_rate=0.1)
    assert trainer.losses[-1] < 0.8 * trainer.losses[0]


def test_four_times_four_examples_after_a_prefix_are_sixteen(begun, four_times_four):
    def start():
        strategy, model = begun()
        strategy.begin_task(model, 0, [])
        strategy.begin_task(model, 1, [])
        return model, strategy

    four_times_four(start, lambda model, _: {NAME: model.point()[NAME]}, learning_rate=1e-2)


def test_the_prompts_of_all_tasks_are_counted_before_the_first_begins(begun):
    strategy, model = begun(num_tasks=3, prompt_length=2)
    for task in range(3):
        strategy.begin_task(model, task, [])
    assert strategy.num_prompts(3) == model.num_prompts() == model.num_prompts(model.point()) == 6
    assert model.num_prompts(model.base_point()) == 0


@pytest.mark.parametrize("settings", [{"prompt_length": 0}, {"bottleneck": 0}, {"learning_rate_factor": -1.0}])
def test_impossible_prompts_are_refused_by_name(settings):
    with pytest.raises(UserError, match=next(iter(settings))):
        make_strategy("progressive_prompts", 0, **settings)
