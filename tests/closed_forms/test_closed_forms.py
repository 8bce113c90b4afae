"""Every identity of the design's geometry.md §1 and §7 holds to its bound, and is missed where the library is broken.

§7's checks on trained networks are in tests/classics.
"""

import pytest
import torch
from peft import LoraConfig, get_peft_model

from mcanalysis.closed_forms import (
    ClosedForm,
    adapters,
    check_closed_forms,
    closed_form,
    closed_forms,
    curves,
    spaces,
)
from mcanalysis.errors import UserError
from mcanalysis.params import AlignedSpace, balance
from mcanalysis.params.merging import dare
from mcanalysis.paths import Bezier, Linear, Path, Simplex, merges

FORMS = {form.identity: form for form in closed_forms()}

# What geometry.md says, line by line, and the words by which its check is found.
CLAIMS = {
    "§1 factor: a quadratic Bezier curve in ΔW": "the factor path is a quadratic Bezier",
    "§1 factor: deviates by −s·t(1−t)(B₂−B₁)(A₂−A₁)": "factor path − ΔW line",
    "§1 delta: straight in weight space": "delta path: ΔW(t) = (1−t)",
    "§1 delta: exact at rank ≤ r₁+r₂": "delta path: rank",
    "§1 delta: by concatenating factors": "concatenated factors",
    "§1 aligned: (BR, R⁻¹A) is the same function": "(BR, R⁻¹A) is the same adapter",
    "§1 aligned: balance by SVD": "balanced factors",
    "§1 aligned: closest to the first (Procrustes)": "Procrustes",
    "§1 deviation reported, relative to ‖ΔW₂−ΔW₁‖": "reported factor–delta deviation",
    "§1 two equal adapters at ½, ½": "two equal adapters at ½",
    "§1 different α/r, rank-stabilised, ranks": "scalings α/r and α/√r",
    "§1 ends bit-exact in factor and dense delta": "bit for bit (entries that differ)",
    "§1 ends' ΔW to 1e-12 in aligned and concatenated delta": "ends of delta and aligned",
    "§1 reversal to 1e-12": "reversal",
    "§1 affine invariance for plain vectors": "affine invariance",
    "§7 L(t) − chord(t) = −½t(1−t)·dᵀHd": "quadratic: L(t) − chord(t)",
    "§7 best bend 2.5·θ* − 0.75·(θ₀+θ₁)": "quadratic: at the bend",
    "§7 … and curve fitting finds it": "quadratic: fit_curve finds",
    "§7 R undone by aligned": "aligned undoes any orthogonal R",
    "§7 two equal adapters, a constant path": "two equal adapters: a constant",
}


@pytest.mark.parametrize("identity", FORMS)
def test_identity_holds(identity):
    form = FORMS[identity]
    assert 0.0 <= form.error() <= form.bound


@pytest.mark.parametrize("claim", CLAIMS)
def test_every_line_of_the_design_has_its_check(claim):
    assert any(CLAIMS[claim] in identity for identity in FORMS), claim


def test_bounds_are_those_of_the_design():
    for form in FORMS.values():
        if "(entries that differ)" in form.identity:
            assert form.bound == 0.0
        elif form.identity.startswith("aligned undoes"):
            assert form.bound == 1e-6
        elif "fit_curve" not in form.identity and "polygon" not in form.identity and form.section in "137":
            assert form.bound <= 1e-12, form.identity


def off_by(factor):
    """Weights that are right at the ends and a little wrong between them."""

    def weights(self, t):
        t = float(t) * (1.0 + factor * (1.0 - float(t)))
        return torch.tensor([1.0 - t, t], dtype=torch.float64)

    return weights


def doubly_weighted(points, weights):
    """Factors side by side, the weight on both."""
    return {
        name: torch.cat([p[name] * w for p, w in zip(points, weights, strict=True)], dim=int("lora_B" in name))
        for name in points[0]
    }


def understated(point, rank, truncate=adapters.truncate):
    smaller, error = truncate(point, rank)
    return smaller, 0.999 * error


def at_other_ts(a, b, ts, deviation=spaces.factor_delta_deviation):
    return deviation(a, b, 0.99 * ts)


def in_eleven_pieces(self, num=201, space=None, length=Path.length):
    return length(self, 11, space)


def in_half_precision(point, *rest, save=adapters.save_adapter):
    return save({name: tensor.half() for name, tensor in point.items()}, *rest)


def for_five_steps(curve, loss, fit=curves.fit_curve, **options):
    return fit(curve, loss, num_steps=5)


