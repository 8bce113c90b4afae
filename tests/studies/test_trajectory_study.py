"""The training trajectory of small runs: coordinates against NumPy's SVD, losses against the engine, refusals."""

import shutil

import numpy as np
import pandas as pd
import pytest

from mcanalysis.errors import UserError
from mcanalysis.evaluation.engine import Engine
from mcanalysis.landscape import trajectory_pca
from mcanalysis.params import delta_weights
from mcanalysis.runs.run import load_run
from mcanalysis.runs.snapshots import read_snapshot, snapshot_files
from mcanalysis.store.manifest import read_manifest, write_manifest
from mcanalysis.store.point_files import write_tensors
from mcanalysis.studies.study import carry_out
from mcanalysis.studies.trajectory import Trajectory
from mcanalysis.training.config import Execution
from mcanalysis.training.continual_trainer import train

TASKS = ("FOMC", "MedMCQA", "JEC-QA")
LABELS = [f"{k}-{task}" for k, task in enumerate(TASKS, start=1)]
STEPS = 4
SETTINGS = Trajectory(num_losses=2, num_examples=3)


@pytest.fixture(scope="module")
def make_run(run_config, tmp_path_factory):
    """make_run(strategy, every) -> the folder of a run with a snapshot at every so many steps, trained once."""
    made = {}
    folder = tmp_path_factory.mktemp("runs")

    def make(strategy, every=1, tasks=TASKS):
        if (strategy, every) not in made:
            config = run_config(strategy, num_steps=STEPS, tasks=tasks, sizes={"train": 12, "eval": 3, "test": 4})
            target = folder / f"{strategy}-{every}"
            train(config, target, device="cpu", execution=Execution(save_trajectory=every))
            made[strategy, every] = target
        return made[strategy, every]

    return make


@pytest.fixture
def copied(make_run, tmp_path):
    """copied(strategy, every) -> the folder of a run of one's own."""
    return lambda *which: shutil.copytree(make_run(*which), tmp_path / which[0])


def study(directory, settings=SETTINGS):
    return carry_out(settings, [load_run(directory, "cpu")], directory.parent)


def walk(directory, learner):
    """All points of a learner by (minimum, step), minima last of their task, at step None."""
    run = load_run(directory, "cpu")
    for label in LABELS:
        for step, file in snapshot_files(directory, label, learner).items():
            yield (label, step), read_snapshot(file)
        yield (label, None), run.minimum(label, learner).point


def flat(point, space):
    tensors = point if space == "factor" else delta_weights(point)
    return np.concatenate([tensors[name].double().numpy().ravel() for name in sorted(tensors)])


def vectors(directory, learner, space):
    return {name: flat(point, space) for name, point in walk(directory, learner)}


@pytest.mark.parametrize("space", ["factor", "delta"])
def test_coordinates_are_those_of_numpys_singular_vectors(copied, space):
    directory = copied("ilora")
    table = study(directory, Trajectory(3, space, num_losses=0)).tables["trajectory_pca"]
    fast = vectors(directory, "fast", space)
    names = list(fast)
    # A task's last snapshot is its minimum, and the next task's first one, too.
    apart = [name for name, before in zip(names, [None, *names], strict=False) if before is None or
             not np.array_equal(fast[name], fast[before])]  # fmt: skip
    assert len(apart) == 1 + len(TASKS) * STEPS
    rows = np.stack([fast[name] for name in apart])
    mean = rows.mean(0)
    _, sizes, directions = np.linalg.svd(rows - mean, full_matrices=False)
    shares = sizes**2 / (sizes**2).sum()

    near = {"rel": 1e-3, "abs": 1e-4 * sizes[0]}
    own = table[table.learner == "fast"]
    assert own[own.fitted].groupby("minimum", sort=False).size().tolist() == [STEPS + 1, STEPS, STEPS]
    assert not table[table.learner == "slow"].fitted.any()
    assert list(table.learner) == ["fast"] * 18 + ["slow"] * 18
    for i in range(3):
        assert table[f"explained_{i + 1}"].unique() == pytest.approx([shares[i]], rel=1e-4)
    signs = np.sign((rows - mean) @ directions[:3].T * own[own.fitted][["pc_1", "pc_2", "pc_3"]].to_numpy())
    signs = np.sign(signs.sum(0))
    for learner in ("fast", "slow"):
        found = table[table.learner == learner]
        points = vectors(directory, learner, space)
        assert [(m, None if pd.isna(s) else s) for m, s in zip(found.minimum, found.step, strict=True)] == list(points)
        differences = np.stack(list(points.values())) - mean
        places = differences @ directions[:3].T * signs
        assert found[["pc_1", "pc_2", "pc_3"]].to_numpy() == pytest.approx(places, **near)
        rest = np.linalg.norm(differences - differences @ directions[:3].T @ directions[:3], axis=1)
        assert found.distance.to_numpy() == pytest.approx(rest, **near)


