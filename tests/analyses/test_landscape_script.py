"""`analyses/landscape.py` end to end on small runs."""

import pandas as pd
import pytest

from mcanalysis.evaluation.engine import Engine
from mcanalysis.landscape import sharpness
from mcanalysis.studies.landscape.study import Landscape

SMALL = (
    "--tasks", "FOMC,MedMCQA,JEC-QA", "--steps", 6, "--num-train", 16, "--num-test", 4, "--batch-size", 4,
    "--num-examples", 3, "--grid", "4,3", "--workers", 1, "--num-directions", 1, "--sharpness-samples", 2,
    "--surface-grid", 3,
)  # fmt: skip


def test_runs_tables_trajectories_and_figures_and_nothing_is_computed_twice(script, base_folder, tmp_path, monkeypatch):
    code, out, err = script("landscape", *SMALL, "--model", base_folder, "--max-length", 64)
    assert code == 0, err
    for strategy in ("sequential", "ilora"):
        run = tmp_path / f"runs/embedded-{strategy}-seed0"
        for name in ("figures/plane_2-MedMCQA--3-JEC-QA.pdf", "figures/plane_2-MedMCQA--3-JEC-QA.txt"):
            assert (run / name).stat().st_size > 300
        landscape = pd.read_csv(run / "tables/landscape.csv")
        assert len(landscape) > 4 * 3 * 5
        for _, surface in landscape[landscape.kind == "surface"].groupby("learner"):  # 9 nodes and the minimum itself
            assert len(surface) == 10 * 5 and surface.measured.all()
        walk = pd.read_csv(run / "tables/trajectory.csv")
        assert set(walk.step) == {0, 6}  # every tenth by default, and the last
    assert (tmp_path / "runs/comparison/figures/slices.png").exists()
    assert "ilora / seed 0, factor space" in out and "3-JEC-QA slow" in out and "mean rise" in out
    monkeypatch.setattr(Engine, "measure", lambda *_: pytest.fail("evaluated again"))
    monkeypatch.setattr(sharpness, "expected_sharpness", lambda *_: pytest.fail("computed again"))
    monkeypatch.setattr(Landscape, "pictures", lambda *_: ())  # numbers alone
    code, again, err = script("landscape", "--run", "runs/embedded-ilora-seed0", *SMALL)
    assert code == 0, err
    assert "ilora / seed 0, factor space" in again and "sequential" not in again
    code, _, err = script("landscape", "--run", "runs/embedded-sequential-seed0", *SMALL, "--transition", 3)
    assert code == 2 and "Unknown --transition '3'" in err.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "pieces"),
    [
        (("--grid", 1), ("at least 2 points on each axis", "got 1", "--grid")),
        (("--grid", "3,4,5"), ("one or two numbers", "--grid N or N,M")),
        (("--grid", "x"), ("--grid",)),
        (("--space", "delt"), ("Unknown space 'delt'", "Did you mean 'delta'?")),
        (("--third", "/no/such/run"), ("/no/such/run",)),
        (("--run", "/no/such/run"), ("/no/such/run",)),
        (("--num-examples", 0), ("num_examples of at least 1",)),
        (("--save-trajectory", -1), ("save_trajectory of at least 0, got -1",)),
        (("--strategy", "ilorra"), ("Did you mean 'ilora'?",)),
        (("--tasks", "FOMC,MedMCQA"), ("transition from 1 to 1 between minima 1 to 2, got 2", "--transition")),
    ],
)
def test_bad_flags_end_in_one_line_and_write_nothing(script, tmp_path, arguments, pieces):
    code, _, err = script("landscape", *arguments)
    assert code == 2 and "\n" not in err.strip() and err.startswith("error: "), err
    assert all(piece in err for piece in pieces), err
    assert not any(tmp_path.iterdir()), "something was written"
