"""`make faults`: crashes, the machine's refusals, absurd and fuzzed input, and saboteurs that the rest must catch.

Prints a table of counts; a case that did not end well is named with what gives it again. Cases that are done are kept
in a file: the same command goes on where it was stopped. Exit code 1 where a count that should be zero is not.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from xml.etree import ElementTree  # of a file that pytest wrote

import crashes
import saboteurs
import soak

HERE = Path(__file__).resolve().parent
SIDE_BY_SIDE = (("crash", "disk"), ("input", "fuzz", "saboteurs", "soak"))  # two cores
SOAKED = (300, 5_000)  # tasks, points
EXAMPLES = {"small": 2_000, "full": 20_000}
COLUMNS = ("injected", "survived", *crashes.FINDINGS)

Row = dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python tests/faults", description=__doc__)
    parser.add_argument("--size", choices=("small", "full"), default="small")
    parser.add_argument("--only", default=None, metavar="A,B", help="parts (all; soak with --size full)")
    parser.add_argument("--commands", default=",".join(crashes.COMMANDS), metavar="A,B", help="of crash and disk (all)")
    parser.add_argument("--number", type=int, default=None, help="faults of each command")
    parser.add_argument("--examples", type=int, default=None, help="of the fuzzer, all kinds together")
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn")
    parser.add_argument("--folder", type=Path, default=Path("runs/faults"), help="for what is run and done.jsonl")
    args = parser.parse_args()
    every = [part for parts in SIDE_BY_SIDE for part in parts if part != "soak" or args.size == "full"]
    started, wanted = time.monotonic(), args.only.split(",") if args.only else every
    args.folder = args.folder.resolve()
    args.folder.mkdir(parents=True, exist_ok=True)
    if unknown := set(wanted) - {part for parts in SIDE_BY_SIDE for part in parts}:
        parser.error(
            f"unknown part '{unknown.pop()}', expected some of {', '.join(p for of in SIDE_BY_SIDE for p in of)}"
        )
    with ProcessPoolExecutor(len(SIDE_BY_SIDE), get_context("fork")) as processes:
        found = [processes.submit(_rows_of, args, [p for p in parts if p in wanted]) for parts in SIDE_BY_SIDE]
        rows = [row for future in found for row in future.result()]
    _print(rows, time.monotonic() - started)
    return 1 if any(row[kind] for row in rows for kind in crashes.FINDINGS) else 0


def _rows_of(args: argparse.Namespace, wanted: list[str]) -> list[Row]:
    """What some of the parts found, in a process of its own."""
    done = _Done(args.folder / "done.jsonl", [args.size, args.seed, args.number, args.examples])
    parts: dict[str, Callable[[], Iterator[Row]]] = {
        "crash": lambda: _commands(args, args.folder, done, "crash"),
        "disk": lambda: _commands(args, args.folder, done, "disk"),
        "input": lambda: _input(args, done),
        "fuzz": lambda: _fuzz(args, args.folder, done),
        "saboteurs": lambda: _saboteurs(args, done),
        "soak": lambda: _soak(args),
    }
    crashes.load_libraries()  # before it forks
    return [row for name in wanted for row in parts[name]()]


class _Done:
    """Rows of cases that are done, by their names; of the code as it is, else none."""

    def __init__(self, file: Path, circumstances: list[Any]) -> None:
        from mcanalysis.store.hashing import hash_files

        sources = [*(HERE.parents[1] / "mcanalysis").rglob("*.py"), *HERE.glob("*.py")]
        self._file, self._of = file, [hash_files(sources), *circumstances]
        lines = file.read_text("utf-8").splitlines() if file.exists() else []
        read = [json.loads(line) for line in lines if line.endswith("}")]
        self._rows = {entry["case"]: entry["found"] for entry in read if entry["of"] == self._of}

    def __call__(self, case: str, find: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What was found wrong in a case, by kind, or in each of several; it is tried where it is not done."""
        if case not in self._rows:
            self._rows[case] = find()
            with self._file.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps({"case": case, "of": self._of, "found": self._rows[case]}) + "\n")
            sys.stderr.write(f"{case}: {_in_words(self._rows[case])}\n")
        return self._rows[case]


def _in_words(found: dict[str, Any]) -> str:
    """What was found in a case, or in how many of several nothing was, and what in the others.

    >>> _in_words({}), _in_words({"hang": "30 s"}), _in_words({"a": {}, "b": {"hang": "30 s"}})
    ('well', "{'hang': '30 s'}", "1 of 2 well, not {'b': {'hang': '30 s'}}")
    """
    if not any(isinstance(of, dict) for of in found.values()):
        return str(found) if found else "well"
    wrong = {case: of for case, of in found.items() if of}
    return f"{len(found) - len(wrong)} of {len(found)} well{f', not {wrong}' if wrong else ''}"


def _row(part: str, cases: dict[str, dict[str, str]]) -> Row:
    counts = {kind: sum(kind in found for found in cases.values()) for kind in crashes.FINDINGS}
    survived = sum(not found for found in cases.values())
    bad = {case: found for case, found in cases.items() if found}
    return {"part": part, "injected": len(cases), "survived": survived, **counts, "bad": bad}


