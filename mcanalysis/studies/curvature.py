"""Curvature at the minima of runs: eigenvalues, trace, spectral density, and whether they foretell forgetting.

Every result is one file in `<run>/curvature/`, named by a hash of the point, the data and the settings, so that nothing
is computed twice and a killed study goes on with what is missing. What loads torch or draws is imported where it is
used: the settings are read for `--help`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

from mcanalysis.errors import UserError
from mcanalysis.numbers_as_text import cell
from mcanalysis.progress import Progress
from mcanalysis.settings import BASIC, OR_ALL, Bounds, Flag, check_bounds
from mcanalysis.store.hashing import hash_json
from mcanalysis.store.results import JsonResult
from mcanalysis.studies.engine import Piece, Steps
from mcanalysis.studies.study import Rows, Setting, Study, Tables

if TYPE_CHECKING:
    from mcanalysis.landscape.hessian import HessianOperator
    from mcanalysis.plotting.picture import Picture
    from mcanalysis.runs.run import Minimum, Opening, Run
    from mcanalysis.runs.transitions import Transition

SPLIT = "test"
_MAX_RESTARTS = 15
_VERSION = 1  # counts up when what is computed changes, so that results of before are not used
_OF_KIND = {
    "eigenvalues": ("num_eigenvalues", "tolerance", "num_trace_samples", "seed"),
    "spectrum": ("num_probes", "num_lanczos", "seed"),
    "forgetting": (),
}
"""The settings that each kind of result depends on."""


@dataclass(frozen=True)
class Curvature(Study):
    """Curvature at the minima of runs, and whether it foretells forgetting: eigenvalues, trace, spectrum.

    On the test split, at every minimum, of its own task's loss and of the mean loss of the tasks before it (each on
    about `num_examples` examples, shared evenly by its tasks): the `num_eigenvalues` largest and smallest eigenvalues
    to a relative `tolerance`, and the trace from `num_trace_samples` products. At `spectrum_minimum` (a number from 1,
    a label, or None: the last) the spectral density, from `num_probes` · `num_lanczos` products. For every transition
    and old task, predicted and measured forgetting on `num_forgetting_examples` examples (None: all).

    Tables: `curvature`, a row per minimum and loss; `spectrum`, per place; `predicted_forgetting`, per transition and
    old task, and their mean `mean_old`; `forgetting_correlations`, of predicted with measured forgetting.
    """

    num_examples: Annotated[int, "test examples per loss, shared by its tasks", Bounds(1), BASIC] = 40
    num_forgetting_examples: Annotated[int | None, "test examples per old task, or 'all'", OR_ALL, Bounds(1)] = 100
    num_eigenvalues: Annotated[int, "at each end of the spectrum", Bounds(1, 100), BASIC] = 3
    tolerance: Annotated[float, "of eigenvalues, relative"] = 0.01
    num_trace_samples: Annotated[int, "products for the trace", Bounds(2, 1_000_000)] = 10
    spectrum_minimum: Annotated[
        str | None, "whose density is drawn, by number or label (default: last)", Flag(metavar="K")
    ] = None
    num_probes: Annotated[int, "random starts of the density", Bounds(1, 10_000)] = 2
    num_lanczos: Annotated[int, "Lanczos steps of each probe", Bounds(2, 10_000)] = 40
    seed: int = 0

    def __post_init__(self) -> None:
        check_bounds(self)
        if not self.tolerance > 0:
            raise UserError(f"Expected a positive tolerance, got {self.tolerance}; 0.01 is one percent.")

    def measure(self, run: Run, setting: Setting) -> Steps[Tables]:
        """One piece per unit; raises `UserError` for a run without adapters or the minimum asked for."""
        units = self._units(run)
        found = yield [
            Piece(str(kept.file), _measure, (run.opening, self, number), kept, name=f"curvature of {unit.name(run)}")
            for number, unit in enumerate(units)
            for kept in [self._kept(run, unit)]
        ]
        return self._tables(run, units, found)

    def compare(self, tables: Tables, runs: Sequence[Run]) -> Tables:
        from mcanalysis.studies.curvature_tables import forgetting_correlations

        correlations = {"forgetting_correlations": forgetting_correlations(tables["predicted_forgetting"])}
        return tables | correlations if len(runs) > 1 else {}

    def pictures(self, tables: Tables) -> Iterator[Picture]:
        from mcanalysis.plotting import curvature as draw
        from mcanalysis.plotting.picture import Picture

        spectrum, curvature, forgetting, correlations = (
            tables[n] for n in ("spectrum", "curvature", "predicted_forgetting", "forgetting_correlations")
        )
        drawn = {
            "spectrum": (draw.plot_spectrum(spectrum), draw.spectrum_caption(spectrum)),
            "eigenvalues": (draw.plot_eigenvalues(curvature), draw.eigenvalues_caption(curvature)),
            "predicted_forgetting": (
                draw.plot_predicted_forgetting(forgetting, correlations),
                draw.predicted_forgetting_caption(forgetting, correlations),
            ),
        }
        for name, (figure, caption) in drawn.items():
            yield Picture(f"curvature_{name}", figure, {}, caption)

    def pictures_of_all(self, tables: Tables) -> Iterator[Picture]:
        whose = tables["curvature"][["strategy", "learner", "seed"]].drop_duplicates()
        if len(whose) > 1:
            yield from self.pictures(tables)

    def words(self, tables: Tables) -> Iterator[str | Rows]:
        """Eigenvalues and trace at each minimum, and how well forgetting was foretold."""
        for (strategy, learner, seed), group in tables["curvature"].groupby(
            ["strategy", "learner", "seed"], sort=False
        ):
            rows = [["minimum", "loss of", "loss", "|gradient|", "largest", "smallest", "trace ± standard error"]]
            for _, row in group.iterrows():
                shown = (row.loss, row.gradient_norm, row.top_1, row.bottom_1)
                of = "old tasks" if row.task == "mean_old" else row.task
                spread = f"{cell(row.trace, 1)} ± {cell(row.trace_standard_error, 1)}"
                rows.append([row.minimum, of, *map(cell, shown), spread])
            yield f"\n{strategy} / {learner} / seed {seed}: Hessian of the test loss (nats per target token), factors"
            yield rows
        rows = [["strategy", "learner", "over", "n", "g·Δ + ½ΔᵀHΔ", "g·Δ", "½ΔᵀHΔ", "‖Δ‖"]]
        by_test = tables["forgetting_correlations"].groupby(["strategy", "learner", "seed", "over", "n"], sort=False)
        for (strategy, learner, _, over, n), one in by_test:
            rho = one.set_index("predictor").rho
            numbers = [cell(rho[name]) for name in ("predicted", "first_order", "second_order", "distance")]
            rows.append([str(strategy), str(learner), str(over), str(n), *numbers])
        yield "\nSpearman's ρ of what predicts the rise of old losses with the rise that was measured (not independent)"
        yield rows

    def _units(self, run: Run) -> list[_Unit]:
        from mcanalysis.runs.transitions import run_transitions

        learner = run.answering_learner
        transitions = run_transitions(run, learner)
        minima = run.minima_of(learner)
        units = []
        wanted = self.spectrum_minimum
        chosen = (
            minima[-1] if wanted is None else run.minimum(int(wanted) if str(wanted).isdigit() else wanted, learner)
        )
        for number, minimum in enumerate(minima):
            losses: list[tuple[str, tuple[str, ...]]] = [(minimum.task, (minimum.task,))]
            if number > 0:
                losses.append(("mean_old", tuple(run.task_names[:number])))
            for task, tasks in losses:
                units.append(_Unit("eigenvalues", minimum, task, tasks))
                if minimum.label == chosen.label:
                    units.append(_Unit("spectrum", minimum, task, tasks))
        for minimum, transition in zip(minima, transitions, strict=False):
            units += [_Unit("forgetting", minimum, task, (task,), transition) for task in transition.old]
        return units

    def _kept(self, run: Run, unit: _Unit) -> JsonResult:
        """Where a unit's result lies: everything that it depends on is in the name."""
        data = [run.task_objective(task, SPLIT, unit.num_examples(self)).settings_key for task in unit.tasks]
        ends = [] if unit.transition is None else list(unit.transition.keys)
        used = {name: getattr(self, name) for name in _OF_KIND[unit.kind]}
        key = hash_json([_VERSION, unit.kind, unit.minimum.key, ends, data, used])
        minimum = unit.minimum
        name = f"{minimum.label}-{unit.task}-{unit.kind}-{key[:12]}.json"
        return JsonResult(run.directory / "curvature" / minimum.learner / name)

    def _tables(self, run: Run, units: Sequence[_Unit], found: Sequence[dict[str, Any]]) -> Tables:
        import pandas as pd

        from mcanalysis.studies import curvature_tables as make

        rows: dict[str, list[dict[str, Any]]] = {kind: [] for kind in _OF_KIND}
        of_kind = {"eigenvalues": make.eigenvalue_rows, "spectrum": make.density_rows}
        for unit, result in zip(units, found, strict=True):
            labels: dict[str, Any] = {"strategy": run.strategy, "learner": unit.minimum.learner, "seed": run.seed}
            if unit.transition is None:
                labels["minimum"] = unit.minimum.label
            else:
                labels |= {"start": unit.transition.start, "end": unit.transition.end}
            objectives = [run.task_objective(task, SPLIT, unit.num_examples(self)) for task in unit.tasks]
            labels |= {"task": unit.task, "split": SPLIT, "num_examples": sum(len(o.examples) for o in objectives)}
            rows[unit.kind] += of_kind[unit.kind](result, labels) if unit.kind in of_kind else [labels | result]
        forgetting = make.with_means(rows["forgetting"])
        return {
            "curvature": pd.DataFrame(rows["eigenvalues"]),
            "spectrum": pd.DataFrame(rows["spectrum"]),
            "predicted_forgetting": forgetting,
            "forgetting_correlations": make.forgetting_correlations(forgetting),
        }


