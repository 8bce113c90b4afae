"""The nudged elastic band: a chain whose bends lie where the loss pulls only along the chain.

Each bend is moved by the part of −∇L across the chain, and by springs to its neighbours along it, so that neither do
bends slide down into the minima nor does the chain cut corners. What comes to rest is a path of steepest descent from a
saddle: its highest point is the barrier (Jónsson, Mills & Jacobsen 1998; tangents of Henkelman & Jónsson 2000,
doi:10.1063/1.1323224). Draxler et al. 2018 (arXiv 1803.00885) connect networks by it; their AutoNEB adds bends where
the chain is high between two of them, which is not done here: more bends are given instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from mcanalysis.connectivity.curve_gradient import set_gradients, value_of
from mcanalysis.connectivity.finders.base import Finder
from mcanalysis.connectivity.losses import loss_state, restore_loss
from mcanalysis.params.point import flatten, unflatten


class NudgedElasticBand(Finder):
    """Nudged elastic band: down across the chain, springs along it; all bends move at once, one gradient each."""

    name = "neb"

    @property
    def num_steps(self) -> int:
        """Sweeps over all bends: as many as the gradients suffice for."""
        return self.fit.num_gradients // len(self.fit.bends)

    def set_gradients(self, step: int) -> float:
        """Losses at all anchors, on one minibatch where the loss draws such; then the force on each bend."""
        fit, last = self.fit, len(self.fit.bends) + 1
        state, values = loss_state(fit.loss), []
        for i, t in enumerate(fit.curve.knots):
            restore_loss(fit.loss, state)
            if i in (0, last):
                values.append(value_of(fit.loss, fit.curve(t)))
            else:
                values.append(set_gradients(list(fit.trained(i - 1).values()), fit.curve, fit.loss, [t], step))
        bends = [fit.trained(bend) for bend in range(last - 1)]
        slopes = [flatten({n: x.grad for n, x in bend.items() if x.grad is not None}) for bend in bends]
        found = forces([flatten(fit.anchor(i)) for i in range(last + 1)], values, slopes)
        for bend, force in zip(bends, found, strict=True):
            for name, part in unflatten(-force, bend).items():
                bend[name].grad = part.to(bend[name])
        return sum(values[1:-1]) / (last - 1)


def forces(places: Sequence[Tensor], values: Sequence[float], slopes: Sequence[Tensor]) -> list[Tensor]:
    """Return the force on each inner place: −∇L without its part along the chain, and the springs' part along it.

    The springs' constant is the mean length of the gradients over the mean distance of neighbours (chosen by us, so
    that nothing depends on units): where the band is at rest it does not matter, as both parts are zero there.

    Args:
        places: k + 2 vectors, the ends first and last.
        values: the k + 2 losses there.
        slopes: the k gradients between the ends.

    >>> places = [torch.tensor(xy) for xy in ([0.0, 0.0], [1.0, 0.0], [4.0, 0.0])]
    >>> forces(places, [0.0, 1.0, 2.0], [torch.tensor([3.0, 4.0])])  # springs of 5/2 · (3 − 1) along x
    [tensor([ 5., -4.])]
    """
    steps = [later - earlier for earlier, later in pairwise(places)]
    lengths = [float(step.norm()) for step in steps]
    spacing = sum(lengths) / len(lengths)
    constant = sum(float(slope.norm()) for slope in slopes) / len(slopes) / spacing if spacing else 0.0
    found = []
    for i, slope in enumerate(slopes):
        along = tangent(steps[i], steps[i + 1], values[i], values[i + 1], values[i + 2])
        spring = constant * (lengths[i + 1] - lengths[i])
        found.append(-slope + (torch.dot(slope, along) + spring) * along)
    return found


def tangent(behind: Tensor, ahead: Tensor, before: float, here: float, after: float) -> Tensor:
    """Return the unit vector along a chain at a place, from the steps to it and from it and the losses on the way.

    The step towards the higher neighbour; at a highest or lowest place both, the higher one's side by the larger of the
    two differences (Henkelman & Jónsson 2000). Averaging both steps everywhere makes kinks on steep paths.

    >>> tangent(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0]), 0.0, 1.0, 3.0)
    tensor([0., 1.])
    """
    if before < here < after:
        chosen = ahead
    elif before > here > after:
        chosen = behind
    else:
        small, large = sorted((abs(after - here), abs(before - here)))
        first, second = (large, small) if after > before else (small, large)
        chosen = first * ahead + second * behind if large > 0.0 else ahead + behind
    return chosen / chosen.norm().clamp(min=torch.finfo(chosen.dtype).tiny)
