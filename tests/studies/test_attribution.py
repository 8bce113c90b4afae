"""Attribution of a run: measured through the store, once; the numbers are those of points put together by hand."""

import pickle
import shutil

import numpy as np
import pandas as pd
import pytest
import torch

from mcanalysis.connectivity.attribution import WHOLE
from mcanalysis.errors import RunDirectoryError, UnknownNameError, UserError
from mcanalysis.evaluation.engine import Engine
from mcanalysis.params import combine, content_hash
from mcanalysis.runs.run import load_run
from mcanalysis.studies import points
from mcanalysis.studies.attribution import Attribution
from mcanalysis.studies.engine import Here, Piece
from mcanalysis.studies.study import carry_out
from mcanalysis.training.continual_trainer import train

SETTINGS = Attribution(num_points=3, num_examples=3)
# The middle of the whole path, then the middle and the far end of 14 groups held at either end; its ends, the minima,
# were measured on the same examples after training.
ALL = 1 + 2 * 14 * 2
SIZES = {"train": 8, "eval": 3, "test": 3}


@pytest.fixture(scope="module")
def trained(run_config, tmp_path_factory):
    """A finished run of two tasks on the tiny base, not to be written to."""
    directory = tmp_path_factory.mktemp("trained") / "run"
    train(run_config("sequential", num_steps=2, tasks=("FOMC", "MedMCQA"), sizes=SIZES), directory, device="cpu")
    return directory


@pytest.fixture
def finished(trained, tmp_path):
    """A copy of it to do with as one likes."""
    return shutil.copytree(trained, tmp_path / "run")


def noting(monkeypatch):
    """The content hashes of the points that are evaluated from now on, in order."""
    seen = []
    measure = Engine.measure

    def spy(self, point, objectives, *shown):
        seen.append(content_hash(point))
        return measure(self, point, objectives, *shown)

    monkeypatch.setattr(Engine, "measure", spy)
    return seen


@pytest.fixture
def evaluated(monkeypatch):
    return noting(monkeypatch)


@pytest.fixture(scope="module")
def studied(trained, tmp_path_factory):
    """A run that was taken apart once for all tests, not to be written to: directory, tables, what was evaluated."""
    directory = shutil.copytree(trained, tmp_path_factory.mktemp("studied") / "run")
    with pytest.MonkeyPatch.context() as patch:
        seen = noting(patch)
        return directory, study(directory), seen


def study(directory, settings=SETTINGS, **options):
    return carry_out(settings, [load_run(directory, "cpu")], directory.parent, **options).tables


def test_numbers_are_those_of_points_put_together_by_hand(studied):
    directory, result, _ = studied
    run = load_run(directory, "cpu")
    a, b = run.minimum(1).point, run.minimum(2).point
    half = combine([a, b], [0.5, 0.5])
    objective = run.objective("FOMC", "test", 3)
    curves = result["attribution"]
    table = curves[(curves.task == "FOMC") & (curves.t == 0.5)].set_index(["hold", "group"])
    for hold, rest in (("start", a), ("end", b)):
        for group, part in (("q_proj", ".q_proj."), ("model.layers.1", "layers.1."), (WHOLE, "")):
            mixed = {n: half[n] if part in n else rest[n] for n in a}
            found, row = objective(mixed), table.loc[(hold, group)]
            near = {"rel": 0, "abs": 10 * torch.finfo(torch.float32).eps * found.loss}
            assert row.loss == pytest.approx(found.loss, **near)
            assert row.score == found.score
            assert row.loss_change == pytest.approx(found.loss - objective(rest).loss, **near)
            other = objective({n: (b if hold == "start" else a)[n] if part in n else rest[n] for n in a})
            chord = (objective(rest).loss + other.loss) / 2
            assert row.loss_above_chord == pytest.approx(found.loss - chord, **near)


def test_tables_have_every_group_and_task_and_means(studied):
    directory, result, _ = studied
    tables = directory / "tables"
    curves, barriers = result["attribution"], result["attribution_barriers"]
    for name, table in result.items():
        pd.testing.assert_frame_equal(pd.read_csv(tables / f"{name}.csv"), table, check_dtype=False)
    groups = barriers[["grouping", "group"]].drop_duplicates()
    assert groups.grouping.value_counts().to_dict() == {"all": 1, "layer": 2, "kind": 4, "module": 8}
    assert set(barriers.task) == {"FOMC", "MedMCQA", "mean_old", "mean"}
    assert len(barriers) == 2 * 15 * 4 * 2 and len(curves) == 2 * 15 * 4 * 3
    assert set(barriers.hold) == {"start", "end"}
    cells = barriers[barriers.grouping == "module"]
    assert set(cells.kind) == {"q_proj", "k_proj", "v_proj", "o_proj"} and set(cells.layer) == {
        "model.layers.0",
        "model.layers.1",
    }
    for value in ("chord_barrier", "above_chord", "end_change"):
        low, high = barriers[f"{value}_low"], barriers[f"{value}_high"]
        assert (low <= high + 1e-12).all()
    wide = curves.pivot_table(index=["hold", "group", "t"], columns="task", values="loss")
    np.testing.assert_allclose(wide["mean"], (wide["FOMC"] + wide["MedMCQA"]) / 2)
    for role in ("old", "new"):
        stem = directory / "figures" / f"attribution_{role}_fast"
        assert all(stem.with_suffix(f".{s}").stat().st_size > 500 for s in ("png", "pdf", "txt"))


