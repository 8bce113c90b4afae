"""Tables and small curves as HTML for notebooks: everything escaped, colours that suit light and dark pages."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np
import pandas as pd

from mcanalysis.numbers_as_text import fixed

_CELL = "padding:2px 8px;text-align:right;border:0"
_HEAD = f"{_CELL};border-bottom:1px solid currentColor;font-weight:600"


def number(value: Any, digits: int = 3) -> str:
    """A number as text, a dash where it is undefined; other values as they are.

    >>> number(0.12345), number(None), number("FOMC")
    ('0.123', '–', 'FOMC')
    """
    if isinstance(value, str):
        return value
    return str(value) if isinstance(value, (bool, int, np.integer)) else fixed(value, digits)


def shade(value: float) -> str:
    """A style that colours a cell by a score in [0, 1], the more the better; nothing where it is undefined.

    >>> shade(1.0)
    'background:rgba(0,158,115,0.60)'
    """
    return "" if pd.isna(value) else f"background:rgba(0,158,115,{0.6 * min(1.0, max(0.0, float(value))):.2f})"


def html_table(
    header: Sequence[str], rows: Sequence[Sequence[Any]], *, shaded: Sequence[int] = (), caption: str = ""
) -> str:
    """Rows under a header; the first column is a head of its row, `shaded` columns (numbers from 0) hold scores.

    >>> "<script>" in html_table(["task"], [["<script>"]])
    False
    """
    lines = [f'<caption style="text-align:left">{escape(caption)}</caption>'] if caption else []
    heads = "".join(
        f'<th scope="col" style="{_HEAD}{";text-align:left" if i == 0 else ""}">{escape(name)}</th>'
        for i, name in enumerate(header)
    )
    lines.append(f"<tr>{heads}</tr>")
    for row in rows:
        cells = [f'<th scope="row" style="{_CELL};text-align:left;font-weight:400">{escape(number(row[0]))}</th>']
        for i, value in enumerate(row[1:], start=1):
            style = f"{_CELL};{shade(value)}" if i in shaded else _CELL
            cells.append(f'<td style="{style}">{escape(number(value))}</td>')
        lines.append(f"<tr>{''.join(cells)}</tr>")
    style = "border-collapse:collapse;font-variant-numeric:tabular-nums;margin:4px 0"
    return f'<table style="{style}">{"".join(lines)}</table>'


def html_curve(ts: np.ndarray, values: np.ndarray, title: str) -> str:
    """A curve as a small inline SVG, dashed the chord between its ends; values that are not finite leave a gap.

    `ts`, `values`: (n,). The vertical axis runs from the lowest to the highest finite value, which are written beside
    it.
    """
    finite = np.isfinite(values)
    if finite.sum() < 2:
        return f"<p>{escape(title)}: fewer than two finite values</p>"
    width, height, left, margin = 260, 90, 52, 8
    low, high = float(values[finite].min()), float(values[finite].max())
    across = (ts - ts[0]) / (ts[-1] - ts[0]) * (width - left - margin) + left
    up = height - margin - (values - low) / ((high - low) or 1.0) * (height - 2 * margin)
    pieces, pen = [], "M"
    for x, y, is_there in zip(across, up, finite, strict=True):
        if is_there:
            pieces.append(f"{pen}{x:.1f},{y:.1f}")
        pen = "L" if is_there else "M"
    lines = [f'<path d="{"".join(pieces)}" fill="none" stroke="#0072B2" stroke-width="2"/>']
    if finite[0] and finite[-1]:
        lines.append(
            f'<path d="M{across[0]:.1f},{up[0]:.1f}L{across[-1]:.1f},{up[-1]:.1f}" fill="none" stroke="#8C8C8C" '
            'stroke-dasharray="4 3"/>'
        )
    for value, y in ((high, margin), (low, height - margin)):
        lines.append(
            f'<text x="{left - 6}" y="{y + 3}" text-anchor="end" font-size="10" fill="currentColor">'
            f"{escape(number(value))}</text>"
        )
    label = f"{title}, from {number(values[0])} at t = {ts[0]:g} to {number(values[-1])} at t = {ts[-1]:g}"
    return (
        f'<figure style="display:inline-block;margin:4px 12px 4px 0"><figcaption>{escape(title)}</figcaption>'
        f'<svg role="img" aria-label="{escape(label)}" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}">{"".join(lines)}</svg></figure>'
    )
