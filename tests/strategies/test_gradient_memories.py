"""GEM and A-GEM: the quadratic programs against SciPy's general solvers, the gradients against plain PyTorch."""

import json

import accelerate
import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch.func import functional_call

from mcanalysis.errors import UserError
from mcanalysis.models.encoding import EncodedExample
from mcanalysis.strategies import make_strategy
from mcanalysis.strategies.gem import solve_dual

SHAPES = {"q.lora_A.weight": (2, 5), "q.lora_B.weight": (3, 2), "v.lora_B.weight": (4,)}


def numbered(numbers):
    return [EncodedExample((i, i + 1), (i,)) for i in numbers]


def vector(gradient):
    return np.concatenate([gradient[k].double().numpy().ravel() for k in SHAPES])


def random_gradients(number, seed, conflict=True):
    """A gradient and those of `number` memories, by name; with `conflict` the first memory is at odds with it."""
    generator = torch.Generator().manual_seed(seed)
    drawn = [{k: torch.randn(s, generator=generator) for k, s in SHAPES.items()} for _ in range(number + 1)]
    if conflict and vector(drawn[0]) @ vector(drawn[1]) > 0:
        drawn[1] = {k: -v for k, v in drawn[1].items()}
    return drawn[0], drawn[1:]


# --- the quadratic program


def nearest_by_slsqp(g, G):
    """argmin ‖x − g‖² subject to G x ≥ 0: the primal at margin 0."""
    constraint = {"type": "ineq", "fun": lambda x: G @ x, "jac": lambda x: G}
    result = minimize(
        lambda x: ((x - g) ** 2).sum() / 2,
        g,
        jac=lambda x: x - g,
        constraints=[constraint],
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 1000},
    )
    assert result.success
    return result.x


def dual_by_lbfgs(g, G, margin):
    P, q = G @ G.T, G @ g
    result = minimize(
        lambda v: v @ P @ v / 2 + q @ v,
        np.full(len(G), margin + 1.0),
        jac=lambda v: P @ v + q,
        bounds=[(margin, None)] * len(G),
        method="L-BFGS-B",
        options={"ftol": 1e-15, "gtol": 1e-10, "maxiter": 10000},
    )
    return result.x


@pytest.mark.parametrize("number", [1, 2, 3, 7])
@pytest.mark.parametrize("seed", range(4))
def test_at_margin_zero_it_is_the_nearest_vector_without_conflict(number, seed):
    rng = np.random.default_rng([number, seed])
    g, G = rng.normal(size=20), rng.normal(size=(number, 20))
    v = solve_dual(G @ G.T, G @ g, 0.0)
    edited = g + G.T @ v
    assert (G @ edited >= -1e-10).all()
    np.testing.assert_allclose(edited, nearest_by_slsqp(g, G), atol=1e-5)


@pytest.mark.parametrize("margin", [0.0, 0.5])
@pytest.mark.parametrize("number", [1, 2, 4, 9])
@pytest.mark.parametrize("seed", range(4))
def test_it_is_the_dual_and_its_optimality_conditions_hold(margin, number, seed):
    rng = np.random.default_rng([number, seed])
    g, G = rng.normal(size=15), rng.normal(size=(number, 15))
    P, q = G @ G.T, G @ g
    v = solve_dual(P, q, margin)
    np.testing.assert_allclose(v, dual_by_lbfgs(g, G, margin), atol=1e-5)
    slope = P @ v + q  # Karush, Kuhn and Tucker
    assert (v >= margin).all()
    assert (slope >= -1e-10).all()
    assert np.abs(slope * (v - margin)).max() < 1e-9


