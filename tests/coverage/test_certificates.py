"""The table of certificates of random profiles: what it counts, and that closed forms of the populations are right."""

import numpy as np
import pytest

from mcanalysis.coverage import certificates
from mcanalysis.coverage.certificates import FAMILIES, markdown, population, table, trial, trials

T = np.linspace(0, 1, 4001)


@pytest.mark.parametrize("family", FAMILIES)
def test_closed_forms_are_those_of_the_losses(family):
    people = population(family, 1, 200)
    curve = np.array([people.mean({"t": t}) for t in T])
    chord = (1 - T) * curve[0] + T * curve[-1]
    assert people.barrier == pytest.approx(max((curve - chord).max(), 0), abs=2e-4)
    assert people.lipschitz >= np.abs(np.diff(curve)).max() * 4000 - 1e-6 or family != "kink"
    if family != "kink":
        bent = np.abs(np.diff(curve, 2)) * 4000**2
        for a, b in ((0, 1), (0.3, 0.4), (0.6, 0.85)):
            inside = bent[(T[:-2] >= a) & (T[2:] <= b)].max()
            assert inside <= people.curvature(a, b) * (1 + 1e-3) + 1e-4


def test_a_small_table_has_no_violation_of_what_is_proven():
    rows = [trial(family, seed, 300, 0.05) for family in FAMILIES for seed in range(2)]
    made = table(rows)
    assert made.family.tolist() == list(FAMILIES)
    assert (made["violations of what is proven"] == 0).all()
    assert (made["sampled: most"] <= 23.1).all()
    assert markdown(made).count("\n") == len(FAMILIES) + 2


def test_trials_go_on_where_they_were_stopped(tmp_path, monkeypatch):
    made = []

    def quick(family, seed):
        made.append((family, seed))
        return {"family": family, "seed": seed}

    monkeypatch.setattr(certificates, "trial", quick)
    file = tmp_path / "deep" / "certificates.jsonl"
    assert len(trials(10, file)) == 10
    file.write_text(file.read_text() + '{"family": "smo')  # killed while it wrote
    rows = trials(12, file)
    assert len(made) == len(set(made)) == len(rows) == 12
    assert trials(12, file) == rows
