"""Studies on ranks give what one process gives; a rank is killed on the way, and the restart computes what is missing.

Everything with two ranks happens in two launches: one that loses a rank, and one that goes on and finishes.
"""

import importlib.util
import json
import shutil
import sqlite3

import numpy as np
import pandas as pd
import pytest

from mcanalysis.store.measurements import MeasurementStore
from mcanalysis.training.continual_trainer import train

pytestmark = pytest.mark.slow  # two launches: about a minute of two cores

TASKS = ("FOMC", "MedMCQA", "JEC-QA")

STUDIES = """
import os, sys
from mcanalysis.evaluation.engine import Engine

rank = os.environ.get("RANK", "0")
folder = os.path.dirname(os.path.abspath(__file__))
evaluate = Engine.evaluate
calls = 0

def spy(self, point, objectives):
    global calls
    calls += 1
    if sys.argv[2:] == ["die"] and rank == "1" and calls == 8:
        os.kill(os.getpid(), 9)
    with open(f"{folder}/evaluated.{rank}", "a") as stream:
        stream.write(f"{sum(len(o.encoded) for o in objectives)}\\n")
    return evaluate(self, point, objectives)

def studies(directory):
    from dataclasses import replace
    from mcanalysis.studies.connectivity.settings import ConnectivitySettings
    from mcanalysis.studies.attribution import AttributionSettings, study_attribution
    from mcanalysis.studies.connectivity.study import Study, analyse_connectivity
    from mcanalysis.studies.landscape.study import LandscapeSettings, study_landscape
    from mcanalysis.runs.run import load_run
    runs = [load_run(directory, "cpu")]
    settings = ConnectivitySettings(
        num_points=5, num_examples=10, paths=("linear-factor", "bezier-delta"), curve_steps=2, ensemble=2,
        simplex=(1, 2, 3),
    )
    study = Study(settings, ("linear-factor",))
    analyse_connectivity(runs, f"{directory}-of", study)
    adaptive = replace(settings, paths=("linear-delta",), adaptive=1e-6, num_points=6, ensemble=0, simplex=())
    os.rename(f"{directory}/tables/profiles.csv", f"{directory}/tables/grid_profiles.csv")
    analyse_connectivity(runs, f"{directory}-of", replace(study, settings=adaptive))
    study_landscape(runs, f"{directory}-of", LandscapeSettings(
        grid=(3, 3), num_examples=10, num_directions=1, slice_points=3, sharpness_samples=2,
    ))
    study_attribution(runs, AttributionSettings(num_points=3, num_examples=10))

if __name__ == "__main__":
    from mcanalysis.errors import UserError
    from mcanalysis.studies.launch import Launch
    from mcanalysis.studies.ranks import Ranks, serve
    launch = Launch.of_environment()
    if launch.rank:
        Engine.evaluate = spy
        serve(launch)
    else:
        try:
            with Ranks(launch):
                studies(sys.argv[1])
        except UserError as error:
            print(f"rank 0: {error}", file=sys.stderr, flush=True)
            sys.exit(2)
elif __name__ == "__mp_main__":  # the worker beside rank 0
    Engine.evaluate = spy
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    file = tmp_path_factory.mktemp("studies") / "studies.py"
    file.write_text(STUDIES, encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def trained(run_config, tmp_path_factory):
    config = run_config("sequential", num_steps=2, tasks=TASKS, sizes={"train": 8, "eval": 10, "test": 10})
    directory = tmp_path_factory.mktemp("trained") / "run"
    train(config, directory, device="cpu")
    return directory


@pytest.fixture(scope="module")
def with_one(trained, script):
    """The run as one process studies it."""
    directory = shutil.copytree(trained, script.parent / "one")
    spec = importlib.util.spec_from_file_location("studies", script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.studies(str(directory))
    return directory


def rows(directory):
    """(num_examples, created) by key."""
    with sqlite3.connect(directory / "measurements.sqlite") as connection:
        found = connection.execute(
            "SELECT point_key, task, split, settings_key, num_examples, created FROM measurements"
        ).fetchall()
    connection.close()
    return {tuple(row[:4]): row[4:] for row in found}


def num_evaluated(folder):
    return sum(int(line) for file in folder.glob("evaluated.*") for line in file.read_text().split())


@pytest.fixture(scope="module")
def with_two(trained, script, launch):
    """The run as two ranks study it, of which one is lost and starts again; and what was seen on the way."""
    directory = shutil.copytree(trained, script.parent / "two")
    of_training = set(rows(directory))
    code, _, err = launch(2, script, directory, "die")
    lost = {"code": code, "lines": [line for line in err.splitlines() if line.startswith("rank 0: ")], "err": err}
    kept = set(rows(directory))
    with sqlite3.connect(directory / "measurements.sqlite") as connection:
        connection.execute("UPDATE measurements SET created = 'before'")
    connection.close()
    for file in script.parent.glob("evaluated.*"):
        file.unlink()
    code, _, err = launch(2, script, directory)
    assert code == 0, err[-3000:]
    return directory, lost, of_training, kept, num_evaluated(script.parent)


def test_a_killed_rank_ends_the_study_with_one_line_and_keeps_what_was_stored(with_two, with_one):
    _, lost, of_training, kept, _ = with_two
    assert lost["code"] != 0
    assert len(lost["lines"]) == 1 and "got process 1 (pid " in lost["lines"][0], lost["err"][-3000:]
    assert of_training < kept < set(rows(with_one))


def test_a_restart_evaluates_what_is_missing_and_nothing_else(with_two):
    directory, _, _, kept, evaluated = with_two
    now = rows(directory)
    assert {key for key, (_, created) in now.items() if created == "before"} == kept
    assert evaluated == sum(number for key, (number, _) in now.items() if key not in kept)


def test_every_example_has_the_loss_that_one_process_finds(with_two, with_one):
    one, two = rows(with_one), rows(with_two[0])
    assert set(one) == set(two)
    alone, together = (MeasurementStore(run / "measurements.sqlite") for run in (with_one, with_two[0]))
    with alone, together:
        for key in one:
            a, b = alone.get(key), together.get(key)
            np.testing.assert_allclose(b.nll, a.nll, rtol=0, atol=1e-5)
            assert b.loss == pytest.approx(a.loss, abs=1e-5)
            np.testing.assert_array_equal(b.targets, a.targets)
            np.testing.assert_array_equal(b.scores, a.scores)
            assert b.score == pytest.approx(a.score, abs=1e-12)


def test_the_same_tables_figures_and_nothing_left_over(with_two, with_one):
    two = with_two[0]
    files = {f.relative_to(with_one) for f in with_one.rglob("*") if f.is_file()}
    assert files == {f.relative_to(two) for f in two.rglob("*") if f.is_file()}
    for file in sorted(f for f in files if f.suffix == ".csv"):
        expected, found = pd.read_csv(with_one / file), pd.read_csv(two / file)
        pd.testing.assert_frame_equal(found, expected, rtol=1e-4, atol=1e-4, obj=str(file))
    of_metrics = [json.loads((run / "tables" / "metrics.json").read_text()) for run in (with_one, two)]
    assert of_metrics[0] == of_metrics[1]
