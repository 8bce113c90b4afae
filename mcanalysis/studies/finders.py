"""Which path finder connects which minima, and what it costs: a benchmark of curves on the minima of runs.

What loads torch or draws is imported where it is used: the settings are read for `--help`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, NamedTuple

import numpy as np

from mcanalysis.errors import UserError
from mcanalysis.numbers_as_text import cell
from mcanalysis.settings import BASIC, MOST_POINTS, MOST_STEPS, OR_ALL, Bounds, Flag, check_bounds
from mcanalysis.studies.connectivity.study import Connectivity
from mcanalysis.studies.engine import Steps
from mcanalysis.studies.study import Rows, Setting, Study, Tables

if TYPE_CHECKING:
    import pandas as pd

    from mcanalysis.plotting.picture import Picture
    from mcanalysis.runs.run import Run
    from mcanalysis.studies.connectivity.measuring import PathName, RunPaths

CURVES = (
    "bezier-1", "bezier-2", "bezier-3", "bezier-4", "polychain-3", "polychain-3-bisection", "polychain-3-neb",
    "polychain-3-layerwise",
)  # fmt: skip


class CurveName(NamedTuple):
    """A kind of curve, how many bends it has, and who finds them: `bezier-2`, `polychain-7-neb`."""

    path: str
    num_bends: int
    finder: str = "mean"

    @classmethod
    def of(cls, name: str) -> CurveName:
        """Read a name; raises `UserError` for what is none, `UnknownNameError` for an unknown path or finder.

        >>> CurveName.of("polychain-7-neb")
        CurveName(path='polychain', num_bends=7, finder='neb')
        """
        from mcanalysis.connectivity.finders import get_finder
        from mcanalysis.paths import Curve, get_path

        path, _, rest = name.partition("-")
        bends, _, finder = rest.partition("-")
        kind = get_path(path)
        if not bends.isdecimal() or int(bends) < 1 or not issubclass(kind, Curve) or kind.through_many:
            raise UserError(
                f"Expected a curve between two minima with its number of bends, and a finder if it is not mean, got "
                f"{name}; write bezier-2, polychain-3 or polychain-7-neb."
            )
        found = cls(path, int(bends), finder or "mean")
        get_finder(found.finder)
        return found


@dataclass(frozen=True)
class Finders(Study):
    """Which path finder connects which pair of successive minima at what cost: benchmark of success on test losses.

    Every curve of `curves`, named KIND-BENDS or KIND-BENDS-FINDER, is fitted between every two successive minima of the
    answering learner, with each number of `gradients` of the loss at a point and `fit_seeds` times (of seeds in a row
    from the run's, of jitter, t and minibatches), as `connectivity.py` fits it, with which it shares curves. A path's
    barrier is the largest chord barrier of its tasks' test losses, old ones and the new one; it succeeds where that is
    below `threshold`. `linear`, the straight path, costs nothing. `transitions`: the numbers (from 1) of the minima
    that pairs start from; () for all.

    Tables: `finders`, a row per fit, and of all runs `finder_success`, a row per curve and number of gradients, whose
    interval is over pairs of minima.
    """

    strategies: ClassVar = ("sequential", "er", "ilora")
    curves: Annotated[
        tuple[str, ...],
        "bezier-2, polychain-7-neb and so on: kind, bends, finder (mean)",
        Flag(metavar="KIND-BENDS,…", basic=True),
    ] = CURVES
    gradients: Annotated[
        tuple[int, ...],
        "how many gradients of the loss a fit may take, each alone",
        Flag(metavar="N,…", basic=True),
        Bounds(high=MOST_STEPS),
    ] = (60,)
    fit_seeds: Annotated[int, "fits of each curve between each pair, from different seeds", Bounds(high=1000)] = 1
    threshold: Annotated[float, "largest barrier, in nats per target, that counts as success", BASIC] = 0.05
    transitions: Annotated[
        tuple[int, ...], "numbers of the minima that pairs start from (default: all pairs)", Flag(metavar="1,2")
    ] = ()
    space: Annotated[str, "factor, delta or aligned"] = "factor"
    num_points: Annotated[int, "points measured on each path, both ends included", Bounds(2, MOST_POINTS)] = 11
    num_examples: Annotated[int | None, "test examples per task, or 'all'", OR_ALL, Bounds(1)] = 50
    ensemble: Annotated[
        int, "mutual information of the predictions of N points of each path (5)", Flag(metavar="N", bare=5)
    ] = 0

    def __post_init__(self) -> None:
        check_bounds(self)
        if not self.curves or len(set(self.curves)) < len(self.curves):
            raise UserError(f"Expected different curves, got {', '.join(self.curves) or 'none'}; change --curves.")
        if not self.gradients or self.fit_seeds < 1:
            raise UserError("Expected a number of gradients and a fit, got none; raise --gradients and --fit-seeds.")
        if not self.threshold > 0:
            raise UserError(f"Expected a positive barrier that counts as none, got {self.threshold}; say 0.05 nats.")
        list(self.fits(0))  # each is checked as connectivity.py's settings are

    def fits(self, seed: int) -> Iterator[tuple[dict[str, Any], Connectivity]]:
        """Labels and settings of all fits between one pair of minima of a run of this seed, the straight path first."""
        measured = {"num_points": self.num_points, "num_examples": self.num_examples, "ensemble": self.ensemble}
        straight = Connectivity(paths=(f"linear-{self.space}",), other_paths=(), **measured)
        yield {"curve": "linear", "gradients": 0, "fit_seed": seed}, straight
        for name in self.curves:
            path, num_bends, finder = CurveName.of(name)
            for gradients in self.gradients:
                for number in range(self.fit_seeds):
                    settings = Connectivity(
                        paths=(f"{path}-{self.space}",),
                        other_paths=(),
                        num_bends=num_bends,
                        finder=finder,
                        curve_steps=gradients,
                        curve_seed=seed + number if number else None,  # the first one is the run's, as elsewhere
                        **measured,
                    )
                    yield {"curve": name, "gradients": gradients, "fit_seed": seed + number}, settings

    def check(self, num_minima: int) -> None:
        """Raises `UserError` for a run with a single minimum, or without one of the transitions."""
        if num_minima < 2:
            raise UserError(f"Expected a run with at least two minima, got {num_minima}: train on more --tasks.")
        absent = [str(n) for n in self.transitions if not 1 <= n < num_minima]
        if absent:
            raise UserError(
                f"The run has transitions 1 to {num_minima - 1}, got {', '.join(absent)}: change --transitions."
            )

    def measure(self, run: Run, setting: Setting) -> Steps[Tables]:
        """All fits at once; what `connectivity.py` has fitted or measured with the same settings is taken as it is."""
        import pandas as pd

        from mcanalysis.studies.connectivity.measuring import RunPaths
        from mcanalysis.studies.points import Points

        class OnTest(RunPaths):
            splits = ("test",)
            general: ClassVar[list] = []

        learner = run.answering_learner
        self.check(len(run.minima_of(learner)))
        points = Points(run, setting.num_workers)
        whose = {"strategy": run.strategy, "learner": learner, "seed": run.seed, "space": self.space}
        wanted = []
        for labels, study in self.fits(run.seed):
            paths = OnTest(run, learner, study)
            names = [n for n in paths.names(study.paths[0]) if not self.transitions or n.number + 1 in self.transitions]
            wanted += [self._row(points, paths, name, whose | labels) for name in names]
        return {"finders": pd.DataFrame((yield wanted))}

    def _row(self, points: Any, paths: RunPaths, name: PathName, labels: dict[str, Any]) -> Steps[dict[str, Any]]:
        from mcanalysis.studies.connectivity.measuring import measure_path

        found = yield from measure_path(points, paths, name, 0)
        profiles, t = found.profiles["test"], found.path.transition
        barriers = {task: profiles[task].chord_barrier() for task in t.tasks}
        worst = max(barriers, key=lambda task: np.nan_to_num(barriers[task], nan=np.inf))
        together = [row for row in found.ensemble if row["member"] == "ensemble" and row["task"] == "mean"]
        return labels | {
            "start": t.start,
            "end": t.end,
            "task": worst,
            "chord_barrier": barriers[worst],
            "success": barriers[worst] < self.threshold,
            "threshold": self.threshold,
            "mutual_information": together[0].get("mutual_information", np.nan) if together else np.nan,
        }

    def compare(self, tables: Tables, runs: Sequence[Run]) -> Tables:
        return {"finder_success": success_table(tables["finders"])}

    def pictures_of_all(self, tables: Tables) -> Iterator[Picture]:
        from mcanalysis.plotting.finders import finders_picture

        yield finders_picture(tables["finder_success"], tables["finders"])

    def words(self, tables: Tables) -> Iterator[str | Rows]:
        """Success and barriers of each curve."""
        success = tables["finder_success"]
        pairs, threshold = success.pairs.max(), tables["finders"].threshold.iloc[0]
        yield f"\nPaths on which no task's test loss has a barrier of {threshold:g} nats, of {pairs} pairs of minima"
        rows = [["curve", "gradients", "fits", "success [95 %]", "median barrier", "largest", "MI"]]
        for _, row in success.iterrows():
            share = f"{row.success:.2f} [{cell(row.success_low)}, {cell(row.success_high)}]"
            numbers = [cell(row[name], 3) for name in ("median_barrier", "largest_barrier", "mutual_information")]
            rows.append([row.curve, str(row.gradients), str(row.fits), share, *numbers])
        yield rows


def success_table(finders: pd.DataFrame) -> pd.DataFrame:
    """Return the share of fits that succeed, a row per curve and number of gradients, in the table's order.

    `success` has a 95 % interval over pairs of minima (`success_low`, `success_high`), whose fits from several seeds
    count as one share each; pairs of one run count as independent. NaN with a single pair. `pairs`, `fits`: numbers of
    these; `median_barrier`, `largest_barrier` (nats) and the mean `mutual_information` (nats) over fits.

    >>> import pandas as pd
    >>> same = {"curve": "bezier-1", "gradients": 60, "strategy": "er", "learner": "fast", "seed": 0, "space": "factor"}
    >>> barriers = {("1-A", "2-B"): [0.0, 0.1], ("2-B", "3-C"): [0.0, 0.0]}
    >>> fits = [
    ...     same | {"start": a, "end": b, "chord_barrier": x, "success": x < 0.05, "mutual_information": 0.1}
    ...     for (a, b), found in barriers.items()
    ...     for x in found
    ... ]
    >>> row = success_table(pd.DataFrame(fits)).iloc[0]
    >>> int(row.pairs), int(row.fits), float(row.success), float(row.median_barrier)
    (2, 4, 0.75, 0.0)
    """
    import pandas as pd

    from mcanalysis.metrics.bootstrap import Sample
    from mcanalysis.metrics.intervals import Estimate, mean_interval

    rows = []
    for (curve, gradients), fits in finders.groupby(["curve", "gradients"], sort=False):
        pair = ["strategy", "learner", "seed", "space", "start", "end"]
        shares = fits.astype({"success": float}).groupby(pair, sort=False).success.mean().to_numpy()
        low, high, _ = mean_interval(Estimate.of(Sample(shares[None]), is_score=True), least=0.0)
        rows.append(
            {
                "curve": curve, "gradients": gradients, "pairs": len(shares), "fits": len(fits),
                "success": float(shares.mean()), "success_low": float(low[0]), "success_high": float(high[0]),
                "median_barrier": fits.chord_barrier.median(), "largest_barrier": fits.chord_barrier.max(),
                "mutual_information": fits.mutual_information.mean(),
            }
        )  # fmt: skip
    return pd.DataFrame(rows)