@pytest.mark.parametrize(
    "change",
    [
        lambda G: np.vstack([G, G[0]]),
        lambda G: np.vstack([G, G[0] - 2 * G[1]]),
        lambda G: np.vstack([G, np.zeros(12)]),
        lambda G: G * np.array([1e-6, 1.0, 1e4])[:, None],
        lambda G: np.vstack([G, G[0] * (1 + 1e-9)]),
        lambda G: np.vstack([G] * 8),
    ],
    ids=["twice", "dependent", "zero", "scales", "nearly twice", "more than dimensions"],
)
def test_dependent_vanishing_and_unequal_gradients(change):
    rng = np.random.default_rng(3)
    g = rng.normal(size=12)
    G = change(-g * 0.3 + rng.normal(size=(3, 12)))
    assert (G @ g < 0).any()
    edited = g + G.T @ solve_dual(G @ G.T, G @ g, 0.0)
    norms = np.linalg.norm(G, axis=1)
    norms[norms == 0] = 1
    unit = G / norms[:, None]
    assert (unit @ edited >= -1e-7).all()
    np.testing.assert_allclose(edited, nearest_by_slsqp(g, unit), atol=1e-5)


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("seed", range(40))
def test_a_gradient_of_zero_leaves_the_others_what_they_are(seed, place):
    """Wherever it stands; what eigenvectors are rounded by in its row is no direction."""
    rng = np.random.default_rng([seed, place])
    g, G = rng.normal(size=5), rng.normal(size=(2, 5))
    whole = np.insert(G, place, 0.0, axis=0)
    for margin in (0.0, 0.5):
        v = solve_dual(whole @ whole.T, whole @ g, margin)
        np.testing.assert_allclose(np.delete(v, place), solve_dual(G @ G.T, G @ g, margin), rtol=1e-9, atol=1e-9)
        assert v[place] == margin
    assert solve_dual(np.zeros((2, 2)), np.zeros(2), 0.5).tolist() == [0.5, 0.5]


# --- the gradient that comes out


