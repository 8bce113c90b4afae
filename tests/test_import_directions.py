"""Imports go down only, each third-party library has one home, and `cli` alone prints and reads the command line."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
PACKAGE = REPOSITORY / "mcanalysis"

# What each part of the package may import besides itself; `ANYWHERE` may be imported by all.
BELOW = {
    "errors": set(),
    "progress": set(),
    "time_limit": set(),
    "surroundings": set(),
    "registry": set(),
    "numbers_as_text": set(),
    "settings": set(),
    "fonts": set(),
    "params": set(),
    "metrics": set(),
    "store": set(),
    "html_table": set(),  # how results show themselves in a notebook
    "paths": {"params"},
    "symmetry": {"params"},
    "tasks": {"metrics", "store"},
    "benchmarks": {"tasks", "metrics", "store"},
    "models": {"tasks", "params", "store"},
    "recipes": {"models", "paths", "params", "store"},  # of other tools
    "replay": {"models"},  # remembers encoded examples
    "pretraining": {"tasks", "models", "store", "metrics"},
    "strategies": {"models", "replay", "params", "paths"},
    "evaluation": {"models", "benchmarks", "tasks", "metrics", "params", "store"},
    "runs": {
        "strategies", "evaluation", "benchmarks", "models", "pretraining", "tasks", "paths", "params", "metrics",
        "store", "html_table",
    },
}  # fmt: skip
_RUN_AND_BELOW = {"runs", *BELOW["runs"], "replay"}
BELOW |= {
    "training": _RUN_AND_BELOW,
    "connectivity": {"paths", "params", "metrics", "store", "html_table"},  # of any network
    "landscape": {"connectivity", "paths", "params", "metrics", "store"},
    "plotting": {"metrics", "store", "paths", "params", "fonts"},  # draws tables, computes nothing
}
BELOW["explore"] = _RUN_AND_BELOW | {"connectivity", "landscape", "plotting", "fonts"}
BELOW["studies"] = set(BELOW)
BELOW |= {  # for any network, nothing of runs
    "classics": {"connectivity", "symmetry", "paths", "params", "metrics", "store", "plotting"},
    "closed_forms": {"connectivity", "landscape", "metrics", "models", "paths", "params"},
    "coverage": {"connectivity", "metrics"},
}
BELOW["report"] = {"studies", "plotting", "fonts", "runs", "tasks", "store"}
BELOW["integrations"] = {"studies", "training", *_RUN_AND_BELOW}  # what the trainers of others are given
BELOW["cli"] = set(BELOW)
BELOW["__main__"] = {"cli"}  # the door to scripts and studies
ANYWHERE = {"errors", "progress", "registry", "numbers_as_text", "settings", "time_limit", "surroundings"}
DOORS = {("runs", "explore")}  # the one import upwards, when `run.explore()` is called

SOURCES = sorted(PACKAGE.rglob("*.py"))
PARTS = sorted({f.relative_to(PACKAGE).parts[0].removesuffix(".py") for f in SOURCES} - {"__init__"})


TREES = {file: ast.parse(file.read_text(encoding="utf-8")) for file in SOURCES}


def part_of(file):
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(file):
    """Full names of the modules a file imports, wherever in the file."""
    names = []
    for node in ast.walk(TREES[file]):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def importers_of(library):
    return {part_of(f) for f in SOURCES if any(n.split(".")[0] == library for n in imported(f))}


@pytest.mark.parametrize("part", PARTS)
def test_imports_go_down_only(part):
    assert part in BELOW, f"give '{part}' its place in BELOW"
    for file in SOURCES:
        if part_of(file) == part:
            for name in imported(file):
                if name.startswith("mcanalysis."):
                    target = name.split(".")[1]
                    allowed = target in BELOW[part] | ANYWHERE | {part} or (part, target) in DOORS
                    assert allowed, f"{file.relative_to(REPOSITORY)} imports {name}"


def test_the_table_above_has_no_cycle():
    for part, below in BELOW.items():
        for lower in below:
            assert part not in BELOW[lower], f"{part} and {lower} may import each other"


def test_strategies_know_neither_each_other_nor_trainer_nor_tasks():
    for file in (PACKAGE / "strategies").glob("*.py"):
        names = [n for n in imported(file) if n.startswith("mcanalysis.")]
        assert not [n for n in names if n.split(".")[1] in ("training", "tasks", "benchmarks")]
        siblings = [n for n in names if n.startswith("mcanalysis.strategies.")]
        assert all(n.startswith("mcanalysis.strategies.strategy.") for n in siblings), file


def test_each_library_has_its_home():
    assert importers_of("matplotlib") <= {"plotting"}
    assert importers_of("peft") == {"models"}
    for part in ("params", "paths", "metrics"):
        for library in ("transformers", "peft", "matplotlib", "accelerate", "datasets"):
            assert part not in importers_of(library)


IF_INSTALLED = {"mergekit"}  # looked at where somebody has it; it wants another torch than ours


def not_declared(modules, extras=None):
    """Which of the modules' packages neither the package nor these of its extras (all of them, unasked) name."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["project"]
    optional = project["optional-dependencies"]
    lines = [*project["dependencies"], *(line for extra in extras or optional for line in optional[extra])]
    declared = {re.split(r"[<>=\[; ]", line)[0].lower().replace("_", "-") for line in lines}
    whose = packages_distributions()
    for module in sorted(modules - set(sys.stdlib_module_names) - {"mcanalysis"}):
        names = {name.lower().replace("_", "-") for name in whose.get(module, [module])}
        if not names & declared:
            yield module


