"""How studies are told: tables that a person can read, and the same unrounded for `--json`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from mcanalysis.cli.console import answer, say, table
from mcanalysis.cli.run_reporting import number
from mcanalysis.store.atomic import write_text_atomic
from mcanalysis.studies.early import EarlyResult, EarlySettings
from mcanalysis.studies.landscape.study import LandscapeResult


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
