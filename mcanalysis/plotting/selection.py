"""Choosing rows of result tables for a figure, with an error in one line where they are not there."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd

from mcanalysis.errors import UserError
from mcanalysis.metrics.task_means import MEANS
from mcanalysis.store import base_minimum

TASK_WORDS = {"mean_old": "old tasks (mean)", "mean": "½ (old + new)"}
PROFILE_KEYS = ("strategy", "learner", "seed", "space", "path", "start", "end", "t", "task", "split")
BARRIER_KEYS = ("strategy", "learner", "seed", "space", "path", "start", "end", "task", "split", "quantity")


def where(table: pd.DataFrame, **values: object) -> pd.DataFrame:
    """The rows whose columns have these values.

    >>> where(pd.DataFrame({"task": ["A", "A", "B"], "t": [0.0, 1.0, 1.0]}), task="A", t=1.0).index.tolist()
    [1]
    """
    chosen = np.ones(len(table), dtype=bool)  # so that rows are taken once, which costs more than comparing
    for column, value in values.items():
        chosen &= (table[column] == value).to_numpy(dtype=bool, na_value=False)
    return table[chosen]


def trained_tasks(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of what was trained: those of general tasks are left out.

    >>> trained_tasks(pd.DataFrame({"task": ["A", "MMLU"], "role": ["new", "general"]})).task.tolist()
    ['A']
    """
    return table[table["role"] != "general"] if "role" in table else table


def require_columns(table: pd.DataFrame, columns: Iterable[str], name: str) -> None:
    """Raise `UserError` where `table`, called `name`, lacks one of `columns` or is no table at all.

    >>> require_columns(pd.DataFrame({"t": []}), ["t", "loss"], "profiles")
    Traceback (most recent call last):
    mcanalysis.errors.UserError: Expected the column(s) loss in the table profiles, got t; pass profiles.csv of a run.
    """
    if not isinstance(table, pd.DataFrame):
        raise UserError(
            f"Expected a pandas DataFrame as the table {name}, got {type(table).__name__}; "
            f"read {name}.csv with pandas.read_csv."
        )
    missing = [column for column in columns if column not in table.columns]
    if missing:
        got = ", ".join(map(str, table.columns)) or "no column"
        raise UserError(
            f"Expected the column(s) {', '.join(missing)} in the table {name}, got {got}; pass {name}.csv of a run."
        )


def rows_of_test_split(table: pd.DataFrame, keys: Iterable[str], name: str) -> pd.DataFrame:
    """The rows of the test split; raises `UserError` where there are none or where `keys` do not tell rows apart."""
    rows = table[table["split"] == "test"]
    if rows.empty:
        got = ", ".join(sorted(set(map(str, table["split"])))) or "no row"
        raise UserError(
            f"Expected rows of the split test in the table {name}, got {got}; measure the test split as well."
        )
    twice = rows.duplicated(list(keys))
    if twice.any():
        first = rows[twice].iloc[0]
        shown = ", ".join(f"{key}={first[key]}" for key in keys)
        raise UserError(
            f"Expected one row per point in the table {name}, got {int(twice.sum())} repeated, the first is {shown}; "
            "drop the repeated rows."
        )
    return rows


def error_bars(rows: pd.DataFrame, name: str) -> np.ndarray:
    """Lengths of the bars of a column's intervals, below and above, (2, n): never negative, NaN without an interval."""
    below, above = rows[name] - rows[f"{name}_low"], rows[f"{name}_high"] - rows[name]
    return np.clip(np.array([below, above], dtype=float), 0, None)


def only_value(table: pd.DataFrame, column: str, name: str):
    """The one value of a column; raises `UserError` where the rows have several.

    >>> only_value(pd.DataFrame({"seed": [3, 3]}), "seed", "profiles")
    3
    """
    values = list(dict.fromkeys(table[column].tolist()))
    if len(values) != 1:
        raise UserError(
            f"Expected one {column} in the table {name}, got {', '.join(map(str, values)) or 'none'}; "
            f"select the rows of one {column}."
        )
    return values[0]


def transitions(table: pd.DataFrame) -> list[tuple[str, str]]:
    """The (start, end) labels in the table, in the order of their numbers.

    Raises `UserError` for a label that is not `<k>-<NAME>`.

    >>> transitions(pd.DataFrame({"start": ["9-B", "2-A"], "end": ["10-C", "9-B"]}))
    [('2-A', '9-B'), ('9-B', '10-C')]
    """
    pairs = list(dict.fromkeys(zip(table["start"], table["end"], strict=True)))
    return sorted(pairs, key=lambda pair: (_number(pair[0]), _number(pair[1])))


def between_ends(table: pd.DataFrame) -> pd.DataFrame:
    """The rows with t in [0, 1]: what was measured beyond the ends of paths (`--extrapolate`) is left out.

    >>> between_ends(pd.DataFrame({"t": [-0.5, 0.0, 1.0, 1.5]})).t.tolist()
    [0.0, 1.0]
    """
    return table[(table.t >= 0) & (table.t <= 1)]


def are_from_base(table: pd.DataFrame) -> pd.Series:
    """Which rows are of paths that start at the base model.

    >>> are_from_base(pd.DataFrame({"start": ["0-BASE", "1-A"]})).tolist()
    [True, False]
    """
    return table.start == base_minimum.LABEL


def label_name(label: str) -> str:
    """The name in a label.

    >>> label_name("5-NumGLUE-cm")
    'NumGLUE-cm'
    """
    return label.partition("-")[2]


