"""Second-order predictions: exact for a quadratic, third order for anything smooth, and adapters that grow in rank."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mcanalysis.errors import PointMismatchError
from mcanalysis.evaluation.batch_losses import batch_losses
from mcanalysis.landscape.hessian import HessianOperator
from mcanalysis.landscape.predicted_forgetting import predicted_forgetting, same_ranks
from mcanalysis.models.adapter_files import LoraSettings
from mcanalysis.models.lora_model import LoraModel
from mcanalysis.params.lora import delta_weights
from mcanalysis.params.low_rank import concatenate
from mcanalysis.params.point import combine, norm, subtract


@given(st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_exact_for_a_quadratic(seed):
    rng = np.random.default_rng(seed)
    matrix = torch.from_numpy(rng.standard_normal((4, 4)))
    matrix = matrix + matrix.T
    minimum, start, end = (torch.from_numpy(rng.standard_normal(4)) for _ in range(3))

    def loss(point):
        apart = point["w"] - minimum
        return 0.5 * apart @ matrix @ apart

    found = predicted_forgetting(HessianOperator(loss, {"w": start}), {"w": end})
    step = end - start
    assert found.measured == pytest.approx(float(loss({"w": end}) - loss({"w": start})), abs=1e-12)
    assert found.predicted == pytest.approx(found.measured, abs=1e-10)
    assert found.first_order == pytest.approx(float(step @ matrix @ (start - minimum)), abs=1e-10)
    assert found.distance == pytest.approx(float(step.norm()))
    eigen = torch.linalg.eigvalsh(matrix)
    assert eigen[0] - 1e-9 <= found.curvature <= eigen[-1] + 1e-9


def test_the_error_is_of_third_order_on_a_language_model(tiny_base, tokenizer, encode_examples, random_point):
    """Halving a short step divides what is not predicted by about 8."""
    model = LoraModel.attach(tiny_base("gpt2").double(), tokenizer, LoraSettings(rank=2), 0, "tiny")
    start = {n: t.double() for n, t in random_point(model, 0).items()}
    away = subtract({n: t.double() for n, t in random_point(model, 1).items()}, start)
    hessian = HessianOperator(batch_losses(model, [encode_examples(4)]), start)
    errors = []
    for length in (0.04, 0.02):
        found = predicted_forgetting(hessian, combine([start, away], [1.0, length / norm(away)]))
        errors.append(abs(found.measured - found.predicted))
        assert found.distance == pytest.approx(length, rel=1e-6)
        assert errors[-1] < 0.5 * abs(found.measured - found.first_order), "the second order explains something"
    assert 6 < errors[0] / errors[1] < 10


def test_no_step_no_forgetting():
    found = predicted_forgetting(
        HessianOperator(lambda p: (p["w"] ** 3).sum(), {"w": torch.ones(1)}), {"w": torch.ones(1)}
    )
    assert (found.predicted, found.measured, found.distance, found.curvature) == (0, 0, 0, 0)


def test_a_grown_adapter_predicts_the_first_order_effect_of_what_was_added(
    tiny_base, tokenizer, encode_examples, random_point
):
    """θ_t = [θ_{t−1}; new]: the gradient at the filled-up start is 0 along Δ, and ½ΔᵀHΔ = ⟨∂L/∂W, B·A⟩."""
    # GPT-2: Llama's norms compute in float32 whatever the model's dtype, and a difference of losses would see it.
    model = LoraModel.attach(tiny_base("gpt2").double(), tokenizer, LoraSettings(rank=2), 0, "tiny")
    start, new = ({n: t.double() for n, t in random_point(model, s).items()} for s in (0, 1))
    end = concatenate([start, new], [1.0, 1.0])
    filled, same = same_ranks(start, end)
    assert all(torch.equal(same[n], end[n]) for n in end)
    for module, delta in delta_weights(start).items():
        torch.testing.assert_close(delta_weights(filled)[module], delta, rtol=0, atol=1e-15)
    losses = batch_losses(model, [encode_examples(4)])
    found = predicted_forgetting(HessianOperator(losses, filled), end)
    assert found.first_order == pytest.approx(0.0, abs=1e-12)
    assert found.distance == pytest.approx(norm(new))
    size = 1e-3  # in ΔW, of a central difference

    def along(t):
        moved = concatenate([start, new], [1.0, t])
        return sum(float(f(moved)) for f in losses)

    slope = (along(size) - along(-size)) / (2 * size)
    assert found.second_order == pytest.approx(slope, rel=1e-3)


def test_same_ranks_leaves_equal_ones_and_plain_points_alone():
    plain = {"w": torch.ones(2)}
    assert same_ranks(plain, plain)[0]["w"] is plain["w"]
    adapter = {"q.lora_A.weight": torch.ones(1, 2), "q.lora_B.weight": torch.ones(2, 1)}
    assert same_ranks(adapter, adapter)[1]["q.lora_A.weight"] is adapter["q.lora_A.weight"]
    other = {n.replace("q.", "v."): t for n, t in adapter.items()}
    with pytest.raises(PointMismatchError, match="one base"):
        same_ranks(adapter, other)
    with pytest.raises(PointMismatchError, match="same_ranks"):
        larger = {"q.lora_A.weight": torch.ones(2, 2), "q.lora_B.weight": torch.ones(2, 2)}
        predicted_forgetting(HessianOperator(lambda p: p["q.lora_A.weight"].sum(), adapter), larger)
