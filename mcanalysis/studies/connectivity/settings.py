"""What is measured on the paths between minima."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mcanalysis.connectivity.profile import grid
from mcanalysis.errors import UserError
from mcanalysis.paths.path_kinds import path_kind

PATHS = ("linear-factor", "linear-delta", "bezier-factor")


@dataclass(frozen=True)
class ConnectivitySettings:
    """What is measured: `num_points` on each path, the first `num_examples` of the eval and test splits (None: all).

    Paths are named `<path>-<space>`. A curve has `num_bends` bends between two minima, fitted by `curve_steps` Adam
    steps at `curve_learning_rate`, each on one t and `curve_batch_size` train examples of the old tasks and as many of
    the new; one through all minima takes so many steps per segment, each on as many examples, of all tasks alike.

    `adaptive`: a tolerance in nats per target. Points are then chosen until the loss barriers are known to it, at most
    `num_points` (see `mcanalysis.connectivity.adaptive`). `ensemble`: over how many points of each path predictions
    are averaged; 0 for none. `simplex`: the numbers (from 1) of minima whose simplex is measured; () for none.
    """

    num_points: int = 21
    num_examples: int | None = 50
    paths: tuple[str, ...] = PATHS
    curve_steps: int = 60
    curve_learning_rate: float = 1e-2
    curve_batch_size: int = 16
    num_bends: int = 1
    adaptive: float | None = None
    ensemble: int = 0
    simplex: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        grid(self.num_points)
        for name in self.paths:
            path_kind(name)
        if not self.paths:
            raise UserError(f"Expected at least one path, got none; choose some, such as {', '.join(PATHS)}.")
        if len(set(self.paths)) < len(self.paths):
            raise UserError(f"Expected each path once, got {', '.join(self.paths)}; leave out the repeated one.")
        if self.num_examples is not None and self.num_examples < 1:
            raise UserError(f"Expected at least 1 example per task, got {self.num_examples}; raise --num-examples.")
        if self.num_bends < 1:
            raise UserError(f"Expected at least 1 bend, got {self.num_bends}; raise --num-bends or fit no curve.")
        if self.adaptive is not None and not (math.isfinite(self.adaptive) and self.adaptive > 0):
            raise UserError(f"Expected a positive tolerance, got {self.adaptive}; give --adaptive in nats, say 0.05.")
        if self.ensemble and self.ensemble < 2:
            raise UserError(f"Expected an ensemble of at least 2 points, got {self.ensemble}; raise --ensemble.")
        if self.simplex and (len(set(self.simplex)) < len(self.simplex) or len(self.simplex) < 3):
            raise UserError(
                f"Expected three or more different minima of a simplex, got {', '.join(map(str, self.simplex))}; "
                "name them by number, --simplex 1,2,3."
            )
