"""`analyses/early.py`: close to the losses on all examples, from fewer of them; what it refuses."""

import json

import pandas as pd
import pytest

from mcanalysis.runs.run import load_run

SMALL = (
    "--tasks", "FOMC,MedMCQA", "--steps", 30, "--num-train", 64, "--num-test", 2, "--batch-size", 4, "--workers", 1,
    "--device", "cpu",
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("early") / "runs"


@pytest.fixture
def shared_run(script, folder):
    """A folder with a trained run, whichever test asks first: they may be spread over processes."""
    directory = folder / "embedded-sequential-seed0"
    if not directory.exists():
        flags = [flag for flag in SMALL if flag not in ("--workers", 1)]
        code, _, err = script("train", "--strategy", "sequential", *flags, "--output-dir", directory)
        assert code == 0, err
    return folder


def test_losses_are_as_close_as_was_asked_for(script, shared_run):
    code, out, err = script(
        "early", *SMALL, "--output-dir", shared_run, "--tolerance", 0.3, "--num-points", 3, "--json"
    )
    assert code == 0, err
    document = json.loads(out)
    (directory,) = shared_run.glob("embedded-*")
    written = pd.read_csv(directory / "tables" / "early.csv")
    assert len(written) == len(document["tables"]["early"]) == 6
    run = load_run(directory)
    path = run.path(1, 2)
    for row in written.itertuples():
        assert row.half_width <= 0.3
        assert abs(run.objective(row.task)(path(row.t)).loss - row.loss) <= 0.3
    saved = {row["task"]: (row["saving"], row["examples"], row["of"]) for row in document["tables"]["early_tasks"]}
    assert any(saving > 0 for saving, *_ in saved.values()), saved
    for saving, examples, of in saved.values():
        assert saving == pytest.approx(1 - examples / of)


def test_a_tolerance_of_next_to_nothing_takes_all_examples_and_says_so(script, shared_run):
    (directory,) = shared_run.glob("embedded-*")
    code, out, err = script("early", "--run", directory, "--tolerance", 1e-9, "--num-points", 2)
    assert code == 0, err
    assert "200 of 200" in out and "0%" in out and "chord barrier" in out
    assert "nothing is estimated" in out and "confidence" not in out
    assert (pd.read_csv(directory / "tables" / "early.csv").half_width == 0).all()


@pytest.mark.parametrize(
    ("flags", "piece"),
    [
        (("--tolerance", 0), "tolerance above 0"),
        (("--confidence", 1), "confidence between 0 and 1"),
        (("--transition", 2), "from 1 to 1"),
        (("--split", "dev"), "split 'dev'"),
        (("--num-points", 1), "at least 2"),
        (("--space", "factors"), "Did you mean 'factor'"),
    ],
)
def test_bad_input_is_one_line(script, shared_run, flags, piece):
    (directory,) = shared_run.glob("embedded-*")
    code, out, err = script("early", "--run", directory, *flags)
    assert code == 2 and not out and len(err.splitlines()) == 1 and piece in err, err