def test_whatever_is_imported_is_declared():
    """Also what another dependency brings anyway: that one may drop it."""
    modules = {name.split(".")[0] for file in SOURCES for name in imported(file)}
    assert not [*not_declared(modules - IF_INSTALLED)]


def test_the_tests_can_be_collected_with_their_extra_alone():
    """pytest imports each file under tests; tools among them that need more import it where they use it."""
    files = sorted((REPOSITORY / "tests").rglob("*.py"))
    ours = {file.stem for file in files} | {file.parent.name for file in files} | {"tests", "analyses", "figures"}
    modules = set()
    for file in files:
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Import):
                modules |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                modules.add(node.module.split(".")[0])
    assert not [*not_declared(modules - ours, ["test"])]


def test_only_the_command_line_prints_and_is_read():
    """`print` is for the console alone; `sys.argv` and argparse are for `cli` and for the door to the scripts."""
    console, door = PACKAGE / "cli/console.py", PACKAGE / "__main__.py"
    for file in set(SOURCES) - {door}:
        for node in ast.walk(TREES[file]):
            printed = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
            assert not printed or file == console, f"{file}:{node.lineno} prints"
            argv = isinstance(node, ast.Attribute) and node.attr == "argv"
            assert not argv or part_of(file) == "cli", f"{file}:{node.lineno} reads sys.argv"
        if part_of(file) != "cli":
            assert not [n for n in imported(file) if n == "sys.argv" or n.split(".")[0] == "argparse"], file


def test_no_device_is_hard_coded():
    """`cuda` is named where devices are looked up and nowhere else, and nothing calls `.cuda()`."""
    for file in SOURCES:
        for node in ast.walk(TREES[file]):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("cuda"):
                assert file == PACKAGE / "models" / "loading.py", f"{file}:{node.lineno} names {node.value}"
            called = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "cuda"
            assert not called, f"{file}:{node.lineno} calls .cuda()"


def test_nothing_is_pickled():
    for file in SOURCES:
        assert not {n.split(".")[0] for n in imported(file)} & {"pickle", "cloudpickle", "dill", "joblib"}, file
        for node in ast.walk(TREES[file]):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "torch":
                assert node.attr not in ("save", "load"), f"{file}:{node.lineno} uses torch.{node.attr}"


CHECK = """
import sys
import mcanalysis
heavy = {"torch", "transformers", "peft", "matplotlib", "pandas", "scipy"}
assert not heavy & set(sys.modules), ("import mcanalysis", heavy & set(sys.modules))
assert "train" in dir(mcanalysis)
from mcanalysis import benchmarks, metrics, strategies, tasks
assert benchmarks.benchmark_names() and metrics.SCORES and strategies.strategy_names() and tasks.task_names()
assert not heavy & set(sys.modules), ("names", heavy & set(sys.modules))
import mcanalysis.params, mcanalysis.paths, mcanalysis.metrics
heavy = {"transformers", "peft", "matplotlib"}
assert not heavy & set(sys.modules), ("params, paths, metrics", heavy & set(sys.modules))
import mcanalysis.studies.connectivity.measuring, mcanalysis.studies.connectivity.result_tables
import mcanalysis.studies.training
from mcanalysis.models.loading import load_tokenizer
load_tokenizer("embedded")
heavy = {"peft", "transformers.trainer", "transformers.modeling_utils", "torch.distributed.tensor", "scipy.stats"}
assert not heavy & set(sys.modules), ("what reads a finished run", heavy & set(sys.modules))
"""


def test_importing_the_package_and_what_reads_a_finished_run_brings_in_nothing_heavy():
    done = subprocess.run([sys.executable, "-c", CHECK], cwd=REPOSITORY, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
