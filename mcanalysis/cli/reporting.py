"""How studies are told: tables that a person can read, and the same unrounded for `--json`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from mcanalysis.cli.console import answer, next_step, say, table
from mcanalysis.store.atomic import write_text_atomic
from mcanalysis.store.small_files import table_text

if TYPE_CHECKING:
    from mcanalysis.runs.verify import Checked


def closed_forms(found: pd.DataFrame) -> None:
    """Each identity with the error reached and the largest that is allowed."""
    rows = [["§", "identity", "error", "bound", ""]]
    for row in found.itertuples():
        verdict = "" if row.holds else "MISSED"
        rows.append([str(row.section), str(row.identity), f"{row.error:.1e}", f"{row.bound:.0e}", verdict])
    table(rows)
    say(f"{int(found.holds.sum())} of {len(found)} hold; errors are the largest over the seeds, § of geometry.md")
    answer({"closed_forms": found})
    next_step("connectivity")


def check_merge(found: pd.DataFrame) -> None:
    """Each way to combine adapters with what holds (·), what is off by how much, and what does not run."""
    known = found[found.identity != ""]
    identities = list(dict.fromkeys(known.identity))
    rows = [["whose", "mode", *map(str, range(1, len(identities) + 1))]]
    for (source, mode), way in known.groupby(["source", "mode"], sort=False):
        cells = {r["identity"]: _cell(r) for r in way.to_dict("records")}
        rows.append([str(source), str(mode), *(cells[identity] for identity in identities)])
    table(rows)
    for number, identity in enumerate(identities, start=1):
        say(f"{number:>2}  {identity}")
    say("·: holds to 1e-6; a number: ‖ΔW − expected‖ / ‖expected‖; refused: an error in words; crashed: another error;")
    say("blank: the method does not claim it. Sparse methods keep every entry (density 1) and are asked for the rest.")
    for row in found[found.result == "not installed"].itertuples():
        say(str(row.words))
    answer({"check_merge": found})
    next_step("connectivity", "--paths", "task_arithmetic-delta,ties-delta")


def _cell(row: Mapping[Hashable, Any]) -> str:
    if not row["claimed"]:
        return ""
    result = str(row["result"])
    return {"holds": "·", "violated": f"{row['error']:.2g}"}.get(result, result)


def verified(by_run: Mapping[str, Sequence[Checked]]) -> bool:
    """Each file with what became of it, and what can be done; returns whether nothing is damaged or missing."""
    from mcanalysis.runs.verify import is_well

    for run, found in by_run.items():
        for c in found:
            more = f" ({c.what})" if c.what else ""
            say(f"{c.status:<16}  {run}/{c.name}{more}{f'; {c.repair}' if c.repair else ''}")
        number = Counter(c.status for c in found)
        say(f"{run}: {', '.join(f'{number[s]} {s}' for s in ('ok', 'damaged', 'missing', 'no recorded hash'))}")
    all_well = all(map(is_well, by_run.values()))
    next_step("report", *by_run) if all_well else next_step("repair what is named above, as it says")
    answer(runs={run: [c._asdict() for c in found] for run, found in by_run.items()})
    return all_well


def certificates(found: pd.DataFrame, output_dir: str) -> None:
    """Per family of profiles how often certificates hold; writes the table."""
    from mcanalysis.coverage.certificates import TOLERANCE, cells, markdown

    say(
        f"\nCertificates of chord barriers to ± {TOLERANCE / 2:g} nats of random profiles; evaluations in points on all"
    )
    say("of which a grid takes 21. bound: a bound is stated; sampled: none, and points are measured on samples")
    table(cells(found))
    file = Path(output_dir) / "certificates.md"
    write_text_atomic(file, markdown(found))
    say(f"\ntable: {file}")
    answer({"certificates": found})
    next_step("connectivity", "--tolerance", "0.02")


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
    write_text_atomic(folder / "coverage.csv", table_text(found))
    write_text_atomic(folder / "coverage.md", summary_markdown(found))
    say(f"\ntables: {folder}/coverage.csv, coverage.md")
    answer({"coverage": found, "missed": missed})
    next_step("closed_forms")
    return missed
