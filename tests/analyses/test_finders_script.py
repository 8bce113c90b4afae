"""`analyses/finders.py`: its table against barriers by hand, nothing measured twice, what it refuses."""

import pandas as pd
import pytest

import mcanalysis as mc
from mcanalysis.evaluation.differentiable import MinibatchLoss
from mcanalysis.evaluation.engine import Engine
from mcanalysis.studies.finders import CurveName, Finders, success_table

SMALL = (
    "--tasks", "FOMC,MedMCQA,JEC-QA", "--steps", 2, "--num-train", 8, "--num-test", 2, "--batch-size", 2, "--workers",
    1, "--device", "cpu",
)  # fmt: skip
FLAGS = ("--curves", "bezier-2,polychain-2-neb", "--gradients", "2,4", "--fit-seeds", 2)
MEASURED = ("--num-points", 3, "--num-examples", 2)


def test_pairs_are_connected_measured_and_counted(script, base_folder, tmp_path, monkeypatch):
    base = ("--model", base_folder, "--max-length", 64)
    code, out, err = script("finders", *SMALL, *base, "--strategy", "sequential", *FLAGS, *MEASURED, "--ensemble", 2)
    assert code == 0, err
    folder = tmp_path / "runs" / "embedded-sequential-seed0"
    table = pd.read_csv(folder / "tables" / "finders.csv")
    assert len(table) == 2 * (1 + 2 * 2 * 2) and set(table.fit_seed) == {0, 1}
    assert (table.success == (table.chord_barrier < 0.05)).all() and (table.mutual_information >= -1e-6).all()
    assert len(list((folder / "curves" / "fast").iterdir())) == 2 * 2 * 2 * 2
    success = pd.read_csv(tmp_path / "runs/comparison/tables/finder_success.csv")
    assert success.fits.tolist() == [2, 4, 4, 4, 4] and set(success.pairs) == {2}
    assert "polychain-2-neb" in out and (tmp_path / "runs/comparison/figures/finders.png").stat().st_size > 1000

    run = mc.load_run(folder)
    row = table[(table.curve == "linear") & (table.start == "2-MedMCQA")].iloc[0]
    barriers = {}
    for task in run.task_names:
        a, middle, b = (run.objective(task, num_examples=2)(run.path(2, 3)(t)).loss for t in (0.0, 0.5, 1.0))
        barriers[task] = max(0.0, middle - (a + b) / 2)
    assert row.chord_barrier == pytest.approx(max(barriers.values()), abs=1e-5)
    assert barriers[row.task] == pytest.approx(row.chord_barrier, abs=1e-5)

    monkeypatch.setattr(Engine, "measure", lambda *a: pytest.fail("measured again"))
    monkeypatch.setattr(MinibatchLoss, "__call__", lambda *a: pytest.fail("fitted again"))
    again = script("finders", "--run", folder, *FLAGS, *MEASURED, "--ensemble", 2)
    assert again[0] == 0, again[2]
    assert pd.read_csv(folder / "tables" / "finders.csv").equals(table)
    code, out, err = script("finders", "--run", folder, "--transitions", 3)
    assert code == 2 and "transitions 1 to 2, got 3" in err and len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"curves": ("bezier",)}, "its number of bends"),
        ({"curves": ("linear-1",)}, "its number of bends"),
        ({"curves": ("segmented_bezier-1",)}, "between two minima"),
        ({"curves": ("polychain-0",)}, "its number of bends"),
        ({"curves": ("bezer-1",)}, "Did you mean 'bezier'"),
        ({"curves": ("polychain-3-nbe",)}, "Did you mean 'neb'"),
        ({"curves": ("bezier-3-neb",)}, "a chain for the finder neb"),
        ({"curves": ("polychain-9-neb",), "gradients": (8,)}, "each of the 9 bends"),
        ({"curves": ("bezier-1", "bezier-1")}, "different curves"),
        ({"gradients": ()}, "--gradients"),
        ({"fit_seeds": 0}, "--fit-seeds"),
        ({"threshold": 0.0}, "positive barrier"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, words):
    with pytest.raises(mc.UserError, match=words):
        Finders(**settings)


def test_the_first_fit_is_that_of_connectivity_and_others_have_seeds_of_their_own():
    assert CurveName.of("bezier-2") == ("bezier", 2, "mean")
    seeds = [s.curve_seed for _, s in Finders(curves=("bezier-1",), fit_seeds=3).fits(7)]
    assert seeds == [None, None, 8, 9]


def test_rates_count_each_pair_once_and_a_single_pair_has_no_interval():
    same = {"gradients": 60, "strategy": "er", "learner": "fast", "seed": 0, "space": "factor", "end": "x"}
    fits = [
        same | {"curve": "c", "start": start, "chord_barrier": b, "success": b < 0.05, "mutual_information": 0.0}
        for start, found in {"1": [0.0, 0.0, 0.0, 0.0], "2": [0.2], "3": [0.0, 0.3]}.items()
        for b in found
    ]
    (row,) = success_table(pd.DataFrame(fits)).to_dict("records")
    assert row["success"] == pytest.approx((1 + 0 + 0.5) / 3) and (row["pairs"], row["fits"]) == (3, 7)
    assert 0 <= row["success_low"] < row["success"] < row["success_high"] <= 1 and row["largest_barrier"] == 0.3
    (one,) = success_table(pd.DataFrame(fits[:4])).to_dict("records")
    assert one["success"] == 1 and pd.isna(one["success_low"])
