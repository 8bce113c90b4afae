"""What a release promises and is tried with: named tests exist, the matrix follows pyproject.toml."""

import ast
import importlib.util
import json
import re
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

REPOSITORY = Path(__file__).parents[2]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PAGES = sorted((REPOSITORY / ".github").rglob("*.md"))


@pytest.fixture(scope="module")
def versions():
    spec = importlib.util.spec_from_file_location("versions", REPOSITORY / "tests" / "versions.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_promise_names_a_test_that_is_there():
    text = (REPOSITORY / ".github/SECURITY.md").read_text(encoding="utf-8")
    promises = [line for line in text.splitlines() if line.startswith("| ") and "---" not in line][1:]
    assert len(promises) >= 6
    for promise in promises:
        named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", promise)
        assert named, promise
        for file, name in named:
            tree = ast.parse((REPOSITORY / file).read_text(encoding="utf-8"))
            assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, (file, name)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_of_the_pages_beside_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def test_the_matrix_has_every_python_and_both_ends_of_what_is_allowed(versions, monkeypatch):
    monkeypatch.setattr(
        versions, "pythons", lambda lowest: {"3.11": "/usr/bin/python3.11"} if lowest == (3, 11) else {}
    )
    made = list(versions.cases(PROJECT))
    declared = [c.rpartition(" ")[2] for c in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", c)]
    assert [case.name for case in made[: len(declared)]] == [f"Python {version}" for version in declared]
    assert [case.python for case in made[: len(declared)]] == ["/usr/bin/python3.11", "", ""]
    lowest = {r.name: next(iter(r.specifier)).version for r in map(Requirement, PROJECT["dependencies"])}
    of_ends = [case.versions for case in made[len(declared) :]]
    assert of_ends == [
        {"torch": f"=={lowest['torch']}.*"}, {"torch": ""},
        {name: f"=={lowest[name]}.*" for name in ("transformers", "peft")}, {"transformers": "", "peft": ""},
    ]  # fmt: skip


def test_what_is_varied_takes_the_place_of_the_tested_version(versions):
    tested = "# tested\nnumpy==2.1\ntorch==2.13.0\ntransformers==5.23.0\ntokenizers==0.22\n"
    case = versions.Case("python", "oldest", {"transformers": "==5.17.*", "peft": ""})
    assert versions.constraints(case, tested).split() == [
        "#",
        "tested",
        "numpy==2.1",
        "torch==2.13.0",
        "transformers==5.17.*",
    ]
    assert versions.constraints(versions.Case("python", "Python", {}), tested) == tested


def test_what_cannot_be_made_here_is_not_run_with_the_reason(versions, monkeypatch, tmp_path, capsys):
    of_pip = {"install": [{"metadata": {"name": n, "version": "2"}} for n in ("torch", "nvidia-nccl-cu12")]}
    made = [versions.Case("", "Python 3.99", {}), versions.Case(sys.executable, "CUDA", {})]
    monkeypatch.setattr(versions, "cases", lambda project: made)

    def start(command, folder):
        if "--report" in command:
            Path(command[-1]).write_text(json.dumps(of_pip))
        elif "mcanalysis" in command:
            return versions.subprocess.CompletedProcess(command, 2, "", "a warning\nerror: Expected x, got y.\n")
        return versions.subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(versions, "_start", start)
    for flags, ends in (((), "not run: torch 2 brings 1 packages of CUDA"), (("--cuda",), "error: Expected x, got y.")):
        monkeypatch.setattr(sys, "argv", ["versions.py", str(tmp_path / "a.whl"), *flags])
        with pytest.raises(SystemExit) as end:
            versions.main()
        rows = capsys.readouterr().out.splitlines()[2:]
        assert rows[0] == "| Python 3.99 |  | not run: there is no such Python here |"
        assert ends in rows[1] and end.value.code == len(flags)
