"""What predicts forgetting, barrier and gain? Signals of every transition of runs beside what the transition did.

Every signal of a transition is one file in `<run>/signals/<learner>/`, named by a hash of the points, the data and the
settings; outcomes are read from the run's store, where `connectivity.py` has measured the same path. What loads torch
or draws is imported where it is used: the settings are read for `--help`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from mcanalysis.errors import UserError
from mcanalysis.numbers_as_text import cell
from mcanalysis.progress import Progress
from mcanalysis.settings import MOST_EXAMPLES, MOST_POINTS, OR_ALL, Bounds, Flag, check_bounds
from mcanalysis.studies.engine import Piece, Steps
from mcanalysis.studies.study import Rows, Setting, Study, Tables

if TYPE_CHECKING:
    import pandas as pd

    from mcanalysis.plotting.picture import Picture
    from mcanalysis.runs.run import Opening, Run
    from mcanalysis.runs.transitions import Transition
    from mcanalysis.studies.connectivity.measuring import PathName, RunPaths
    from mcanalysis.studies.signals import Move
    from mcanalysis.studies.training import Training

OUTCOMES = ("forgetting", "score_forgetting", "barrier", "gain")
WITHIN = ("within strategies", "within transitions")
SAME = ("the same strategy", "the same transition")  # what signals have to beat
DETECTABLE = 0.6  # the Spearman correlation that the number of transitions must suffice to tell from chance
_VERSION = 1  # counts up when what is computed changes, so that results of before are not used


@dataclass(frozen=True)
class Predictors(Study):
    """What predicts forgetting, barrier and gain of a transition: signals, and how well they rank unseen runs.

    Of every transition of the answering learner: each of `signals` (() for all), on `num_examples` train examples of
    the new task and as many of the old tasks together; and what the straight path in a `space` did on test, on
    `num_points` points and `num_path_examples` per task: the rise of the mean loss of the old tasks (`forgetting`,
    nats), the fall of their mean score (`score_forgetting`), the mean over all tasks of the chord barrier of the loss
    (`barrier`) and what the best point between the ends, chosen on eval, gains in the balanced score (`gain`).

    Tables: `signals`, a row per transition; of all runs `predictor_correlations`, Spearman's ρ with 95 % intervals over
    runs, p values and Holm's over the signals, and `predictor_out_of_run`, predictions of each run from the others.
    """

    strategies: ClassVar = ("sequential", "er", "ewc", "lwf", "agem", "ilora")
    signals: Annotated[tuple[str, ...], "which of them (default: all)", Flag(metavar="NAME,…", basic=True)] = ()
    num_examples: Annotated[
        int, "train examples of the new task, and of all old tasks together", Bounds(high=MOST_EXAMPLES)
    ] = 40
    space: Annotated[str, "of the path: factor, delta or aligned"] = "factor"
    num_points: Annotated[int, "points measured on each path, both ends included", Bounds(3, MOST_POINTS)] = 21
    num_path_examples: Annotated[
        int | None, "eval and test examples per task on paths, or 'all'", OR_ALL, Bounds(1)
    ] = 50

    def __post_init__(self) -> None:
        from mcanalysis.connectivity.profile import grid
        from mcanalysis.params.spaces import get_space
        from mcanalysis.studies.signals.base import check_examples, get_signal

        check_bounds(self)
        grid(self.num_points)
        get_space(self.space)
        check_examples(self.num_examples)
        for name in self.signals:
            get_signal(name)

    @property
    def names(self) -> tuple[str, ...]:
        """The signals, all where none is named."""
        from mcanalysis.studies.signals import signal_names

        return self.signals or tuple(signal_names())

    def check_all(self, runs: Sequence[Run | Training]) -> None:
        """Raise `UserError` for fewer transitions than a correlation of 0.6 needs, or fewer than 3 runs."""
        from mcanalysis.metrics.clustered_ranks import LEAST_RUNS, num_needed
        from mcanalysis.studies.training import Training

        num_minima = [run.num_minima if isinstance(run, Training) else len(run.minima) for run in runs]
        columns = len(columns_of(self.names))
        needed, there = num_needed(DETECTABLE, columns), sum(max(number - 1, 0) for number in num_minima)
        if there < needed or len(num_minima) < LEAST_RUNS:
            raise UserError(
                f"Expected at least {needed} transitions of {LEAST_RUNS} runs or more, which a Spearman correlation of "
                f"{DETECTABLE} among {columns} signals takes to be told from chance (Holm, 5 %), got {there} of "
                f"{len(num_minima)}; add runs with --run, --seed or --strategy, or name fewer --signals."
            )

    def measure(self, run: Run, setting: Setting) -> Steps[Tables]:
        """A piece per transition and signal, and the points of the straight paths."""
        import pandas as pd

        from mcanalysis.runs.transitions import run_transitions
        from mcanalysis.studies.connectivity.measuring import RunPaths
        from mcanalysis.studies.connectivity.study import Connectivity
        from mcanalysis.studies.points import Points

        class WithoutGeneral(RunPaths):
            general: ClassVar[list] = []

        learner, kind = run.answering_learner, f"linear-{self.space}"
        transitions = run_transitions(run, learner)
        connectivity = Connectivity(
            paths=(kind,), other_paths=(), num_points=self.num_points, num_examples=self.num_path_examples
        )
        paths = WithoutGeneral(run, learner, connectivity)
        points = Points(run, setting.num_workers)
        outcomes = [_outcomes(points, paths, name) for name in paths.names(kind)]
        keys = [minimum.key for minimum in run.minima_of(learner)]
        pieces = []
        for k, t in enumerate(transitions, start=1):  # signals of one after another, which share gradients
            pieces += [self._piece(run, k, name, t, keys[max(k - 2, 0) : k + 1]) for name in self.names]
        found = yield [*outcomes, *pieces]
        measured, values = found[: len(outcomes)], found[len(outcomes) :]
        rows = []
        for k, (transition, outcome) in enumerate(zip(transitions, measured, strict=True)):
            of_k = values[k * len(self.names) : (k + 1) * len(self.names)]
            row = {"strategy": run.strategy, "learner": learner, "seed": run.seed, "space": self.space}
            row |= {"start": transition.start, "end": transition.end, "num_examples": self.num_examples, **outcome}
            for name, of_signal in zip(self.names, of_k, strict=True):
                row |= {column: math.nan if of_signal[column] is None else of_signal[column]
                        for column in columns_of([name])}  # fmt: skip
            rows.append(row)
        return {"signals": pd.DataFrame(rows)}

    def _piece(self, run: Run, k: int, name: str, transition: Transition, minima: Sequence[str]) -> Piece:
        """`minima`: the keys of those that a signal may be made of, the one before the start among them."""
        from mcanalysis.store.hashing import hash_json
        from mcanalysis.store.results import JsonResult
        from mcanalysis.studies.signals.base import SPLIT, get_signal

        data = [run.task_objective(task, SPLIT, self.num_examples).settings_key for task in transition.tasks]
        version = [_VERSION, name, get_signal(name).version]
        base = [run.config["dtype"], run.config.get("quantization")]
        key = hash_json([version, list(minima), data, self.num_examples, base])
        folder = run.directory / "signals" / run.answering_learner
        kept = JsonResult(folder / f"{transition.end}-{name}-{key[:12]}.json")
        words = f"signal {name} of {transition.start} → {transition.end} of {run.directory.name}"
        return Piece(str(kept.file), _measure, (run.opening, k, name, self.num_examples), kept, name=words)

    def compare(self, tables: Tables, runs: Sequence[Run]) -> Tables:
        return tables_of(tables["signals"])

    def pictures_of_all(self, tables: Tables) -> Iterator[Picture]:
        from mcanalysis.plotting.predictors import predictors_picture

        yield predictors_picture(tables["predictor_correlations"], tables["predictor_out_of_run"], tables["signals"])

    def words(self, tables: Tables) -> Iterator[str | Rows]:
        """The signals by the size of their pooled correlation with each outcome, and what they predict out of run."""
        found, out = tables["predictor_correlations"], tables["predictor_out_of_run"]
        for outcome, rows in found[found.over == "all"].groupby("outcome", sort=False):
            others = {over: found[(found.over == over) & (found.outcome == outcome)] for over in WITHIN}
            others = {over: of_signals.set_index("signal") for over, of_signals in others.items()}
            alone = out[out.outcome == outcome].set_index("signals")
            yield (
                f"\nWhat ranks transitions by {outcome}: Spearman's ρ [95 % over {rows.num_runs.max()} runs], of "
                f"{rows.n.max()} transitions; *: p up to 0.05 after Holm"
            )
            shown = [["signal", "old data", "pooled", *WITHIN, "R² out of run"]]
            for row in rows.reindex(rows.rho.abs().sort_values(ascending=False).index).to_dict("records"):
                rhos = [_rho(row), *(_rho(of_signals.loc[row["signal"]]) for of_signals in others.values())]
                old = "yes" if row["needs_old_data"] else "no"
                of = "" if row["n"] == rows.n.max() else f" (of {row['n']})"
                shown.append([f"{row['signal']}{of}", old, *rhos, cell(alone.r2.get(row["signal"], math.nan))])
            yield shown
            for name in ("all signals", "without old data", *SAME):
                yield f"{name}: R² out of run {cell(alone.r2[name])}, rank correlation {cell(alone.rho[name])}"


def _rho(row: Mapping[Any, Any]) -> str:
    return f"{cell(row['rho'])} [{cell(row['low'])}, {cell(row['high'])}]{'*' if row['p_holm'] <= 0.05 else ''}"


def columns_of(names: Sequence[str]) -> list[str]:
    """The columns of signals, in order."""
    from mcanalysis.studies.signals import get_signal

    return [column for name in names for column in get_signal(name).columns]


def needs_old_data() -> dict[str, bool]:
    """Of every signal's columns, whether it takes examples of old tasks."""
    from mcanalysis.studies.signals import get_signal, signal_names

    return {c: signal.needs_old_data for signal in map(get_signal, signal_names()) for c in signal.columns}


