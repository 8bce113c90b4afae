"""Scikit-learn's handwritten digits, and small networks trained on them, many at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import pairwise
from zlib import crc32

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from mcanalysis.errors import MissingPackageError, UserError
from mcanalysis.params.point import Point

NUM_INPUTS, NUM_CLASSES = 64, 10
NUM_TEST = 500
SPLIT_SEED = 0  # one split for every seed of an experiment


@dataclass(frozen=True, eq=False)
class Data:
    """Examples: `inputs` (n, 64), float32, grey values in [0, 1]; `labels` (n,), int64."""

    inputs: Tensor
    labels: Tensor

    def rotated(self) -> Data:
        """The same digits turned by a quarter."""
        images = self.inputs.reshape(-1, 8, 8)
        return Data(torch.rot90(images, 1, (1, 2)).reshape(-1, NUM_INPUTS), self.labels)

    def together_with(self, other: Data) -> Data:
        """The examples of both."""
        return Data(torch.cat([self.inputs, other.inputs]), torch.cat([self.labels, other.labels]))

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class Measurement:
    """What a network does on data: `nll` (n,) in nats, `scores` (n,), 1 where the digit is named, else 0."""

    nll: np.ndarray
    scores: np.ndarray

    @property
    def targets(self) -> np.ndarray:
        """(n,): one target per example."""
        return np.ones_like(self.nll)

    @property
    def loss(self) -> float:
        """Mean cross entropy, nats per example."""
        return float(self.nll.mean())

    @property
    def score(self) -> float:
        """Accuracy, in [0, 1]."""
        return float(self.scores.mean())


@cache
def load_digits() -> tuple[Data, Data]:
    """Return the train split (1297 examples) and the test split (500) of the 8 × 8 digits, one fixed split.

    Source: Alpaydin & Kaynak 1998, UCI repository, the copy that scikit-learn ships. Raises `UserError` naming the
    extra where scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits as read
    except ImportError:
        raise MissingPackageError("scikit-learn", "for its digits", "classics") from None
    inputs, labels = read(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(SPLIT_SEED))
    data = Data(torch.from_numpy(inputs).float()[order] / 16.0, torch.from_numpy(labels).long()[order])
    return (Data(data.inputs[NUM_TEST:], data.labels[NUM_TEST:]), Data(data.inputs[:NUM_TEST], data.labels[:NUM_TEST]))


