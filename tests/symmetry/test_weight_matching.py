"""Weight matching against brute force, against permutations that are known, and against its own promise."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mcanalysis.errors import PointMismatchError, UserError
from mcanalysis.params import content_hash, distance
from mcanalysis.symmetry import (
    PermutationSpec,
    match_weights,
    matching_objective,
    mlp_spec,
    permute,
    random_permutations,
    transformer_mlp_spec,
)


def network(*sizes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    point = {}
    for i, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
        point[f"{i}.weight"] = torch.randn(fan_out, fan_in, generator=generator, dtype=torch.float64)
        point[f"{i}.bias"] = torch.randn(fan_out, generator=generator, dtype=torch.float64)
    return point, mlp_spec(point, [str(i) for i in range(len(sizes) - 1)])


@settings(max_examples=25, deadline=None)
@given(units=st.integers(1, 5), seed=st.integers(0, 1000))
def test_one_hidden_layer_is_matched_as_well_as_by_trying_everything(units, seed):
    (a, spec), (b, _) = network(3, units, 2, seed=seed), network(3, units, 2, seed=seed + 5000)
    best = min(
        distance(a, permute(b, spec, {spec.names[0]: torch.tensor(order)}))
        for order in itertools.permutations(range(units))
    )
    assert distance(a, permute(b, spec, match_weights(a, b, spec))) == pytest.approx(best, rel=1e-12)


@settings(max_examples=25, deadline=None)
@given(units=st.integers(2, 40), seed=st.integers(0, 1000))
def test_a_permuted_layer_is_put_back_exactly(units, seed):
    a, spec = network(5, units, 3, seed=seed)
    b = permute(a, spec, random_permutations(a, spec, seed))
    assert content_hash(permute(b, spec, match_weights(a, b, spec, seed))) == content_hash(a)


@pytest.mark.parametrize("seed", range(5))
def test_a_permuted_deep_network_is_put_back_exactly(seed):
    a, spec = network(20, 30, 25, 40, 10, seed=seed)
    b = permute(a, spec, random_permutations(a, spec, seed))
    assert content_hash(permute(b, spec, match_weights(a, b, spec, seed))) == content_hash(a)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000))
def test_the_inner_product_never_falls_from_sweep_to_sweep(seed):
    (a, spec), (b, _) = network(4, 9, 8, 7, 3, seed=seed), network(4, 9, 8, 7, 3, seed=seed + 5000)
    values = [matching_objective(a, b, spec)]
    values += [matching_objective(a, b, spec, match_weights(a, b, spec, seed, max_sweeps=n)) for n in range(1, 8)]
    assert all(later >= earlier - 1e-9 for earlier, later in itertools.pairwise(values))
    assert values[-1] > values[0]


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000))
def test_the_result_is_a_fixed_point_no_single_swap_improves(seed):
    (a, spec), (b, _) = network(3, 6, 5, 2, seed=seed), network(3, 6, 5, 2, seed=seed + 5000)
    found = match_weights(a, b, spec, seed)
    reached = matching_objective(a, b, spec, found)
    for name, order in found.items():
        for i, j in itertools.combinations(range(len(order)), 2):
            swapped = order.clone()
            swapped[[i, j]] = order[[j, i]]
            assert matching_objective(a, b, spec, {**found, name: swapped}) <= reached + 1e-9


def test_the_objective_is_the_distance_in_other_words():
    """‖a − Pb‖² = ‖a‖² + ‖b‖² − 2⟨a, Pb⟩, since a permutation keeps norms."""
    (a, spec), (b, _) = network(3, 4, 2), network(3, 4, 2, seed=1)
    found = match_weights(a, b, spec)
    squares = sum(float(x.square().sum()) for point in (a, b) for x in point.values())
    expected = np.sqrt(squares - 2 * matching_objective(a, b, spec, found))
    assert distance(a, permute(b, spec, found)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_blocks_of_a_transformer_are_put_back(tiny_base, architecture):
    a = {name: p.detach() for name, p in tiny_base(architecture).named_parameters()}
    spec = transformer_mlp_spec(a)
    b = permute(a, spec, random_permutations(a, spec, 7))
    assert content_hash(permute(b, spec, match_weights(a, b, spec))) == content_hash(a)


def test_points_in_low_precision_are_matched_and_nothing_given_changes():
    a, spec = network(6, 12, 4)
    a = {name: tensor.to(torch.bfloat16).requires_grad_() for name, tensor in a.items()}
    b = permute(a, spec, random_permutations(a, spec, 2))
    kept, state = [content_hash(a), content_hash(b)], torch.random.get_rng_state()
    found = match_weights(a, b, spec)
    assert content_hash(permute(b, spec, found)) == kept[0]
    assert [content_hash(a), content_hash(b)] == kept and torch.equal(torch.random.get_rng_state(), state)
    assert all(p.dtype == torch.int64 and p.device.type == "cpu" for p in found.values())


def test_equal_units_do_not_send_it_round_in_circles():
    a = {"0.weight": torch.ones(6, 3), "1.weight": torch.ones(2, 6)}
    spec = PermutationSpec({"0.weight": ("h", None), "1.weight": (None, "h")})
    assert match_weights(a, a, spec)["h"].tolist() == list(range(6))


def test_a_sweep_that_changes_nothing_is_the_last(monkeypatch):
    from mcanalysis.symmetry import weight_matching

    solve, solved = weight_matching.linear_sum_assignment, []
    monkeypatch.setattr(
        weight_matching, "linear_sum_assignment", lambda *args, **how: solved.append(1) or solve(*args, **how)
    )
    a, spec = network(4, 6, 5, 2)
    match_weights(a, a, spec)
    assert len(solved) == len(spec.names)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda a, b, s: match_weights(a, b, s, max_sweeps=0), UserError, "max_sweeps of at least 1, got 0"),
        (lambda a, b, s: match_weights(a, network(3, 5, 2)[0], s), PointMismatchError, "same architecture"),
        (lambda a, b, s: match_weights(a, {**b, "0.bias": b["0.bias"] / 0}, s), UserError, "infinity in '0.bias'"),
    ],
)
def test_bad_input_is_refused(call, error, message):
    (a, spec), (b, _) = network(3, 4, 2), network(3, 4, 2, seed=1)
    with pytest.raises(error, match=message):
        call(a, b, spec)
