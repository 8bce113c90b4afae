"""What a card measures. No torch is loaded here: the settings are read for `--help`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from mcanalysis.errors import UserError
from mcanalysis.settings import MOST_POINTS, OR_ALL, Bounds, Flag
from mcanalysis.studies.connectivity.study import Connectivity
from mcanalysis.studies.study import Tables

SPACES = {
    "factor": "straight in the factors A and B",
    "delta": "straight in the weights, ΔW = B·A",
    "aligned": "straight in the factors, turned to fit",
}


@dataclass(frozen=True)
class CardPaths(Connectivity):
    """What a card measures: the straight paths of each space that joins the two, on `num_points` points.

    With a `tolerance` barriers are enclosed by a search to it (`mcanalysis.connectivity.certificate`), else they have
    intervals (95 %). A barrier below `noticeable` nats per target token is called none.
    """

    num_points: Annotated[int, "points on each path, both ends included", Bounds(3, MOST_POINTS)] = 11
    num_examples: Annotated[int | None, "examples of each half of a data file, or 'all'", OR_ALL, Bounds(1)] = None
    paths: tuple[str, ...] = tuple(f"linear-{space}" for space in SPACES)
    tolerance: Annotated[
        float | None, "enclose the barriers to X nats, instead of an interval each", Flag(metavar="X")
    ] = None
    noticeable: Annotated[float, "nats per target token from which the verdict calls it a barrier", Bounds(0.0)] = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.noticeable:
            raise UserError("Expected --noticeable above 0 nats, got 0; try 0.05.")

    def compare(self, tables: Tables, runs: Sequence[Any]) -> Tables:
        return {}  # two adapters have no metrics

    def pictures(self, tables: Tables, so_far: str = "", lacking: str = "") -> Iterator[Any]:
        yield from ()

    def pictures_of_all(self, tables: Tables) -> Iterator[Any]:
        yield from ()
