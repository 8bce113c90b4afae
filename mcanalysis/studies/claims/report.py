"""What the study found: tables, one picture per question, a page; no number on it is typed by hand."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from mcanalysis.errors import UserError
from mcanalysis.numbers_as_text import cell
from mcanalysis.plotting.intervals import plot_intervals
from mcanalysis.plotting.picture import Picture, save
from mcanalysis.store.atomic import write_text_atomic
from mcanalysis.store.small_files import table_text
from mcanalysis.studies.claims.evidence import Answer, Question
from mcanalysis.studies.claims.pieces import Found
from mcanalysis.studies.claims.protocol import Planned
from mcanalysis.studies.claims.questions import questions
from mcanalysis.studies.training import Training

logger = logging.getLogger(__name__)

MINUTES = {"main": 6.0, "ilora": 1.2, "memory": 1.1, "others": 2.5, "scale": 2.0, "real": 10.0, "bases": 3.0}
"""Of one core, for a piece of each part, from trials before the study: for the estimate where no piece is there."""

LONGEST = 40  # rows of a table that stand on the page; the rest is in the CSV file


@dataclass(frozen=True)
class Report:
    """What was written: the page, its tables by name, its words."""

    page: Path
    tables: dict[str, pd.DataFrame]
    words: list[str]


def seconds_left(there: Sequence[Found], missing: Sequence[tuple[Planned, Training]]) -> float:
    """How long one core takes for what is missing: by what pieces of the same part took, else by `MINUTES`."""
    known: dict[str, list[float]] = {}
    for piece in there:
        known.setdefault(piece.planned.part, []).append(piece.seconds)
    means = {part: sum(of) / len(of) for part, of in known.items()}
    return sum(means.get(planned.part, MINUTES[planned.part] * 60) for planned, _ in missing)


def write_report(
    found: Sequence[Found],
    folder: Path,
    wanted: Mapping[str, int],
    on_figure: Callable[[Path], None] = lambda _: None,
) -> Report:
    """Answer every question from the pieces that are there; writes `tables/`, `figures/` and `RESULTS.md`.

    `wanted`: how many pieces each part has. Tables and figures that the page of before names are removed, others stay.
    """
    file = folder / "RESULTS.md"
    before = file.read_text("utf-8") if file.exists() else ""
    answers = [(question, _answered(question, found)) for question in questions()]  # all, before anything is removed
    for old in re.findall(r"tables/\w+\.csv|figures/\w+\.png", before):
        (folder / old).unlink(missing_ok=True)
        (folder / old).with_suffix(".txt").unlink(missing_ok=True)  # its caption
    tables: dict[str, pd.DataFrame] = {}
    words: list[str] = []
    page = [*_head(found, wanted)]
    for question, answer in answers:
        page += ["", f"## ({question.letter}) {question.asked}", ""]
        words.append(f"\n({question.letter}) {question.asked}")
        if isinstance(answer, str) or not any(len(table) for table in answer.tables.values()):
            reason = answer if isinstance(answer, str) else "no piece that answers it is there yet"
            page.append(f"{reason[0].upper()}{reason[1:]}.")
            words.append(reason)
            continue
        words += answer.words
        page += [f"- {sentence}" for sentence in answer.words]
        for name, table in answer.tables.items():
            tables[name] = table
            write_text_atomic(folder / "tables" / f"{name}.csv", table_text(table))
        name, first = next((n, t) for n, t in answer.tables.items() if len(t))
        caption = f"({question.letter}) {question.asked} With 95 % intervals over pairs: {answer.value}."
        files = save(Picture(name, plot_intervals(first, answer.value), {}, caption), folder / "figures", ("png",))
        on_figure(files[-1])
        page += ["", f"![{caption}](figures/{files[-1].name})"]
        page += ["", answer.note] if answer.note else []
        for name, table in answer.tables.items():
            page += [
                "",
                f"`tables/{name}.csv`" + ("" if len(table) <= LONGEST else f", the first {LONGEST} rows") + ":",
            ]
            page += ["", *markdown(table[:LONGEST])]
    write_text_atomic(file, "\n".join(page) + "\n")
    return Report(file, tables, words)


def _answered(question: Question, found: Sequence[Found]) -> Answer | str:
    """The answer, or why there is none: one question that fails on what is there so far keeps no other from its."""
    try:
        return question.answered(found)
    except UserError:
        raise
    except Exception as error:
        logger.exception("question (%s) cannot be answered", question.letter)
        return f"it cannot be answered from these pieces ({type(error).__name__}: {error})"


def _head(found: Sequence[Found], wanted: Mapping[str, int]) -> Iterator[str]:
    """What the numbers are of: pieces by part, commits, machines' versions."""
    yield "# Results of the study"
    yield ""
    yield "Written by `python analyses/study.py` from result files; the protocol is [STUDY.md](../../STUDY.md)."
    there = {part: sum(piece.planned.part == part for piece in found) for part in wanted}
    yield f"Pieces: {', '.join(f'{part} {there[part]} of {number}' for part, number in wanted.items()) or 'none'}."
    if len(found) < sum(wanted.values()):
        yield ""
        yield "**Not complete: nothing is to be concluded from it, least of all by stopping here.**"
        yield ""
    commits = sorted(set().union(*(piece.commits for piece in found)))
    code = {piece.run.manifest.get("code") for piece in found}
    yield f"Commits that trained or measured: {', '.join(commits)}."
    measuring = {piece.measuring_code for piece in found} - {None}
    yield f"The code that trains and scores: {len(code)} version(s); the code that measures: {len(measuring)}."
    yield (
        "Intervals are 95 %, Student's t over pairs; `p_holm` is corrected for the rows of its table (signals: "
        "for those of an outcome)."
    )
    yield ""
    settings = {piece.planned.config.strategy: piece.planned.config for piece in found if piece.planned.part == "main"}
    yield "Settings that the search on the eval split chose:"
    yield ""
    for name, config in settings.items():
        chosen = ", ".join(f"{n} {value}" for n, value in config.strategy_settings.items())
        yield f"- `{name}`: learning rate {config.training.rate_for(config.model):g}{', ' if chosen else ''}{chosen}"


def markdown(table: pd.DataFrame) -> Iterator[str]:
    """A table as Markdown, numbers to three digits.

    >>> list(markdown(pd.DataFrame({"path": ["line"], "mean": [0.12345]})))
    ['| path | mean |', '| --- | --- |', '| line | 0.123 |']
    """
    yield f"| {' | '.join(map(str, table))} |"
    yield f"| {' | '.join('---' for _ in table)} |"
    for row in table.itertuples(index=False):
        yield f"| {' | '.join(_cell(str(name), value) for name, value in zip(table, row, strict=True))} |"


def _cell(column: str, value: object) -> str:
    if isinstance(value, float):
        if value != value:
            return "–"
        return f"{value:.2g}" if column.startswith("p") else cell(value, 3)
    return str(value)
