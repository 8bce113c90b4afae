"""Scripts run in an empty working folder."""

import pytest


@pytest.fixture
def script(script, monkeypatch, tmp_path):
    """`script("connectivity", "--num-points", "1")` gives (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    return script
