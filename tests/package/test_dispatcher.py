"""`python -m mcanalysis NAME` is `python analyses/NAME.py`: the same words out, the same exit code."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import mcanalysis
from mcanalysis import __main__ as dispatcher
from mcanalysis.errors import UserError

REPOSITORY = Path(__file__).parents[2]


def run(folder, *command):
    return subprocess.run([sys.executable, *command], cwd=folder, capture_output=True, text=True, timeout=600)


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("connectivity", ["--num-points", "many"]),
        ("similarity", ["--strategy", ","]),
        ("convert", ["--task", "FOMCC", "--source", "a", "--output-dir", "b"]),  # a mistake that the library finds
    ],
)
def test_it_is_the_same_as_the_script(tmp_path, name, flags):
    by_name = run(tmp_path, "-m", "mcanalysis", name, *flags)
    by_file = run(tmp_path, str(REPOSITORY / "analyses" / f"{name}.py"), *flags)
    assert (by_name.returncode, by_name.stdout, by_name.stderr) == (by_file.returncode, by_file.stdout, by_file.stderr)
    assert by_name.returncode == 2 and by_name.stderr


@pytest.mark.parametrize("script", ["analyses/report.py", "figures"])
def test_a_python_without_the_package_is_told_in_one_line(tmp_path, script):
    done = run(tmp_path, "-E", "-S", str(REPOSITORY / script), "runs" if script != "figures" else "--only=plane")
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "Expected the package mcanalysis" in done.stderr and "activate" in done.stderr


def test_alone_it_lists_every_script_with_a_line(tmp_path):
    listed = run(tmp_path, "-m", "mcanalysis")
    assert listed.returncode == 0 and not listed.stderr
    described = dict(line.split(maxsplit=1) for line in listed.stdout.splitlines() if line.startswith("  "))
    scripts = {f.stem for f in (REPOSITORY / "analyses").glob("*.py")} - {"start"}
    assert scripts <= set(described)
    assert "measure the paths between their minima" in described["connectivity"]
    assert "start" not in described


def test_help_of_a_script_is_the_scripts(tmp_path):
    shown = run(tmp_path, "-m", "mcanalysis", "closed-forms", "--help")
    assert shown.returncode == 0
    assert shown.stdout.startswith("usage: closed_forms.py")


def test_studies_of_packages_are_listed_unimported_and_run_by_name(install_package, tmp_path, monkeypatch, capsys):
    study = (
        "from dataclasses import dataclass\nfrom typing import Annotated\n"
        "from mcanalysis.studies.study import Study\n\n"
        "@dataclass(frozen=True)\nclass Theirs(Study):\n"
        "    'What theirs measures.\\n\\nMore.'\n"
        "    number: Annotated[int, 'how many'] = 7\n"
        "    def measure(self, run, setting):\n        yield []\n"
    )
    files = {"theirs_file": study, "broken_file": "'It cannot be imported.'\nraise RuntimeError('no')\n"}
    files["cut_file"] = "class Mine(\n"
    entries = {"theirs": "theirs_file:Theirs", "their-other": "theirs_file:Theirs", "train": "theirs_file:Theirs"}
    entries |= {"broken": "broken_file:Broken", "cut": "cut_file:Mine", "gone": "no.such.file:Study"}
    sites = [install_package("wheel", "mcanalysis.studies", entries, files)]
    for package in ("other", "third"):
        file = f"{package}_file"
        sites.append(install_package(package, "mcanalysis.studies", {"twice": f"{file}:Theirs"}, {file: study}))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, [*sites, REPOSITORY])))

    def by_name(*words):
        """What `python -m mcanalysis` does, without an interpreter to start."""
        monkeypatch.setattr(sys, "argv", ["mcanalysis", *words])
        with pytest.raises(SystemExit) as end:
            dispatcher.main()
        return end.value.code or 0, *capsys.readouterr()

    listed = run(tmp_path, "-m", "mcanalysis")
    assert listed.returncode == 0 and not listed.stderr
    _, theirs = listed.stdout.split("studies of installed packages:\n")
    described = dict([*line.split(maxsplit=1), ""][:2] for line in theirs.splitlines() if line.startswith("  "))
    assert described == {
        "broken": "It cannot be imported.", "cut": "", "gone": "", "their-other": "What theirs measures.",
        "theirs": "What theirs measures.", "twice": "What theirs measures.",
    }  # fmt: skip

    shown = run(tmp_path, "-m", "mcanalysis", "their-other", "--help")
    assert shown.returncode == 0 and shown.stdout.startswith("usage: their-other ")
    assert "--number N" in shown.stdout and "What theirs measures. More." in shown.stdout
    assert by_name("train", "--help")[1].startswith("usage: train.py ")
    for name, flags, reason in (
        ("theirs", ("--number", "many"), "--number"),
        ("theirs", ("--run", "nowhere"), "nowhere"),
        ("theirz", (), "Unknown script 'theirz'. Did you mean 'theirs'?"),
        (
            "broken",
            (),
            "Expected the package wheel to give the study broken (broken_file:Broken), got RuntimeError: no",
        ),
        ("gone", (), "ModuleNotFoundError"),
        ("twice", (), "Expected one study called twice, got one each from the packages other and third"),
    ):
        code, out, err = by_name(name, *flags)
        assert (code, out, err.count("\n")) == (2, "", 1), err
        assert reason in err


def test_an_unknown_script_is_one_line_that_suggests(tmp_path):
    refused = run(tmp_path, "-m", "mcanalysis", "conectivity")
    assert refused.returncode == 2 and not refused.stdout
    assert refused.stderr.count("\n") == 1
    assert "Unknown script 'conectivity'. Did you mean 'connectivity'?" in refused.stderr


def test_the_version_is_that_of_the_metadata(tmp_path):
    from importlib.metadata import version

    assert run(tmp_path, "-m", "mcanalysis", "--version").stdout == f"mcanalysis {mcanalysis.__version__}\n"
    assert version("mcanalysis") == mcanalysis.__version__


def test_a_package_without_scripts_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(dispatcher, "PACKAGE", tmp_path / "mcanalysis")
    with pytest.raises(UserError, match="install the package anew"):
        dispatcher.find_scripts()
