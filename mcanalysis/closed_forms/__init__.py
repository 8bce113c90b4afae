"""Closed forms: every identity that the geometry must meet, computed now, in float64, with the error reached.

A row of the table is a function under `@closed_form(section, identity, bound)` in any file of this package.
"""

from __future__ import annotations

import pandas as pd

from mcanalysis.closed_forms.registry import ClosedForm, closed_form, closed_forms
from mcanalysis.registry import import_files

import_files(__name__)


def check_closed_forms() -> pd.DataFrame:
    """Compute every identity: one row each with `section`, `identity`, `error`, `bound`, `holds` (error ≤ bound)."""
    rows = []
    for form in closed_forms():
        error = float(form.error())
        rows.append(
            {
                "section": form.section, "identity": form.identity, "error": error, "bound": form.bound,
                "holds": error <= form.bound,
            }
        )  # fmt: skip
    return pd.DataFrame(rows)


__all__ = ["ClosedForm", "check_closed_forms", "closed_form", "closed_forms"]
