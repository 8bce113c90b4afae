"""What a wheel and an sdist carry, and that a wheel's scripts run from the wheel alone."""

import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

import mcanalysis

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The wheel and the sdist, built from this checkout."""
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("dist")
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-d", str(folder)],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return wheel, sdist


def tracked(folder):
    """Files of a folder that git knows; none in a copy without git."""
    listed = subprocess.run(["git", "ls-files", folder], cwd=REPOSITORY, capture_output=True, text=True)
    return set(listed.stdout.split()) if listed.returncode == 0 else set()


@pytest.mark.slow
def test_the_wheel_carries_package_base_and_scripts(built):
    with zipfile.ZipFile(built[0]) as archive:
        names = set(archive.namelist())
    assert tracked("mcanalysis") <= names
    scripts = {f"mcanalysis/scripts/{name.removeprefix('analyses/')}" for name in tracked("analyses")}
    assert scripts <= names
    assert "mcanalysis/models/embedded_base/model.safetensors" in names
    assert f"mcanalysis-{mcanalysis.__version__}.dist-info/licenses/LICENSE" in names
    assert not [name for name in names if "__pycache__" in name or name.startswith(("tests", "docs", "runs"))]


@pytest.mark.slow
def test_the_sdist_carries_what_a_wheel_is_built_from(built):
    with tarfile.open(built[1]) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    assert tracked("mcanalysis") | tracked("analyses") | {"hatch_build.py", "constraints.txt", "LICENSE"} <= names
    assert not [name for name in names if name.startswith((".venv", "runs/", "site/", "dist/", ".git/"))]


@pytest.mark.slow
def test_the_scripts_run_from_the_wheel_alone(built, tmp_path):
    site = tmp_path / "site"
    with zipfile.ZipFile(built[0]) as archive:
        archive.extractall(site)
    program = f"import runpy, sys; sys.path.insert(0, {str(site)!r}); runpy.run_module('mcanalysis', {{}}, '__main__')"
    small = "--tasks FOMC,ScienceQA --steps 2 --num-train 8 --num-test 2 --num-points 2 --num-examples 2 --workers 1"
    flags = [*small.split(), "--strategy", "sequential", "--paths", "linear-delta", "--output-dir", "out"]
    done = subprocess.run(
        [sys.executable, "-c", program, "connectivity", *flags],
        cwd=tmp_path, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "out").glob("*/figures/connectivity_fast.png"))
    listed = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert str(site) in listed.stdout  # the wheel's scripts, not the checkout's


def test_one_version_everywhere():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    citation = (REPOSITORY / "CITATION.cff").read_text(encoding="utf-8")
    changes = (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")
    assert project["version"] == mcanalysis.__version__
    assert re.search(r"^version: (\S+)$", citation, re.MULTILINE)[1] == mcanalysis.__version__
    assert f"## [{mcanalysis.__version__}]" in changes


def test_every_extra_is_pinned():
    """An extra whose packages have no tested version could bring another torch."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pins = {line.split("==")[0].lower() for line in (REPOSITORY / "constraints.txt").read_text().splitlines()}
    for extra in ("test", "docs", "build", "classics"):
        for wanted in project["optional-dependencies"][extra]:
            name = re.split(r"[\[<>=~! ]", wanted)[0].lower()
            assert name in pins, f"{name} of extra {extra}"


def test_the_citation_names_the_paper_and_reads_as_yaml():
    import yaml

    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors", "license"} <= set(citation)
    (paper,) = citation["references"]
    assert paper["title"].startswith("Analyzing and Reducing Catastrophic Forgetting")
    assert {"type": "other", "value": "arXiv:2402.18865"}.items() <= paper["identifiers"][0].items()
