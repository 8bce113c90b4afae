"""`--help` answers at once, with what a newcomer looks for; `--help-all` shows the rest."""

import subprocess
import sys
from pathlib import Path

import pytest

from mcanalysis.__main__ import find_scripts, parsers

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


def test_help_shows_about_ten_flags_and_where_the_others_are():
    found = parsers()
    assert set(found) == set(find_scripts())
    for name, parser in found.items():
        few, all_of_them = (
            [line.split()[0].rstrip(",") for line in text.splitlines() if line.startswith("  -")]
            for text in (parser.format_help(everything=False), parser.format_help())
        )
        assert few[0] == all_of_them[0] == "-h" and len(few) <= 13, name
        assert "--help-all" in all_of_them and "--help-all" not in few and set(few) < set(all_of_them), name
    names = {action.option_strings[-1] for action in found["connectivity"]._actions}
    text = found["connectivity"].format_help(everything=False)
    shown = {"--run", "--strategy", "--seed", "--model", "--benchmark", "--data-dir", "--tasks", "--num-points"}
    assert all(f"  {flag} " in text for flag in {*shown, "--minima", "--data", "--output-dir", "--dry-run"})
    left_out = sum(int(word) for word in text.rpartition("--help-all: ")[2].replace(",", " ").split() if word.isdigit())
    assert left_out == len(names) - text.count("\n  --") - len({"--help", "--help-all"})


def test_help_all_shows_every_flag(script):
    code, few, _ = script("train", "--help")
    assert code == 0 and "--model" in few and "--lora-rank" not in few
    code, out, _ = script("train", "--help-all")
    assert code == 0 and "--lora-rank" in out and "--model" in out
