"""`analyses/closed_forms.py` prints every identity with its error, and fails where one is missed."""

from mcanalysis.closed_forms import closed_forms, curves


def test_the_table_of_identities(script):
    code, out, err = script("closed_forms")
    assert code == 0, err
    number = len(closed_forms())
    assert all(form.identity in out for form in closed_forms()) and f"{number} of {number} hold" in out
    assert "MISSED" not in out


def test_a_missed_identity_is_marked_and_the_exit_code_says_so(script, monkeypatch):
    monkeypatch.setattr(curves, "fit_curve", lambda curve, loss, **options: curve)
    code, out, _ = script("closed_forms")
    assert code == 1
    assert [line for line in out.splitlines() if line.endswith("MISSED")] == [
        line for line in out.splitlines() if "fit_curve finds" in line
    ]