def test_losses_are_those_of_the_snapshots_and_means_those_of_the_old_tasks(copied):
    directory = copied("ilora")
    table = study(directory).tables["trajectory_losses"]
    assert set(zip(table.minimum, table.step, strict=True)) == {(n, s) for n in LABELS for s in (0, STEPS)}
    assert len(table) == 2 * 2 * (1 + (2 + 1) + (3 + 1))  # learners, snapshots; tasks and means of old ones
    run = load_run(directory, "cpu")
    cells = table.set_index(["learner", "minimum", "step", "task"])
    point = read_snapshot(snapshot_files(directory, LABELS[1], "slow")[STEPS])
    for task in TASKS[:2]:
        found, row = run.objective(task, "test", 3)(point), cells.loc[("slow", LABELS[1], STEPS, task)]
        assert row.loss == pytest.approx(found.loss, rel=1e-5) and row.score == found.score and row.num_examples == 3
    assert table.groupby("role").task.unique().map(set).to_dict() == {
        "old": {"FOMC", "MedMCQA", "mean_old"}, "new": set(TASKS)
    }  # fmt: skip
    last = cells.sort_index().loc[("fast", LABELS[2], STEPS)]
    assert last.loss["mean_old"] == pytest.approx(last.loss[["FOMC", "MedMCQA"]].mean())
    assert last.num_examples["mean_old"] == 6


def test_a_second_call_computes_nothing_and_another_snapshot_is_another_trajectory(copied, monkeypatch):
    directory = copied("sequential")
    study(directory)
    before = {f: f.read_bytes() for f in (*directory.rglob("tables/*.csv"), *directory.rglob("figures/*"))}
    calls = []
    fit, measure = trajectory_pca.fit_trajectory_pca, Engine.measure
    monkeypatch.setattr(trajectory_pca, "fit_trajectory_pca", lambda *a, **k: calls.append("fit") or fit(*a, **k))
    monkeypatch.setattr(Engine, "measure", lambda *a: calls.append("loss") or measure(*a))
    study(directory)
    assert calls == [] and {f: f.read_bytes() for f in before} == before
    files = snapshot_files(directory, LABELS[0], "fast")
    write_tensors(files[0], read_snapshot(files[2]))
    study(directory)
    assert calls == ["fit", "loss"]


def test_the_picture_and_its_caption_tell_shares_and_minima(copied):
    directory = copied("ilora")
    outcome = study(directory)
    stem = directory / "figures" / "trajectory_pca"
    assert set(outcome.figures) == {stem.with_suffix(".pdf"), stem.with_suffix(".png")}
    caption = stem.with_suffix(".txt").read_text()
    first = outcome.tables["trajectory_pca"].iloc[0]
    assert f"{first.explained_1 + first.explained_2:.0%} of the variance" in caption
    assert "3 = JEC-QA" in caption and "Projected onto it: slow" in caption and "3 examples per task" in caption
    said = "\n".join(part if isinstance(part, str) else str(part) for part in SETTINGS.words(outcome.tables))
    assert "ilora / seed 0, factor space" in said and f"{first.explained_1:.0%}" in said and "2-MedMCQA" in said


def test_runs_without_a_trajectory_are_refused_before_anything_is_computed(copied, monkeypatch):
    monkeypatch.setattr(trajectory_pca, "fit_trajectory_pca", None)
    directory = copied("sequential")
    shutil.rmtree(directory / "trajectory")
    with pytest.raises(UserError, match=r"no snapshots of its training: .* --save-trajectory 10"):
        study(directory)
    manifest = read_manifest(directory)
    manifest["config"]["strategy"] = "l2p"
    write_manifest(directory, manifest)
    with pytest.raises(UserError, match="one of l2p"):
        study(directory)
    for name, value in {"num_components": 1, "num_losses": -1, "num_examples": 0}.items():
        with pytest.raises(UserError, match=f"{name} of at least .*raise --{name.replace('_', '-')}"):
            Trajectory(**{name: value})


def test_adapters_that_grow_have_a_trajectory_of_their_products(make_run):
    directory = make_run("o_lora", 2)
    with pytest.raises(UserError, match="use --space delta"):
        study(directory)
    table = study(directory, Trajectory(space="delta", num_losses=0)).tables["trajectory_pca"]
    assert np.isfinite(table[["pc_1", "pc_2", "distance"]].to_numpy()).all()


def test_joint_training_has_one_minimum_and_no_old_tasks(make_run):
    tables = study(make_run("joint", 2)).tables
    assert set(tables["trajectory_pca"].minimum) == {"3-JOINT"}
    assert set(tables["trajectory_losses"].task) == set(TASKS) and set(tables["trajectory_losses"].role) == {"new"}
