"""Strategies from outside: a file in a folder on the search path, and an installed package's entry point."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mcanalysis import strategies
from mcanalysis.errors import UserError

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


@pytest.fixture
def read_anew(monkeypatch):
    """read_anew(folder) -> the registry as a process has it that was started with this search path; in use meanwhile.

    Interpreters that start take longer than all that is tested here; a slow test starts one.
    """
    known = set(sys.modules)

    def read(folder):
        monkeypatch.setenv("MCANALYSIS_STRATEGY_PATH", str(folder))
        file = strategies.__file__
        spec = importlib.util.spec_from_file_location(
            strategies.__name__, file, submodule_search_locations=[str(Path(file).parent)]
        )
        package = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(package)
        monkeypatch.setattr(strategies, "__path__", package.__path__)
        monkeypatch.setattr(strategies, "_STRATEGIES", package._STRATEGIES)
        return package._STRATEGIES

    yield read
    own = str(REPOSITORY)
    for name in set(sys.modules) - known:
        if name.startswith("mcanalysis.strategies.") and not str(sys.modules[name].__file__).startswith(own):
            del sys.modules[name]
            vars(strategies).pop(name.rpartition(".")[2], None)


def test_a_file_on_the_search_path_trains(read_anew, environment, script, base_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    read_anew(environment["MCANALYSIS_STRATEGY_PATH"])
    code, out, err = script("train", "--strategy", "mine", "--settings", "weight=0.25", *SMALL, "--model", base_folder)
    assert code == 0, err
    assert "mine / fast" in out
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


def test_both_are_suggested_like_our_own(read_anew, environment, script, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(environment["PYTHONPATH"].rpartition(os.pathsep)[2])
    read_anew(environment["MCANALYSIS_STRATEGY_PATH"])
    code, _, err = script("train", "--strategy", "mien", *SMALL)
    assert code == 2 and err.count("\n") == 1
    assert "Unknown strategy 'mien'. Did you mean 'mine'?" in err
    assert {"mine", "theirs", "sequential"} <= set(err.split("one of: ")[1].rstrip(".\n").split(", "))
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


@pytest.mark.parametrize("file", WRONG)
def test_a_strategy_file_with_a_mistake_is_named_in_one_line(read_anew, tmp_path, file):
    text, pieces = WRONG[file]
    folder = tmp_path / file
    if text is not None:
        folder.mkdir()
        (folder / file).write_text(text)
    with pytest.raises(UserError) as refused:
        read_anew(folder).names()
    said = str(refused.value)
    assert "\n" not in said and all(piece in said for piece in pieces), said
