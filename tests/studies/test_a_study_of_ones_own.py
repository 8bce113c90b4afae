"""A study that a stranger has written: one file in a folder of their own, carried out in Python and as a script."""

import importlib
import json
import sys

import pandas as pd
import pytest

from mcanalysis.cli.studies import run_study
from mcanalysis.params import norm
from mcanalysis.runs.run import load_run
from mcanalysis.studies.study import carry_out
from mcanalysis.training.continual_trainer import train

FILE = '''
"""How long the minima of a run are."""

from dataclasses import dataclass
from typing import Annotated

import pandas as pd

from mcanalysis.store.results import JsonResult
from mcanalysis.studies.engine import Piece
from mcanalysis.studies.study import Study


@dataclass(frozen=True)
class Lengths(Study):
    """How long the minima of a run are, times a factor."""

    factor: Annotated[float, "what lengths are multiplied by"] = 1.0

    strategies = ("sequential",)

    def measure(self, run, setting):
        kept = JsonResult(run.directory / "lengths" / f"{self.factor}.json")
        (found,) = yield [Piece(str(kept.file), lengths, (run.opening, self.factor), kept)]
        return {"lengths": pd.DataFrame({"minimum": found.keys(), "length": found.values()})}

    def words(self, tables):
        yield "\\nLengths of minima"
        yield [["minimum", "length"], *([m, f"{v:.3f}"] for m, v in tables["lengths"].to_numpy())]


def lengths(opening, factor, progress):
    from mcanalysis.params import norm

    return {minimum.label: factor * norm(minimum.point) for minimum in opening.run.minima}
'''


@pytest.fixture
def own(tmp_path, monkeypatch, run_config):
    """The module, and the folder of a finished run."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "lengths_of_minima.py").write_text(FILE)
    monkeypatch.syspath_prepend(str(tmp_path / "code"))
    config = run_config(num_steps=2, tasks=("FOMC", "MedMCQA"), sizes={"train": 8, "eval": 2, "test": 2})
    train(config, tmp_path / "runs" / "a", device="cpu")
    yield importlib.import_module("lengths_of_minima"), tmp_path / "runs" / "a"
    sys.modules.pop("lengths_of_minima")


def test_it_is_carried_out_and_becomes_a_script(own, monkeypatch, capsys):
    module, directory = own
    expected = [float(norm(minimum.point)) for minimum in load_run(directory, "cpu").minima]

    outcome = carry_out(module.Lengths(2.0), [load_run(directory, "cpu")], directory.parent)
    table = pd.read_csv(directory / "tables" / "lengths.csv")
    pd.testing.assert_frame_equal(table, outcome.tables["lengths"])
    assert table.minimum.tolist() == ["1-FOMC", "2-MedMCQA"]
    assert table.length.tolist() == pytest.approx([2 * length for length in expected])

    with monkeypatch.context() as patch:
        patch.setattr(module, "lengths", lambda *a, **k: pytest.fail("computed again"))
        carry_out(module.Lengths(2.0), [load_run(directory, "cpu")], directory.parent)

    def script(*flags):
        monkeypatch.setattr(sys, "argv", ["lengths.py", *flags])
        run_study(module.Lengths, "How long the minima are.")
        return capsys.readouterr().out

    flags = ("--run", str(directory), "--device", "cpu", "--factor", "3")
    rows = json.loads(script(*flags, "--json"))["tables"]["lengths"]
    assert [row["length"] for row in rows] == pytest.approx([3 * length for length in expected])
    said = script(*flags)
    assert f"{3 * expected[1]:.3f}" in said and "lengths.csv" in said
    with pytest.raises(SystemExit):
        script("--help")
    assert "what lengths are multiplied by (default: 1.0)" in capsys.readouterr().out
