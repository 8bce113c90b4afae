"""The pages of docs/ run as they stand: every Python block, in an empty folder; and the commands they name."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

REPOSITORY = Path(__file__).parents[1]
PAGES = ("geometry.md", "your-own-adapters.md")


def blocks(page, language):
    text = (REPOSITORY / "docs" / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def run_python(page, names):
    """Run a page's Python blocks one after another, with the line numbers of the page in tracebacks."""
    text = (REPOSITORY / "docs" / page).read_text(encoding="utf-8")
    for block in blocks(page, "python"):
        line = text[: text.index(block)].count("\n")
        exec(compile("\n" * line + block, f"docs/{page}", "exec"), names)
    return names


@pytest.fixture
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng():  # the pages seed the global state, as a reader would
        yield tmp_path


def test_geometry(empty_folder, capsys):
    run_python("geometry.md", {})
    assert not list(empty_folder.iterdir())
    assert capsys.readouterr().out


def test_your_own_adapters(empty_folder, capsys):
    names = run_python("your-own-adapters.md", {})
    for folder in ("first", "second", "middle"):
        assert (empty_folder / folder / "adapter_config.json").exists()
    assert (empty_folder / "profile.png").stat().st_size > 1000
    assert 0 < names["error"] < 1
    assert names["bent"].max_barrier() < names["straight"].max_barrier() / 3
    first, last = names["profile"].losses[[0, -1]]
    assert max(first, last) < 1.2  # both were trained: the untrained base has a loss of 2.5 and more


@pytest.mark.slow
def test_the_command_for_your_own_adapters(empty_folder):
    exec(blocks("your-own-adapters.md", "python")[0], {})
    (command,) = blocks("your-own-adapters.md", "bash")
    python, script, *flags = shlex.split(command)
    assert python == "python"
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / script), *flags], capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr
    for file in ("figures/connectivity_fast.png", "tables/profiles.csv", "tables/barriers.csv"):
        assert (empty_folder / "between" / file).stat().st_size > 100
    assert "1-first → 2-second" in done.stdout


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    text = (REPOSITORY / "docs" / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert (REPOSITORY / "docs" / target).exists(), target
    for script in re.findall(r"analyses/\w+\.py", text):
        assert (REPOSITORY / script).exists(), script
