"""`--help` answers at once: no script loads a large library for it."""

import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
SCRIPTS = sorted(f for f in (REPOSITORY / "analyses").glob("*.py") if f.name != "start.py")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_help_loads_no_large_library(script):
    command = [sys.executable, "-X", "importtime", str(script), "--help"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout.startswith("usage: "), done.stderr
    loaded = {line.rpartition("|")[2].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert "mcanalysis" in loaded
    heavy = {"torch", "transformers", "peft", "datasets", "scipy", "matplotlib"}  # numpy and pandas: 0.3 s
    assert not heavy & loaded, heavy & loaded
