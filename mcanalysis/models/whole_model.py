"""A causal LM that can stand at any mixture of whole models, whose weights stay on disk until they are needed.

A point is `{"shares": (k + 1,)}`: how much of the base and of each of k models it is, numbers that sum to one. Sums of
points are sums of weights, so that the straight path of `mcanalysis.paths` between two such points is the straight path
between their weights (Σ shares·W, the same line whatever base ΔW is taken from), and a point costs no memory. Put in
place, W is written over the network's own tensors one after the other; a tensor of each model with a share is in memory
beside them, never two models.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mcanalysis.errors import PointMismatchError, UserError
from mcanalysis.models.adapted_model import AdaptedModel
from mcanalysis.models.weight_files import saved_tensors
from mcanalysis.params.point import Point, combine, working_dtype

logger = logging.getLogger(__name__)

SHARES = "shares"
_CHUNK = 1 << 20  # numbers that are compared at once


class WholeModel(AdaptedModel):
    """A network and the weights of the base (first) and of other models, by the names of `saved_tensors`.

    `network` holds the base's weights whenever no point is in place.
    """

    def __init__(self, network: nn.Module, tokenizer: Any, name: str, weights: Sequence[Mapping[str, Tensor]]) -> None:
        self.network, self.tokenizer, self.name = network, tokenizer, name
        self.weights = list(weights)
        self.parameters = {}
        if any(p.dtype not in (torch.float32, torch.float64) for p in network.parameters()):
            logger.warning(
                "whole models are put in place in %s, to which the weights of points between them, and those of models "
                "that were saved in more, are rounded; --dtype float32 measures them as they are",
                str(next(network.parameters()).dtype).removeprefix("torch."),
            )

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    def minimum(self, number: int) -> Point:
        """The point of one of the models, from 1; 0 is the base."""
        shares = torch.zeros(len(self.weights), dtype=torch.float64)
        shares[number] = 1.0
        return {SHARES: shares}

    def point(self) -> Point:
        return self.base_point()

    def base_point(self) -> Point:
        return self.minimum(0)

    @contextmanager
    def in_place(self, point: Mapping[str, Tensor]) -> Iterator[nn.Module]:
        """Yield the network with the weights of a point; afterwards those of the base are read and put back."""
        if set(point) != {SHARES} or point[SHARES].shape != (len(self.weights),):
            raise PointMismatchError(
                f"Expected a point of {len(self.weights)} shares, got tensors {', '.join(list(point)[:3])}; take those "
                "of this model, such as minimum(1)."
            )
        try:
            self._put(point)
            yield self.network
        finally:
            self._put(self.base_point())

    @torch.no_grad()
    def _put(self, point: Mapping[str, Tensor]) -> None:
        shared = [(w, s) for w, s in zip(self.weights, point[SHARES].tolist(), strict=True) if s != 0.0]
        for name, (tensor, _) in saved_tensors(self.network).items():
            mixed = combine([{name: weights[name]} for weights, _ in shared], [share for _, share in shared])
            tensor.copy_(mixed[name])

    @cached_property
    def distances(self) -> Tensor:
        """‖W_i − W_j‖ over all tensors, shape (k + 1, k + 1), float64, exact to 1e-6; every model is read once.

        Raises `UserError` for NaN and infinite weights, naming tensor and model.
        """
        number = len(self.weights)
        squares = torch.zeros(number, number, dtype=torch.float64)
        for name in saved_tensors(self.network):
            tensors = [weights[name].flatten() for weights in self.weights]
            for k, tensor in enumerate(tensors):
                if not bool(tensor.isfinite().all()):
                    which = "the base" if k == 0 else f"minimum {k}"
                    raise UserError(
                        f"Expected finite weights, got NaN or infinite ones in '{name}' of {which}; take a checkpoint "
                        "from before its training diverged."
                    )
            for i, j in combinations(range(number), 2):
                for a, b in zip(tensors[i].split(_CHUNK), tensors[j].split(_CHUNK), strict=True):
                    apart = a.to(working_dtype([a, b])) - b
                    squares[i, j] += apart.square_().sum(dtype=torch.float64)
        return (squares + squares.T).sqrt()

    def save(self, directory: str | Path, point: Mapping[str, Tensor] | None = None) -> None:
        """Write the model at a point, and its tokenizer, as `save_pretrained` does."""
        with self.in_place(self.base_point() if point is None else point) as network:
            network.save_pretrained(directory)  # type: ignore[operator]
        self.tokenizer.save_pretrained(directory)

    def read(self, directory: str | Path) -> Point:
        raise UserError(f"Expected the shares of models, got the folder '{directory}'; open it as one of the minima.")