def layer_names(point: Point) -> list[str]:
    """The layers of a network from input to output.

    >>> layer_names(new_network([16, 8]))
    ['0', '1', '2']
    """
    return [str(i) for i in range(len(point) // 2)]


def new_network(hidden: Sequence[int], seed: int = 0) -> Point:
    """Return a freshly drawn 64 – hidden – … – 10 network with ReLU between its layers, as a point.

    Weights are normal with variance 2 / inputs (He et al. 2015, arXiv 1502.01852), biases 0.

    >>> {name: tuple(tensor.shape) for name, tensor in new_network([16]).items()}
    {'0.weight': (16, 64), '0.bias': (16,), '1.weight': (10, 16), '1.bias': (10,)}
    """
    generator = torch.Generator().manual_seed(seed)
    sizes = [NUM_INPUTS, *hidden, NUM_CLASSES]
    point: Point = {}
    for i, (fan_in, fan_out) in enumerate(pairwise(sizes)):
        point[f"{i}.weight"] = torch.randn(fan_out, fan_in, generator=generator) * (2.0 / fan_in) ** 0.5
        point[f"{i}.bias"] = torch.zeros(fan_out)
    return point


def logits(point: Point, inputs: Tensor) -> Tensor:
    """Return (n, 10) for inputs (n, 64).

    >>> logits(new_network([16]), torch.zeros(3, 64)).shape
    torch.Size([3, 10])
    """
    names = layer_names(point)
    hidden = inputs
    for name in names:
        hidden = functional.linear(hidden, point[f"{name}.weight"], point[f"{name}.bias"])
        if name != names[-1]:
            hidden = functional.relu(hidden)
    return hidden


def loss(point: Point, data: Data) -> Tensor:
    """Return the mean cross entropy in nats, differentiable; the whole data at once."""
    return functional.cross_entropy(logits(point, data.inputs), data.labels)


@torch.no_grad()
def measure(point: Point, data: Data) -> Measurement:
    """Return loss and accuracy per example; an objective for `mcanalysis.profile` with `objective(data)`."""
    outputs = logits(point, data.inputs)
    nll = functional.cross_entropy(outputs, data.labels, reduction="none")
    right = outputs.argmax(dim=1) == data.labels
    return Measurement(nll.double().numpy(), right.double().numpy())


def objective(data: Data) -> partial[Measurement]:
    """The function of a point that `mcanalysis.profile` measures."""
    return partial(measure, data=data)


@dataclass(frozen=True)
class Recipe:
    """How networks are trained: SGD with momentum, a rate that falls to 0 along a cosine, and no weight decay.

    Defaults were chosen on seeds from 100 on, so that networks fit their train split; no other source.
    """

    num_steps: int = 1000
    batch_size: int = 64
    learning_rate: float = 0.1
    momentum: float = 0.9

    def rate(self, step: int) -> float:
        """The learning rate of a step: cosine decay to 0 over all steps (Loshchilov & Hutter 2017).

        >>> Recipe(num_steps=10).rate(0)
        0.1
        """
        return self.learning_rate * 0.5 * (1.0 + float(np.cos(np.pi * step / self.num_steps)))


STANDARD = Recipe()


def stream(seed: int, *what: str | int) -> int:
    """Return a seed of its own for each use that an experiment of one seed has for random numbers.

    >>> stream(0, "start") == stream(0, "start"), stream(0, "start") == stream(1, "start")
    (True, False)
    """
    words = [crc32(str(word).encode()) for word in what]
    return int(np.random.SeedSequence([seed, *words]).generate_state(1, np.uint32)[0])


def batches(data: Data, recipe: Recipe, seed: int) -> Tensor:
    """Return the order of the examples, (num_steps, batch_size) indices: every epoch a new permutation.

    >>> data = Data(torch.zeros(4, 64), torch.zeros(4, dtype=torch.long))
    >>> sorted(batches(data, Recipe(num_steps=2, batch_size=2), seed=0).flatten().tolist())
    [0, 1, 2, 3]
    """
    generator = torch.Generator().manual_seed(seed)
    needed = recipe.num_steps * recipe.batch_size
    epochs = -(-needed // len(data))
    order = torch.cat([torch.randperm(len(data), generator=generator) for _ in range(epochs)])
    return order[:needed].reshape(recipe.num_steps, recipe.batch_size)


def train_pairs(
    hidden: Sequence[int], seeds: Sequence[int], data: Data, recipe: Recipe, *what: int
) -> list[tuple[Point, Point]]:
    """Return two networks for each seed, of different starts and orders; `what` keeps their random numbers apart."""
    members = [(seed, *what, member) for seed in seeds for member in (0, 1)]
    starts = [new_network(hidden, stream(seed, "start", *rest)) for seed, *rest in members]
    orders = [batches(data, recipe, stream(seed, "order", *rest)) for seed, *rest in members]
    networks = train_networks(starts, data, orders, recipe)
    return list(zip(networks[::2], networks[1::2], strict=True))


def train_networks(
    starts: Sequence[Point], data: Data, orders: Sequence[Tensor], recipe: Recipe | None = None
) -> list[Point]:
    """Return the trained networks, all trained at once, each on its own order of the examples.

    Args:
        starts: points of the same shapes, which stay as they are.
        data: what they are trained on.
        orders: as `batches` gives them, one (num_steps, batch_size) per network. Two networks with the same start
            and the same first k rows are the same network for k steps: the way to let runs part after k steps.
        recipe: of the optimiser; the number of steps is that of the orders.

    Raises `UserError` where a network's weights are no longer finite.
    """
    recipe = recipe or STANDARD
    stacked = {name: torch.stack([start[name] for start in starts]).requires_grad_() for name in starts[0]}
    optimizer = torch.optim.SGD(list(stacked.values()), lr=recipe.learning_rate, momentum=recipe.momentum)
    order = torch.stack(list(orders), dim=1)  # (num_steps, networks, batch_size)

    def one_loss(point: Point, inputs: Tensor, labels: Tensor) -> Tensor:
        return functional.cross_entropy(logits(point, inputs), labels)

    for step, chosen in enumerate(order):
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate(step)
        optimizer.zero_grad()
        losses = torch.vmap(one_loss)(stacked, data.inputs[chosen], data.labels[chosen])
        losses.sum().backward()  # of separate networks: each gets the gradient of its own loss
        optimizer.step()
    if not all(bool(tensor.isfinite().all()) for tensor in stacked.values()):
        raise UserError(
            f"Expected networks that train, got weights that are not finite at learning rate {recipe.learning_rate}; "
            "lower it."
        )
    return [{name: tensor[i].detach().clone() for name, tensor in stacked.items()} for i in range(len(starts))]
