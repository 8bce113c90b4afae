"""What tells stored values of one's own losses apart: the texts of the files that they are made in."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest

from mcanalysis.errors import UserError
from mcanalysis.store.measurements import Measurement
from mcanalysis.studies.own_objective import _measurement, own_objective, own_task

LIBRARY = "def make(scale):\n    def loss(network, tokenizer):\n        return 1.0 * scale\n    return loss\n"


@pytest.fixture
def write(tmp_path, monkeypatch):
    """write("name", text): a module as a new process would import it."""
    monkeypatch.syspath_prepend(str(tmp_path))
    written = set()

    def module(name, text):
        Path(tmp_path, f"{name}.py").write_text(text)
        sys.modules.pop(name, None)
        importlib.invalidate_caches()
        written.add(name)

    yield module
    for name in written:
        sys.modules.pop(name, None)


def test_a_loss_that_another_module_makes_is_told_apart_by_both(write):
    write("ownlib", LIBRARY)
    hashes = set()
    for text in ("make(1)", "make(22)"):
        write("ownloss", f"from ownlib import make\nloss = {text}\n")
        hashes.add(own_task("ownloss:loss").content_hash)
    write("ownlib", LIBRARY.replace("1.0", "2.0"))
    write("ownloss", "from ownlib import make\nloss = make(22)\n")
    hashes.add(own_task("ownloss:loss").content_hash)
    assert len(hashes) == 3


def test_what_is_called_is_any_callable(write):
    write(
        "ownpart",
        "from functools import partial\ndef f(network, tokenizer, scale): return scale\nloss = partial(f, scale=2.5)\n",
    )
    found = own_objective("ownpart:loss")
    assert found.name == "loss" and found.own(None, None).loss == 2.5


def test_a_file_that_was_edited_since_it_was_imported_is_refused(write, tmp_path):
    write("ownedit", LIBRARY + "loss = make(1)\n")
    own_task("ownedit:loss")
    Path(tmp_path, "ownedit.py").write_text(LIBRARY + "loss = make(22)\n")
    with pytest.raises(UserError, match=r"'ownedit' as it was when it was first used.*start Python anew"):
        own_task("ownedit:loss")
    write("ownedit", LIBRARY + "loss = make(22)\n")
    assert own_objective("ownedit:loss").own(None, None).loss == 22


def test_targets_that_are_no_whole_numbers_are_refused():
    """They would weigh losses otherwise in the mean than in its interval."""
    assert _measurement({"nll": [3.0, 1.0], "targets": [2.0, 1.0]}).loss == pytest.approx(4 / 3)
    for targets in ([1.5, 1.5], [0.5, 1.0], [-1.0, 2.0]):
        with pytest.raises(UserError, match="whole numbers of targets"):
            _measurement({"nll": [3.0, 1.0], "targets": targets})


def test_one_score_of_all_is_kept_beside_one_loss_and_refused_beside_losses_per_example():
    assert _measurement({"loss": 2.0, "score": 0.25}).score == 0.25
    with pytest.raises(UserError, match=r"scores \(n,\) beside nll"):
        _measurement({"nll": [3.0, 1.0], "targets": [2, 1], "score": 0.25})
    without = Measurement.of(np.array([3.0, 1.0]), np.array([2, 1]))  # its score is NaN: it has none
    assert _measurement(without).loss == without.loss
