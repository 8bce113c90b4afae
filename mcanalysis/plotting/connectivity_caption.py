"""The figure of the paths between minima in words."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from mcanalysis.numbers_as_text import shown_number
from mcanalysis.plotting.selection import chat_templates, cut_prompts, examples_per_task, few_events, label_name
from mcanalysis.plotting.style import path_lines
from mcanalysis.plotting.transition_rows import QUANTITIES, TransitionRows, are_adapters, transition_rows, whose_paths


def caption(profiles: pd.DataFrame, barriers: pd.DataFrame) -> str:
    """The figure of `plot_transitions` in words: what is drawn, then barriers and gains of each transition and path.

    Same tables and errors as `plot_transitions`; losses in nats per target token; intervals (95 %) in brackets.
    """
    shown, kinds = transition_rows(profiles, barriers)
    lines = path_lines(kinds)
    first = next(iter(lines.values())).label
    rows = shown[0].rows
    every = pd.concat([transition.rows for transition in shown])
    number = " ".join(filter(None, (examples_per_task(every), chat_templates(every), cut_prompts(every))))
    flagged = few_events(every, *(transition.barriers for transition in shown))
    drawn = (
        _beyond_words(every) + f"Lines: {'; '.join(line.label for line in lines.values())}. "
        f"Bands: 95 % interval over examples ({first}). {number} "
        "The axis of the loss is logarithmic where it says so. "
    )
    between, minima, rewinding = "between", "successive minima", ""
    if all(transition.is_from_base for transition in shown):
        between, minima = "from the base model to", "each minimum"
        rewinding = " Rewinding: at t ΔW is scaled by t, one line in factor, delta and aligned space."
        if not are_adapters(rows):
            rewinding += " Old tasks: those learned before the minimum's own."
    barrier = "Chord barrier: max over t of L(t) − ((1−t)L(0) + tL(1)), 0 or more. "
    if are_adapters(rows):
        paragraphs = [
            f"Score (upper panel) and loss (lower panel, nats per target token) on the paths {between} "
            f"{whose_paths(rows)}.{rewinding} Circles: the last data file; squares: the one before it, if two were "
            "given. "
            + drawn
            + barrier
            + "No t* and "
            "no gain are given: chosen and measured on the same examples they would be positive by selection. For the "
            "same reason a fitted curve that runs low here says nothing about other examples. "
            f"Brackets: 95 % intervals. {flagged}".rstrip()
        ]
    else:
        paragraphs = [
            f"Score (upper panels) and loss (lower panels, nats per target token) on the paths {between} {minima}: "
            f"{whose_paths(rows)}.{rewinding} Squares: mean over the old tasks; circles: the new task. "
            + drawn
            + f"Vertical line: t* ({first}), where S̄(t) = ½(mean score of the old tasks + score of the "
            "new task) is largest on the eval split for 0 < t < 1; star: S̄ there, on the test split. "
            + barrier
            + "Gain: S̄(t*) − max(S̄(0), S̄(1)) on the test split; it can be negative. "
            f"Brackets: 95 % intervals. {flagged}".rstrip()
        ]
    for transition in shown:
        sentences = [f"{label_name(transition.start)} → {label_name(transition.end)}:"]
        has_old = transition.has_old
        for kind, line in lines.items():
            tasks = ([("mean_old", "old tasks")] if has_old else []) + [(transition.new, transition.new)]
            parts = [f"{_value_words(transition, kind, t, 'loss', 'chord_barrier')} ({words})" for t, words in tasks]
            sentence = f"  {line.label}: chord barrier of the loss {', '.join(parts)}"
            if not math.isnan(transition.number(kind, "mean", "score", "t_star")):
                gain = _value_words(transition, kind, "mean", "score", "interpolation_gain", signed=True)
                sentence += f"; gain {gain} at t* = {shown_number(transition.number(kind, 'mean', 'score', 't_star'))}"
            sentences.append(sentence + ".")
        paragraphs.append("\n".join(sentences))
    return "\n\n".join(paragraphs)


def _beyond_words(rows: pd.DataFrame) -> str:
    """What was measured beyond the ends, and where it is not finite, as sentences; nothing where nothing was."""
    beyond = rows[(rows.t < 0) | (rows.t > 1)]
    if beyond.empty:
        return ""
    words = f"Grey ground: beyond the ends of the paths, t from {beyond.t.min():g} to {beyond.t.max():g}; barriers, "
    words += "gains and t* are of 0 ≤ t ≤ 1. "
    lost = beyond[~np.isfinite(beyond[list(QUANTITIES)]).all(axis=1)]
    if not lost.empty:
        words += f"Not finite there: at t = {', '.join(f'{t:g}' for t in sorted(set(lost.t)))}. "
    return words


def _value_words(
    transition: TransitionRows, kind: tuple[str, str], task: str, quantity: str, column: str, signed: bool = False
) -> str:
    value, low, high = (
        shown_number(transition.number(kind, task, quantity, column + end), signed) for end in ("", "_low", "_high")
    )
    return value if low == high == shown_number(math.nan) else f"{value} [{low}, {high}]"
