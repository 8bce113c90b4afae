"""One group moves along a path at a time: against closed forms of losses that are sums over groups, and by hand."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mcanalysis.connectivity.attribution import (
    WHOLE,
    attribute,
    barrier_table,
    move_group,
)
from mcanalysis.errors import PointMismatchError, UnknownNameError, UserError
from mcanalysis.params import delta_distance, delta_norm, delta_weights, module_names
from mcanalysis.params.groups import by_layer, by_module, by_module_kind
from mcanalysis.paths import Bezier, Linear

SHAPES = {"layers.0.q": (4, 3), "layers.0.v": (2, 3), "layers.1.q": (5, 4)}
HOLDS = ("start", "end")
TS = np.linspace(0, 1, 9)


def adapter(seed, rank=2):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return {
        name: tensor
        for m, (out, inn) in SHAPES.items()
        for name, tensor in ((f"{m}.lora_A.weight", draw(rank, inn)), (f"{m}.lora_B.weight", draw(out, rank)))
    }


def separable(seed):
    """Σ over modules of ½·tr((ΔW − C)ᵀ H (ΔW − C)), H symmetric and indefinite: barriers and dips."""
    generator = torch.Generator().manual_seed(seed)
    terms = {}
    for m, (out, inn) in SHAPES.items():
        H = torch.randn(out, out, generator=generator, dtype=torch.float64)
        terms[m] = (H + H.T, torch.randn(out, inn, generator=generator, dtype=torch.float64))

    def loss(point):
        total = 0.0
        for m, D in delta_weights(point).items():
            H, C = terms[m]
            total += 0.5 * float(((D - C) * (H @ (D - C))).sum())
        return total

    return loss, terms


@pytest.mark.parametrize("space", ["factor", "delta", "aligned"])
@pytest.mark.parametrize("hold", HOLDS)
@pytest.mark.parametrize("make", [by_layer, by_module_kind, by_module])
@given(seed=st.integers(0, 2**31))
@settings(max_examples=5, deadline=None)
def test_contributions_of_a_separable_loss_add_up_to_the_whole_curve(space, hold, make, seed):
    a, b = adapter(seed), adapter(seed + 1)
    table = attribute(Linear(a, b, space=space), separable(seed)[0], make(a), hold, TS)
    scale = table.loss.abs().max()
    for column in ("loss_change", "loss_above_chord"):
        by_group = table.pivot(index="t", columns="group", values=column)
        np.testing.assert_allclose(
            by_group.drop(columns=WHOLE).sum(axis=1), by_group[WHOLE], rtol=0, atol=1e-12 * scale
        )
    barriers = barrier_table(table).set_index("group")
    whole, parts = barriers.loc[WHOLE], barriers.drop(index=WHOLE)
    assert parts.above_chord.sum() == pytest.approx(whole.above_chord, abs=1e-12 * scale)
    assert parts.end_change.sum() == pytest.approx(whole.end_change, abs=1e-12 * scale)
    assert abs(whole.above_chord) == pytest.approx(max(whole.chord_barrier, whole.chord_dip))


@pytest.mark.parametrize("hold", HOLDS)
def test_a_modules_curve_in_delta_space_is_its_own_quadratic(hold):
    """−½t(1−t)·tr(DᵀHD) above the chord, D the module's own change of ΔW."""
    a, b = adapter(0), adapter(1, rank=3)
    loss, terms = separable(4)
    path = Linear(a, b, space="delta")
    table = attribute(path, loss, by_module(path(0.0)), hold, TS)
    for m in SHAPES:
        D = delta_weights(b)[m] - delta_weights(a)[m]
        curve = table[table.group == m]
        expected = -0.5 * TS * (1 - TS) * float((D * (terms[m][0] @ D)).sum())
        np.testing.assert_allclose(curve.loss_above_chord, expected, atol=1e-10)


@pytest.mark.parametrize("space", ["factor", "delta", "aligned"])
@pytest.mark.parametrize("hold", HOLDS)
def test_the_others_stay_where_they_are_and_the_group_moves_on_its_own_path(space, hold):
    a, b = adapter(0), adapter(1)
    path = Linear(a, b, space=space)
    group = by_layer(path(0.0))["layers.0"]
    way = move_group(path, group, hold)
    ends = {"start": a, "end": b}
    for t in (0.0, 0.3, 1.0):
        got, whole = way(t), path(t)
        for m in SHAPES:
            one = {n: x for n, x in got.items() if n.startswith(m + ".")}
            expected = whole if m.startswith("layers.0") else ends[hold]
            target = {n: x for n, x in expected.items() if n.startswith(m + ".")}
            assert delta_distance(one, target) <= 1e-12 * delta_norm(target)
    held = path(0.0 if hold == "start" else 1.0)
    at_end = way(0.0 if hold == "start" else 1.0)
    assert all(torch.equal(at_end[n], held[n]) for n in held)


