"""`analyses/coverage.py`: a table for a person, for a page and for a program."""

import json

import pandas as pd
import pytest


@pytest.mark.slow
def test_quick_writes_the_tables_and_names_every_interval(script, tmp_path):
    code, out, err = script("coverage", "--quick", "--trials", 2, "--output-dir", tmp_path / "coverage", "--json")
    assert code == 0, err
    rows = pd.DataFrame(json.loads(out)["tables"]["coverage"])
    names = {name.split(",")[0] for name in rows.interval}
    assert {"chord_barrier", "mean_barrier", "max_barrier", "chord_dip", "interpolation_gain", "t_star"} <= names
    assert {"hypervolume", "hypervolume_gain", "above_chord", "end_change", "kl", "churn", "cka"} <= names
    assert len(pd.read_csv(tmp_path / "coverage" / "coverage.csv")) == len(rows)
    assert {"gamma, 5 points", "Pareto, 41 points", "mixture, 5 points"} <= set(rows.kind)
    page = (tmp_path / "coverage" / "coverage.md").read_text()
    assert "| interval | kind |" in page and "| kind | chord_barrier |" in page


def test_bad_input_is_one_line(script):
    code, out, err = script("coverage", "--trials", "few")
    assert code == 2 and not out and len(err.splitlines()) == 1 and "few" in err
