"""What `check_merge` says of PEFT, against PEFT called by hand; of functions of a user; of what they raise."""

import math

import pytest
import torch
from peft import LoraConfig, get_peft_model

import mcanalysis as mc
from mcanalysis.errors import UserError
from mcanalysis.models.check_merge import _Adapter, _mergekit_merge, _peft_merge
from mcanalysis.params.low_rank import concatenate
from mcanalysis.params.point import combine


@pytest.fixture(scope="module")
def found():
    return mc.check_merge()


def cell(found, mode, identity, source="PEFT"):
    rows = found[
        (found["mode"] == mode) & found.identity.str.startswith(identity) & found.source.str.startswith(source)
    ]
    return rows.iloc[0]


def by_hand(mode, weights, settings, ranks=(4, 4), **options):
    """ΔW that PEFT makes of random adapters on one layer, and ΔW of each, by its own merging into the weights."""

    def whole(name):
        layer = model.base_model.model.layer
        return layer.scaling[name] * layer.lora_B[name].weight.detach() @ layer.lora_A[name].weight.detach()

    torch.manual_seed(0)
    base = torch.nn.Sequential()
    base.add_module("layer", torch.nn.Linear(8, 8, bias=False))
    names = [f"a{i}" for i in range(len(weights))]
    configs = [LoraConfig(r=r, target_modules=["layer"], init_lora_weights=False, **settings) for r in ranks]
    model = get_peft_model(base, configs[0], adapter_name="a0")
    for name, config in zip(names[1:], configs[1:], strict=False):
        model.add_adapter(name, config)
    model.base_model.add_weighted_adapter(names, list(weights), "merged", combination_type=mode, **options)
    return whole("merged"), [whole(name) for name in names]


def test_what_is_said_of_peft_is_so(found):
    merged, (a,) = by_hand("cat", [1.0], {"lora_alpha": 8})
    torch.testing.assert_close(merged, a)
    assert cell(found, "cat", "one adapter of weight 1").result == "holds"
    merged, (a, b) = by_hand("cat", [0.3, 0.7], {"lora_alpha": 8})
    torch.testing.assert_close(merged, 0.3 * a + 0.7 * b)
    assert cell(found, "cat", "ΔW = 0.3").result == "holds"
    merged, (a, b) = by_hand("linear", [0.3, 0.7], {"lora_alpha": 8})
    assert float((merged - 0.3 * a - 0.7 * b).norm()) > 0.1 * float(a.norm())
    assert cell(found, "linear", "ΔW = 0.3").result == "violated" and cell(found, "linear", "ΔW = 0.3").claimed
    with pytest.raises(ValueError, match="same r value"):
        by_hand("linear", [0.3, 0.7], {}, ranks=(4, 2))
    row = cell(found, "linear", "ranks 3 and 2")
    assert row.result == "refused" and "same r value" in row.words and math.isnan(row.error)


def test_rank_stabilised_adapters_come_back_multiplied_by_the_root_of_the_rank(found):
    merged, (a,) = by_hand("svd", [1.0], {"lora_alpha": 8, "use_rslora": True})
    factor = float((merged * a).sum() / (a * a).sum())
    row = cell(found, "svd", "rsLoRA: weight 1")
    if factor == pytest.approx(1.0, rel=1e-5):
        assert row.result == "holds"  # a PEFT that has mended it
    else:
        assert factor == pytest.approx(2.0, rel=1e-5) and row.error == pytest.approx(math.sqrt(3) - 1, rel=1e-5)


def test_an_svd_of_the_default_rank_cuts_and_of_the_sum_of_ranks_does_not(found):
    assert cell(found, "svd", "ΔW = 0.3").result == "violated"
    assert cell(found, "svd, svd_rank=6", "ΔW = 0.3").result == "holds"


def test_ours_hold_and_factors_do_not(found):
    ours = found[found.source == "mcanalysis"]
    delta = ours[ours["mode"] == "delta space"]
    assert set(delta.result) == {"holds"} and delta.claimed.all() and delta.error.max() < 1e-12
    for mode in ("task_arithmetic", "ties", "dare", "magmax"):
        own = ours[ours["mode"] == mode]
        assert set(own[own.claimed].result) == {"holds"} and own[own.claimed].error.max() < 1e-12
    assert cell(found, "factor space", "(B·R", "mcanalysis").result == "violated"
    assert cell(found, "factor space", "one adapter of weight −1", "mcanalysis").error == pytest.approx(2)


def test_the_state_of_the_random_numbers_stays():
    before = torch.random.get_rng_state()
    _peft_merge("cat", {}, (_Adapter.drawn(0),), (1.0,))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_every_mode_is_asked_and_what_is_not_installed_is_said(found):
    asked = {m.partition(",")[0] for m in found[found.source.str.startswith("PEFT")]["mode"]}
    assert asked == {
        "linear", "cat", "svd", "ties", "ties_svd", "dare_linear", "dare_linear_svd", "dare_ties", "dare_ties_svd",
        "magnitude_prune", "magnitude_prune_svd",
    }  # fmt: skip
    try:
        import mergekit  # noqa: F401
    except ImportError:
        assert found[found.source == "mergekit"].result.tolist() == ["not installed"]
        with pytest.raises(ImportError):
            _mergekit_merge("ties", (), ())


def test_a_function_of_ones_own():
    def halved(points, weights):
        return concatenate(points, [w / 2 for w in weights])

    found = mc.check_merge(halved)
    assert set(found.source) == {"yours"} and set(found["mode"]) == {"halved"}
    assert cell(found, "halved", "one adapter", "yours").error == pytest.approx(0.5)
    assert cell(found, "halved", "order", "yours").result == "holds"
    dense = mc.check_merge(lambda ps, ws: {m: sum(w * p[f"{m}.lora_B.weight"] @ p[f"{m}.lora_A.weight"] for p, w in zip(ps, ws, strict=True) if f"{m}.lora_A.weight" in p) for m in ("q", "v")})  # fmt: skip  # noqa: E501
    assert set(dense.result) == {"holds"}
    assert "refused" in set(mc.check_merge(combine).result)  # factors of different ranks


@pytest.mark.parametrize(
    ("combine", "words"),
    [
        ("linear", "Expected a function"),
        (lambda points, weights: None, "got NoneType"),
        (lambda points, weights: {"q": torch.ones(2, 2)}, "Expected ΔW of shape"),
        (lambda points, weights: {"k": torch.ones(2, 2)}, "at 'k'"),
    ],
)
def test_bad_input(combine, words):
    with pytest.raises(UserError, match=words):
        mc.check_merge(combine)
