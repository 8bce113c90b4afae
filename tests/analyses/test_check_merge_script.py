"""`analyses/check_merge.py` prints the table of `mc.check_merge` and ends well, whatever others violate."""

from mcanalysis.models import check_merge


def test_the_table(script, monkeypatch):
    ways = [way for way in check_merge._of_peft() if way.mode in ("linear", "ties")]
    monkeypatch.setattr(check_merge, "_of_peft", lambda: ways)
    code, out, err = script("check_merge")
    assert code == 0, err
    lines = [line.split() for line in out.splitlines()]
    (linear,) = [line for line in lines if line[:1] == ["PEFT"] and line[2] == "linear"]
    assert linear[3] == "·" and float(linear[5]) == 1.0 and "refused" in linear and "crashed" in linear
    (ties,) = [line for line in lines if line[:1] == ["PEFT"] and line[2] == "ties"]
    assert len(ties) < len(linear)  # blank where TIES claims nothing
    assert " 1  one adapter of weight 1 comes back" in out and "delta space" in out