def gem_with(memories, **settings):
    """GEM in the task after these memories, and the gradient_of that answers with the k-th's gradient."""
    strategy = make_strategy("gem", seed=0, **settings)
    for k in range(len(memories) + 1):  # the current task's memory must not matter
        strategy.task_index = k
        for number in (10 * k, 10 * k + 1):
            strategy.after_step(None, numbered([number]), [True])
    asked = []

    def gradient_of(examples):
        asked.append(list(examples))
        return memories[examples[0].answer_ids[0] // 10]

    return strategy, gradient_of, asked


@pytest.mark.parametrize("margin", [0.0, 0.5])
@pytest.mark.parametrize("number", [1, 2, 5])
@pytest.mark.parametrize("seed", range(3))
def test_gem_edits_one_vector_over_all_parameters(number, seed, margin):
    gradient, memories = random_gradients(number, 10 * number + seed)
    kept = {k: v.clone() for k, v in gradient.items()}
    strategy, gradient_of, asked = gem_with(memories, margin=margin)
    edited = strategy.edit_gradient(gradient, gradient_of)
    assert asked == [numbered([10 * k, 10 * k + 1]) for k in range(number)]
    g, G = vector(gradient), np.stack([vector(m) for m in memories])
    np.testing.assert_allclose(vector(edited), g + G.T @ dual_by_lbfgs(g, G, margin), atol=2e-5)
    assert (G @ vector(edited) > -1e-5).all()
    assert {k: v.shape for k, v in edited.items()} == {k: v.shape for k, v in gradient.items()}
    assert all(torch.equal(v, kept[k]) for k, v in gradient.items())  # the trainer's own is not written to


def test_gem_adds_the_margin_of_every_past_task_once_one_conflicts():
    g = {"q.lora_A.weight": torch.zeros(2, 5), "q.lora_B.weight": torch.zeros(3, 2), "v.lora_B.weight": torch.zeros(4)}
    first, second, third = ({k: v.clone() for k, v in g.items()} for _ in range(3))
    g["v.lora_B.weight"] = torch.tensor([1.0, 1.0, 0.0, 0.0])
    first["v.lora_B.weight"] = torch.tensor([-2.0, 0.0, 0.0, 0.0])  # at odds: v = 1/2 cancels it, as the margin does
    second["v.lora_B.weight"] = torch.tensor([0.0, 3.0, 0.0, 0.0])  # agrees
    third["v.lora_B.weight"] = torch.tensor([0.0, 0.0, 0.0, 1.0])  # indifferent
    strategy, gradient_of, _ = gem_with([first, second, third])
    edited = strategy.edit_gradient(g, gradient_of)
    np.testing.assert_allclose(edited["v.lora_B.weight"].numpy(), [0.0, 2.5, 0.0, 0.5], atol=1e-6)


@pytest.mark.parametrize("name", ["gem", "agem"])
def test_without_conflict_or_past_the_gradient_stays_as_it_is(name):
    gradient, (memory,) = random_gradients(1, 0)
    agreeing = {k: -v for k, v in memory.items()}
    strategy = make_strategy(name, seed=0)
    strategy.task_index = 0
    strategy.after_step(None, numbered([1, 2]), [True, True])
    assert strategy.edit_gradient(gradient, lambda examples: pytest.fail("the first task has no past")) is gradient
    strategy.task_index = 1
    assert strategy.edit_gradient(gradient, lambda examples: agreeing) is gradient
    assert strategy.edit_gradient(gradient, lambda examples: memory) is not gradient


@pytest.mark.parametrize("name", ["gem", "agem"])
def test_a_gradient_that_is_no_number_is_left_for_the_trainer_to_refuse(name):
    gradient, memories = random_gradients(2, 0)
    memories[1]["v.lora_B.weight"][0] = float("nan")
    strategy = make_strategy(name, seed=0)
    for k in range(2):
        strategy.task_index = k
        strategy.after_step(None, numbered([10 * k]), [True])
    strategy.task_index = 2
    answers = iter(memories if name == "gem" else memories[1:])
    assert strategy.edit_gradient(gradient, lambda examples: next(answers)) is gradient


@pytest.mark.parametrize("seed", range(3))
def test_agem_takes_the_conflicting_part_out_and_is_gem_with_one_memory(seed):
    gradient, (memory,) = random_gradients(1, seed)
    agem = make_strategy("agem", seed=0)
    agem.task_index = 0
    agem.after_step(None, numbered([0, 1]), [True, True])
    agem.task_index = 1
    g, r = vector(gradient), vector(memory)
    edited = vector(agem.edit_gradient(gradient, lambda examples: memory))
    assert g @ r < 0
    np.testing.assert_allclose(edited, g - (g @ r) / (r @ r) * r, atol=1e-6)
    assert abs(edited @ r) < 1e-5
    gem, gradient_of, _ = gem_with([memory], margin=0.0)
    np.testing.assert_allclose(vector(gem.edit_gradient(gradient, gradient_of)), edited, atol=1e-6)


# --- which examples are asked for


def test_agem_draws_distinct_examples_of_earlier_tasks_by_seed_and_step():
    def drawn(seed, steps, size=4):
        strategy = make_strategy("agem", seed=seed, memory_size=30, reference_batch_size=size)
        batches = []
        for task in range(3):
            strategy.task_index = task
            for step in range(steps):
                asked = []
                gradient, _ = random_gradients(0, 0, conflict=False)
                strategy.edit_gradient(gradient, lambda e, asked=asked, g=gradient: asked.extend(e) or g)
                batches.append((task, asked))
                first = 100 * task + 4 * step
                strategy.after_step(None, numbered(range(first, first + 4)), [True] * 4)
        return batches

    batches = drawn(0, 5)
    for task, examples in batches:
        assert len(set(examples)) == len(examples) == (0 if task == 0 else 4)
        assert all(e.answer_ids[0] < 100 * task for e in examples)
    assert batches == drawn(0, 5) != drawn(1, 5)
    assert len({tuple(examples) for task, examples in batches if task}) == 10
    everything = drawn(0, 5, size=256)[5][1]
    assert everything == numbered(range(20))  # all there are


def test_gem_can_take_a_part_of_each_memory():
    def asked(seed, steps=3, **settings):
        strategy = make_strategy("gem", seed=seed, **settings)
        for task in range(2):
            strategy.task_index = task
            for number in range(100 * task, 100 * task + 20):  # of one step any could be the last
                strategy.after_step(None, numbered([number]), [True])
        strategy.task_index, calls = 2, []
        _, memories = random_gradients(1, 0)
        for _ in range(steps):
            strategy.edit_gradient(memories[0], lambda examples: calls.append(list(examples)) or memories[0])
            strategy.after_step(None, [], [])
        return calls

    assert asked(0) == [numbered(range(20)), numbered(range(100, 120))] * 3
    assert asked(0, memory_per_task=6)[:2] == [numbered(range(14, 20)), numbered(range(114, 120))]
    part = asked(0, examples_per_step=5)
    assert [len(set(calls)) for calls in part] == [5] * 6
    assert [{e.answer_ids[0] // 100 for e in calls} for calls in part] == [{0}, {1}] * 3
    assert part == asked(0, examples_per_step=5) != asked(1, examples_per_step=5)
    assert len({tuple(calls) for calls in part}) == 6
    assert asked(0, examples_per_step=50) == asked(0)


# --- within training


@pytest.fixture
def gradient_by_hand(plain_model_at, alone):
    """gradient_by_hand(model, examples): of the mean nll per target token, with LoRA written out as W + 3·B·A."""
    plain = plain_model_at()

    def make(model, examples):
        raw = {k: p.detach().clone().requires_grad_() for k, p in model.parameters.items()}
        weights = {}
        for name in raw:
            if ".lora_A." in name:
                module = name.removesuffix(".lora_A.weight")
                update = 3.0 * raw[f"{module}.lora_B.weight"] @ raw[name]
                weights[f"{module}.weight"] = plain.get_submodule(module).weight.detach() + update
        total = sum(alone(lambda **inputs: functional_call(plain, weights, kwargs=inputs), e)[0] for e in examples)
        gradients = torch.autograd.grad(total / sum(len(e.answer_ids) for e in examples), list(raw.values()))
        return torch.cat([g.flatten() for g in gradients]).double().numpy()

    return make


@pytest.fixture
def at_odds(encode_examples):
    """Examples, and the same prompts with each other's answers: what one learns the other forgets."""
    current = encode_examples(8, seed=1)
    answers = [e.answer_ids for e in current]
    return current, [EncodedExample(e.prompt_ids, a) for e, a in zip(current, answers[3:] + answers[:3], strict=True)]


@pytest.fixture(scope="module")
def learned_points():
    """The parameters of models that have learned these examples, each learned once."""
    return {}


@pytest.fixture
def after_tasks(make_model, random_point, train_task, learned_points):
    """after_tasks(name, memories) -> a model that has learned these, and the strategy in the task after them.

    Learned, because gradients on different examples seldom conflict before.
    """

    def make(name, memories, **settings):
        model = make_model(alpha=12.0)
        model.load_point(random_point(model, 1))
        learned = tuple(e for memory in memories for e in memory)
        if learned not in learned_points:
            train_task(model, make_strategy("sequential", seed=0), list(learned), num_steps=60, learning_rate=1e-2)
            learned_points[learned] = {k: p.detach().clone() for k, p in model.parameters.items()}
        with torch.no_grad():
            for key, parameter in model.parameters.items():
                parameter.copy_(learned_points[learned][key])
        strategy = make_strategy(name, seed=0, **settings)
        strategy.edits = []
        edit = strategy.edit_gradient

        def watched(gradient, gradient_of):
            edited = edit(gradient, gradient_of)
            strategy.edits.append(edited is not gradient)
            return edited

        strategy.edit_gradient = watched
        strategy.begin(model, len(memories) + 1)
        for k, memory in enumerate(memories):
            strategy.begin_task(model, k, [])
            strategy.after_step(model, memory, [True] * len(memory))
        strategy.begin_task(model, len(memories), [])
        return model, strategy

    return make


@pytest.mark.parametrize("name", ["gem", "agem"])
def test_the_optimiser_gets_the_edited_gradient_of_the_whole_batch(
    name, after_tasks, at_odds, encode_examples, train_task, gradient_by_hand, monkeypatch
):
    memories = [at_odds[1], encode_examples(5, seed=9)]
    model, strategy = after_tasks(name, memories)
    G = np.stack([gradient_by_hand(model, m) for m in memories])
    r = gradient_by_hand(model, memories[0] + memories[1])

    def by_hand(g):
        return g + G.T @ dual_by_lbfgs(g, G, 0.5) if name == "gem" else g - (g @ r) / (r @ r) * r

    def conflicts(g):
        return (G @ g < 0).any() if name == "gem" else g @ r < 0

    # Whether the gradients of two batches conflict hangs on how the training before went: take the first that do.
    batches = (encode_examples(8, seed=s) for s in range(20, 60))
    gradients = ((b, gradient_by_hand(model, b)) for b in batches)
    current, g = next(
        (b, g) for b, g in gradients if conflicts(g) and np.abs(by_hand(g) - g).max() > 0.05 * np.abs(by_hand(g)).max()
    )
    expected = by_hand(g)

    clipped, clip = [], accelerate.Accelerator.clip_grad_norm_

    def watched(self, parameters, *args, **kwargs):
        clipped.append(np.concatenate([p.grad.double().numpy().ravel() for p in model.parameters.values()]))
        return clip(self, parameters, *args, **kwargs)

    monkeypatch.setattr(accelerate.Accelerator, "clip_grad_norm_", watched)
    before = {k: p.detach().clone() for k, p in model.parameters.items()}
    train_task(
        model, strategy, current, num_steps=1, batch_size=2, gradient_accumulation=4, learning_rate=1e-3, weight_decay=0
    )
    assert len(clipped) == 1 and strategy.edits == [True]
    scale = np.abs(expected).max()
    np.testing.assert_allclose(clipped[0], expected, rtol=0, atol=1e-4 * scale)
    # Adam's first step is −rate·sign(gradient), however it was clipped.
    moved = torch.cat([(p.detach() - before[k]).flatten() for k, p in model.parameters.items()]).double().numpy()
    clear = np.abs(expected) > 1e-2 * scale
    np.testing.assert_allclose(moved[clear], -1e-3 * np.sign(expected[clear]), rtol=1e-2)
    assert (np.sign(expected[clear]) != np.sign(g[clear])).any()


@pytest.mark.parametrize("name", ["gem", "agem"])
def test_four_times_four_is_sixteen(name, after_tasks, at_odds, encode_examples, four_times_four):
    current, opposite = at_odds

    def end(model, strategy):
        assert sum(strategy.edits) >= 2
        return model.point()

    four_times_four(lambda: after_tasks(name, [opposite]), end, current + encode_examples(8))


def test_what_memory_holds_is_forgotten_less(after_tasks, at_odds, train_task, alone, plain_model_at):
    current, opposite = at_odds

    def forgotten(name, **settings):
        model, strategy = after_tasks(name, [opposite], **settings)

        def loss():
            with torch.no_grad():
                return sum(float(alone(plain_model_at(model.point()), e)[0]) for e in opposite)

        before = loss()
        train_task(model, strategy, current, num_steps=8, learning_rate=2e-3)
        return loss() - before

    changes = {name: forgotten(name) for name in ("sequential", "gem", "agem")}
    assert max(changes["gem"], changes["agem"]) < 0.9 * changes["sequential"], changes


@pytest.mark.parametrize("name", ["gem", "agem"])
def test_a_base_in_low_precision_trains(name, make_model, at_odds, train_task):
    current, opposite = at_odds
    model = make_model(dtype="bfloat16", dropout=0.2)
    strategy = make_strategy(name, seed=0)
    strategy.begin(model, 2)
    for task, examples in enumerate((opposite, current)):
        strategy.begin_task(model, task, examples)
        before = model.point()
        train_task(model, strategy, examples, num_steps=2, learning_rate=1e-2, seed=task)
        assert not any(torch.equal(v, before[k]) for k, v in model.point().items() if ".lora_B." in k)


@pytest.mark.parametrize(
    ("name", "settings"), [("gem", {"examples_per_step": 3}), ("agem", {"memory_size": 9, "reference_batch_size": 3})]
)
def test_the_state_goes_through_json_and_on(name, settings):
    strategy, other = (make_strategy(name, seed=0, **settings) for _ in range(2))
    for task in range(2):
        strategy.task_index = other.task_index = task
        for step in range(3):
            first = 100 * task + 4 * step
            strategy.after_step(None, numbered(range(first, first + 4)), [True, True, True, step > 0])
    tensors, values = strategy.state()
    assert tensors == {}
    other.load_state(None, {}, json.loads(json.dumps(values)))
    for s in (strategy, other):
        s.task_index = 2
    for _ in range(3):
        both = []
        for s in (strategy, other):
            asked, (gradient, _) = [], random_gradients(0, 0, conflict=False)
            s.edit_gradient(gradient, lambda e, asked=asked, g=gradient: asked.append(list(e)) or g)
            s.after_step(None, numbered([7]), [True])
            both.append(asked)
        assert both[0] == both[1] != []
    assert strategy.state() == other.state()


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("gem", {"memory_per_task": 0}),
        ("gem", {"margin": -0.1}),
        ("gem", {"margin": float("nan")}),
        ("gem", {"examples_per_step": 0}),
        ("agem", {"memory_size": 0}),
        ("agem", {"reference_batch_size": 0}),
    ],
)
def test_impossible_settings_are_refused(name, settings):
    with pytest.raises(UserError, match=next(iter(settings))):
        make_strategy(name, seed=0, **settings)
