"""How studies are told: tables that a person can read, and the same unrounded for `--json`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from mcanalysis.cli.console import answer, say, table
from mcanalysis.cli.run_reporting import interval, number, strategies
from mcanalysis.store.atomic import write_text_atomic
from mcanalysis.studies.connectivity.study import ConnectivityResult
from mcanalysis.studies.connectivity.summaries import (
    cut_prompts,
    ensemble_summary,
    front_summary,
    seeds_summary,
    simplex_summary,
)
from mcanalysis.studies.early import EarlyResult, EarlySettings
from mcanalysis.studies.landscape.study import LandscapeResult


def connectivity(result: ConnectivityResult) -> None:
    """Per transition: barriers of old and new tasks, and what interpolation gains."""
    tests = result.barriers[result.barriers.split == "test"]
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
                    "–" if old_or_none is None else number(old_or_none.chord_barrier),
                    number(loss.loc[new].chord_barrier),
                    "–" if old_or_none is None else number(old_or_none.chord_dip),
                    number(loss.loc[new].chord_dip),
                    "–" if mean is None else number(mean.t_star),
                    "–" if mean is None else interval(mean, "interpolation_gain"),
                ]
            )
        if strategy == "adapters":
            say("\nTwo adapters, on the examples given; loss in nats per target token. No t* and no gain: chosen and")
            seen = "" if set(group.path) <= {"linear"} else " The curve was fitted on these, too."
            say(f"measured on the same examples they would be positive by selection.{seen}")
        else:
            say(f"\n{strategy} / {learner} / seed {seed}, test split; loss in nats per target token;")
            say("gain = S̄(t*) − max(S̄(0), S̄(1)) with S̄ = ½(old tasks + new task) and t* chosen on the eval split")
        table(rows)
    if tests.get("few_events", pd.Series(dtype=bool)).any():
        say("* under 50 examples, or under five of them make most of the variance: no 95 % is promised")
    gains(tests)
    if "front" in result.tables:
        front(result.tables["front"])
    if "ensemble" in result.tables:
        ensembles(result.tables["ensemble"])
    if "simplex" in result.tables:
        simplexes(result.tables["simplex"])
    if tests.seed.nunique() > 1:
        over_seeds(result.tables["barriers_over_seeds"])
    if len(result.metrics):
        strategies(result.metrics)
    tables = {"barriers": result.barriers, "metrics": result.metrics, **result.tables}
    answer(tables, cut_prompts=cut_prompts(result.profiles))


def front(rows: pd.DataFrame) -> None:
    """What pairs (stability, plasticity) each kind of path offers."""
    shown = [["strategy", "learner", "path", "transitions", "hypervolume", "more than the ends", "interval above 0"]]
    for _, row in front_summary(rows).iterrows():
        numbers = [number(row.hypervolume, 3), number(row.hypervolume_gain, 3), str(row.above)]
        shown.append([row.strategy, row.learner, f"{row.path} {row.space}", str(row.transitions), *numbers])
    say("\nStability–plasticity front: hypervolume above (0, 0), mean over transitions, test split")
    say("(more points dominate more: what a path has over its ends says little by itself)")
    table(shown)


def ensembles(rows: pd.DataFrame) -> None:
    """Predictions averaged along each kind of path, against single points."""
    shown = [["strategy", "learner", "path", "predictor", "loss", "exact answers", "tokens right", "ECE", "Brier"]]
    for _, row in ensemble_summary(rows).iterrows():
        numbers = [number(row[name], 3) for name in ("loss", "accuracy", "target_accuracy", "ece", "brier")]
        shown.append([row.strategy, row.learner, f"{row.path} {row.space}", row.member, *numbers])
    say(
        "\nEnsemble: next-token probabilities averaged over points of a path, teacher-forced, ½ (old + new), test split"
    )
    table(shown)


def simplexes(rows: pd.DataFrame) -> None:
    """Where between several minima the mean score is highest."""
    for _, row in simplex_summary(rows).iterrows():
        place = ", ".join(f"{row[c]:.2f}" for c in rows.columns if c.startswith("w") and c[1:].isdigit())
        say(f"\nSimplex of {row.minima.replace(' ', ', ')}, {row.space} space ({row.strategy}, seed {row.seed}):")
        say(f"best point on eval at ({place}); on test its mean score over the tasks is {row.mean_score:.3f}, ", end="")
        say(f"that of the best minimum {row.best_corner:.3f}; worst there: {row.worst_task}, {row.worst_score:.3f}")


def over_seeds(rows: pd.DataFrame) -> None:
    """Barriers and gains, averaged over transitions, with intervals over seeds."""
    shown = [["strategy", "learner", "path", "seeds", "mean over transitions of", "mean [95 %]"]]
    for _, row in seeds_summary(rows).iterrows():
        interval_ = f"{row['mean']:+.3f}" + ("" if pd.isna(row.low) else f" [{row.low:+.3f}, {row.high:+.3f}]")
        shown.append([row.strategy, row.learner, f"{row.path} {row.space}", str(row.seeds), row.value, interval_])
    say("\nOver seeds (Student's t):")
    table(shown)


def gains(tests: pd.DataFrame) -> None:
    """For how many transitions the interval of the interpolation gain excludes 0."""
    rows: list[list[str]] = [["strategy", "learner", "path", "transitions", "gain > 0", "gain < 0", "mean gain"]]
    chosen = tests[(tests.task == "mean") & (tests.quantity == "score")].dropna(subset=["interpolation_gain"])
    for keys, one in chosen.groupby(["strategy", "learner", "path", "space"], sort=False):
        strategy, learner, path, space = keys
        up, down = (one.interpolation_gain_low > 0).sum(), (one.interpolation_gain_high < 0).sum()
        mean = f"{one.interpolation_gain.mean():+.3f}"
        rows.append([str(strategy), str(learner), f"{path} {space}", str(len(one)), str(up), str(down), mean])
    if len(rows) > 1:
        say("\nInterpolation gain: transitions whose 95 % interval lies above or below 0")
        table(rows)


def early(results: Sequence[EarlyResult], settings: EarlySettings) -> None:
    """Per run and task, how many examples a first look took and what it saw."""
    for result in results:
        first = result.tasks.iloc[0]
        rows = [["task", "loss at the start", "at the end", "chord barrier", "losses ±", "examples", "saved"]]
        for row in result.tasks.to_dict("records"):
            numbers = [number(row[name], 3) for name in ("start_loss", "end_loss", "chord_barrier", "half_width")]
            name = f"{row['task']} (new)" if row["is_new"] else row["task"]
            rows.append([name, *numbers, f"{row['examples']} of {row['of']}", f"{row['saving']:.0%}"])
        whose = f"{first.strategy} / {first.learner} / seed {first.seed}, {first.space} space"
        say(f"\n{whose}, {first.start} → {first.end}, {first.split} split; loss in nats per target token")
        table(rows)
        if (result.tasks.saving > 0).any():
            say(
                f"An estimate at {settings.confidence:.0%} confidence: no loss of these tasks along the path differs "
                "by more than ± from that on all"
            )
            say(
                "examples, and no barrier by more than twice that, if the others are like those measured; a share of "
                f"up to {result.tasks.unseen.max():.2g} may not be."
            )
        else:
            say("All examples were measured: this tolerance needs them, and nothing is estimated.")
        if result.tasks.half_width.isna().any():
            say("Where ± is a dash, a loss on the path is not a finite number.")
    say("\ntables: <run directory>/tables/early.csv")
    joined = {name: pd.concat([getattr(r, name) for r in results]) for name in ("tasks", "losses")}
    answer({"tasks": joined["tasks"], "early": joined["losses"]})


def closed_forms(found: pd.DataFrame) -> None:
    """Each identity with the error reached and the largest that is allowed."""
    rows = [["§", "identity", "error", "bound", ""]]
    for row in found.itertuples():
        verdict = "" if row.holds else "MISSED"
        rows.append([str(row.section), str(row.identity), f"{row.error:.1e}", f"{row.bound:.0e}", verdict])
    table(rows)
    say(f"{int(found.holds.sum())} of {len(found)} hold; errors are the largest over the seeds, § of geometry.md")
    answer({"closed_forms": found})


def coverage(found: pd.DataFrame, output_dir: str) -> pd.DataFrame:
    """Per interval and kind of population how often it holds the truth; writes tables, returns what misses a bar."""
    from mcanalysis.coverage import cells_of_others, missed_bars, summary_cells, summary_markdown
    from mcanalysis.coverage.study import FROM, missed_words

    say("\nLowest coverage of 95 % intervals over the true values, at each number of examples; then of the percentile")
    say("bootstrap from 50 on, the largest ratio of widths, and how often a barrier of three standard errors is seen")
    table(summary_cells(found))
    sizes = ", ".join(str(n) for n in sorted(set(found.n)) if n >= FROM)
    say(f"\nThe same of losses of populations that the intervals were not made with, at n = {sizes}")
    table(cells_of_others(found))
    missed = missed_bars(found)
    for row in missed.to_dict("records"):
        say(f"missed: {missed_words(row)}")
    folder = Path(output_dir)
    write_text_atomic(folder / "coverage.csv", found.to_csv(index=False))
    write_text_atomic(folder / "coverage.md", summary_markdown(found))
    say(f"\ntables: {folder}/coverage.csv, coverage.md")
    answer({"coverage": found, "missed": missed})
    return missed


def landscape(result: LandscapeResult) -> None:
    """Per run the minima that span its plane, the lowest nodes of the grid, and how sharp the minima are."""
    planes = result.landscape[(result.landscape.kind == "plane") & result.landscape.measured]
    for (strategy, seed, space), of_run in planes.groupby(["strategy", "seed", "space"], sort=False):
        losses = of_run.pivot_table(index=["anchor", "x", "y"], columns="task", values="loss", dropna=False)
        losses = losses.dropna(subset=["mean"])
        is_node = losses.index.get_level_values("anchor") == ""
        shown: list[tuple[str, Any]] = [(str(anchor), (anchor, x, y)) for anchor, x, y in losses.index[~is_node]]
        if is_node.any():
            nodes = losses[is_node]
            shown.append(("lowest node, old tasks", nodes.mean_old.idxmin()))
            shown.append(("lowest node, ½ (old + new)", nodes["mean"].idxmin()))
        new = _new_task(of_run)
        rows = [["", "x", "y", "loss: old", f"{new} (new)", "½ (old + new)"]]
        for name, place in shown:
            values = [*place[1:], *losses.loc[place, ["mean_old", new, "mean"]]]  # the new task may be called "x"
            rows.append([name, *map(number, values)])
        say(f"\n{strategy} / seed {seed}, {space} space, test split; loss in nats per target token")
        table(rows)
    if len(result.sharpness):
        rows = [["strategy", "learner", "seed", "minimum", "task", "mean rise ± standard error", "ε-sharpness, %"]]
        keys = ["strategy", "learner", "seed", "minimum", "task"]
        for names, of_minimum in result.sharpness.groupby(keys, sort=False):
            by_measure = of_minimum.set_index("measure")
            mean = by_measure.loc["expected"]
            rise = f"{number(mean.value, 3)} ± {number(mean.standard_error, 3)}"
            rows.append([*map(str, names), rise, number(by_measure.loc["epsilon"].value, 2)])
        size = result.sharpness[result.sharpness.measure == "expected"]["size"].iloc[0]
        say(f"\nSharpness: mean rise of the loss (nats/token) at {size:g} of each filter's length; ε-sharpness in")
        say("percent of 1 + loss, of balanced factors")
        table(rows)
    say("\ntables: <run>/tables/landscape.csv, trajectory.csv, sharpness.csv")
    answer({"landscape": result.landscape, "trajectory": result.trajectory, "sharpness": result.sharpness})


def _new_task(rows: pd.DataFrame) -> str:
    """The new task is the last one named before the means."""
    names = [name for name in dict.fromkeys(rows.task) if name not in ("mean_old", "mean")]
    return names[-1]
