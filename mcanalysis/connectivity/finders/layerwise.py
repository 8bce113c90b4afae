"""Low-loss path finding, layer by layer (Tian et al. 2026, arXiv 2505.02604): a walk from one end to the other.

The rule is that of the authors' program (github.com/twoentartian/DFL_torch, between two models). The walk starts at one
end. Again and again layers are moved towards the other end, the first one only at first, then more of them, from the
input to the output, until all move; every tensor is scaled about its mean back to the variance that it should have; and
all layers are trained for a while. Differences: the program trains until a loss that one gives, here each bend has an
equal share of the steps, so that the cost is known; it moves by a given share of what is left, here by the share that
arrives with the last piece; it holds the variances of the start, here they go from the start's to the end's (the same
where both ends have one), and scaling is exact (it adds 1e-4 to both variances, more than many adapters have).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from mcanalysis.connectivity.finders.base import StagedFinder
from mcanalysis.params.groups import by_layer


class Layerwise(StagedFinder):
    """Layer-wise walk (LLPF): from the start, move more and more layers towards the end, train, keep variances."""

    name = "layerwise"

    def order(self) -> Sequence[int]:
        """From the start to the end."""
        return range(len(self.fit.bends))

    def place(self, stage: int, bend: int) -> None:
        """One step on from the bend before, in the layers that walk already."""
        start, end = self.fit.anchor(bend), self.fit.anchor(len(self.fit.bends) + 1)
        layers, num = list(in_order(by_layer(start))), len(self.fit.bends)
        walking = {name for i, layer in enumerate(layers) if i * num < len(layers) * (stage + 1) for name in layer}
        share = 1.0 / (num + 1 - stage)
        self._put(bend, {n: x + share * (end[n] - x) if n in walking else x for n, x in start.items()})

    def hold(self, stage: int, bend: int) -> None:
        """Scale every tensor about its mean to the standard deviation between those of the ends."""
        first, last = self.fit.anchor(0), self.fit.anchor(len(self.fit.bends) + 1)
        t = self.fit.curve.knots[bend + 1]
        for name, tensor in self.fit.trained(bend).items():
            if tensor.numel() < 2:
                continue
            wanted, is_there = (1 - t) * first[name].std() + t * last[name].std(), tensor.std()
            if wanted > 0.0 and is_there > 0.0:
                mean = tensor.mean()
                tensor.sub_(mean).mul_(wanted / is_there).add_(mean)


def in_order(layers: dict[str, tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Return the names of each layer's tensors, layers by their numbers; where one has none, as they come.

    >>> in_order({"h.10": ("h.10.w",), "h.2": ("h.2.w",)})
    [('h.2.w',), ('h.10.w',)]
    """
    numbers = {layer: [int(number) for number in re.findall(r"\d+", layer)] for layer in layers}
    names = sorted(layers, key=numbers.__getitem__) if all(numbers.values()) else layers
    return [layers[name] for name in names]
