"""A page of headings, paragraphs, tables and curves in two forms: Markdown to be pasted, and HTML on its own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from mcanalysis.html_table import html_curve, html_table

_MARKUP = re.compile(r"([\\`*_|\[\]~$!])")


@dataclass(frozen=True)
class Heading:
    """A heading; `level` 1 is the page's own."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class CardCurve:
    """Values along t, drawn in HTML alone; Markdown has their numbers in a table."""

    title: str
    ts: Sequence[float]
    values: Sequence[float]


Part = Heading | CardCurve | str | list[list[str]]
"""A heading, a curve, a paragraph, or the rows of a table whose first is its head; all of plain text."""


def as_markdown(parts: Sequence[Part]) -> str:
    """Return the parts as GitHub's Markdown; what a name has of Markdown or HTML is shown as it is written.

    >>> print(as_markdown([Heading("a_b"), [["x"], ["<b>|"]]]), end="")
    ## a\\_b
    <BLANKLINE>
    | x |
    | --- |
    | &lt;b&gt;\\| |
    """
    blocks = []
    for part in parts:
        if isinstance(part, Heading):
            blocks.append(f"{'#' * part.level} {_plain(part.text)}")
        elif isinstance(part, str):
            text = _plain(part)
            blocks.append(re.sub(r"^(?=[#+=-]|\d+[.)])", r"\\", text))  # would begin a heading or a list
        elif not isinstance(part, CardCurve):
            head, *rows = ([f"| {' | '.join(map(_plain, row))} |"] for row in part)
            blocks.append("\n".join(line for lines in (head, [f"|{' --- |' * len(part[0])}"], *rows) for line in lines))
    return "\n\n".join(blocks) + "\n"


def as_html(parts: Sequence[Part], title: str) -> str:
    """Return the parts as a page of HTML that needs nothing else and runs no script; every text is escaped.

    >>> "<script>" in as_html(["<script>"], "<script>")
    False
    """
    shown = []
    for part in parts:
        if isinstance(part, Heading):
            shown.append(f"<h{part.level}>{escape(part.text)}</h{part.level}>")
        elif isinstance(part, str):
            shown.append(f"<p>{escape(part)}</p>")
        elif isinstance(part, CardCurve):
            shown.append(html_curve(np.asarray(part.ts), np.asarray(part.values), part.title))
        else:
            shown.append(html_table(part[0], part[1:]))
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        "<style>:root{color-scheme:light dark}body{font:16px/1.5 sans-serif;max-width:60em;margin:2em auto;"
        "padding:0 1em}table{display:block;overflow-x:auto}</style></head>\n<body>\n"
        + "\n".join(shown)
        + "\n</body></html>\n"
    )


def _plain(text: str) -> str:
    """A text on one line in which Markdown and HTML see no markup."""
    return _MARKUP.sub(r"\\\1", escape(" ".join(text.split()), quote=False))
