"""How often the intervals of the package hold the truth, by simulation: the table, and what it must show."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from zlib import crc32

import numpy as np
import pandas as pd

from mcanalysis.coverage.populations import OTHERS
from mcanalysis.coverage.trials import Outcome, Trial, cases
from mcanalysis.numbers_as_text import fixed
from mcanalysis.progress import Progress, silent

SIZES = (20, 50, 100, 500)
NUM_TRIALS = 200
LEAST = 0.93  # of 0.95, from `FROM` examples on, where five events are expected
FROM = 50
WIDEST = 2.0  # times the percentile interval
POWER = 0.7  # of a barrier of three standard errors to be told from none
_EXEMPT = {"rare": 0.02}  # share of examples that are events
_FEWEST = 5
_TOLERANCE = 1e-9  # of rounding


def coverage_table(
    num_trials: int = NUM_TRIALS,
    sizes: Sequence[int] = SIZES,
    intervals: Sequence[str] | None = None,
    kinds: Sequence[str] | None = None,
    *,
    progress: Progress = silent,
) -> pd.DataFrame:
    """Return a row per interval, kind of population, true value and number of examples.

    `coverage` in `trials` samples, `missed_above` (the truth lies above), `few_events` (share of samples that the
    interval flags), `positive` (share whose low end is above 0), `width`, `percentile_coverage` and `width_ratio` (mean
    width over that of the percentile bootstrap; NaN where that has none in half of the samples), `exempt` (fewer than
    five events expected, or a sample of three or five seeds). Random seeds are fixed. `intervals` and `kinds` choose
    among all, by their names in the table.
    """
    chosen = [(kind, value, trial) for kind, value, trial in cases() if kinds is None or kind in kinds]
    bar = progress(total=len(chosen) * len(sizes), desc="coverage")
    rows = []
    try:
        for place, (kind, value, trial) in enumerate(chosen):
            for n in sizes:
                outcomes = _outcomes(trial, n, num_trials, crc32(f"{kind} {value} {place} {n}".encode()))
                for interval, of_interval in outcomes.items():
                    if intervals is None or interval in intervals:
                        labels = {"interval": interval, "kind": kind, "truth": value, "n": n}
                        few = n * _EXEMPT.get(kind, 1.0) < _FEWEST or interval.endswith(" seeds")
                        rows.append(labels | _row(of_interval) | {"exempt": few})
                bar.update(1)
    finally:
        bar.close()
    return pd.DataFrame(rows)


def missed_bars(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows that miss a bar by more than two standard errors of the simulation, with `bar`, which one."""
    counted = table[(table.n >= FROM) & ~table.exempt]
    slack = 2 * np.sqrt(LEAST * (1 - LEAST) / counted.trials)
    barrier_rows = counted[counted.interval.str.startswith("chord_barrier") & (counted.truth == "3 s.e.")]
    power = 2 * np.sqrt(POWER * (1 - POWER) / barrier_rows.trials)
    found = {
        f"coverage at least {LEAST}": counted[counted.coverage < LEAST - slack],
        f"width at most {WIDEST:g} times": counted[counted.width_ratio > WIDEST],
        f"low > 0 in at least {POWER:.0%}": barrier_rows[barrier_rows.positive < POWER - power],
    }
    return pd.concat([rows.assign(bar=name) for name, rows in found.items()], ignore_index=True)


def summary_cells(table: pd.DataFrame) -> list[list[str]]:
    """Return the table as text: per interval and kind the lowest coverage over the true values, at each n.

    Then that of the percentile bootstrap from 50 examples on, the largest ratio of widths there, and the share of
    samples that tell a barrier of three standard errors from none. Of the populations the intervals were made with.
    """
    table = table[~table.kind.isin(OTHERS)]
    sizes = sorted(set(table.n))
    head = ["interval", "kind", *(f"n = {n}" for n in sizes), "percentile", "width", "3 s.e. seen"]
    rows = [head]
    for (interval, kind), own in table.groupby(["interval", "kind"], sort=False):
        cells = []
        for n in sizes:
            at = own[own.n == n]
            note = " (few)" if at.exempt.any() else ""
            cells.append(f"{at.coverage.min():.2f}{note}" if len(at) else "–")
        counted = own[(own.n >= FROM) & ~own.exempt]
        seen = (
            counted[counted.truth == "3 s.e."].positive if str(interval).startswith("chord_barrier") else counted.n[:0]
        )
        lasts = (counted.percentile_coverage.min(), counted.width_ratio.max(), seen.min())
        rows.append([str(interval), str(kind), *cells, *map(fixed, lasts)])
    return rows


