"""`analyses/report.py` end to end on a run folder written by hand."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def finished_run(tmp_path):
    """A minimal finished run at runs/a: a manifest, a matrix, metrics."""
    folder = tmp_path / "runs" / "a"
    (folder / "tables").mkdir(parents=True)
    config = {"strategy": "sequential", "strategy_settings": {}, "seed": 0, "tasks": ["FOMC"], "model": "embedded"}
    manifest = {"status": "finished", "config": config, "seed": 0, "hashes": {"base": None, "data": {}}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "tables/accuracy_matrix.csv").write_text("after,FOMC\n0,0.125\n1,0.875\n")
    (folder / "tables/metrics.json").write_text('{"learners": {"fast": {"average_accuracy": 0.875}}}')
    return folder


def test_writes_the_report_beside_the_run_or_where_it_is_told(script, finished_run, tmp_path):
    code, out, err = script("report", "runs/a")
    assert code == 0, err
    assert "report of 1 run(s), 4." in out and "runs/a/report.html" in out
    assert "0.88" in (finished_run / "report.html").read_text(encoding="utf-8")
    code, out, err = script("report", "--output", "new/page.html")  # runs/, where the others write
    assert code == 0, err
    assert (tmp_path / "new/page.html").stat().st_size > 4e6
    assert not (tmp_path / "runs/comparison").exists()


def test_no_file_of_another_kind_is_replaced(script, finished_run):
    before = (finished_run / "manifest.json").read_bytes()
    code, _, err = script("report", "runs/a", "--output", "runs/a/manifest.json")
    assert code == 2 and "would be lost" in err and err.count("\n") == 1
    assert (finished_run / "manifest.json").read_bytes() == before


def test_a_folder_says_what_it_leaves_out(script, finished_run, tmp_path):
    other = tmp_path / "runs" / "unfinished"
    other.mkdir()
    manifest = json.loads((finished_run / "manifest.json").read_text())
    (other / "manifest.json").write_text(json.dumps(manifest | {"status": "running"}))
    code, out, err = script("report", "runs")
    assert code == 0, err
    assert "left out, not finished: unfinished" in out
    assert "Left out, not finished: unfinished" in (tmp_path / "runs/comparison/report.html").read_text(
        encoding="utf-8"
    )
    code, _, err = script("report", "runs/unfinished")
    assert code == 2 and "--resume" in err and "\n" not in err.strip()


@pytest.mark.parametrize(
    ("arguments", "pieces"),
    [
        (("none",), ("a run directory or a folder of runs at 'none'", "got no folder")),
        (("runs/a", "--num-samples", -1), ("at least 0 samples",)),
        (("runs/a", "--output", "."), ("got the folder",)),
        (("runs/a", "--output", "runs/a/manifest.json/x.html"), ("choose another --output",)),
    ],
)
def test_bad_input_ends_in_one_line_and_writes_nothing(script, finished_run, tmp_path, arguments, pieces):
    before = sorted(tmp_path.rglob("*"))
    code, _, err = script("report", *arguments)
    assert code == 2 and "\n" not in err.strip() and err.startswith("error: "), err
    assert all(piece in err for piece in pieces), err
    assert sorted(tmp_path.rglob("*")) == before


HELP = """
import runpy, sys
sys.argv = ["report.py", "--help"]
try:
    runpy.run_path("analyses/report.py", run_name="__main__")
except SystemExit:
    pass
assert not {"torch", "plotly", "pandas"} & set(sys.modules)
"""


def test_help_needs_no_heavy_library():
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "analyses")}
    done = subprocess.run([sys.executable, "-c", HELP], cwd=REPOSITORY, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "--num-samples" in done.stdout
