"""What a comparison of strategies says: the rows of its table, a line on what differs, and the files it leaves."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

from mcanalysis.runs.finished import FinishedRun
from mcanalysis.store.atomic import write_text_atomic
from mcanalysis.store.small_files import table_text
from mcanalysis.studies.strategy_comparisons import CONFIDENCE, compared_summary, comparisons, over_all_runs
from mcanalysis.studies.strategy_tables import comparison_notes, comparison_table, summary_cells

_IN_LATEX = re.compile("strategy|learner|average accuracy|minus .*|alone|rank|forgetting|backward transfer|cost|kept.*")
_ESCAPED = str.maketrans(
    {c: f"\\{c}" for c in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {"±": r"$\pm$", "−": "$-$", "–": "--", "×": r"$\times$", "≤": r"$\le$"}
)


def compared_cells(summary: pd.DataFrame) -> list[list[str]]:
    """`summary_cells` with columns more: the difference to the reference, its interval together with all and alone, the
    rank and its set."""
    head, *rows = summary_cells(summary)
    if "against" not in summary:
        return [head, *rows]
    after = head.index("average accuracy") + 1
    is_known = summary.alone_low.notna().any()
    alone = ["alone"] if is_known else []
    cells = [[*head[:after], f"minus {summary.against.dropna().iloc[0]}", *alone, "rank", *head[after:]]]
    for row, found in zip(rows, summary.to_dict("records"), strict=True):
        gap, low, high = (_signed(found[f"difference{end}"]) for end in ("", "_low", "_high"))
        ends = ("–" if math.isnan(found[name]) else f"{found[name]:.0f}" for name in ("rank_low", "rank_high"))
        rank = "–" if math.isnan(found["mean_rank"]) else f"{found['mean_rank']:.1f}"
        own = [_in_brackets(*(_signed(found[f"alone_{end}"]) for end in ("low", "high"))).strip() or "–"]
        gaps = [gap + _in_brackets(low, high), *(own if is_known else [])]
        cells.append([*row[:after], *gaps, rank + _in_brackets(*ends), *row[after:]])
    return cells


def _signed(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:+.3f}"


def _in_brackets(low: str, high: str) -> str:
    """An interval after its value, nothing where it is undefined."""
    return "" if low == "–" else f" [{low}, {high}]"


def what_is_compared(metrics: pd.DataFrame, against: str | None = None) -> str:
    """What differences, intervals and ranks of the table are, in one line; empty where nothing is compared."""
    found = comparisons(metrics, against)
    found = found[found.family != "all"]
    if found.empty:
        return ""
    rows = found.to_dict("records")
    of = f"`minus {found.against.iloc[0]}`: difference of average accuracy between answering learners, paired by run"
    ranks = "`rank`: mean over the runs that all have"
    if found.error.isna().all():
        of += "; no intervals, for which it takes several seeds or orders with different results"
    else:
        degrees = sorted({f"{value:.0f}" for value in found.degrees.dropna()})
        varied = " and ".join(name for name in ("seeds", "orders") if (found[name] > 1).any())
        of += (
            f", with 95 % intervals over {varied} that hold together for all {len(found)} (Bonferroni, Student's t, "
            f"degrees of freedom {', '.join(degrees)}); `alone`: those of each by itself"
        )
        for one, several in (("seed", "seeds"), ("order", "orders")):
            single = [row["strategy"] for row in rows if row[several] == 1 and not math.isnan(row["error"])]
            if single and (found[several] > 1).any():
                of += f", which of {', '.join(single)} say nothing of other {several}: they have one {one}"
        ranks += ", and the ranks that tests of all pairs leave open, at 95 % together (Holm)"
        same = [row["strategy"] for row in rows if row["pairs"] > 1 and math.isnan(row["error"])]
        if same:
            of += f"; none where it is the same in all runs, which does not show how it varies ({', '.join(same)})"
    runs = len(metrics.drop_duplicates([name for name in ("seed", "order") if name in metrics]))
    fewer = [f"{row['strategy']} {row['pairs']} of {runs}" for row in rows if row["pairs"] < runs]
    if fewer:
        of += f"; only runs that both have count ({', '.join(fewer)})"
    return f"{of}; {ranks}."


def strategy_words(metrics: pd.DataFrame, against: str | None = None) -> Iterator[str | list[list[str]]]:
    """The summary of a `metrics_table`, which strategies differ from the reference, and how that is meant."""
    yield ""
    yield compared_cells(compared_summary(metrics, against))
    found = comparisons(metrics, against)
    found = found[found.family != "all"]
    if found.empty:
        return
    if found.p.isna().all():
        gaps = ", ".join(f"{row['strategy']} {_signed(row['difference'])}" for row in found.to_dict("records"))
        yield f"average accuracy minus {found.against.iloc[0]}: {gaps}"
    else:
        differs = found.p_holm <= 1 - CONFIDENCE
        told = []
        for word, side in (("above", 1), ("below", -1)):
            rows = found[differs & (side * found.difference > 0)].to_dict("records")
            each = [f"{row['strategy']} {row['difference']:+.3f} (p = {row['p_holm']:.2g})" for row in rows]
            told += [f"{word} {', '.join(each)}"] if each else []
        rest = ", ".join(found.strategy[~differs])
        told += [f"not told apart {rest}"] if rest else []
        tests = f"paired t tests, p by Holm's correction for {len(found)}"
        yield f"average accuracy against {found.against.iloc[0]}: {'; '.join(told)} ({tests})"
    yield what_is_compared(metrics, against)


def latex_table(rows: Sequence[Sequence[str]], caption: str) -> str:
    r"""A table for LaTeX with booktabs, of rows of text whose first is the header; all that LaTeX reads is escaped.

    >>> print(latex_table([["strategy", "rank"], ["o_lora", "1.5"]], "Over 100 %."))
    \begin{table}
    \centering
    \caption{Over 100 \%.}
    \begin{tabular}{ll}
    \toprule
    strategy & rank \\
    \midrule
    o\_lora & 1.5 \\
    \bottomrule
    \end{tabular}
    \end{table}
    """
    head, *body = (" & ".join(map(_escaped, row)) + r" \\" for row in rows)
    columns = "l" * len(rows[0])
    return "\n".join(
        [
            *(r"\begin{table}", r"\centering", rf"\caption{{{_escaped(caption)}}}", rf"\begin{{tabular}}{{{columns}}}"),
            *(r"\toprule", head, r"\midrule", *body, r"\bottomrule", r"\end{tabular}", r"\end{table}"),
        ]
    )


def _escaped(text: str) -> str:
    return re.sub(r"(?<![\w.])-(?=\d)", "−", text).replace("`", "").translate(_ESCAPED)


def write_comparison(
    runs: Sequence[FinishedRun], output_dir: str | Path, against: str | None = None, note: str = ""
) -> pd.DataFrame:
    """Write the tables of a comparison into `comparison/`, with a `note` of one's own; returns the first of them.

    `strategies.csv` (per run and learner), `comparisons.csv`, `summary.csv` and the same as text: `summary.md`, and
    `summary.tex` of answering learners over all runs, with fewer columns.
    """
    table = comparison_table(runs)
    summary = compared_summary(table, against)
    cells = compared_cells(summary)
    notes = [what_is_compared(table, against), note]
    folder = Path(output_dir) / "comparison"
    write_text_atomic(folder / "strategies.csv", table_text(table))
    write_text_atomic(folder / "comparisons.csv", table_text(comparisons(table, against)))
    write_text_atomic(folder / "summary.csv", table_text(summary))
    lines = [cells[0], ["---"] * len(cells[0]), *cells[1:]]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    write_text_atomic(
        folder / "summary.md", "\n\n".join([text, comparison_notes(runs, table), *filter(None, notes)]) + "\n"
    )
    chosen = [i for i, title in enumerate(cells[0]) if _IN_LATEX.fullmatch(title)]
    rows = [cells[0], *(row for row, shown in zip(cells[1:], over_all_runs(summary), strict=True) if shown)]
    caption = [comparison_notes(runs, table, [cells[0][i] for i in chosen]), *filter(None, notes)]
    tex = latex_table([[row[i].removesuffix(", answers") for i in chosen] for row in rows], " ".join(caption))
    write_text_atomic(folder / "summary.tex", tex + "\n")
    return table