def cells_of_others(table: pd.DataFrame) -> list[list[str]]:
    """Return the same of the populations that the intervals were not made with, a row each, from 50 examples on.

    The lowest coverage of each interval, one number per n, the largest ratio of widths, and how often a `chord_barrier`
    of three standard errors is seen. Only a header where the table holds none.
    """
    table = table[table.kind.isin(OTHERS) & (table.n >= FROM)]
    names = {name: str(name).removesuffix(", loss") for name in table.interval.unique()}
    rows = [["kind", *names.values(), "width", "3 s.e. seen"]]
    for kind, own in table.groupby("kind", sort=False):
        lowest = own.groupby(["interval", "n"]).coverage.min()
        cells = [" ".join(f"{v:.2f}" for v in lowest[name].sort_index()) for name in names]
        barrier_rows = own[(own.interval == "chord_barrier, loss") & (own.truth == "3 s.e.")]
        lasts = (own.width_ratio.max(), barrier_rows.positive.min())
        rows.append([str(kind), *cells, *map(fixed, lasts)])
    return rows


def summary_markdown(table: pd.DataFrame) -> str:
    """The texts of `summary_cells` and `cells_of_others` as Markdown tables, and what misses a bar below them."""
    lines: list[str] = []
    for head, *rows in (summary_cells(table), cells_of_others(table)):
        if rows:
            lines += ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows)] + [""]
    missed = missed_bars(table)
    lines += [f"{int(table.trials.max())} samples each. Cells that miss a bar: {len(missed) or 'none'}.", ""]
    lines += [f"- {words}" for words in map(missed_words, missed.to_dict("records"))]
    return "\n".join(lines).rstrip() + "\n"


def missed_words(row: dict) -> str:
    """One missed cell in words."""
    numbers = f"coverage {row['coverage']:.2f}, width {row['width_ratio']:.2f} times, low > 0 in {row['positive']:.0%}"
    return (
        f"{row['interval']}, {row['kind']}, true value {row['truth'] or '–'}, n = {row['n']}: {numbers} ({row['bar']})"
    )


def _outcomes(trial: Trial, n: int, num_trials: int, seed: int) -> dict[str, list[Outcome]]:
    rng = np.random.default_rng(seed)
    found: dict[str, list[Outcome]] = defaultdict(list)
    for _ in range(num_trials):
        for outcome in trial(n, rng):
            found[outcome.interval].append(outcome)
    return found


def _row(outcomes: Sequence[Outcome]) -> dict[str, float]:
    truth, low, high, old_low, old_high = (
        np.array([getattr(o, name) for o in outcomes]) for name in ("truth", "low", "high", "old_low", "old_high")
    )
    old_width = old_high - old_low
    has_width = np.median(old_width) > _TOLERANCE  # NaN without a percentile interval
    return {
        "trials": len(outcomes),
        "coverage": float(((low <= truth + _TOLERANCE) & (truth <= high + _TOLERANCE)).mean()),
        "missed_above": float((truth > high + _TOLERANCE).mean()),
        "few_events": float(np.mean([o.few_events for o in outcomes])),
        "positive": float((low > _TOLERANCE).mean()),
        "width": float(np.mean(high - low)),
        "percentile_coverage": math.nan
        if np.isnan(old_width).all()
        else float(((old_low <= truth + _TOLERANCE) & (truth <= old_high + _TOLERANCE)).mean()),
        "width_ratio": float(np.mean(high - low) / np.mean(old_width)) if has_width else math.nan,
    }