@dataclass(frozen=True)
class _Unit:
    """One result: `kind` "eigenvalues" or "spectrum" at a minimum, "forgetting" at the start of a transition.

    `task`: the name of the one task whose loss it is, or `mean_old`.
    """

    kind: str
    minimum: Minimum
    task: str
    tasks: tuple[str, ...]
    transition: Transition | None = None

    def name(self, run: Run) -> str:
        return f"{run.directory.name}: {self.kind} of {self.task} at {self.minimum.label}"

    def num_examples(self, study: Curvature) -> int | None:
        if self.kind == "forgetting":
            return study.num_forgetting_examples
        return max(1, study.num_examples // len(self.tasks))


def _measure(opening: Opening, study: Curvature, number: int, progress: Progress) -> dict[str, Any]:
    from mcanalysis.landscape.hessian import HessianOperator
    from mcanalysis.landscape.predicted_forgetting import predicted_forgetting, same_ranks
    from mcanalysis.landscape.spectral_density import spectral_density

    run = opening.run
    unit = study._units(run)[number]
    losses = run.batch_losses(unit.tasks, SPLIT, unit.num_examples(study))
    start = unit.minimum.point
    if unit.transition is not None:
        start, end = same_ranks(start, unit.transition.points[-1])
        foretold = predicted_forgetting(HessianOperator(losses, start), end)
        return asdict(foretold) | {"predicted": foretold.predicted}
    hessian = HessianOperator(losses, start)
    if unit.kind == "spectrum":
        return asdict(spectral_density(hessian, study.num_probes, study.num_lanczos, study.seed))
    return _eigenvalues_and_trace(hessian, study)


def _eigenvalues_and_trace(hessian: HessianOperator, study: Curvature) -> dict[str, Any]:
    import numpy as np

    from mcanalysis.landscape.eigenvalues import NotConvergedError, eigenvalues
    from mcanalysis.landscape.trace import trace
    from mcanalysis.params.point import norm

    num, rest = study.num_eigenvalues, (study.tolerance, study.seed, _MAX_RESTARTS)
    try:
        found = eigenvalues(hessian, num, "both", *rest)
        ends = {"top": found.values[:num], "bottom": found.values[: -num - 1 : -1]}
    except NotConvergedError:  # no eigenvalue is well below 0
        found = eigenvalues(hessian, num, "top", *rest)
        ends = {"top": found.values, "bottom": np.full(num, np.nan)}
    estimate = trace(hessian, study.num_trace_samples, seed=study.seed)
    return {
        "loss": hessian.loss(),
        "gradient_norm": norm(hessian.gradient()),
        **ends,
        "largest_residual": float(found.residuals.max()),
        "trace": estimate.value,
        "trace_standard_error": estimate.standard_error,
        "num_coordinates": hessian.num_coordinates,
        "num_products": hessian.num_products,
    }