def tables_of(signals: pd.DataFrame, clusters: Sequence[int] | None = None) -> Tables:
    """Correlations and predictions from the table `signals` of several runs.

    `clusters`: what is repeated, a number per row, where that is more than a run: runs of several strategies on one
    order with one seed, say.

    `predictor_correlations`: a row per outcome, signal and `over`: all transitions, those "within strategies" and
    "within transitions" (ranks taken in each strategy, or among all runs' moves from one task to the next: what tells
    tasks apart, and no more, has none there), and each strategy alone. `p_holm` is over the signals of an outcome and
    `over`. `predictor_out_of_run`: a row per outcome and set of signals (each alone, "all signals", "without old
    data"): `r2` against the other runs' mean, 1 at best and negative where that mean is the better prediction, and
    Spearman's `rho` of predictions and outcomes, both less the other runs' mean (which lies low where the run left out
    lies high, and would rank noise backwards); NaN with a single run. `r2_low`, `r2_high`: 95 %, by leaving out one run
    at a time of the errors, which are not made anew. `beyond_means`, with interval and `p` (`p_holm`: over the sets of
    an outcome): how much more of the spread is told than by the better one of two means, that of all other runs and
    "the same strategy". That one and "the same transition" are what they have to beat: no signal, but the mean of the
    other runs of the strategy, or at the same two tasks whatever came before them, over the `n` transitions for which
    there are any.
    """
    import numpy as np
    import pandas as pd

    from mcanalysis.metrics.clustered_ranks import clustered_spearman
    from mcanalysis.metrics.comparisons import holm

    needs = {column: old for column, old in needs_old_data().items() if column in signals}
    runs = signals.groupby(["strategy", "learner", "seed"], sort=False).ngroup().to_numpy()
    runs = runs if clusters is None else np.asarray(clusters)
    strategy, everywhere = signals.strategy.to_numpy(), np.ones(len(signals), bool)
    names = [signals[end].astype(str).str.replace(r"^\d+-", "", regex=True) for end in ("start", "end")]
    transition = signals.groupby(names, sort=False).ngroup().to_numpy()
    overs = {"all": (everywhere, None)}
    overs |= {over: (everywhere, strata) for over, strata in zip(WITHIN, (strategy, transition), strict=True)}
    overs |= {name: (strategy == name, None) for name in dict.fromkeys(strategy)}
    correlations, predictions = [], []
    for outcome in OUTCOMES:
        y = signals[outcome].to_numpy(float)
        for over, (chosen, strata) in overs.items():
            found = [
                clustered_spearman(signals[c].to_numpy(float)[chosen], y[chosen], runs[chosen], strata) for c in needs
            ]
            adjusted = holm([one.p for one in found])
            for (column, old), one, p in zip(needs.items(), found, adjusted, strict=True):
                labels = {"outcome": outcome, "over": over, "signal": column, "needs_old_data": old}
                correlations.append(labels | one._asdict() | {"p_holm": p})
        sets = {column: [column] for column in needs} | {"all signals": list(needs)}
        sets["without old data"] = [column for column, old in needs.items() if not old]
        known = ~np.isnan(y)
        values = {name: signals[columns].to_numpy(float)[known] for name, columns in sets.items()}
        kinds: dict[str, Any] = dict(zip(SAME, (strategy[known], transition[known]), strict=True))
        predictions += [{"outcome": outcome, **row} for row in _out_of_run(values, y[known], runs[known], kinds)]
    return {"predictor_correlations": pd.DataFrame(correlations), "predictor_out_of_run": pd.DataFrame(predictions)}