# What is broken: where, by what, and the words of the identities that must then be missed.
BREAKS = {
    "a straight path that is not straight": (
        Linear, "weights", off_by(1e-9),
        ["factor path − ΔW line", "delta path: ΔW(t)", "quadratic: L(t)", "reversal", "Bezier curve in ΔW"],
    ),
    "bends that weigh too much": (
        Bezier, "weights", lambda self, t: torch.full((len(self.anchors),), 0.3, dtype=torch.float64),
        ["quadratic: at the bend", "weights sum to 1", "de Casteljau", "ends of factor", "parabola", "leaves the ends"],
    ),
    "balanced adapters that are not turned": (
        AlignedSpace, "embed", lambda self, points: [balance(p) for p in points], ["Procrustes"],
    ),
    "aligned factors left as they are": (
        AlignedSpace, "embed", lambda self, points: [dict(p) for p in points],
        ["aligned undoes any orthogonal R", "aligned undoes any invertible R", "Procrustes"],
    ),
    "weights on both factors": (
        adapters, "concatenate", doubly_weighted, ["concatenated factors", "two equal adapters at ½"],
    ),
    "an understated error of truncation": (adapters, "truncate", understated, ["SVD truncation"]),
    "a deviation at other ts": (spaces, "factor_delta_deviation", at_other_ts, ["reported factor–delta deviation"]),
    "lengths of few pieces": (Path, "length", in_eleven_pieces, ["arc length of the parabola"]),
    "factors that are not balanced": (adapters, "balance", dict, ["balanced factors"]),
    "a simplex of other corners": (
        Simplex, "__call__", lambda self, w, at=Simplex.__call__: at(self, w[::-1]), ["simplex of three adapters"],
    ),
    "a fit that stops early": (curves, "fit_curve", for_five_steps, ["fit_curve finds"]),
    "files in half precision": (adapters, "save_adapter", in_half_precision, ["an adapter saved for PEFT"]),
    "a gauge that scales": (
        adapters, "random_gauge", lambda point, seed: {n: x * (1 + 1e-9) for n, x in point.items()},
        ["random gauge", "factor path to (BR"],
    ),
    "DARE that does not rescale": (
        adapters, "dare", lambda points, density, **rest: dare([points[0]], 1.0, scale=density), ["DARE keeps"],
    ),
    "arcs that are straight": (merges, "COLLINEAR", -1.0, ["SLERP and Karcher"]),
    "merges that start elsewhere": (
        merges, "base_point", lambda point: {n: 0.1 * x for n, x in point.items()}, ["task arithmetic, TIES"],
    ),
    "contributions of another path": (
        curves, "by_module", lambda point: {"one": list(point)[:2]}, ["separable loss"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BREAKS)
def test_a_broken_library_is_noticed(name, monkeypatch):
    owner, attribute, broken, missed = BREAKS[name]
    monkeypatch.setattr(owner, attribute, broken)
    for words in missed:
        chosen = [form for identity, form in FORMS.items() if words in identity]
        assert chosen, words
        assert all(not form.error() <= form.bound for form in chosen), words


def test_the_table_marks_what_is_missed(monkeypatch):
    made = [ClosedForm("9", name, 1e-3, lambda e=e: e) for name, e in (("a", 0.0), ("b", 2e-3), ("c", float("nan")))]
    monkeypatch.setattr("mcanalysis.closed_forms.closed_forms", lambda: made)
    assert check_closed_forms().holds.tolist() == [True, False, False]


def test_an_error_that_is_no_number_is_not_lost_among_others(monkeypatch):
    monkeypatch.setattr("mcanalysis.closed_forms.registry._CLOSED_FORMS", {})
    closed_form("9", "a", 1.0)(lambda: iter([0.5, float("nan"), 0.0]))
    assert check_closed_forms().holds.tolist() == [False]


def test_an_identity_is_registered_once():
    with pytest.raises(UserError, match="each identity once"):
        closed_form("1", next(iter(FORMS)), 1.0)(lambda: 0.0)


def test_pefts_own_linear_combination_does_not_give_the_adapter_back():
    """Why adapters are never combined by PEFT: two equal ones at ½, ½ come out with twice their ΔW."""
    config = LoraConfig(r=2, target_modules=["q"])
    network = get_peft_model(torch.nn.ModuleDict({"q": torch.nn.Linear(5, 4, bias=False)}), config)
    network.add_adapter("other", config)
    layer = network.base_model.model["q"]
    with torch.no_grad():
        for factor in (layer.lora_A, layer.lora_B):
            factor["default"].weight.normal_()
            factor["other"].weight.copy_(factor["default"].weight)
    network.add_weighted_adapter(["default", "other"], [0.5, 0.5], "middle", combination_type="linear")
    once, middle = layer.get_delta_weight("default"), layer.get_delta_weight("middle")
    torch.testing.assert_close(middle, 2 * once)
