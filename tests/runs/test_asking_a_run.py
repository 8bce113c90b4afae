"""What a finished run is asked in another form than it takes is answered in one line, or taken."""

import os
import shutil
from pathlib import Path

import pytest
import torch

import mcanalysis as mc
from mcanalysis.errors import UserError

FINISHED = Path(__file__).parents[1] / "runs_of_version_0_1" / "finished"


@pytest.fixture(scope="module")
def run():
    return mc.load_run(FINISHED)


def test_a_path_between_minima_is_that_between_their_numbers(run):
    for learner in ("fast", "slow"):
        first, second = run.minima_of(learner)
        by_hand, found = run.path(1, 2, learner=learner)(0.25), run.path(first, second)(0.25)
        assert by_hand.keys() == found.keys() and all(torch.equal(by_hand[n], found[n]) for n in found)
    with pytest.raises(UserError, match=r"Expected a point .* got Minimum; take its \.point"):
        mc.Linear(first, second)


def test_a_minimum_of_another_run_is_no_end_of_a_path_here(run, tmp_path):
    other = mc.load_run(shutil.copytree(FINISHED, tmp_path / "other"))
    with pytest.raises(UserError, match="Expected a minimum of a learner of the run"):
        run.path(1, other.minima[1])
    with pytest.raises(UserError, match="Expected a minimum of slow of the run"):
        run.ends(run.minima_of("fast")[0], 2, "slow")
    here = mc.load_run(Path(os.path.relpath(FINISHED)))
    first = run.minima[0]
    assert here.minimum(first) is first  # the same folder by another name
    assert run.minimum(run.minimum("base")).label == "0-BASE"


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda run: run.loss("FOMC"), r"groups of tasks such as \[\[.*got 'FOMC'; put each group into a list"),
        (lambda run: run.loss(["FOMC", "NumGLUE-cm"]), "groups of tasks such as"),
        (lambda run: run.whole_loss(["FOMC"]), r"groups of tasks such as .* got \['FOMC'\]"),
        (lambda run: run.objective(["FOMC"]), r"the name of a task, got \['FOMC'\]; give one name"),
        (lambda run: run.batch_losses([["FOMC"]]), r"the name of a task, got \['FOMC'\]"),
        (lambda run: run.objective("FOMC", num_examples=0), "num_examples of at least 1, got 0; leave it out"),
        (lambda run: run.objective("FOMC", num_examples=-1), "num_examples of at least 1, got -1"),
    ],
)
def test_what_is_asked_in_another_form_is_told_in_one_line(run, ask, message):
    with pytest.raises(UserError, match=message) as caught:
        ask(run)
    assert "\n" not in str(caught.value)