def _out_of_run(sets: Mapping[str, Any], y: Any, runs: Any, kinds: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of an outcome: `sets` of signals by name, shapes (n, k), then what has no signal but a kind."""
    import numpy as np
    from scipy.stats import spearmanr

    from mcanalysis.metrics.clustered_ranks import clustered_ratio, leave_one_run_out
    from mcanalysis.metrics.comparisons import holm

    nothing = np.full(len(y), math.nan)
    several = len(set(runs)) > 1
    mean = leave_one_run_out(np.zeros((len(y), 1)), y, runs)[1] if several else nothing
    guesses = {
        name: leave_one_run_out(of, y, runs)[0] if several and of.shape[1] else nothing for name, of in sets.items()
    }
    for name, kind in kinds.items():
        same = (kind[:, None] == kind) & (runs[:, None] != runs)
        guesses[name] = np.where(same.any(axis=1), same @ y / np.maximum(same.sum(axis=1), 1), math.nan)
    own = y - mean  # a run's mean is against its own others'
    errors = {name: (y - guess) ** 2 for name, guess in guesses.items()}
    # A strategy's mean is of few runs: where all runs' is the better guess, knowing nothing would beat the other one.
    of_strategy, told = errors[SAME[0]], ~np.isnan(errors[SAME[0]])
    to_beat = of_strategy if of_strategy[told].sum() < (own**2)[told].sum() else own**2
    rows = []
    for name, guess in guesses.items():
        told = ~np.isnan(guess)
        r2 = clustered_ratio(own**2 - errors[name], np.where(told, own**2, math.nan), runs)
        over = clustered_ratio(to_beat - errors[name], np.where(told, own**2, math.nan), runs)
        row = {"signals": name, "n": int(told.sum()), "r2": r2.value, "r2_low": r2.low, "r2_high": r2.high}
        row["rho"] = math.nan
        guess, left = (guess - mean)[told], own[told]
        if told.any() and np.ptp(guess) > 0 and np.ptp(left) > 0:
            row["rho"] = float(spearmanr(guess, left)[0])  # type: ignore[arg-type]
        row |= {"beyond_means": over.value, "beyond_means_low": over.low, "beyond_means_high": over.high}
        rows.append(row | {"p": over.p})
    tests = [row for row in rows if row["signals"] not in SAME]
    for row, p in zip(tests, holm([row["p"] for row in tests]), strict=True):
        row["p_holm"] = float(p)
    return rows


def _outcomes(points: Any, paths: RunPaths, name: PathName) -> Steps[dict[str, float]]:
    import numpy as np

    from mcanalysis.metrics.barriers import balanced_score, interpolation_gain, t_star
    from mcanalysis.studies.connectivity.measuring import measure_path

    found = yield from measure_path(points, paths, name, 0)
    transition, test = found.path.transition, found.profiles["test"]

    def balanced(split: str) -> Any:
        scores = {task: found.profiles[split][task].scores for task in transition.tasks}
        return balanced_score([scores[task] for task in transition.old], scores[transition.new])  # type: ignore

    losses = np.mean([test[task].losses for task in transition.old], axis=0)
    scores = np.mean([test[task].scores for task in transition.old], axis=0)  # type: ignore
    gain = interpolation_gain(
        test[transition.new].ts, balanced("test"), t_star(test[transition.new].ts, balanced("eval"))
    )
    return {
        "forgetting": float(losses[-1] - losses[0]),
        "score_forgetting": float(scores[0] - scores[-1]),
        "barrier": float(np.mean([test[task].chord_barrier() for task in transition.tasks])),
        "gain": float(gain),
    }


@lru_cache(maxsize=1)  # a transition's, while its signals are taken
def _move(run: Run, k: int, num_examples: int) -> Move:
    from mcanalysis.studies.signals import Move

    return Move(run, k, num_examples)


def _measure(opening: Opening, k: int, name: str, num_examples: int, progress: Progress) -> dict[str, float]:
    from mcanalysis.studies.signals import get_signal

    bar = progress(total=1, desc=f"signal {name}")
    found = get_signal(name).of(_move(opening.run, k, num_examples))
    bar.update(1)
    bar.close()
    return found
