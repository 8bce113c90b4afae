"""What the explorer tells beside its pictures, as HTML: the values at a t, and what the model writes there."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from html import escape

from mcanalysis import fonts
from mcanalysis.explore.walk import Reading, Walk, Written
from mcanalysis.html_table import html_table
from mcanalysis.plotting.selection import TASK_WORDS

_LONGEST = 260  # characters of a prompt, of which the end is shown: there the question is
_FONT = f"font-family:var(--jp-content-font-family,sans-serif),'{fonts.FAMILY}'"
_RIGHT, _WRONG, _PARTLY = "#009E73", "#D55E00", "#E69F00"


def task_name(walk: Walk, task: str) -> str:
    """How a task or a mean is called to a reader."""
    return TASK_WORDS.get(task, f"{task} (new)" if task == walk.new and walk.old else task)


def values_table(walk: Walk, start: Reading, here: Reading, end: Reading) -> str:
    """Score and loss of every task at the start, at t and at the end."""
    order = [*(n for n in ("mean", "mean_old") if n in here.values.index), walk.new, *walk.old]
    readings = (start, here, end)
    rows: list[list[object]] = []
    for task in order:
        numbers = [r.values[quantity].get(task, math.nan) for quantity in ("score", "loss") for r in readings]
        rows.append([task_name(walk, task), *map(float, numbers)])
    ts = [f"t = {reading.t:g}" for reading in readings]
    header = ["task", *(f"score, {t}" for t in ts), *(f"loss, {t}" for t in ts)]
    sizes = f"first {walk.num_examples} test examples of each task"
    caption = f"Score in [0, 1], loss in nats per target token; {sizes}"
    return html_table(header, rows, shaded=(1, 2, 3), caption=caption)


def written_table(written: Sequence[Written], ts: Sequence[float], here: float, score: str) -> str:
    """Prompts, the answers wanted and what the model writes at each t, marked right, wrong or partly right."""
    heads = "".join(
        f'<th scope="col" style="{_style(t == here)}">t = {t:g}{" (here)" if t == here else ""}</th>' for t in ts
    )
    first = f'<th scope="col" style="{_style()};width:40%">prompt</th><th scope="col" style="{_style()}">wanted</th>'
    lines = [f"<tr>{first}{heads}</tr>"]
    for example in written:
        cells = [_prompt(example.prompt), f'<td style="{_style()}">{_text(example.answer)}</td>']
        cells += [
            f'<td style="{_style(t == here)}">{_mark(example.scores[t])} {_text(example.outputs[t])}</td>' for t in ts
        ]
        lines.append("<tr>" + "".join(cells) + "</tr>")
    legend = f"✓ right, ✗ wrong, else the score ({escape(score)}); greedy decoding"
    return (
        '<table style="border-collapse:collapse;margin:4px 0;width:100%;table-layout:fixed;line-height:1.4;'
        f'{_FONT}">'
        f'<caption style="text-align:left">{legend}</caption>{"".join(lines)}</table>'
    )


def chinese_font(text: str) -> str:
    """A style sheet with this package's font for Chinese where a text needs it, else nothing (1.5 MB: send it once)."""
    if not any("\u2e80" <= letter <= "\u9fff" for letter in text):
        return ""
    content = base64.b64encode(fonts.FILE.read_bytes()).decode("ascii")
    return f'<style>@font-face{{font-family:"{fonts.FAMILY}";src:url(data:font/ttf;base64,{content})}}</style>'


def _style(here: bool = False) -> str:
    border = "border:0;border-bottom:1px solid rgba(128,128,128,0.4);padding:4px 8px;text-align:left;vertical-align:top"
    return f"{border};overflow-wrap:anywhere;{'background:rgba(86,180,233,0.18)' if here else ''}"


def _prompt(prompt: str) -> str:
    shown = prompt if len(prompt) <= _LONGEST else "…" + prompt[-_LONGEST:]
    return (
        f'<th scope="row" style="{_style()};font-weight:400;white-space:pre-wrap" title="{escape(prompt)}">'
        f"{escape(shown)}</th>"
    )


def _text(text: str) -> str:
    return escape(text) if text.strip() else "<i>(nothing)</i>"


def _mark(score: float) -> str:
    colour = _RIGHT if score >= 1 else _WRONG if score <= 0 else _PARTLY
    words = "✓" if score >= 1 else "✗" if score <= 0 else f"{score:.2f}"
    return f'<b style="color:{colour}">{words}</b>'
