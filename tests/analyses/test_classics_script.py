"""`analyses/classics.py`: tables and a figure from one command, one line for a mistake, help at once."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "analyses" / "classics.py"


@pytest.fixture
def quick(monkeypatch):
    """The garipov study with a few steps."""
    from mcanalysis.classics import study
    from mcanalysis.classics.digits import Recipe
    from mcanalysis.classics.garipov import GARIPOV, Settings, measure_garipov

    settings = Settings(hidden=(8,), recipe=Recipe(num_steps=60), curve_steps=20)
    short = dataclasses.replace(GARIPOV, measure=lambda seeds: measure_garipov(seeds, settings))
    monkeypatch.setattr(study, "CLASSICS", {"garipov": short})


def test_tables_and_figure(script, tmp_path, quick):
    code, out, err = script("classics", "garipov", "--seeds", 2, "--output-dir", "out")
    assert code == 0, err
    assert "barrier of the line, train loss" in out and "interval above 0.23 nats" in out
    names = sorted(f.name for f in (tmp_path / "out").iterdir())
    assert names == ["classics.csv", "classics.md", "garipov.pdf", "garipov.png"]


@pytest.mark.parametrize(
    ("arguments", "pieces"),
    [
        (("frankel",), ("Unknown classic result 'frankel'", "Did you mean 'frankle'?")),
        (("garipov", "--seeds", 0), ("--seeds", "from 1 to 1,000", "got '0'")),
    ],
)
def test_a_mistake_is_one_line(script, tmp_path, arguments, pieces):
    code, out, err = script("classics", *arguments)
    assert code == 2 and not out
    assert err.startswith("error: ") and err.count("\n") == 1 and all(piece in err for piece in pieces)
    assert list(tmp_path.iterdir()) == []


def test_help_needs_no_torch_and_names_the_results():
    done = subprocess.run([sys.executable, "-X", "importtime", SCRIPT, "--help"], capture_output=True, text=True)
    imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
    assert done.returncode == 0 and "argparse" in imported and not imported & {"torch", "transformers", "matplotlib"}
    assert all(word in done.stdout for word in ("garipov", "frankle", "mirzadeh", "ainsworth", "jordan", "--seeds"))
