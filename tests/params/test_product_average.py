"""The average of products against its recursion on dense matrices in NumPy."""

import numpy as np
import pytest
import torch

from mcanalysis.errors import UserError
from mcanalysis.params import ema_decay_at, ema_update_
from mcanalysis.params.product_average import ProductAverage

OUT, IN, RANK = 30, 40, 2


def walk(number, seed=0, size=0.3):
    """Adapters of a random walk, as float64 arrays (A, B)."""
    rng = np.random.default_rng(seed)
    A, B = rng.normal(size=(RANK, IN)), np.zeros((OUT, RANK))
    points = [(A, B)]
    for _ in range(number):
        A, B = A + size * rng.normal(size=A.shape), B + size * rng.normal(size=B.shape)
        points.append((A, B))
    return points


def as_point(pair):
    return {"q.lora_A.weight": torch.tensor(pair[0]), "q.lora_B.weight": torch.tensor(pair[1])}


def delta(point):
    return point["q.lora_B.weight"].numpy() @ point["q.lora_A.weight"].numpy()


def run(points, decays, rank, scale=1.0):
    """(ProductAverage, slow factors, dense average by hand), each over the same points."""
    slow, average = as_point(points[0]), ProductAverage(rank)
    slow["q.lora_B.weight"] *= scale
    dense = scale * points[0][1] @ points[0][0]
    for (A, B), decay in zip(points[1:], decays, strict=True):
        average.update_(slow, as_point((A, B)), decay, {"q.lora_B.weight": scale})
        dense = decay * dense + (1 - decay) * scale * B @ A
    return average, slow, dense


@pytest.mark.parametrize("ema_decay", [0.25, 0.95, 1.0])
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_it_is_the_average_of_the_products_where_the_rank_is_enough(ema_decay, scale):
    points = walk(12)
    decays = [ema_decay_at(k, ema_decay) for k in range(1, 13)]
    average, slow, dense = run(points, decays, rank=OUT, scale=scale)
    np.testing.assert_allclose(delta(average.point(slow)), dense, rtol=0, atol=1e-12 * np.abs(dense).max())
    assert average.error_bound == 0.0
    factors = delta(slow)
    expected = np.linalg.norm(factors - dense) / np.linalg.norm(dense)
    assert expected > 0.01
    assert average.deviation(slow) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_what_is_cut_is_bounded_and_the_rank_too(rank):
    average, slow, dense = run(walk(40), [ema_decay_at(k, 0.9) for k in range(1, 41)], rank)
    assert 0 < average.correction["q.lora_A.weight"].shape[0] <= 3 * rank
    error = np.linalg.norm(delta(average.point(slow)) - dense)
    assert 0 < error <= average.error_bound
    average.cut()
    error = np.linalg.norm(delta(average.point(slow)) - dense)
    assert 0 < error <= average.error_bound
    assert average.correction["q.lora_A.weight"].shape[0] == rank
    assert error < np.linalg.norm(delta(slow) - dense)  # nearer than the average of the factors


def test_one_cut_adds_what_it_drops_to_the_bound():
    average, slow, dense = run(walk(3), [0.5, 0.6, 0.7], rank=2)
    assert average.correction["q.lora_A.weight"].shape[0] == 6 and average.error_bound == 0.0
    average.cut()
    assert average.error_bound == pytest.approx(np.linalg.norm(delta(average.point(slow)) - dense), rel=1e-9)


def test_a_later_update_shrinks_the_error_and_its_bound():
    average, slow, _ = run(walk(3), [0.5, 0.6, 0.7], rank=2)
    average.cut()
    before = average.error_bound
    average.update_(slow, as_point(walk(4)[-1]), 0.25)
    assert 0 < average.error_bound == pytest.approx(0.25 * before, rel=1e-12)


def test_decay_0_forgets_and_decay_1_stands_still():
    points = walk(3)
    average, slow, dense = run(points, [0.5, 1.0, 0.5], rank=9)
    np.testing.assert_allclose(delta(average.point(slow)), dense, atol=1e-12)
    average, slow, _ = run(points, [0.5, 0.5, 0.0], rank=9)
    assert average.correction == {} and average.deviation(slow) == 0.0
    np.testing.assert_array_equal(delta(average.point(slow)), delta(as_point(points[-1])))


def test_a_correction_needs_a_rank():
    with pytest.raises(UserError, match="slow_rank"):
        ProductAverage(0)


def test_the_factors_move_as_without_it():
    points = walk(4)
    _, slow, _ = run(points, [0.5, 0.6, 0.7, 0.8], rank=9, scale=3.0)
    expected = as_point(points[0])
    for pair, decay in zip(points[1:], [0.5, 0.6, 0.7, 0.8], strict=True):
        scaled = as_point((pair[0], 3.0 * pair[1]))
        ema_update_(expected, scaled, decay)
    for name in slow:
        np.testing.assert_allclose(slow[name], expected[name], rtol=1e-14)
