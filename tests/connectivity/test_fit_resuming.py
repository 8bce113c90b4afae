"""A fit that is stopped and resumed gives the bits of one that was not; sums of objectives and of terms."""

import math
import subprocess
import sys

import pytest
import torch

from mcanalysis.connectivity.curve_fitting import fit_curve
from mcanalysis.connectivity.losses import WeightedSum
from mcanalysis.errors import UserError
from mcanalysis.params import content_hash, distance, norm
from mcanalysis.paths import Bezier, PolyChain
from mcanalysis.store.point_files import read_tensors, write_tensors

OPTIMIZERS = [
    torch.optim.Adam,
    torch.optim.AdamW,
    lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=0.9),
    lambda p, lr: torch.optim.Adam(p, lr=lr, amsgrad=True),
]


def ends(dim=3, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return [{"w": torch.randn(dim, generator=generator).to(dtype), "v": torch.ones(2, dtype=dtype) * i} for i in (0, 1)]


class Minibatches:
    """A noisy loss with a stream of its own; stops the program at a call."""

    def __init__(self, stop_at=None):
        self.generator = torch.Generator().manual_seed(5)
        self.calls, self.stop_at = 0, stop_at

    def __call__(self, point):
        self.calls += 1
        if self.calls == self.stop_at:
            raise KeyboardInterrupt
        target = torch.randn(3, generator=self.generator)
        return (point["w"] - target).square().sum() + point["v"].square().sum()

    def random_state(self):
        return self.generator.get_state().tolist()

    def set_random_state(self, state):
        self.generator.set_state(torch.tensor(state, dtype=torch.uint8))


def fit(loss, file=None, **options):
    options = {"num_steps": 20, "learning_rate": 0.1, "ts_per_step": 2, "max_grad_norm": 5.0, "seed": 3} | options
    return fit_curve(PolyChain(*ends(), num_bends=2), loss, checkpoint=file, **options)


def bits(curve):
    return [content_hash(bend) for bend in curve.bends]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("stop_at", [1, 8, 30])
def test_resumed_bends_are_the_same_bits(tmp_path, optimizer, stop_at):
    file = tmp_path / "fit.checkpoint"
    whole = fit(Minibatches(), optimizer=optimizer)
    with pytest.raises(KeyboardInterrupt):
        fit(Minibatches(stop_at), file, optimizer=optimizer, checkpoint_steps=3)
    loss = Minibatches()
    resumed = fit(loss, file, optimizer=optimizer, checkpoint_steps=3)
    assert bits(resumed) == bits(whole)
    assert resumed.history == whole.history and resumed.converged == whole.converged
    done = (stop_at - 1) // 2  # whole steps of two losses each
    assert loss.calls == 2 * (20 - 3 * (done // 3)), "no more than three steps were lost"
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_of_version_0_1_goes_on_and_its_steps_have_no_loss(tmp_path):
    """Such a file holds neither losses nor sums of gradients."""
    file = tmp_path / "fit.checkpoint"
    with pytest.raises(KeyboardInterrupt):
        fit(Minibatches(stop_at=15), file, checkpoint_steps=2)
    tensors, header = read_tensors(file)
    del header["convergence"]
    write_tensors(file, {n: t for n, t in tensors.items() if not n.startswith("slope/")}, header)
    resumed, whole = fit(Minibatches(), file), fit(Minibatches())
    assert bits(resumed) == bits(whole)
    assert [math.isnan(x) for x in resumed.history] == [True] * 6 + [False] * 14
    assert resumed.history[6:] == whole.history[6:]


def test_a_checkpoint_changes_nothing_by_being_written(tmp_path):
    assert bits(fit(Minibatches(), tmp_path / "c", checkpoint_steps=1)) == bits(fit(Minibatches()))


def test_a_loss_without_state_goes_on_with_a_stream_of_its_own(tmp_path):
    """What `random_state` is for: without it the second half sees other batches."""
    loss = Minibatches(stop_at=30)
    with pytest.raises(KeyboardInterrupt):
        fit(lambda point: loss(point), tmp_path / "c", checkpoint_steps=3)
    fresh = Minibatches()
    assert bits(fit(lambda point: fresh(point), tmp_path / "c", checkpoint_steps=3)) != bits(fit(Minibatches()))


@pytest.mark.parametrize(
    "other", [{"seed": 4}, {"learning_rate": 0.2}, {"num_steps": 30}, {"optimizer": torch.optim.SGD}]
)
def test_the_checkpoint_of_another_fit_is_refused(tmp_path, other):
    with pytest.raises(KeyboardInterrupt):
        fit(Minibatches(stop_at=15), tmp_path / "c", checkpoint_steps=2)
    with pytest.raises(UserError, match="another curve, seed or setting"):
        fit(Minibatches(), tmp_path / "c", **other)
    (tmp_path / "c").write_bytes(b"not safetensors")
    with pytest.raises(UserError, match="Expected a safetensors file"):
        fit(Minibatches(), tmp_path / "c")


KILLED = """
import os, signal, sys, torch
from mcanalysis.connectivity.curve_fitting import fit_curve
from mcanalysis.paths import Bezier
calls = 0
def loss(point):
    global calls
    calls += 1
    if calls == 18:
        os.kill(os.getpid(), signal.SIGKILL)
    return (point["w"] - 2.0).square().sum()
ends = [{"w": torch.zeros(3)}, {"w": torch.ones(3)}]
fit_curve(Bezier(*ends), loss, num_steps=40, checkpoint=sys.argv[1], checkpoint_steps=5)
"""


def test_a_killed_process_loses_at_most_the_stated_number_of_steps(tmp_path):
    file = tmp_path / "fit.checkpoint"
    assert subprocess.run([sys.executable, "-c", KILLED, str(file)], timeout=600).returncode == -9
    calls = []

    def loss(point):
        calls.append(1)
        return (point["w"] - 2.0).square().sum()

    curve = Bezier({"w": torch.zeros(3)}, {"w": torch.ones(3)})
    resumed = fit_curve(curve, loss, num_steps=40, checkpoint=file, checkpoint_steps=5)
    assert len(calls) == 40 - 15
    assert bits(resumed) == bits(fit_curve(curve, loss, num_steps=40))


def test_progress_counts_the_steps_done_before(tmp_path):
    class Bar:
        count = 0

        def update(self, n):
            Bar.count += n

        def close(self):
            pass

    with pytest.raises(KeyboardInterrupt):
        fit(Minibatches(stop_at=20), tmp_path / "c", checkpoint_steps=4)
    fit(Minibatches(), tmp_path / "c", checkpoint_steps=4, progress=lambda total, desc: Bar())
    assert Bar.count == 20


def test_terms_are_differentiated_one_at_a_time_and_give_the_gradient_of_their_sum():
    data = torch.randn(12, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    alive = []

    def whole(point):
        return ((point["w"] - data) ** 4).sum() + point["v"].square().sum()

    def terms(point):
        for row in data:
            alive.append(1)
            yield ((point["w"] - row) ** 4).sum()
        yield point["v"].square().sum()

    curve = Bezier(*ends(dtype=torch.float64), num_bends=2)
    options = {"num_steps": 15, "learning_rate": 0.05, "ts_per_step": 2}
    first, second = fit_curve(curve, whole, **options), fit_curve(curve, terms, **options)
    for a, b in zip(first.bends, second.bends, strict=True):
        assert distance(a, b) <= 1e-10 * norm(a)
    assert len(alive) == 15 * 2 * 12


@pytest.mark.parametrize("term", [lambda p: torch.ones(()), lambda p: p["w"], lambda p: p["w"].sum() * float("nan")])
def test_terms_are_checked_as_losses_are(term):
    with pytest.raises(UserError):
        fit_curve(Bezier(*ends()), lambda point: iter([term(point)]), num_steps=2)


def test_a_weighted_sum_of_quadratics_has_the_bend_of_their_common_minimum():
    generator = torch.Generator().manual_seed(7)
    roots = torch.randn(2, 3, 3, generator=generator, dtype=torch.float64)
    H = [r @ r.T + torch.eye(3, dtype=torch.float64) for r in roots]
    best = torch.randn(2, 3, generator=generator, dtype=torch.float64)
    losses = [lambda p, i=i: 0.5 * (p["w"] - best[i]) @ H[i] @ (p["w"] - best[i]) for i in range(2)]
    weights = [0.25, 0.75]
    joint = torch.linalg.solve(
        weights[0] * H[0] + weights[1] * H[1], weights[0] * H[0] @ best[0] + weights[1] * H[1] @ best[1]
    )
    a, b = ({"w": torch.randn(3, generator=generator, dtype=torch.float64)} for _ in range(2))
    options = {"num_steps": 400, "learning_rate": 0.2, "ts_per_step": 16}
    fitted = fit_curve(Bezier(a, b), WeightedSum(losses, weights), **options)
    expected = {"w": 2.5 * joint - 0.75 * (a["w"] + b["w"])}
    assert distance(fitted.bends[0], expected) <= 5e-3 * norm(expected)


def test_a_weighted_sum_keeps_the_streams_of_its_losses(tmp_path):
    def both(stop_at=None):
        return WeightedSum([Minibatches(stop_at), lambda p: p["w"].square().sum(), Minibatches()], [1.0, 0.5, 2.0])

    with pytest.raises(KeyboardInterrupt):
        fit(both(stop_at=25), tmp_path / "c", checkpoint_steps=5)
    assert bits(fit(both(), tmp_path / "c", checkpoint_steps=5)) == bits(fit(both()))


@pytest.mark.parametrize("weights", [[1.0], [1.0, -1.0], [0.0, 0.0], [1.0, float("nan")]])
def test_weights_that_do_not_fit_are_refused(weights):
    with pytest.raises(UserError, match="weights"):
        WeightedSum([lambda p: p["w"].sum()] * 2, weights)
    with pytest.raises(UserError, match="at least one loss"):
        WeightedSum([])
