"""From the base, (A, 0), to an adapter: one line t·ΔW in every space, by NumPy, inside and beyond the ends."""

import numpy as np
import pytest
import torch

from mcanalysis.errors import PointMismatchError
from mcanalysis.params import content_hash
from mcanalysis.params.lora import base_point, factor_delta_deviation
from mcanalysis.paths import Bezier, Linear

SPACES = ("factor", "delta", "aligned")


def adapter(seed=0, rank=3, modules=("q", "v"), dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    point = {}
    for module in modules:
        point[f"{module}.lora_A.weight"] = torch.randn(rank, 5, generator=generator).to(dtype)
        point[f"{module}.lora_B.weight"] = torch.randn(6, rank, generator=generator).to(dtype)
    return point


def change(point, module):
    return point[f"{module}.lora_B.weight"].double().numpy() @ point[f"{module}.lora_A.weight"].double().numpy()


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-6), (torch.float64, 1e-13)])
def test_every_space_gives_the_line_of_the_scaled_change(space, dtype, error):
    point = adapter(dtype=dtype)
    path, back = Linear(base_point(point), point, space=space, extrapolate=True), None
    back = Linear(point, base_point(point), space=space, extrapolate=True)
    for t in (-0.5, 0.0, 0.25, 0.5, 1.0, 1.5):
        for here in (path(t), back(1.0 - t)):
            for module in ("q", "v"):
                whole = change(point, module)
                assert np.abs(change(here, module) - t * whole).max() <= error * np.abs(whole).max()
    assert not any(tensor.any() for name, tensor in path(0.0).items() if ".lora_B." in name)  # the base, exactly
    if space == "factor":
        assert content_hash(path(1.0)) == content_hash(point)


def test_a_module_that_an_adapter_did_not_change_stays_where_it_is():
    point = adapter()
    point["v.lora_B.weight"].zero_()
    for space in SPACES:
        here = Linear(base_point(point), point, space=space)(0.5)
        assert np.abs(change(here, "v")).max() == 0.0
        assert np.abs(change(here, "q") - change(point, "q") / 2).max() <= 1e-6


def test_aligned_meets_a_base_of_other_factors_ranks_and_modules():
    base, point = base_point(adapter(7, rank=1, modules=("q", "k"))), adapter(1)
    here = Linear(base, point, space="aligned")(0.25)
    for module in ("q", "v"):
        assert np.abs(change(here, module) - change(point, module) / 4).max() <= 1e-6
    assert np.abs(change(here, "k")).max() == 0.0
    middle = Bezier(base, point, space="aligned")(0.5)  # before it is bent
    assert np.abs(change(middle, "q") - change(point, "q") / 2).max() <= 1e-6


def test_two_adapters_that_change_something_are_aligned_as_before():
    one, other = adapter(0), adapter(1)
    rotation = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(2))).Q
    turned = {}
    for module in ("q", "v"):
        turned[f"{module}.lora_B.weight"] = one[f"{module}.lora_B.weight"] @ rotation
        turned[f"{module}.lora_A.weight"] = rotation.T @ one[f"{module}.lora_A.weight"]
    middle = Linear(one, turned, space="aligned")(0.5)
    assert np.abs(change(middle, "q") - change(one, "q")).max() <= 1e-5
    assert factor_delta_deviation(base_point(other), other, [0.5]).tolist() == [0.0]


def test_plain_weights_have_no_base():
    with pytest.raises(PointMismatchError, match="LoRA"):
        base_point({"w": torch.ones(2)})