def test_a_second_study_computes_nothing_and_wants_no_piece(studied, tmp_path, evaluated, monkeypatch):
    directory, first, evaluated_first = studied
    assert len(evaluated_first) == ALL
    monkeypatch.setattr(points, "evaluate", lambda *a, **k: pytest.fail("a piece was computed"))
    second = study(shutil.copytree(directory, tmp_path / "run"))
    assert evaluated == []
    pd.testing.assert_frame_equal(first["attribution_barriers"], second["attribution_barriers"])


def test_a_killed_study_goes_on_where_it_was(finished, evaluated, monkeypatch):
    spied = Engine.measure
    monkeypatch.setattr(Attribution, "pictures", lambda *_: ())  # numbers alone

    def killed(self, point, objectives, *shown):
        if len(evaluated) == 10:
            raise KeyboardInterrupt
        return spied(self, point, objectives, *shown)

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "measure", killed)
        with pytest.raises(KeyboardInterrupt):
            study(finished)
    assert not (finished / "tables" / "attribution.csv").exists()
    study(finished)
    assert len(evaluated) == ALL


def test_the_whole_path_shares_its_points_with_the_connectivity_analysis(finished, evaluated, monkeypatch):
    from mcanalysis.studies.connectivity.study import Connectivity

    for kind in (Attribution, Connectivity):
        monkeypatch.setattr(kind, "pictures", lambda *_: ())  # numbers alone
    paths = ("linear-factor", "linear-delta", "linear-aligned")
    profiles = study(finished, Connectivity(num_points=3, num_examples=3, paths=paths))["profiles"]
    for path in paths:
        evaluated.clear()
        space = path.split("-")[1]
        result = study(finished, Attribution(1, space, 3, 3))
        run = load_run(finished, "cpu")
        assert content_hash(run.path(1, 2, space)(0.5)) not in evaluated
        assert len(evaluated) == ALL - 1
        curves = result["attribution"]
        whole = curves[(curves.group == WHOLE) & (curves.hold == "start")]
        known = profiles[(profiles.space == space) & (profiles.split == "test")]
        got, expected = (t.set_index(["task", "t"]).loss.sort_index() for t in (whole, known))
        pd.testing.assert_series_equal(got, expected)


@pytest.mark.slow
def test_pieces_that_were_sent_give_the_same_numbers(studied, trained, tmp_path):
    class Sent(Here):
        """Two workers that see of a piece what is left of it after a journey, and open the run themselves."""

        count = 2

        def submit(self, piece):
            function, arguments = pickle.loads(pickle.dumps((piece.function, piece.arguments)))
            return super().submit(Piece(piece.key, function, arguments))

    away = study(shutil.copytree(trained, tmp_path / "away" / "run"), workers=Sent())
    here = studied[1]
    pd.testing.assert_frame_equal(here["attribution_barriers"], away["attribution_barriers"])


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"num_points": 1}, UserError, "at least 2"),
        ({"num_examples": 0}, UserError, "num_examples of at least 1"),
        ({"space": "factors"}, UnknownNameError, "Did you mean 'factor'"),
    ],
)
def test_settings_out_of_range_are_refused(settings, error, message):
    with pytest.raises(error, match=message):
        Attribution(**settings)


@pytest.mark.parametrize("number", [0, 2, -1])
def test_a_transition_that_is_not_there_is_refused_before_anything_is_measured(finished, evaluated, number):
    with pytest.raises(UserError, match=rf"from 1 to 1 .*got {number}; change --transition"):
        study(finished, Attribution(number, num_points=3, num_examples=3))
    assert evaluated == []


def test_a_run_with_one_minimum_is_refused(run_config, tmp_path):
    train(run_config("sequential", num_steps=1, tasks=("FOMC",), sizes=SIZES), tmp_path / "one", device="cpu")
    with pytest.raises(RunDirectoryError, match="at least two minima, got 1"):
        study(tmp_path / "one")
