"""`analyses/closed_forms.py` prints every identity with its error, and fails where one is missed."""

import pytest

from mcanalysis.closed_forms import closed_forms, registry
from mcanalysis.closed_forms.registry import ClosedForm


@pytest.mark.slow  # tests/closed_forms has every identity once in the fast tier
def test_the_table_of_identities(script):
    code, out, err = script("closed_forms")
    assert code == 0, err
    number = len(closed_forms())
    assert all(form.identity in out for form in closed_forms()) and f"{number} of {number} hold" in out
    assert "MISSED" not in out


def test_a_missed_identity_is_marked_and_the_exit_code_says_so(script, monkeypatch):
    forms = [ClosedForm("1", "one is one", 1e-12, lambda: 0.0), ClosedForm("1", "one is two", 1e-12, lambda: 1.0)]
    forms.append(ClosedForm("2", "one is no number", 1.0, lambda: float("nan")))
    monkeypatch.setattr(registry, "_CLOSED_FORMS", {form.identity: form for form in forms})
    code, out, _ = script("closed_forms")
    assert code == 1 and "1 of 3 hold" in out
    missed = [line for line in out.splitlines() if line.endswith("MISSED")]
    assert len(missed) == 2 and "one is two" in missed[0] and "one is no number" in missed[1]
