"""Random factors of the same adapter: ΔW stays, and R is distributed as its docstring says."""

import numpy as np
import pytest
import torch

from mcanalysis.errors import PointMismatchError, UserError
from mcanalysis.params.gauge import gauge_change, random_gauge
from mcanalysis.params.low_rank import balance


def adapter(seed=0, rank=4, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    shapes = {"q": (7, 9), "v": (5, 6)}
    point = {}
    for module, (out, into) in shapes.items():
        point[f"{module}.lora_B.weight"] = torch.randn(out, rank, generator=g, dtype=torch.float64).to(dtype)
        point[f"{module}.lora_A.weight"] = torch.randn(rank, into, generator=g, dtype=torch.float64).to(dtype)
    return point


def dense(point, module):
    B, A = (point[f"{module}.lora_{f}.weight"].double().numpy() for f in "BA")
    return B @ A


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-13), (torch.float32, 1e-6), (torch.bfloat16, 1e-6)])
def test_the_product_stays_and_the_factors_do_not(dtype, bound):
    a = adapter(dtype=dtype)
    for seed in range(5):
        turned = random_gauge(a, seed)
        assert list(turned) == list(a) and gauge_change(a, turned) <= bound
        for module in ("q", "v"):
            exact = dense(a, module)
            assert np.linalg.norm(dense(turned, module) - exact) <= bound * np.linalg.norm(exact)
        assert not any(bool((turned[n] == a[n].to(turned[n].dtype)).any()) for n in a)


def test_the_same_seed_draws_the_same_in_any_order_of_the_modules():
    a = adapter()
    backwards = dict(reversed(a.items()))
    first, second = random_gauge(a, 3), random_gauge(backwards, 3)
    assert all(torch.equal(first[n], second[n]) for n in a)
    assert not torch.equal(first["q.lora_A.weight"], random_gauge(a, 4)["q.lora_A.weight"])


def test_singular_values_are_log_normal_and_without_spread_r_is_orthogonal():
    square = {
        "q.lora_B.weight": torch.eye(4, dtype=torch.float64),
        "q.lora_A.weight": torch.eye(4, dtype=torch.float64),
    }
    Rs = np.stack([random_gauge(square, seed, spread=0.3)["q.lora_B.weight"].numpy() for seed in range(400)])
    logs = np.log(np.linalg.svd(Rs, compute_uv=False))
    assert abs(logs.mean()) < 0.03 and abs(logs.std() - 0.3) < 0.02  # 1600 numbers: 4 standard errors
    assert np.abs(Rs.mean(0)).max() < 0.15 and np.abs((Rs**2).mean(0) / (Rs**2).mean() - 1).max() < 0.25
    turned = random_gauge(square, 0, spread=0.0)["q.lora_B.weight"].numpy()
    np.testing.assert_allclose(turned @ turned.T, np.eye(4), atol=1e-14)


def test_bad_input():
    with pytest.raises(UserError, match="spread of at least 0"):
        random_gauge(adapter(), 0, spread=-1.0)
    with pytest.raises(UserError, match="choose a smaller one"):
        random_gauge(adapter(dtype=torch.float32), 0, spread=12.0)
    with pytest.raises(PointMismatchError, match="LoRA factors"):
        random_gauge({"weight": torch.ones(2, 2)}, 0)
    nothing = {n: torch.zeros_like(x) if "_B" in n else x for n, x in adapter().items()}
    assert gauge_change(nothing, random_gauge(nothing, 0)) == 0.0
    assert gauge_change(adapter(), balance(adapter())) < 1e-12