def _commands(args: argparse.Namespace, folder: Path, done: _Done, kind: str) -> Iterator[Row]:
    finished = folder / "finished" / "run"
    shutil.rmtree(folder / "finished", ignore_errors=True)
    for name in args.commands.split(","):
        command = crashes.COMMANDS[name]
        if not command.trains and not finished.exists():
            crashes.prepare(folder)
        number = args.number or (crashes.NUMBERS[name] if kind == "crash" else 3) * (4 if args.size == "full" else 1)
        whole = crashes.undisturbed(command, folder, finished)
        drawn = crashes.crash_cases(command, whole, number, args.seed) if kind == "crash" else (
            crashes.disk_cases(whole, number, args.seed)
        )  # fmt: skip
        cases: dict[str, dict[str, str]] = {}
        for i, how in enumerate(drawn):
            case = f"{kind} {name} {i} (seed {args.seed})"
            tried = partial(_tried, command, whole, finished, folder / f"case-{i}", how)
            cases[case] = done(case, tried)
        yield _row(f"{kind}: {name}", cases)


def _tried(command: crashes.Command, whole: crashes.Whole, finished: Path, place: Path, how: Any) -> dict[str, str]:
    found = crashes.case(command, whole, finished, place, **how)
    return {kind: f"{found.case}: {text}" for kind, text in found.found.items()}


def _pytest(*arguments: str, **environment: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "pytest", "-p", "no:xdist", "-q", *arguments]
    ran = subprocess.run(
        command, cwd=HERE.parents[1], env={**os.environ, **environment}, capture_output=True, text=True
    )
    return ran.returncode, ran.stdout + ran.stderr


def _input(args: argparse.Namespace, done: _Done) -> Iterator[Row]:
    """Every test file beside this one, but what is fuzzed or crashes here anyway: a test is a fault."""
    for file in sorted(HERE.glob("test_*.py")):
        if file.stem not in ("test_fuzz", "test_crash", "test_saboteurs"):
            name = file.stem.removeprefix("test_").replace("_", " ")
            yield _row(name, done(f"input {name}", partial(_tests, file, args)))


def _tests(file: Path, args: argparse.Namespace) -> dict[str, dict[str, str]]:
    report = args.folder / "report.xml"
    report.unlink(missing_ok=True)
    marked = () if args.size == "full" else ("-m", "not slow")
    code, said = _pytest(str(file), f"--junitxml={report}", "--tb=no", *marked)
    cases = list(ElementTree.parse(report).iter("testcase")) if report.exists() else []
    outcomes = [(f"{file.stem}::{c.get('name')}", {child.tag for child in c}) for c in cases]
    found = {
        name: {"unclear": "failed"} if tags & {"failure", "error"} else {}
        for name, tags in outcomes
        if "skipped" not in tags
    }
    return found if code in (0, 5) or any(found.values()) else {**found, str(file): {"unclear": said[-300:]}}


def _fuzz(args: argparse.Namespace, folder: Path, done: _Done) -> Iterator[Row]:
    for test in re.findall(r"^def test_(\w+)", (HERE / "test_fuzz.py").read_text("utf-8"), re.MULTILINE):
        name = f"fuzzing: {test.replace('_', ' ')}"
        yield _row(name, done(f"{name} (seed {args.seed})", partial(_drawn, args, folder, test)))


def _drawn(args: argparse.Namespace, folder: Path, test: str) -> dict[str, dict[str, str]]:
    counts = folder / f"fuzz-{test}.jsonl"
    counts.unlink(missing_ok=True)
    examples = args.examples or EXAMPLES[args.size]
    code, said = _pytest(
        f"{HERE / 'test_fuzz.py'}::test_{test}", "--tb=short",
        MCANALYSIS_FUZZ_EXAMPLES=str(examples), MCANALYSIS_FUZZ_COUNTS=str(counts), MCANALYSIS_FUZZ_SEED=str(args.seed),
    )  # fmt: skip
    outcomes = [json.loads(line) for line in counts.read_text().splitlines()] if counts.exists() else []
    found = {
        f"{i} {str(o['case'])[:200]}": {o["wrong"]: str(o["case"])} if o["wrong"] else {}
        for i, o in enumerate(outcomes)
    }
    return found if outcomes and (code == 0 or any(found.values())) else {**found, test: {"unclear": said[-500:]}}


def _saboteurs(args: argparse.Namespace, done: _Done) -> Iterator[Row]:
    caught: dict[str, dict[str, str]] = {}
    for name in saboteurs.SABOTEURS:
        caught[name] = done(
            f"saboteur {name}", lambda n=name: {} if saboteurs.is_caught(n) else {"wrong": "not caught"}
        )
    yield _row("saboteurs (survived: caught)", caught)


def _soak(args: argparse.Namespace) -> Iterator[Row]:
    sizes = SOAKED if args.number is None else (args.number, 20 * args.number)
    case = f"soak of {sizes[0]} tasks and {sizes[1]} points"
    shutil.rmtree(args.folder / "soak", ignore_errors=True)
    found = soak.soak(args.folder / "soak", *sizes)
    yield _row(case, found)


def _print(rows: list[Row], seconds: float) -> None:
    lines = [f"| faults | {' | '.join(COLUMNS)} |", "| --- |" + " ---: |" * len(COLUMNS)]
    lines += [f"| {row['part']} | {' | '.join(f'{row[c]:,}' for c in COLUMNS)} |" for row in rows]
    sys.stdout.write("\n".join(lines) + f"\n\n{seconds / 60:.0f} minutes\n")
    for row in rows:
        for case, found in row["bad"].items():
            sys.stdout.write(f"{case}: {'; '.join(f'{kind}: {text}' for kind, text in found.items())}\n")


if __name__ == "__main__":
    sys.exit(main())