def around(rows: pd.DataFrame) -> str:
    """Which minima the rows of slices are around, in words.

    >>> around(pd.DataFrame({"start": ["3-FOMC", "3-FOMC"]}))
    'Around the minimum after task 3, FOMC'
    """
    labels = list(dict.fromkeys(rows.start))
    named = "; ".join(f"{_number(label)}, {label_name(label)}" for label in labels)
    return f"Around the {'minimum' if len(labels) == 1 else 'minima'} after task {named}"


def examples_per_task(rows: pd.DataFrame) -> str:
    """How many examples the numbers of single tasks are of, as a sentence; empty where the table does not say.

    >>> examples_per_task(pd.DataFrame({"task": ["A", "B", "mean"], "num_examples": [50, 40, 90]}))
    'Of each task 40–50 examples.'
    """
    if "num_examples" not in rows:
        return ""
    numbers = rows.num_examples[~rows.task.isin(MEANS)].dropna()
    if numbers.empty:
        return ""
    return f"Of each task {span(numbers)} example{'s' * bool(numbers.max() > 1)}."


def span(numbers: pd.Series) -> str:
    """The smallest and the largest of some whole numbers, or the one that all are.

    >>> span(pd.Series([3, 7, 4])), span(pd.Series([3, 3]))
    ('3–7', '3')
    """
    low, high = int(numbers.min()), int(numbers.max())
    return str(low) if low == high else f"{low}–{high}"


def few_events(*tables: pd.DataFrame) -> str:
    """Which share of the rows has intervals that promise no 95 %, as a sentence for a caption; nothing where none has.

    >>> few_events(pd.DataFrame({"loss": [0.1, 0.2], "loss_few_events": [True, False]}))
    'Intervals of 1 of 2 table rows promise no 95 %: under 50 examples, or under five that make most of the variance.'
    """
    flags = pd.concat([t.filter(regex="few_events$").fillna(False).astype(bool).any(axis=1) for t in tables])
    if not flags.any():
        return ""
    return (
        f"Intervals of {flags.sum()} of {len(flags)} table rows promise no 95 %: under 50 examples, or under five that "
        "make most of the variance."
    )


def cut_prompts(rows: pd.DataFrame) -> str:
    """How many prompts of single tasks lost their middle, as a sentence; empty where none did, or nothing is known.

    >>> cut_prompts(pd.DataFrame({"task": ["A", "B"], "num_examples": [50, 40], "num_cut": [3, 0]}))
    'Too long for the maximal length, and cut in their middle: 3 of 50 prompts of A.'
    """
    if "num_cut" not in rows:
        return ""
    cut = rows[~rows.task.isin(MEANS) & (rows.num_cut > 0)].drop_duplicates("task")
    counts = [f"{r['num_cut']:.0f} of {r['num_examples']:.0f} prompts of {r['task']}" for r in cut.to_dict("records")]
    return f"Too long for the maximal length, and cut in their middle: {', '.join(counts)}." if counts else ""


def chat_templates(rows: pd.DataFrame) -> str:
    """Which chat template the prompts of single tasks were put into, as a sentence; empty where none was.

    >>> chat_templates(pd.DataFrame({"task": ["A", "B", "mean"], "chat_template": ["jinja:3f2a91bc", None, None]}))
    'Prompts of A in the chat template jinja:3f2a91bc.'
    """
    if "chat_template" not in rows:
        return ""
    single = rows[~rows.task.isin(MEANS)]
    framed = single[single.chat_template.fillna("") != ""]
    names = list(dict.fromkeys(framed.task))
    whose = "" if set(names) == set(single.task) else f" of {', '.join(map(str, names))}"
    found = ", ".join(dict.fromkeys(framed.chat_template))
    return f"Prompts{whose} in the chat template {found}." if found else ""


def new_task(rows: pd.DataFrame, end: str) -> str:
    """The task learned in a transition: the one that `end` names, or the last named before the means.

    Adapters trained elsewhere are labelled by folder, not by task, and joint training has its own label, hence the
    second way. Raises `UserError` where the rows hold means, or general tasks, only.

    >>> joint = pd.DataFrame({"task": ["A", "B", "mean", "MMLU"], "role": ["old", "new", "mean", "general"]})
    >>> new_task(joint, "2-JOINT")
    'B'
    """
    names = [name for name in dict.fromkeys(trained_tasks(rows)["task"]) if name not in MEANS]
    if not names:
        raise UserError(
            f"Expected rows of the new task at the minimum {end}, got means only; keep the rows of every task."
        )
    return label_name(end) if label_name(end) in names else names[-1]


def rows_of_old_and_new(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of the means and of each transition's own new task; those of single old tasks are left out.

    >>> rows = pd.DataFrame({"start": "2-B", "end": "3-C", "task": ["A", "B", "C", "mean_old", "mean"]})
    >>> rows_of_old_and_new(rows).task.tolist()
    ['C', 'mean_old', 'mean']
    """
    groups = table.groupby(["start", "end"], sort=False)
    new = {ends: new_task(rows, str(ends[1])) for ends, rows in groups}  # type: ignore[index]
    own = [new[ends] for ends in zip(table.start, table.end, strict=True)]
    return table[table.task.isin(MEANS) | (table.task == own)]


def _number(label: str) -> int:
    number, dash, name = str(label).partition("-")
    if not (number.isascii() and number.isdigit() and dash and name):
        raise UserError(f"Expected a minimum's label like 3-ScienceQA, got {label!r}; name it <k>-<TASK>.")
    return int(number)
