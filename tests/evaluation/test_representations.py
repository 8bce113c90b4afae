"""Comparing points: a language model against one example at a time in plain PyTorch."""

import numpy as np
import pytest
import torch

from mcanalysis.errors import PointMismatchError, UnknownNameError, UserError
from mcanalysis.evaluation.representations import compare_points, num_parts
from mcanalysis.metrics.representation_similarity import CKA, linear_cka

PAIRS = [("a", "b"), ("base", "b")]


@pytest.fixture(scope="module")
def model(make_model):
    return make_model()


@pytest.fixture(scope="module")
def points(model, random_point):
    return {"base": model.base_point(), "a": random_point(model, 1), "b": random_point(model, 2)}


@pytest.fixture(scope="module")
def examples(encode_examples):
    return encode_examples(13)


@pytest.fixture(scope="module")
def by_hand(points, examples, plain_model_at, alone):
    """Per point: hidden states at the prompt's last token (layer, example, width) and log-probabilities per example."""
    found = {}
    for name, point in points.items():
        plain = plain_model_at(point)
        states, log_p = [], []
        with torch.no_grad():
            for e in examples:
                _, hidden = alone(plain, e)
                states.append(torch.stack([h[len(e.prompt_ids) - 1] for h in hidden]))
                logits = plain(input_ids=torch.tensor([e.prompt_ids + e.answer_ids])).logits[0]
                log_p.append(logits[len(e.prompt_ids) - 1 : -1].double().log_softmax(-1))
        found[name] = torch.stack(states, dim=1).double().numpy(), log_p
    return found


@pytest.fixture(scope="module")
def compared(model, points, examples):
    return compare_points(model, points, PAIRS, examples)


@pytest.mark.parametrize("pair", PAIRS)
def test_cka_is_that_of_each_example_s_last_prompt_token(compared, by_hand, pair):
    first, second = (by_hand[name][0] for name in pair)
    assert len(compared[pair].cka) == len(first) == 2
    for layer, cka in enumerate(compared[pair].cka):
        assert cka.value() == pytest.approx(linear_cka(first[layer], second[layer]), abs=1e-4)
        assert cka.num_examples == 13
    assert abs(compared[pair].cka[0].value() - compared[pair].cka[1].value()) > 1e-3, "layers are told apart"


@pytest.mark.parametrize("pair", PAIRS)
def test_divergences_are_summed_over_the_answer_of_each_example(compared, by_hand, examples, pair):
    for i, e in enumerate(examples):
        p, q = (by_hand[name][1][i] for name in pair)
        m = torch.logaddexp(p, q) - np.log(2)
        kl = lambda a, b: float((a.exp() * (a - b)).sum())  # noqa: E731
        assert compared[pair].kl[i] == pytest.approx(kl(p, q), rel=1e-3, abs=1e-4)
        assert compared[pair].reverse_kl[i] == pytest.approx(kl(q, p), rel=1e-3, abs=1e-4)
        assert compared[pair].js[i] == pytest.approx((kl(p, m) + kl(q, m)) / 2, rel=1e-3, abs=1e-4)
        assert compared[pair].targets[i] == len(e.answer_ids)
    assert compared[pair].kl.min() > 0.01


def test_a_point_compared_with_itself(model, points, examples):
    again = {"a": points["a"], "same": dict(points["a"])}
    found = compare_points(model, again, [("a", "same")], examples)["a", "same"]
    assert [cka.value() for cka in found.cka] == pytest.approx([1.0, 1.0])
    assert (found.kl == 0).all() and (found.reverse_kl == 0).all() and (found.js < 1e-15).all()


def test_how_much_runs_at_once_changes_nothing(model, points, examples, compared):
    calls = []
    tiny = compare_points(model, points, PAIRS, examples, token_budget=1, on_batch=lambda: calls.append(1))
    assert len(calls) == len(examples) == num_parts(examples, token_budget=1)
    for pair in PAIRS:
        np.testing.assert_allclose(tiny[pair].kl, compared[pair].kl, rtol=1e-3, atol=1e-4)
        for one, other in zip(tiny[pair].cka, compared[pair].cka, strict=True):
            assert one.value() == pytest.approx(other.value(), abs=1e-4)


def test_batches_are_random_of_equal_size_and_seeded(model, points, examples, by_hand, monkeypatch):
    sizes = []
    update = CKA.update
    monkeypatch.setattr(CKA, "update", lambda self, x, y: sizes.append(len(x)) or update(self, x, y))
    values = {}
    for seed in (0, 0, 1):
        found = compare_points(model, points, PAIRS[:1], examples, batch_size=5, seed=seed)[PAIRS[0]]
        values.setdefault(seed, []).append([cka.value() for cka in found.cka])
    assert sorted(set(sizes)) == [4, 5] and len(sizes) == 3 * 3 * 2
    assert values[0][0] == values[0][1] != values[1][0]
    assert np.isfinite(values[0][0]).all()


def test_only_one_point_is_in_place_and_each_runs_once(model, points, examples, monkeypatch):
    placed = []
    in_place = type(model).in_place

    def placing(self, point):
        placed.append(next(name for name, known in points.items() if known is point))
        return in_place(self, point)

    monkeypatch.setattr(type(model), "in_place", placing)
    compare_points(model, points, [("a", "b"), ("a", "base"), ("base", "b")], examples)
    parts = num_parts(examples)
    assert placed == ["base", "a", "b"] * parts
    placed.clear()
    compare_points(model, points, PAIRS[:1], examples)
    assert placed == ["a", "b"] * parts, "a point of no pair is left out"


def test_model_and_random_state_are_left_as_they_were(model, points, examples):
    before = {n: p.clone() for n, p in model.network.named_parameters()}
    model.network.train()
    state = torch.get_rng_state()
    compare_points(model, points, PAIRS, examples)
    assert model.network.training and torch.equal(state, torch.get_rng_state())
    model.network.eval()
    assert all(torch.equal(p, before[n]) for n, p in model.network.named_parameters())


def test_bad_input_is_named(model, points, examples):
    with pytest.raises(UserError, match=r"at least 4 examples, .* got 3 examples"):
        compare_points(model, points, PAIRS, examples[:3])
    with pytest.raises(UserError, match="batches of 2"):
        compare_points(model, points, PAIRS, examples, batch_size=2)
    with pytest.raises(UnknownNameError, match="Unknown point to compare 'c'"):
        compare_points(model, points, [("a", "c")], examples)
    lacking = {"a": points["a"], "b": {k: v for k, v in points["b"].items() if "q_proj" not in k}}
    with pytest.raises(PointMismatchError, match="differing"):
        compare_points(model, lacking, PAIRS[:1], examples)
