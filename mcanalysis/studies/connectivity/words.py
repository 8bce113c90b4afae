"""What is said of the paths between minima: barriers, gains, fronts, ensembles, simplexes, seeds."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from mcanalysis.metrics.task_means import MEANS
from mcanalysis.numbers_as_text import cell, with_interval
from mcanalysis.plotting.selection import rows_of_old_and_new, trained_tasks
from mcanalysis.store import base_minimum
from mcanalysis.studies.connectivity.summaries import (
    MEASURES,
    ensemble_summary,
    flip_summary,
    front_summary,
    seeds_summary,
    simplex_summary,
)
from mcanalysis.studies.strategy_words import strategy_words
from mcanalysis.studies.study import Rows, Tables
from mcanalysis.studies.task_scores import score_words


def words(tables: Tables) -> Iterator[str | Rows]:
    """Per transition: barriers of old and new tasks, and what interpolation gains."""
    tests = trained_tasks(tables["barriers"])
    tests = tests[tests["split"] == "test"]
    has_star = False
    for (strategy, learner, seed), group in tests.groupby(["strategy", "learner", "seed"], sort=False):
        rows = [
            ["transition", "path", "chord barrier, loss: old", "new", "chord dip: old", "new", "t*", "gain in S̄ [95 %]"]
        ]
        keys = ["start", "end", "path", "space"]
        for (start, end, path, space), one in group.groupby(keys, sort=False):
            new = _new_task(one)
            loss = one[one.quantity == "loss"].set_index("task")
            score = one[one.quantity == "score"].set_index("task")
            old_or_none = loss.loc["mean_old"] if "mean_old" in loss.index else None
            mean = score.loc["mean"] if "mean" in score.index else None
            rows.append(
                [
                    f"{start} → {end}",
                    f"{path} {space}",
                    "–" if old_or_none is None else cell(old_or_none.chord_barrier),
                    cell(loss.loc[new].chord_barrier),
                    "–" if old_or_none is None else cell(old_or_none.chord_dip),
                    cell(loss.loc[new].chord_dip),
                    "–" if mean is None else cell(mean.t_star),
                    "–" if mean is None else with_interval(mean, "interpolation_gain"),
                ]
            )
        if strategy in ("adapters", "models"):  # trained elsewhere
            yield (
                f"\nTwo {strategy}, on {_examples(tables)}; loss in nats per target token. No t* and no gain: chosen "
                "and"
            )
            seen = " The curve was fitted on these, too." if group.path.str.startswith(FITTED).any() else ""
            yield f"measured on the same examples they would be positive by selection.{seen}"
        else:
            yield f"\n{strategy} / {learner} / seed {seed}, test split; loss in nats per target token;"
            yield "gain = S̄(t*) − max(S̄(0), S̄(1)) with S̄ = ½(old tasks + new task) and t* chosen on the eval split"
        yield rows
        has_star |= any(cells[-1].endswith("*") for cells in rows)
        if (group.start == base_minimum.LABEL).any():
            yield "0-BASE → minimum: rewinding, ΔW scaled by t, one line in every space; old: what was learned before"
    yield from _beyond(tables["profiles"])
    if has_star:
        yield "* under 50 examples, or under five of them make most of the variance: no 95 % is promised"
    yield from _certificates(tests)
    yield from _gauges(tests)
    yield from _gains(_of_transitions(tests))
    yield from _flips(tables)
    for name, of_table in (("front", _front), ("ensemble", _ensembles), ("simplex", _simplexes)):
        if name in tables and len(rows := _of_transitions(tables[name])):
            yield from of_table(rows)
    yield from _nothing_to_keep(tables["profiles"])
    if tests.seed.nunique() > 1:
        yield from _over_seeds(tables["barriers_over_seeds"])
    if "metrics" in tables:
        yield from strategy_words(tables["metrics"])
    if "task_scores" in tables:
        yield from score_words(tables["task_scores"])


def _certificates(tests: pd.DataFrame) -> Iterator[str | Rows]:
    """What searches to a tolerance say of the barriers above, where there were some."""
    if "certificate" not in tests or tests.certificate.isna().all():
        return
    known = tests[tests.certificate.notna()]
    rows = [["transition", "path", "task", "chord barrier at least", "at most", "work (points on all examples)"]]
    for row in known.to_dict("records"):
        numbers = [cell(row[name], 3) for name in ("chord_barrier_at_least", "chord_barrier_at_most")]
        words = "" if row["tolerance_reached"] else " (budget spent)"
        transition, path = f"{row['start']} → {row['end']}", f"{row['path']} {row['space']}"
        rows.append([transition, path, row["task"], *numbers, cell(row["evaluations"], 1) + words])
    yield "\nBarriers of the loss, all test examples, to a tolerance; estimates (95 %): bumps between points go unseen"
    yield rows


FITTED = ("bezier", "polychain", "segmented_bezier")


def _examples(tables: Tables) -> str:
    """How many examples of each task were measured, which may be fewer than its file has."""
    number = tables["profiles"].drop_duplicates("task").set_index("task").num_examples
    number = number[~number.index.isin(MEANS)]
    return "the first " + ", ".join(f"{n} examples of {task}" for task, n in number.items()) + " (--num-examples)"


def _flips(tables: Tables) -> Iterator[str | Rows]:
    """How many answers turn along each kind of path, and what tasks say nothing of it."""
    profiles = tables["profiles"]
    single = profiles[(profiles["split"] == "test") & ~profiles.task.isin(MEANS) & profiles.score.notna()]
    flips = tables.get("flips", pd.DataFrame(columns=["task", "start"]))
    if len(rows := _of_transitions(flips)):
        shown = [["strategy", "learner", "path", "old: lost, t = ½", "lost, t = 1", "new: gained, t = ½", "t = 1"]]
        shown[0] += ["right in the middle alone"]
        names = ("lost_middle", "lost_end", "gained_middle", "gained_end", "middle_alone")
        for _, row in flip_summary(rows).iterrows():
            cells = [f"{cell(row[f'{name}_rate'], 3)} ({cell(row[f'{name}_corrected'], 3)})" for name in names]
            shown.append([row.strategy, row.learner, f"{row.path} {row.space}", *cells])
        yield "\nAnswers that turn against the start, shares of the questions, mean over transitions and tasks; in"
        yield "brackets corrected for guessing; middle alone: right at t = ½, wrong at both ends (kept_questions.csv)"
        yield shown
        if (flip_summary(rows).filter(like="_corrected") < -0.005).any(axis=None):
            yield "below 0 in brackets: near points repeat guesses, and too much is taken away; read what was counted"
    absent = [str(task) for task in dict.fromkeys(single.task) if task not in set(flips.task)]
    if absent:
        yield f"No answers are counted of {', '.join(absent)}: graded scores (not `is_exact`), or not kept per example"


def _gauges(tests: pd.DataFrame) -> Iterator[str | Rows]:
    """The barriers of the loss over random factors of the same adapters, where these were measured."""
    if "chord_barrier_gauge_most" not in tests:
        return
    measured = tests[tests.chord_barrier_gauge_most.notna() & (tests.quantity == "loss")]
    measured = rows_of_old_and_new(measured) if len(measured) else measured
    rows = [["transition", "task", "chord barrier, loss: as stored", "random factors: least", "median", "most"]]
    for row in measured.to_dict("records"):
        numbers = [cell(row[f"chord_barrier{end}"], 3) for end in ("", "_gauge_least", "_gauge_median", "_gauge_most")]
        rows.append([f"{row['start']} → {row['end']}", row["task"], *numbers])
    yield "\nLinear factor path over random (B·R, R⁻¹·A) of its end: the same ends and the same ΔW, so what differs is"
    yield "the parametrisation alone"
    yield rows


def _of_transitions(table: pd.DataFrame) -> pd.DataFrame:
    """Without the rows of paths from the base."""
    return table[table.start != base_minimum.LABEL] if "start" in table else table


def _beyond(profiles: pd.DataFrame) -> Iterator[str]:
    """How far beyond the ends of paths was measured, and where a loss or score there is not finite."""
    beyond = profiles[(profiles.t < 0) | (profiles.t > 1)]
    if beyond.empty:
        return
    yield f"measured from t = {beyond.t.min():g} to {beyond.t.max():g}; barriers, dips, gains and t* are of 0 ≤ t ≤ 1"
    score = beyond.score.where(beyond.role != "general", 0.0)  # text has none
    lost = beyond[~(np.isfinite(beyond.loss) & np.isfinite(score))]
    for (start, end, path, space), of_path in lost.groupby(["start", "end", "path", "space"], sort=False):
        places = ", ".join(f"{t:g}" for t in sorted(set(of_path.t)))
        yield f"not finite beyond the ends of {start} → {end}, {path} {space}: loss or score at t = {places}"


def _front(rows: pd.DataFrame) -> Iterator[str | Rows]:
    """What pairs (stability, plasticity) each kind of path offers."""
    shown = [["strategy", "learner", "path", "transitions", "hypervolume", "more than the ends", "interval above 0"]]
    with_general = "hypervolume_general" in rows
    shown[0] += ["with general ability", "more than the ends", "least kept"] if with_general else []
    for _, row in front_summary(rows).iterrows():
        numbers = [cell(row.hypervolume, 3), cell(row.hypervolume_gain, 3), str(row.above)]
        if with_general:
            numbers += [cell(row[c], 3) for c in ("hypervolume_general", "hypervolume_general_gain", "least_general")]
        shown.append([row.strategy, row.learner, f"{row.path} {row.space}", str(row.transitions), *numbers])
    yield "\nStability–plasticity front: hypervolume above (0, 0), mean over transitions, test split"
    yield "(more points dominate more: what a path has over its ends says little by itself)"
    if with_general:
        yield "General ability: what is left of the base's on tasks that were never trained (retention, 0–1), the third"
        yield "axis of the second volume; least kept: the lowest on any of the paths"
    yield shown


def _nothing_to_keep(profiles: pd.DataFrame) -> Iterator[str]:
    """Which general tasks have no retention."""
    general = profiles[profiles.role == "general"]
    lost = [str(task) for task, rows in general.groupby("task", sort=False) if rows.retention.isna().all()]
    if lost:
        yield f"Left out of general ability, as the base scores 0 there and has nothing to keep: {', '.join(lost)}"


def _ensembles(rows: pd.DataFrame) -> Iterator[str | Rows]:
    """Predictions averaged along each kind of path, against single points."""
    heads = ["loss", "exact answers", "tokens right", "ECE", "Brier", "MI"]
    shown = [["strategy", "learner", "path", "predictor", *heads]]
    for _, row in ensemble_summary(rows).iterrows():
        numbers = [cell(row[name], 3) for name in MEASURES]
        shown.append([row.strategy, row.learner, f"{row.path} {row.space}", row.member, *numbers])
    yield "\nEnsemble: next-token probabilities averaged over points of a path, teacher-forced, ½ (old + new), test"
    yield "MI: mutual information (nats), by which the points' predictions differ"
    yield shown


def _simplexes(rows: pd.DataFrame) -> Iterator[str | Rows]:
    """Where between several minima the mean score is highest."""
    for _, row in simplex_summary(rows).iterrows():
        place = ", ".join(f"{row[c]:.2f}" for c in rows.columns if c.startswith("w") and c[1:].isdigit())
        yield f"\nSimplex of {row.minima.replace(' ', ', ')}, {row.space} space ({row.strategy}, seed {row.seed}):"
        best = f"best point on eval at ({place}); on test its mean score over the tasks is {row.mean_score:.3f}, "
        worst = f"worst there: {row.worst_task}, {row.worst_score:.3f}"
        yield f"{best}that of the best minimum {row.best_corner:.3f}; {worst}"


def _over_seeds(rows: pd.DataFrame) -> Iterator[str | Rows]:
    """Barriers and gains, averaged over transitions, with intervals over seeds."""
    shown = [["strategy", "learner", "path", "seeds", "mean over transitions of", "mean [95 %]"]]
    for _, row in seeds_summary(rows).iterrows():
        interval_ = f"{row['mean']:+.3f}" + ("" if pd.isna(row.low) else f" [{row.low:+.3f}, {row.high:+.3f}]")
        shown.append([row.strategy, row.learner, f"{row.path} {row.space}", str(row.seeds), row.value, interval_])
    yield "\nOver seeds (Student's t):"
    yield shown


def _gains(tests: pd.DataFrame) -> Iterator[str | Rows]:
    """For how many transitions the interval of the interpolation gain excludes 0."""
    rows: list[list[str]] = [["strategy", "learner", "path", "transitions", "gain > 0", "gain < 0", "mean gain"]]
    chosen = tests[(tests.task == "mean") & (tests.quantity == "score")].dropna(subset=["interpolation_gain"])
    for keys, one in chosen.groupby(["strategy", "learner", "path", "space"], sort=False):
        strategy, learner, path, space = keys
        up, down = (one.interpolation_gain_low > 0).sum(), (one.interpolation_gain_high < 0).sum()
        mean = f"{one.interpolation_gain.mean():+.3f}"
        rows.append([str(strategy), str(learner), f"{path} {space}", str(len(one)), str(up), str(down), mean])
    if len(rows) > 1:
        yield "\nInterpolation gain: transitions whose 95 % interval lies above or below 0"
        yield rows


def _new_task(rows: pd.DataFrame) -> str:
    """The new task is the last one named before the means."""
    names = [name for name in dict.fromkeys(rows.task) if name not in ("mean_old", "mean")]
    return names[-1]
