"""How much of the study is done, and where its files lie."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from mcanalysis.errors import UnknownNameError, UserError
from mcanalysis.settings import Bounds, Flag, check_bounds

if TYPE_CHECKING:
    from mcanalysis.studies.claims.protocol import Part, Protocol
    from mcanalysis.studies.tuned import Tuned


@dataclass(frozen=True)
class StudySettings:
    """Which parts, for how long, and where: nothing here changes what is measured but `quick`."""

    quick: Annotated[bool, "a small version of every table, in minutes; nothing to conclude from"] = False
    part: Annotated[tuple[str, ...], "parts of the protocol (default: all)", Flag(metavar="A,B")] = ()
    minutes: Annotated[float, "after which no further run is begun", Bounds(0.0, 100_000.0)] = 100.0
    results: Annotated[str, "holds tuned.yaml and the result files that are committed"] = "analyses/study"
    output_dir: Annotated[str, "holds run directories; with --quick all that is written"] = "runs/study"

    def __post_init__(self) -> None:
        check_bounds(self)

    @cached_property
    def protocol(self) -> Protocol:
        """The protocol asked for."""
        from mcanalysis.studies.claims.protocol import FULL, QUICK

        return QUICK if self.quick else FULL

    @cached_property
    def parts(self) -> list[Part]:
        """The parts asked for; raises `UnknownNameError`."""
        known = {part.name: part for part in self.protocol.parts}
        for name in self.part:
            if name not in known:
                raise UnknownNameError("part of the study", name, known)
        return [part for name, part in known.items() if not self.part or name in self.part]

    @cached_property
    def tuned(self) -> Tuned:
        """The settings that the search chose; raises `UserError` where they are of other runs than the protocol's.

        `quick` takes those of the full protocol, whose runs are longer.
        """
        from mcanalysis.benchmarks import get_benchmark
        from mcanalysis.strategies import get_strategy, strategy_names
        from mcanalysis.studies.claims.protocol import FULL
        from mcanalysis.studies.tuned import Tuned

        found = Tuned.read(Path(self.results) / "tuned.yaml")
        found.check(FULL.base, get_benchmark(FULL.base.benchmark).tasks)
        own = [kind for kind in map(get_strategy, strategy_names()) if kind.__module__.startswith("mcanalysis.")]
        trained = {kind.name for kind in own if kind.schedule != "none"}
        if absent := sorted(trained - set(found.strategies)):
            raise UserError(
                f"Expected tuned settings of every strategy in '{self.results}/tuned.yaml', got none of "
                f"{', '.join(absent)}; tune --strategy all."
            )
        return found

    @property
    def runs_folder(self) -> Path:
        """Where run directories lie: those of `quick` are of other settings."""
        return Path(self.output_dir, "quick", "runs") if self.quick else Path(self.output_dir)

    @property
    def results_folder(self) -> Path:
        """Where result files lie: those of `quick` are not to be committed."""
        return Path(self.output_dir, "quick", "results") if self.quick else Path(self.results)

    @property
    def report_folder(self) -> Path:
        """Where tables, figures and the page of results are written."""
        return Path(self.output_dir, "quick") if self.quick else Path(self.results)
