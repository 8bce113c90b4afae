"""Numbers as captions, tables and notebooks show them: a true minus, none before zero, a dash where undefined."""

from __future__ import annotations

import math


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