def test_plain_modules_curves_and_pairs_of_points():
    a, b = {"x": torch.tensor([0.0]), "y": torch.tensor([1.0])}, {"x": torch.tensor([2.0]), "y": torch.tensor([4.0])}

    def product(point):
        return float(point["x"] * point["y"])

    table = attribute((a, b), product, {"x": ["x"], "y": ["y"]}, "end", [0, 0.5, 1])
    assert table.pivot(index="t", columns="group", values="loss").to_dict("list") == {
        "all": [0.0, 2.5, 8.0], "x": [0.0, 4.0, 8.0], "y": [2.0, 5.0, 8.0],
    }  # fmt: skip
    bent = Bezier(a, b, bends=[{"x": torch.tensor([6.0]), "y": torch.tensor([0.0])}])
    table = attribute(bent, product, {"x": ["x"]}, "start", [0, 0.5, 1]).set_index(["group", "t"])
    assert table.loc[("x", 0.5), "loss"] == 3.5 and "score" not in table
    assert len(attribute((a, b), product, {"x": ["x"]})) == 2 * 11


def test_scores_keep_their_sign_and_their_barriers_are_how_far_they_fall():
    def objective(point):
        x = float(point["x"])
        nll = np.array([x, x])
        return SimpleNamespace(loss=x, nll=nll, targets=np.ones(2), score=1 - x * x, scores=np.array([1, 1]) - x * x)

    a, b = {"x": torch.tensor([-0.5])}, {"x": torch.tensor([1.0])}
    table = attribute((a, b), objective, {"x": ["x"]}, "start", [0, 1 / 3, 1])
    assert table[table.group == "x"].score.tolist() == pytest.approx([0.75, 1.0, 0.0])
    row = barrier_table(table, "score").iloc[1]
    assert row.end_change == pytest.approx(-0.75)
    assert row.above_chord == pytest.approx(0.5) == row.chord_dip  # above the chord: better, not worse
    assert row.chord_barrier == 0 and barrier_table(table, "loss").iloc[1].end_change == pytest.approx(1.5)


def test_the_held_end_is_evaluated_once_and_nothing_is_changed():
    a, b = adapter(0), adapter(1)
    before = {n: x.clone() for n, x in a.items()}
    seen = []
    groups = by_module(a)
    for hold in HOLDS:
        seen.clear()
        attribute((a, b), lambda p: seen.append(1) or 0.0, groups, hold, TS)
        assert len(seen) == (len(groups) + 1) * (len(TS) - 1) + 1
    assert all(torch.equal(a[n], before[n]) for n in a)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": {"z": ["nope"]}}, "tensor in a group"),
        ({"groups": {}}, "at least one group"),
        ({"groups": {"all": ["x"]}}, "rename it"),
        ({"groups": {"g": []}}, "got none"),
        ({"groups": {"g": "x"}}, "the text 'x'"),
        ({"hold": "middle"}, "'start' or 'end', got 'middle'"),
        ({"ts": [0.2, 1.0]}, "Expected"),
        ({"ts": [0.0]}, "Expected"),
    ],
)
def test_bad_input_is_refused_in_one_line_before_anything_is_evaluated(options, message):
    a, b = {"x": torch.zeros(1)}, {"x": torch.ones(1)}

    def never(point):
        raise AssertionError("evaluated")

    with pytest.raises(UserError, match=message) as caught:
        attribute((a, b), never, **{"groups": {"x": ["x"]}, **options})
    assert "\n" not in str(caught.value)
    assert options != {"groups": {"z": ["nope"]}} or isinstance(caught.value, UnknownNameError)


def test_points_that_cannot_be_joined_are_refused():
    with pytest.raises(PointMismatchError, match="space='delta'"):
        attribute((adapter(0), adapter(1, rank=3)), lambda p: 0.0, by_module(adapter(0)))


def test_groups_of_a_delta_path_of_different_targets_can_be_made_from_any_of_its_points():
    a, b = adapter(0), {n: x for n, x in adapter(1).items() if "layers.0.q" in n}
    path = Linear(a, b, space="delta")
    table = attribute(path, separable(0)[0], by_module(path(0.5)), "start", [0, 0.5, 1])
    assert set(table.group) == {WHOLE, *module_names(a)}
