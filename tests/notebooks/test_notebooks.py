"""The notebooks of analyses/notebooks: cleared of output in git, and every cell of them runs."""

import json
import os
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="needs the packages of the extra `jupyter`")
nbclient = pytest.importorskip("nbclient", reason="needs the packages of the extra `jupyter`")

FOLDER = Path(__file__).parents[2] / "analyses" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
QUICK = "quick_start"


def test_there_are_the_four_that_the_docs_name():
    names = {file.stem for file in NOTEBOOKS}
    assert {QUICK, "your_own_adapters", "geometry_of_one_transition", "comparing_strategies"} <= names


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_cleared_of_output(file):
    text = file.read_text(encoding="utf-8")
    book = json.loads(text)
    nbformat.validate(nbformat.reads(text, as_version=4))
    for cell in book["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None, cell["id"]
    assert "widgets" not in book["metadata"]
    assert len(text) < 20_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One folder for all of them: a run that one has trained is there for the next, as it is for a reader."""
    return tmp_path_factory.mktemp("notebooks") / "analyses" / "notebooks"


# The first trains a run per strategy and seed, the second fits curves and a plane: `quick_start` has an explorer, too,
# and what they call is called by the tests of the studies.
LONG = {"comparing_strategies", "geometry_of_one_transition", "quick_start"}


@pytest.mark.parametrize(
    "file",
    [pytest.param(f, marks=pytest.mark.slow) if f.stem in LONG else f for f in NOTEBOOKS],
    ids=lambda file: file.stem,
)
def test_every_cell_runs(file, folder, monkeypatch):
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("OMP_NUM_THREADS", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(name, "1")
    book = nbformat.read(file, as_version=4)
    client = nbclient.NotebookClient(book, timeout=600, kernel_name="python3", resources={"metadata": {"path": folder}})
    client.execute(env=dict(os.environ))
    shown = [o for cell in book.cells if cell.cell_type == "code" for o in cell.outputs]
    assert not [o for o in shown if o.output_type == "error"]
    results = [o.data for o in shown if o.output_type in ("execute_result", "display_data")]
    assert any("<table" in data.get("text/html", "") for data in results)  # results show themselves
    if file.stem in (QUICK, "geometry_of_one_transition"):
        (explorer,) = (data for data in results if data.get("text/plain", "").startswith("Explorer("))
        assert "application/vnd.jupyter.widget-view+json" in explorer
        assert explorer["image/png"].startswith("iVBOR")  # for pages that show no widgets
    if file.stem != QUICK:
        assert any("image/png" in data for data in results)
