"""One path whose values are in a store: the names of its points there, its curve's file, its lengths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mcanalysis.connectivity.profile import grid, grid_beyond
from mcanalysis.params.lora import delta_distance, factor_delta_deviation, is_base_point, is_lora_point
from mcanalysis.params.point import Point, distance
from mcanalysis.paths import Curve, Path
from mcanalysis.paths.path_kinds import path_kind
from mcanalysis.runs.transitions import Transition
from mcanalysis.store import base_minimum
from mcanalysis.store.hashing import hash_json
from mcanalysis.store.point_files import read_points

if TYPE_CHECKING:
    from mcanalysis.studies.connectivity.study import Connectivity


class Lengths(NamedTuple):
    """`arc` (n,): from t = 0 to each t, in the path's space; `length` of the whole, `length_delta` of its ΔW, and
    `distance_delta` between the ends in ΔW, which a straight line has. For plain points all are Euclidean."""

    arc: NDArray[np.float64]
    length: float
    length_delta: float
    distance_delta: float


class StoredPath:
    """A path of one kind through the minima of a transition; `curves` holds the files of fitted curves.

    It holds no points: `straight` and what follows from it read the minima.
    """

    def __init__(self, transition: Transition, kind: str, settings: Connectivity, curves: FilePath) -> None:
        self.transition = transition
        self.kind = path_kind(kind)
        self.settings = settings
        name = f"{transition.start}--{transition.end}-{kind}-{self.key[:8]}.safetensors"
        self.file = curves / name

    @cached_property
    def key(self) -> str:
        """A hash of everything that the points of the path depend on, besides the run."""
        t, s = self.transition, self.settings
        fitted = [t.old, t.new, t.data_key, s.curve_steps, s.curve_learning_rate, s.curve_batch_size]
        # Absent at their old values, so that keys of earlier versions stay valid.
        fitted += [s.num_bends] if s.num_bends != 1 else []
        fitted += [{"finder": s.finder}] if s.finder != "mean" else []
        fitted += [{"seed": s.curve_seed}] if s.curve_seed is not None else []
        is_one_line = t.is_from_base and self.kind.path == "linear"  # in all spaces
        kind = self.kind.path if is_one_line else str(self.kind)
        parts = [kind, *t.keys, *(fitted if self.kind.is_fitted else [])]
        given = [minimum for minimum in t.minima if isinstance(minimum, Mapping)]  # adapters of others
        if self.kind.space == "aligned" and sum(map(is_base_point, given)) == 1:
            parts.append("t·ΔW")  # earlier versions went from such an adapter along t²·ΔW
        return hash_json(parts)

    @cached_property
    def minima(self) -> dict[float, str]:
        """The minima on the path, by t: their keys in the store; of a merge that starts at the base, the base's."""
        keys = self.transition.keys
        if not self.kind.path_class.joins_minima:
            return {0.0: base_minimum.KEY}
        if self.kind.is_of_whole_run:
            return {i / (len(keys) - 1): key for i, key in enumerate(keys)}
        return {0.0: keys[0], 1.0: keys[-1]}

    @property
    def ts(self) -> NDArray[np.float64]:
        """The t of the grid: `num_points` at equal spacing, or a few more, so that every minimum is one of them."""
        pieces = len(self.minima) - 1
        if pieces <= 1:
            return grid(self.settings.num_points)
        steps = pieces * -(-(self.settings.num_points - 1) // pieces)
        return np.arange(steps + 1) / steps

    @property
    def ts_beyond(self) -> NDArray[np.float64]:
        """The t beyond the ends, at the spacing of the grid; none for curves, and without `extrapolate`."""
        if not self._extrapolates:
            return np.empty(0)
        return grid_beyond(self.settings.num_points, *self.settings.extrapolate)

    @property
    def _extrapolates(self) -> bool:
        return bool(self.settings.extrapolate) and not self.kind.is_fitted

    def point_key(self, t: float) -> str:
        """The store's key of a point; the minima are the same points on all paths, measured once."""
        return self.minima.get(float(t)) or f"{self.key[:24]}/{float(t)!r}"

    @property
    def knots(self) -> Sequence[float]:
        """The t at which a path may have a corner: at minima and, of a chain, at bends."""
        if self.kind.is_of_whole_run:
            return sorted(self.minima)
        return self.straight.knots

    @property
    def straight(self) -> Path:
        """The path before it is bent."""
        more: dict[str, Any] = {"num_bends": self.settings.num_bends} if self.kind.is_fitted else {}
        more |= {"extrapolate": True} if self._extrapolates else {}
        return self.kind.path_class(*self.transition.points, space=self.kind.space, **more)  # type: ignore[call-arg]

    def if_there(self) -> Path | None:
        """The path, or None for a curve that is not fitted yet."""
        if not self.kind.is_fitted:
            return self.straight
        return self.bent(read_points(self.file)) if self.file.exists() else None

    def bent(self, bends: Sequence[Point]) -> Curve:
        """The curve with these bends."""
        straight = self.straight
        assert isinstance(straight, Curve)
        return straight.with_bends(bends)

    def lengths(self, ts: ArrayLike) -> Lengths | None:
        """How long the path is; None for a curve whose file is gone."""
        path = self.if_there()
        if path is None:
            return None
        points = self.transition.points
        start, end = points[0], points[-1]
        is_lora = is_lora_point(start)
        apart = delta_distance(start, end) if is_lora else distance(start, end)
        arc = path.arc_lengths(np.append(np.asarray(ts, dtype=float), 1.0)).numpy()
        is_measured = not is_lora or path.space.name == "delta"
        in_delta = float(arc[-1]) if is_measured else path.length(space="delta")
        return Lengths(arc[:-1], float(arc[-1]), in_delta, apart)

    def deviation(self, ts: ArrayLike) -> NDArray[np.float64]:
        """How far the factor path between the ends lies from the ΔW line at each t, relative to that line's length.

        NaN where there is no factor path between them: adapters of different ranks, or more than two minima.
        """
        points = list(self.transition.points)
        first, last = ({name: tensor.shape for name, tensor in p.items()} for p in (points[0], points[-1]))
        if len(points) > 2 or first != last:
            return np.full(len(np.atleast_1d(ts)), np.nan)
        return np.asarray(factor_delta_deviation(points[0], points[-1], ts))
