"""Strategies from outside: a file in a folder on the search path, and an installed package's entry point."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
SMALL = (
    "--tasks", "FOMC", "--steps", "2", "--num-train", "8", "--num-test", "2", "--batch-size", "4", "--device", "cpu",
)  # fmt: skip

MINE = '''
from dataclasses import dataclass

from mcanalysis.errors import UserError
from mcanalysis.strategies.strategy import Strategy, StrategyConfig


@dataclass(frozen=True)
class MineConfig(StrategyConfig):
    weight: float = 0.5

    def __post_init__(self):
        if not self.weight > 0:
            raise UserError(f"Expected a positive weight, got {self.weight}; try 0.5.")


class Mine(Strategy):
    """Weighted cross entropy."""

    name = "{name}"
    reference = "none"
    config_class = MineConfig

    def loss(self, step):
        return self.config.weight * step.current_loss(step.forward())
'''


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """One strategy in a folder on MCANALYSIS_STRATEGY_PATH, one in a package that is installed beside ours."""
    folder = tmp_path_factory.mktemp("strategies")
    (folder / "search").mkdir()
    (folder / "search" / "weighted.py").write_text(MINE.replace("{name}", "mine"))
    site = folder / "site"
    information = site / "theirs-1.0.dist-info"
    information.mkdir(parents=True)
    (site / "theirs_package.py").write_text(MINE.replace("{name}", "theirs"))
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text("[mcanalysis.strategies]\ntheirs = theirs_package:Mine\n")
    return {
        **os.environ,
        "MCANALYSIS_STRATEGY_PATH": str(folder / "search"),
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(site)]),
    }


@pytest.fixture
def run_script(environment, tmp_path):
    def run(name, *arguments):
        command = [sys.executable, str(REPOSITORY / "analyses" / f"{name}.py"), *arguments]
        return subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=600)

    return run


def test_a_file_on_the_search_path_trains(run_script, tmp_path):
    done = run_script("train", "--strategy", "mine", "--settings", "weight=0.25", *SMALL)
    assert done.returncode == 0, done.stderr
    assert "mine / fast" in done.stdout
    run = tmp_path / "runs" / "embedded-mine-seed0"
    assert json.loads((run / "manifest.json").read_text())["config"]["strategy_settings"] == {"weight": 0.25}
    assert (run / "minima/1-FOMC/fast/adapter_model.safetensors").exists()


@pytest.mark.slow
def test_an_entry_point_trains_beside_it(run_script, tmp_path):
    done = run_script("compare", "--strategy", "theirs,mine", "--seed", "0", "--workers", "1", *SMALL)
    assert done.returncode == 0, done.stderr
    assert {p.name for p in (tmp_path / "runs" / "compare").iterdir()} == {
        "embedded-theirs-seed0", "embedded-mine-seed0", "comparison",
    }  # fmt: skip


def test_both_are_suggested_like_our_own(run_script, tmp_path):
    done = run_script("train", "--strategy", "mien", *SMALL)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "Unknown strategy 'mien'. Did you mean 'mine'?" in done.stderr
    assert {"mine", "theirs", "sequential"} <= set(done.stderr.split("one of: ")[1].rstrip(".\n").split(", "))
    assert not list(tmp_path.iterdir())


WRONG = {
    "broken.py": ("import nothing_of_this_name", ("can be imported", "nothing_of_this_name", "broken.py")),
    "syntax.py": ("class Mine(", ("can be imported", "SyntaxError", "syntax.py")),
    "second.py": (MINE.replace("{name}", "er"), ("two called er", "second.py")),
    "er.py": (MINE.replace("{name}", "mine"), ("a second er", "er.py")),
    "nameless.py": (MINE.replace('name = "{name}"', ""), ("a strategy with a name", "nameless.py")),
    "schedule.py": (
        MINE.replace('name = "{name}"', 'name = "mine"; schedule = "randomly"'),
        ("schedule of mine", "randomly", "schedule.py"),
    ),
    "absent": (None, ("MCANALYSIS_STRATEGY_PATH", "absent")),
}
NAMES = """
import os, sys
import peft, transformers.trainer  # what takes long in importing strategies

for folder in sys.argv[1:]:
    if os.fork() == 0:
        os.environ["MCANALYSIS_STRATEGY_PATH"] = folder
        from mcanalysis.errors import UserError
        from mcanalysis.strategies import strategy_names

        try:
            strategy_names()
        except UserError as error:
            print(error)
        sys.exit()
    os.wait()
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """What is said of each wrong file, or of a folder that is not there."""
    folders = [tmp_path_factory.mktemp("wrong") / name for name in WRONG]
    for folder, (file, (text, _)) in zip(folders, WRONG.items(), strict=True):
        if text is not None:
            folder.mkdir()
            (folder / file).write_text(text)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", NAMES, *map(str, folders)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0 and not done.stderr, done.stderr
    return dict(zip(WRONG, done.stdout.splitlines(), strict=True))


@pytest.mark.parametrize("file", WRONG)
def test_a_strategy_file_with_a_mistake_is_named_in_one_line(told, file):
    assert all(piece in told[file] for piece in WRONG[file][1]), told[file]
