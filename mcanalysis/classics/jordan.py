"""Jordan et al. 2023 (REPAIR): what becomes of BatchNorm's statistics between two networks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from mcanalysis.classics.classic import HIGH, Claim, Classic, OfSeed, as_tables
from mcanalysis.classics.digits import NUM_CLASSES, NUM_INPUTS, Data, Recipe, batches, load_digits, stream
from mcanalysis.connectivity.module_objective import module_objective
from mcanalysis.connectivity.profile import profile
from mcanalysis.params.point import Point, snapshot
from mcanalysis.paths import Linear
from mcanalysis.plotting.classics import Panel
from mcanalysis.symmetry import PermutationSpec, match_weights, permute

_SHORT = Recipe(num_steps=500)


@dataclass(frozen=True)
class Settings:
    """Two networks per seed, BatchNorm after each hidden layer; deep, since variance is lost layer by layer. Chosen on
    seeds from 100 on."""

    hidden: tuple[int, ...] = (48,) * 8
    recipe: Recipe = _SHORT
    num_points: int = 11


KEPT = "statistics of the first end: loss at the second end minus its own, train"
INTERPOLATED = "statistics interpolated: barrier after matching, train loss"
ESTIMATED = "statistics re-estimated: barrier after matching, train loss"
SHARE = "share of the interpolated barrier that re-estimation removes"
VARIANCE = "variance of the last hidden layer's inputs half-way, relative to the ends"
MOST = 0.6  # Jordan et al. report that 60 to 100 % of the barrier goes
HOW = ("statistics of the first end", "statistics interpolated", "statistics re-estimated")


@as_tables
def measure_jordan(seeds: Sequence[int], settings: Settings | None = None) -> Iterator[OfSeed]:
    """Join two networks, the second in the order of the first, with BatchNorm's statistics taken in three ways."""
    settings = settings or Settings()
    train, test = load_digits()
    train_batches = [(train.inputs, train.labels)]
    net = new_network(settings.hidden)
    ts = np.linspace(0.0, 1.0, settings.num_points).tolist()
    for seed in seeds:
        a, b = (_trained(train, settings, seed, member) for member in (0, 1))
        b = _in_order(a, b, seed)
        line = Linear(a, b)
        given, estimated = (module_objective(net, _loss, train_batches, recalibrate=r) for r in (None, train_batches))
        statistics = {name: tensor for name, tensor in a.items() if ".running_" in name}
        found = {
            HOW[0]: profile(line, lambda p, s=statistics, f=given: f({**p, **s}), ts),
            HOW[1]: profile(line, given, ts),
            HOW[2]: profile(line, estimated, ts),
        }
        variances = [_variance(net, line(t), train.inputs) for t in ts]
        relative = np.array(variances) / np.mean([variances[0], variances[-1]])
        barriers = {name: found[name].chord_barrier() for name in HOW[1:]}
        values = {
            KEPT: found[HOW[0]].losses[-1] - found[HOW[1]].losses[-1],
            INTERPOLATED: barriers[HOW[1]],
            ESTIMATED: barriers[HOW[2]],
            SHARE: 1.0 - barriers[HOW[2]] / barriers[HOW[1]] if barriers[HOW[1]] else 0.0,
            VARIANCE: relative[len(ts) // 2],
            "test accuracy of the worse end": min(_accuracy(net, p, test) for p in (a, b)),
        }
        curves = [("loss", name, ts, found[name].losses) for name in HOW]
        yield OfSeed(seed, values, [*curves, ("variance", "inputs of the last BatchNorm", ts, relative)])


def new_network(hidden: Sequence[int]) -> nn.Sequential:
    """Return a 64 – hidden – … – 10 network with BatchNorm and ReLU after each hidden layer.

    >>> [type(layer).__name__ for layer in new_network([16])]
    ['Linear', 'BatchNorm1d', 'ReLU', 'Linear']
    """
    sizes = [NUM_INPUTS, *hidden]
    layers = [(nn.Linear(i, o), nn.BatchNorm1d(o), nn.ReLU()) for i, o in pairwise(sizes)]
    return nn.Sequential(*chain.from_iterable(layers), nn.Linear(sizes[-1], NUM_CLASSES))


def permutations_of(num_hidden: int) -> PermutationSpec:
    """Which axis of which tensor goes with which hidden layer's order; statistics move with their units."""
    axes: dict[str, tuple[str | None, ...]] = {}
    for i in range(num_hidden):
        own = f"hidden {i}"
        axes[f"{3 * i}.weight"] = (own, f"hidden {i - 1}" if i else None)
        vectors = [f"{3 * i}.bias", *(f"{3 * i + 1}.{n}" for n in ("weight", "bias", "running_mean", "running_var"))]
        axes |= dict.fromkeys(vectors, (own,))
    last = 3 * num_hidden
    return PermutationSpec({**axes, f"{last}.weight": (None, f"hidden {num_hidden - 1}"), f"{last}.bias": (None,)})


def _trained(train: Data, settings: Settings, seed: int, member: int) -> Point:
    """One network of its own start and order, by SGD with momentum as the other results' are."""
    recipe = settings.recipe
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream(seed, "start", member))
        net = new_network(settings.hidden)
    optimizer = torch.optim.SGD(net.parameters(), lr=recipe.learning_rate, momentum=recipe.momentum)
    for step, chosen in enumerate(batches(train, recipe, stream(seed, "order", member))):
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate(step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(train.inputs[chosen]), train.labels[chosen]).backward()
        optimizer.step()
    return snapshot(net)


def _in_order(a: Point, b: Point, seed: int) -> Point:
    """The network b with its hidden units in the order in which its weights are closest to a's."""
    spec = permutations_of(sum(name.endswith("running_var") for name in a))
    weights = PermutationSpec({n: axes for n, axes in spec.axes.items() if ".running_" not in n})
    first, second = ({n: t for n, t in p.items() if n in weights.axes} for p in (a, b))
    return permute(b, spec, match_weights(first, second, weights, stream(seed, "match")))


def _loss(net: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(net(batch[0]), batch[1], reduction="none")


@torch.no_grad()
def _variance(net: nn.Sequential, point: Point, inputs: Tensor) -> float:
    """The mean over units of the variance of what the last BatchNorm is given, in evaluation mode."""
    before = net[:-3].eval()
    own = {name: tensor for name, tensor in point.items() if name in before.state_dict()}
    return float(functional_call(before, own, (inputs,)).var(dim=0).mean())


@torch.no_grad()
def _accuracy(net: nn.Sequential, point: Point, data: Data) -> float:
    outputs = functional_call(net.eval(), point, (data.inputs,))
    return float((outputs.argmax(1) == data.labels).double().mean())


JORDAN = Classic(
    name="jordan",
    source="Jordan et al. 2023, arXiv 2211.08403; Izmailov et al. 2018, arXiv 1803.05407",
    claims=(
        Claim("Weights with another network's statistics of BatchNorm are not the network that was trained.",
              KEPT, "above", HIGH),
        Claim("Between networks whose units are in one order, interpolated statistics leave a high barrier.",
              INTERPOLATED, "above", HIGH),
        Claim("In between, the variance of the activations collapses.", VARIANCE, "below", 1.0, ""),
        Claim("Re-estimating the statistics removes most of that barrier.", SHARE, "above", MOST, ""),
    ),
    measure=measure_jordan,
    panels={
        "loss": Panel("train loss on the line, after matching", "position t on the line", "cross entropy (nats)"),
        "variance": Panel("variance of the activations", "position t on the line", "relative to the ends"),
    },
)  # fmt: skip
