"""Numbers as captions, tables and notebooks show them: a true minus, none before zero, a dash where undefined."""

from __future__ import annotations

import math
from typing import Any


def fixed(value: float | None, digits: int = 2, signed: bool = False) -> str:
    """A number with so many decimals.

    >>> [fixed(value) for value in (0.126, -0.126, -0.001, math.inf, None)]
    ['0.13', '−0.13', '0.00', '∞', '–']
    >>> fixed(0.5, 1, signed=True)
    '+0.5'
    """
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    text = f"{value:{'+' if signed else ''}.{digits}f}"
    return f"{0:.{digits}f}" if float(text) == 0 else text.replace("-", "−")


def shown_number(value: float, signed: bool = False) -> str:
    """Two decimals, fewer from 10 on and three below 0.005, where two would say 0; "0" for zero and a dash for NaN.

    >>> [shown_number(value) for value in (0.0, 0.0024, 0.37, 12.34, math.nan)]
    ['0', '0.002', '0.37', '12.3', '–']
    """
    size = abs(value)
    digits = 3 if size < 0.005 else 2 if size < 9.995 else 1 if size < 99.95 else 0
    return "0" if size == 0 else fixed(value, digits, signed)


def cell(value: Any, digits: int = 2) -> str:
    """A number of a table on the terminal, or a dash where it is undefined.

    >>> [cell(value) for value in (-0.126, math.nan, None)]
    ['-0.13', '–', '–']
    """
    return "–" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def with_interval(row: Any, name: str) -> str:
    """`value [low, high]` of a row, with a star where too few examples or events promise no 95 %.

    >>> with_interval({"gain": 0.1, "gain_low": 0.05, "gain_high": 0.125, "few_events": True}, "gain")
    '+0.10 [+0.05, +0.12]*'
    """
    if math.isnan(row[name]):
        return "–"
    star = "*" if row.get("few_events", False) else ""
    return f"{row[name]:+.2f} [{row[f'{name}_low']:+.2f}, {row[f'{name}_high']:+.2f}]{star}"
