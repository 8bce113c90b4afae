"""How the scripts print results: tables that a person can read."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from arguments import table

from mcanalysis.experiments.connectivity import ConnectivityResult
from mcanalysis.experiments.strategies import METRICS, comparison_notes, difference, summary_cells, summary_table
from mcanalysis.run import Run
from mcanalysis.strategies import get_strategy
from mcanalysis.training.dry_run import DryRun

STARTED = time.monotonic()


def number(value: Any, digits: int = 2) -> str:
    """A number, or a dash where it is undefined."""
    return "–" if pd.isna(value) else f"{value:.{digits}f}"


def interval(row: Any, name: str) -> str:
    """`value [low, high]`."""
    if pd.isna(row[name]):
        return "–"
    return f"{row[name]:+.2f} [{row[f'{name}_low']:+.2f}, {row[f'{name}_high']:+.2f}]"


def figure(file: Path) -> None:
    """Say that a figure is there, and how long it took since the start."""
    minutes, seconds = divmod(round(time.monotonic() - STARTED), 60)
    print(f"\nfigure after {minutes} min {seconds:02d} s: {file}", flush=True)


def strategies(metrics: pd.DataFrame) -> None:
    """Mean over seeds per strategy and learner, and I-LoRA against replay and sequential."""
    print("\n" + table(summary_cells(summary_table(metrics))))
    present = set(zip(metrics.strategy, metrics.learner, strict=True))
    contrasts = [(("er", "fast"), ("sequential", "fast")), (("ilora", "slow"), ("sequential", "fast"))]
    contrasts += [(("ilora", learner), ("er", "fast")) for learner in ("slow", "fast")]
    for first, second in contrasts:
        if first in present and second in present:
            mean, low, high = difference(metrics, first, second)
            ends = "" if np.isnan(low) else f" [{low:+.3f}, {high:+.3f}] (95 %, Student's t over seeds)"
            print(f"average accuracy, {' '.join(first)} minus {' '.join(second)}: {mean:+.3f}{ends}")


def comparison(runs: Sequence[Run], metrics: pd.DataFrame, output_dir: str) -> None:
    """The table of all strategies, and where it lies."""
    strategies(metrics)
    print(comparison_notes(runs, metrics))
    print(f"tables: {Path(output_dir, 'comparison')}/strategies.csv, summary.csv, summary.md")


def dry_run(plan: DryRun) -> None:
    """What a run would do and need."""
    stages = plan.stages
    if len(stages):
        rows = [
            ["task", "train", "cut", "answer tokens", "longest", "steps", "epochs", "tokens", "per step", "padding"]
        ]
        rows[0] += ["ungrouped", "to max length"]
        for _, s in stages.iterrows():
            padding = (f"{1 - s.tokens / size:.0%}" for size in (s.padded, s.padded_ungrouped, s.padded_to_max))
            rows.append(
                [
                    str(s.task), str(s.examples), str(s.cut), f"{s.answer_tokens:.1f}", str(s.longest_answer),
                    str(s.steps), f"{s.epochs:.1f}", f"{s.tokens:,}", f"{s.tokens / s.steps:,.0f}", *padding,
                ]
            )  # fmt: skip
        print(f"\n{plan.strategy} on {plan.model}; nothing is written, no weights are read")
        print(table(rows))
        tokens, padded, to_max = (int(stages[name].sum()) for name in ("tokens", "padded", "padded_to_max"))
        print(
            f"tokens: {tokens:,}, with padding {padded:,}, if every row were padded to the maximum {to_max:,} "
            f"({to_max / padded:.1f} × as many)"
        )
        if stages.replayed.any():
            print(f"of all examples {int(stages.replayed.sum()):,} are replayed ones, whose lengths are an estimate")
    cut = f", {plan.cut_tests} of them to cut prompts" if plan.cut_tests else ""
    print(f"generations: {plan.generations:,} answers to score{cut}")
    print(f"parameters: {plan.num_parameters:,} in the base, {plan.num_trained:,} trained")
    if plan.num_trained:
        parts = {f.name: getattr(plan.memory, f.name) for f in fields(plan.memory)}
        shown = ", ".join(f"{name} {size(value)}" for name, value in parts.items() if value)
        print(f"memory of a training step, an estimate: {size(plan.memory.total)} ({shown}) and the libraries' own")


def size(number: float) -> str:
    """Bytes for people."""
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{number / 1e6:.1f} MB"


def connectivity(result: ConnectivityResult) -> None:
    """Per transition: barriers of old and new tasks, and what interpolation gains."""
    tests = result.barriers[result.barriers.split == "test"]
    for (strategy, learner, seed), group in tests.groupby(["strategy", "learner", "seed"], sort=False):
        rows = [
            [
                "transition",
                "path",
                "chord barrier, loss: old",
                "new",
                "chord dip: old",
                "new",
                "t*",
                "gain in S̄ [95 %]",
            ]
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
        print(f"\n{strategy} / {learner} / seed {seed}, test split; loss in nats per target token;")
        print("gain = S̄(t*) − max(S̄(0), S̄(1)) with S̄ = ½(old tasks + new task) and t* chosen on the eval split")
        print(table(rows))
    gains(tests)
    if len(result.metrics):
        strategies(result.metrics)


def gains(tests: pd.DataFrame) -> None:
    """For how many transitions the interval of the interpolation gain excludes 0."""
    rows = [["strategy", "learner", "path", "transitions", "gain > 0", "gain < 0", "mean gain"]]
    chosen = tests[(tests.task == "mean") & (tests.quantity == "score")].dropna(subset=["interpolation_gain"])
    for keys, one in chosen.groupby(["strategy", "learner", "path", "space"], sort=False):
        strategy, learner, path, space = keys
        up, down = (one.interpolation_gain_low > 0).sum(), (one.interpolation_gain_high < 0).sum()
        mean = f"{one.interpolation_gain.mean():+.3f}"
        rows.append([str(strategy), str(learner), f"{path} {space}", str(len(one)), str(up), str(down), mean])
    if len(rows) > 1:
        print("\nInterpolation gain: transitions whose 95 % interval lies above or below 0")
        print(table(rows))


def run(finished: Run) -> None:
    """The accuracy matrix and the metrics of one run."""
    matrix = finished.accuracy_matrix
    rows = [["after", *matrix.columns[1:]]]
    names = ["base", *(f"{k} {name}" for k, name in enumerate(finished.task_names, start=1))]
    if get_strategy(finished.strategy).schedule == "joint":  # nothing between the base and the end
        names[-1] = "all tasks"
    rows += [[names[int(values[0])], *map(number, values[1:])] for values in matrix.to_numpy()]
    print(f"\n{finished.strategy} / {finished.answering_learner}: score per task (columns) after each task (rows)")
    print(table(rows))
    for learner, metrics in finished.metrics["learners"].items():
        shown = ", ".join(
            f"{m.replace('_', ' ')} {number(np.nan if metrics[m] is None else metrics[m])}" for m in METRICS
        )
        print(f"{learner}: {shown}")
    print(f"run directory: {finished.directory}")


def _new_task(rows: pd.DataFrame) -> str:
    """The new task is the last one named before the means."""
    names = [name for name in dict.fromkeys(rows.task) if name not in ("mean_old", "mean")]
    return names[-1]
