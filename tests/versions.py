"""The wheel in fresh environments: each Python that is here, and the oldest and newest torch, transformers and peft.

`make versions` builds the wheel and prints a row for each; what cannot be installed here is "not run", with the reason.
A torch that brings CUDA, several gigabytes, is left out unless `--cuda` is given. Exit code 1 if the wheel fails.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

REPOSITORY = Path(__file__).parents[1]
VARIED = ("torch", "transformers", "peft")
FOLLOW = ("tokenizers", "huggingface_hub", "setuptools")  # of which transformers and torch want versions of their own
SECONDS = 1800  # for an installation, and for the smoke test
SMOKE = (  # training, measuring, figures and tables of the embedded base
    "connectivity --tasks FOMC,ScienceQA --strategy sequential --steps 2 --num-train 8 --num-test 2 --num-points 2 "
    "--num-examples 2 --paths linear-delta,bezier-factor --curve-steps 2 --workers 1 --output-dir out"
)


class Case(NamedTuple):
    """One environment: a Python, what is varied in it, and the versions of that in place of the tested ones."""

    python: str
    name: str
    versions: dict[str, str]


class NotRunError(Exception):
    """An environment that cannot be made here."""


def pythons(lowest: tuple[int, int]) -> dict[str, str]:
    """Interpreters from a version on, by version: this one, those on the PATH, and pyenv's."""
    found = {f"{sys.version_info.major}.{sys.version_info.minor}": sys.executable}
    for minor in range(lowest[1], lowest[1] + 8):
        version = f"{lowest[0]}.{minor}"
        places = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
        for place in (shutil.which(f"python{version}"), *map(str, reversed(places))):  # a shim may lead nowhere
            if place and not subprocess.run([place, "-c", ""], capture_output=True).returncode:
                found.setdefault(version, place)
    return dict(sorted(found.items(), key=lambda item: [*map(int, item[0].split("."))]))


def lowest_versions(project: dict) -> dict[str, str]:
    """What pyproject.toml allows at least of what is varied.

    >>> lowest_versions({"dependencies": ["torch>=2.11", "numpy>=1.26", "peft>=0.21"]})
    {'torch': '2.11', 'peft': '0.21'}
    """
    found = (re.fullmatch(r"([\w-]+)>=([\d.]+)", text) for text in project["dependencies"])
    return {m[1]: m[2] for m in found if m and m[1] in VARIED}


def cases(project: dict) -> Iterator[Case]:
    """Each Python with the tested versions; then this one with the ends of what is allowed, torch apart from others."""
    lowest = lowest_versions(project)
    major, minor = map(int, project["requires-python"].removeprefix(">=").split("."))
    there = pythons((major, minor))
    for version in sorted({*there, *_classified(project)}, key=lambda v: int(v.split(".")[1])):
        yield Case(there.get(version, ""), f"Python {version}", {})
    for names in (("torch",), ("transformers", "peft")):
        oldest = {name: f"=={lowest[name]}.*" for name in names}
        yield Case(sys.executable, f"oldest {' and '.join(names)} allowed", oldest)
        newest = dict.fromkeys(names, "")
        yield Case(sys.executable, f"newest {' and '.join(names)}", newest)


def _classified(project: dict) -> list[str]:
    """The Pythons that the package says it is for."""
    return [c.rpartition(" ")[2] for c in project["classifiers"] if re.search(r":: 3\.\d+$", c)]


def constraints(case: Case, tested: str) -> str:
    """The tested versions with those of a case in their place; empty: as pip likes, the newest."""
    left_out = {*case.versions, *(FOLLOW if case.versions else ())}
    lines = [line for line in tested.splitlines() if line.split("==")[0] not in left_out]
    return "\n".join([*lines, *(name + version for name, version in case.versions.items() if version)]) + "\n"


def brings_cuda(report: dict) -> str:
    """The torch of pip's installation report with the number of CUDA's packages beside it; empty where it has none.

    >>> one = {"metadata": {"name": "torch", "version": "2.11.0"}}
    >>> brings_cuda({"install": [one, {"metadata": {"name": "nvidia-cublas", "version": "13"}}]})
    'torch 2.11.0 brings 1 packages of CUDA'
    >>> brings_cuda({"install": [one]})
    ''
    """
    found = {item["metadata"]["name"]: item["metadata"]["version"] for item in report["install"]}
    number = sum(name.startswith(("nvidia-", "cuda-")) for name in found)
    return f"torch {found.get('torch', '?')} brings {number} packages of CUDA" if number else ""


def run(case: Case, wheel: Path, folder: Path, cuda: bool) -> str:
    """Install and try the wheel; returns the versions that there were. Raises `NotRunError`, and what failed in it."""
    if not case.python:
        raise NotRunError("there is no such Python here")
    _check([case.python, "-m", "venv", str(folder / "venv")])
    python, limits = str(folder / "venv/bin/python"), folder / "constraints.txt"
    limits.write_text(constraints(case, (REPOSITORY / "constraints.txt").read_text(encoding="utf-8")))
    pip = [python, "-m", "pip", "install", "--quiet", "--no-input", "-c", str(limits), str(wheel)]
    _check([*pip, "--dry-run", "--report", str(folder / "report.json")])
    if not cuda and (reason := brings_cuda(json.loads((folder / "report.json").read_text(encoding="utf-8")))):
        raise NotRunError(f"{reason}; --cuda takes it")
    _check(pip)
    done = _start([python, "-m", "mcanalysis", *SMOKE.split()], folder)
    pictures = list(folder.glob("out/*/figures/connectivity_fast.png"))
    if done.returncode or not pictures:
        raise RuntimeError(f"exit code {done.returncode}, {len(pictures)} pictures: {_last_line(done.stderr)}")
    words = f"from importlib.metadata import version as v; print(*(f'{{n}} {{v(n)}}' for n in {VARIED}), sep=', ')"
    return _start([python, "-c", words], folder).stdout.strip()


def _start(command: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=SECONDS)


def _check(command: Sequence[str]) -> None:
    try:
        done = _start(command, Path.cwd())
    except subprocess.TimeoutExpired:
        raise NotRunError(f"not installed after {SECONDS} s") from None
    if done.returncode:
        raise NotRunError(_last_line(done.stderr) or _last_line(done.stdout))


def _last_line(text: str) -> str:
    """The last error in what pip or a script says, else its last line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.lower().startswith("error")]
    return (errors or lines or [""])[-1]


def main() -> None:
    """Print a row per environment as it is done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path, help="what make build made")
    parser.add_argument("--cuda", action="store_true", help="install torch with CUDA, too, where no other is found")
    args = parser.parse_args()
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    failed = 0
    sys.stdout.write("| environment | versions | result |\n| --- | --- | --- |\n")
    for case in cases(project):
        with TemporaryDirectory() as folder:
            versions = ""
            try:
                versions, result = run(case, args.wheel.resolve(), Path(folder), args.cuda), "passed"
            except NotRunError as reason:
                result = f"not run: {reason}"
            except (RuntimeError, subprocess.TimeoutExpired) as error:
                failed, result = failed + 1, f"FAILED: {error}"
        sys.stdout.write(f"| {case.name} | {versions} | {result} |\n")
        sys.stdout.flush()
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
