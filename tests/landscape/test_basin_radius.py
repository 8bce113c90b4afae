"""The basin radius against the distances at which a quadratic rises, in the directions that it draws."""

import math

import numpy as np
import pytest
import torch

from mcanalysis.errors import UserError
from mcanalysis.landscape.basin_radius import basin_radius


def test_radius_of_an_uneven_quadratic_is_that_of_its_directions():
    point = {"w": torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)}
    curvatures = np.array([0.5, 3.0, 10.0])

    def loss(p):
        return float((curvatures * (p["w"] - point["w"]).numpy() ** 2).sum() / 2)

    generator = torch.Generator().manual_seed(3)
    logarithms = []
    for _ in range(4):
        direction = torch.randn(3, generator=generator, dtype=torch.float64).numpy()
        direction /= np.linalg.norm(direction)
        logarithms.append(math.log(math.sqrt(2 * 0.2 / (curvatures @ direction**2))))
    found = basin_radius(loss, point, 0.2, num_directions=4, num_halvings=12, seed=3)
    assert found == pytest.approx(math.exp(np.mean(logarithms)), rel=1e-3)


def test_a_flat_loss_counts_with_the_farthest_and_nan_as_risen():
    point = {"w": torch.tensor([3.0, 4.0])}
    assert basin_radius(lambda p: 1.0, point) == pytest.approx(80.0)
    far = basin_radius(lambda p: 1.0 if float((p["w"] - point["w"]).norm()) < 2.0 else math.nan, point)
    assert far == pytest.approx(2.0, rel=0.05)
    for settings in ({"rise": 0.0}, {"num_directions": 0}):
        with pytest.raises(UserError, match="positive rise"):
            basin_radius(lambda p: 0.0, point, **settings)
    with pytest.raises(UserError, match="not 0"):
        basin_radius(lambda p: 0.0, {"w": torch.zeros(2)})
