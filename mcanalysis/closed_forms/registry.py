"""What a closed form is: an identity that the library must meet, and a function that says by how much it misses it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from mcanalysis.errors import UserError


@dataclass(frozen=True)
class ClosedForm:
    """One identity: `section` of the design's geometry.md, `identity` in words, `bound` on the error, and its source.

    `error()` computes the identity both ways and returns the largest difference, ≥ 0; NaN counts as missed.
    """

    section: str
    identity: str
    bound: float
    error: Callable[[], float]


Errors = Callable[[], Iterator[float]]
_CLOSED_FORMS: dict[str, ClosedForm] = {}


def closed_form(section: str, identity: str, bound: float) -> Callable[[Errors], Errors]:
    """Register the function below it, which yields errors of which the largest counts, as the check of an identity.

    One function is one row of the table; a new file in this package is found by itself. Raises `UserError` for an
    identity that is there already.
    """

    def register(function: Errors) -> Errors:
        if identity in _CLOSED_FORMS:
            raise UserError(f"Expected each identity once, got '{identity}' again; word it differently.")
        _CLOSED_FORMS[identity] = ClosedForm(section, identity, bound, lambda: float(np.max(list(function()))))
        return function

    return register


def closed_forms() -> list[ClosedForm]:
    """Return the registered identities, by section and then in the order of their files and functions."""
    return sorted(_CLOSED_FORMS.values(), key=lambda form: form.section)
