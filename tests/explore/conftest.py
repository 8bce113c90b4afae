"""A small finished run with stored profiles, and one without."""

import shutil

import pytest


@pytest.fixture(scope="session")
def measured_run(run_config, tmp_path_factory):
    """A sequential run on three tasks with profiles on three points of the first paths; not to be written to."""
    from mcanalysis.runs.run import load_run
    from mcanalysis.studies.connectivity.study import Connectivity
    from mcanalysis.studies.study import carry_out
    from mcanalysis.training.continual_trainer import train

    directory = tmp_path_factory.mktemp("explored") / "run"
    sizes = {"train": 8, "eval": 4, "test": 6}
    train(run_config(tasks=("C-STANCE", "FOMC", "MeetingBank"), sizes=sizes), directory)
    run = load_run(directory)
    paths = ("linear-factor", "bezier-factor")
    carry_out(Connectivity(num_points=3, num_examples=4, paths=paths, curve_steps=1), [run], directory.parent)
    return run


@pytest.fixture
def run(measured_run, tmp_path):
    """A copy of one's own, opened anew on the same model."""
    from mcanalysis.runs.run import load_run

    directory = tmp_path / "run"
    shutil.copytree(measured_run.directory, directory)
    copy = load_run(directory)
    copy.__dict__["model"], copy.__dict__["tasks"] = measured_run.model, measured_run.tasks
    return copy


@pytest.fixture
def unmeasured_run(run):
    """The same as training leaves it."""
    (run.directory / "tables" / "profiles.csv").unlink()
    shutil.rmtree(run.directory / "curves")
    return run


@pytest.fixture
def plane_table(run):
    """plane_table(space="factor") writes tables/landscape.csv: a bowl over the plane of the first three minima."""
    import numpy as np
    import pandas as pd

    from mcanalysis.paths.plane import Plane

    def write(space="factor", start=1):
        minima = [run.minimum(k) for k in (start, start + 1, 3 if start == 1 else 1)]
        plane = Plane(*(m.point for m in minima), space=space)
        anchors = plane.anchor_coordinates.tolist()
        places = [(x, y, None) for y in np.linspace(-1, 9, 4) for x in np.linspace(-1, 9, 5)]
        places += [(x, y, f"{m.label} fast") for m, (x, y) in zip(minima, anchors, strict=True)]
        rows = [
            {
                "strategy": "sequential", "learner": "fast", "seed": 0, "space": space, "kind": "plane",
                "start": minima[0].label, "end": minima[1].label, "x": x, "y": y, "anchor": name, "task": task,
                "split": "test", "loss": 0.1 + x**2 + y**2, "score": 1 / (1 + x**2), "measured": True,
            }
            for x, y, name in places
            for task in ("mean_old", "mean", run.task_names[start])
        ]  # fmt: skip
        pd.DataFrame(rows).to_csv(run.directory / "tables" / "landscape.csv", index=False)

    return write
