"""Surfaces between and around minima on disk: what to build, and the keys under which its points are stored."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from mcanalysis.errors import PointMismatchError, UnknownNameError, UserError
from mcanalysis.landscape.grid import Axis, Node, grid_nodes
from mcanalysis.landscape.slices import Slice, random_slice
from mcanalysis.models.adapter_files import load_adapter
from mcanalysis.params.lora import base_point
from mcanalysis.params.point import Point
from mcanalysis.paths.plane import Plane
from mcanalysis.runs.run import BaseMinimum, Minimum, Run
from mcanalysis.runs.transitions import minima_in_a_row
from mcanalysis.store import base_minimum
from mcanalysis.store.hashing import hash_json


@dataclass(frozen=True)
class Corner:
    """A minimum of a run: `name` is what tables and figures call it, `key` the hash of its contents.

    The base model is one, too: (A, 0), its A that of the adapter in the folder.
    """

    directory: Path
    label: str
    learner: str
    name: str
    key: str

    @classmethod
    def of(cls, minimum: Minimum, prefix: str = "") -> Corner:
        """The corner at a minimum; `prefix` tells another run's from one's own."""
        is_base = isinstance(minimum, BaseMinimum)  # the same for every learner
        name = minimum.label if is_base else f"{prefix}{minimum.label} {minimum.learner}"
        return cls(minimum.directory, minimum.label, minimum.learner, name, minimum.key)

    @property
    def point(self) -> Point:
        """The adapter, read anew."""
        point = load_adapter(self.directory).point
        return base_point(point) if self.key == base_minimum.KEY else point


@dataclass(frozen=True)
class StoredPlane:
    """The plane through three minima, (x, y) in units of distance in the space."""

    corners: tuple[Corner, Corner, Corner]
    space: str

    @property
    def surface(self) -> Plane:
        """The plane itself; raises as `Plane` does, for minima on a line or that the space cannot join."""
        return _plane(self)

    @property
    def exact(self) -> list[Node]:
        """The three minima, where and as what they are measured already."""
        where = self.surface.anchor_coordinates.tolist()
        return [Node(x, y, c.key, c.name) for c, (x, y) in zip(self.corners, where, strict=True)]

    def nodes(self, x: Axis, y: Axis) -> list[Node]:
        """A grid on the plane, and the minima."""
        key = hash_json(["plane", self.space, [c.key for c in self.corners], _ends(x, y)])
        return grid_nodes(x, y, key[:24], self.exact)

    def point(self, node: Node) -> Point:
        """The point at a node; at a minimum itself, whose key that node has, not what the space made of it."""
        own = next((corner for corner in self.corners if corner.key == node.key), None)
        return self.surface(node.x, node.y) if own is None else own.point


@dataclass(frozen=True)
class StoredSlice:
    """What lies around one minimum along `num_directions` filter-normalised random directions of a seed."""

    corner: Corner
    num_directions: int
    seed: int

    @property
    def surface(self) -> Slice:
        """The slice itself; raises as `random_slice` does, for an adapter that changes nothing."""
        return _slice(self)

    def nodes(self, x: Axis, y: Axis | None = None) -> list[Node]:
        """A grid on the slice, and the minimum."""
        key = hash_json(["slice", "filter", self.corner.key, self.num_directions, self.seed, _ends(x, y)])
        return grid_nodes(x, y, key[:24], [Node(0.0, 0.0, self.corner.key, self.corner.name)])

    def point(self, node: Node) -> Point:
        """The point at a node, at 0 the minimum as it is saved."""
        if node.key == self.corner.key:
            return self.corner.point
        return self.surface(*(node.x, node.y)[: self.num_directions])


@dataclass(frozen=True)
class AtNode:
    """A point on a surface, made where it is evaluated."""

    surface: StoredPlane | StoredSlice
    node: Node

    def point(self, run: Run) -> Point:
        """The point itself; `run` is not asked, as the surface has the files of its minima."""
        return self.surface.point(self.node)


# Not kept by the objects above: those are sent to other processes. Of each kind one is in memory at a time.
@lru_cache(maxsize=1)
def _plane(stored: StoredPlane) -> Plane:
    a, b, c = (corner.point for corner in stored.corners)
    return Plane(a, b, c, space=stored.space)


@lru_cache(maxsize=1)
def _slice(stored: StoredSlice) -> Slice:
    return random_slice(stored.corner.point, stored.num_directions, stored.seed)


def _ends(x: Axis, y: Axis | None) -> list[float]:
    return [x.low, x.high, *((y.low, y.high) if y else ())]


def plane_corners(
    run: Run, transition: int, third: Run | None = None, from_base: bool = False
) -> tuple[Corner, Corner, Corner]:
    """The minima that span the plane of a transition: θ_k and θ_{k+1} as they were trained, and a third one.

    The third is, in this order: the base model, if it is asked for; that of another run (its minimum after the same
    task, or its only one, as of a joint run); the slow learner's after the transition, or the answering one's; θ_{k+2};
    θ_{k−1}.

    Args:
        run: with at least two minima.
        transition: k, from 1.
        third: another run.
        from_base: whether the third is the base.

    Raises:
        RunDirectoryError: for a run with fewer than two minima.
        PointMismatchError: for a third run on another base.
        UnknownNameError: if there is no such transition.
        UserError: if the run's minima have no common space, or there is no third minimum.
    """
    trained = "fast" if "fast" in run.learners else run.answering_learner
    minima = minima_in_a_row(run, trained)
    if not 1 <= transition < len(minima):
        names = [str(k) for k in range(1, len(minima))]
        raise UnknownNameError("--transition", str(transition), names, "It is 2 where none is given.")
    ends = Corner.of(minima[transition - 1]), Corner.of(minima[transition])
    if from_base:
        return *ends, Corner.of(BaseMinimum.beside(minima[transition]))
    if third is not None:
        return *ends, _of_other_run(run, transition, third)
    averaged = next(
        (name for name in ("slow", run.answering_learner) if name in run.learners and name != trained), None
    )
    if averaged is not None:
        return *ends, Corner.of(run.minima_of(averaged)[transition])
    if transition + 1 < len(minima):
        return *ends, Corner.of(minima[transition + 1])
    if transition > 1:
        return *ends, Corner.of(minima[transition - 2])
    raise UserError(
        f"Expected a third minimum to span a plane, got only {ends[0].label} and {ends[1].label} in "
        f"'{run.directory}'; name another run with --third, or train on more tasks."
    )


def _of_other_run(run: Run, transition: int, third: Run) -> Corner:
    if third.base_id != run.base_id:
        raise PointMismatchError(
            f"Expected a third minimum on the base of '{run.directory}', got one of another base in "
            f"'{third.directory}'; name a run of the same --model."
        )
    minima = third.minima
    chosen = minima[transition] if transition < len(minima) else minima[-1]
    return Corner.of(chosen, f"{third.strategy} " if third.strategy != run.strategy else f"{third.directory.name} ")
