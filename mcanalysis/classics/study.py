"""Reproduce classic results: measure each over seeds, judge its claims, write the tables and a figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from mcanalysis.classics.ainsworth import AINSWORTH
from mcanalysis.classics.classic import judge, with_means
from mcanalysis.classics.digits import load_digits
from mcanalysis.classics.frankle import FRANKLE
from mcanalysis.classics.garipov import GARIPOV
from mcanalysis.classics.jordan import JORDAN
from mcanalysis.classics.mirzadeh import MIRZADEH
from mcanalysis.errors import UnknownNameError, UserError
from mcanalysis.plotting.classics import plot_classic
from mcanalysis.plotting.style import save_figure
from mcanalysis.progress import Progress, silent
from mcanalysis.store.atomic import write_text_atomic
from mcanalysis.store.small_files import table_text

CLASSICS = {classic.name: classic for classic in (GARIPOV, FRANKLE, MIRZADEH, AINSWORTH, JORDAN)}


@dataclass(frozen=True, eq=False)
class ClassicsResult:
    """`claims`: a row per claim with mean, interval and verdict; `values`: every measure per seed; `figures`: files."""

    claims: pd.DataFrame
    values: pd.DataFrame
    figures: list[Path]


def classic_names() -> list[str]:
    """Return the names of the results that can be reproduced.

    >>> classic_names()
    ['garipov', 'frankle', 'mirzadeh', 'ainsworth', 'jordan']
    """
    return list(CLASSICS)


def reproduce_classics(
    result: str, seeds: Sequence[int], output_dir: str | Path, progress: Progress = silent
) -> ClassicsResult:
    """Measure one result, or `all`, over the seeds and write `classics.csv`, `classics.md` and `<name>.pdf|png`.

    `classics.csv` holds result, measure, seed and value, `classics.md` the table of claims with the mean over seeds,
    its 95 % interval (Student's t) and whether the claim is seen by its stated rule. Nothing is written before all
    are measured.

    Raises `UnknownNameError` for an unknown name; `UserError` for no or repeated seeds, or without scikit-learn.
    """
    if result != "all" and result not in CLASSICS:
        raise UnknownNameError("classic result", result, ["all", *CLASSICS])
    chosen = list(CLASSICS.values()) if result == "all" else [CLASSICS[result]]
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise UserError(f"Expected one or more different seeds from 0 on, got {list(seeds)}; use --seeds 5 for five.")
    load_digits()
    bar = progress(total=len(chosen), desc="classic results")
    claims, values, drawings = [], [], []
    try:
        for classic in chosen:
            measured = classic.measure(seeds)
            values.append(measured.values.assign(result=classic.name)[["result", "measure", "seed", "value"]])
            claims.append(judge(classic, measured.values))
            drawings.append((classic, plot_classic(with_means(measured.curves), classic.panels)))
            bar.update(1)
    finally:
        bar.close()
    table = pd.concat(claims, ignore_index=True)
    every = pd.concat(values, ignore_index=True)
    folder = Path(output_dir)
    figures = [file for classic, figure in drawings for file in save_figure(figure, folder / classic.name)]
    write_text_atomic(folder / "classics.csv", table_text(every))
    write_text_atomic(folder / "classics.md", claims_markdown(table))
    return ClassicsResult(table, every, figures)


def claims_cells(claims: pd.DataFrame) -> list[list[str]]:
    """The table of claims as text, the first row its header."""
    cells = [["result", "published claim, in our words", "measured here", "mean [95 %]", "seen if", "verdict"]]
    for _, row in claims.iterrows():
        numbers = f"{row['mean']:.3g} [{row.low:.3g}, {row.high:.3g}] {row.unit}".strip()
        shown = numbers.replace("nan", "–")
        cells.append([row.result, row.published, row.measure, shown, row.rule, row.verdict])
    return cells


def claims_markdown(claims: pd.DataFrame) -> str:
    """The table of claims as Markdown, with the number of seeds and the sources below it."""
    head, *rows = claims_cells(claims)
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows)]
    seeds = ", ".join(map(str, sorted(set(claims.num_seeds))))
    lines += ["", f"Means over {seeds} seeds with 95 % intervals of Student's t. Sources:", ""]
    lines += [
        f"- {result}: {source}" for result, source in dict(zip(claims.result, claims.source, strict=True)).items()
    ]
    return "\n".join(lines) + "\n"
