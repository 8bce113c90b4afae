"""What figures lack, measured by the scripts that the figures name: how long it takes is said before."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from mcanalysis.cli.console import command, duration, fail, warn

if TYPE_CHECKING:
    from mcanalysis.runs.finished import FinishedRun

Found = Callable[[str | None], "list[FinishedRun]"]


def lacking(figures: Iterable[ModuleType], found: Found, given: bool) -> list[list[str]]:
    """The commands that measure what figures lack, as words, each once.

    A figure names its script and flags (`ANALYSIS`) and its tables (`TABLES`), or the folder in which the script trains
    runs of its own (`FOLDER`), which counts as done if there are some, and is not asked for where runs are `given`.
    Runs without paths are passed over.
    """
    wanted: dict[str, dict[Path, FinishedRun]] = {}
    for figure in figures:
        analysis, folder = getattr(figure, "ANALYSIS", None), getattr(figure, "FOLDER", None)
        if analysis is None:
            continue
        if folder is not None:
            if not given and len(found(folder)) == len(found(None)):
                wanted.setdefault(analysis, {})
            continue
        for run in found(None):
            if not all(map(run.has, figure.TABLES)) and run.has_paths:
                wanted.setdefault(analysis, {})[run.directory] = run
    commands = []
    for analysis, runs in wanted.items():
        if any(more.startswith(f"{analysis} ") and runs.keys() <= also.keys() for more, also in wanted.items()):
            continue  # the same script with more flags measures this, too
        words = analysis.split()
        for flags, alike in _alike([*runs.values()], words[0]) if runs else [([], [])]:
            commands.append([*words, *flags, *(word for run in alike for word in ("--run", str(run.directory)))])
    return commands


def _alike(runs: Sequence[FinishedRun], script: str) -> list[tuple[list[str], list[FinishedRun]]]:
    """Runs that one call can analyse, of one base, template and sequence of tasks, one of each strategy and seed; each
    time after the flags that keep what the script has written of them already. connectivity.py measures a simplex of
    the strategy named first alone: it is called for each."""
    groups: dict[str, tuple[list[str], list[FinishedRun]]] = {}
    seen: Counter[str] = Counter()
    for run in runs:
        flags = _as_measured(run) if script == "connectivity" and run.has("profiles") else []
        alone = run.strategy if script == "connectivity" else ""
        kind = json.dumps([run.config.get("model"), run.config.get("chat_template"), run.task_names, flags, alone])
        seen[twins := f"{kind} {run.strategy} {run.seed}"] += 1
        groups.setdefault(f"{kind} {seen[twins]}", (flags, []))[1].append(run)
    return list(groups.values())


def _as_measured(run: FinishedRun) -> list[str]:
    """The flags by which connectivity.py gives the paths, points and examples of a run's tables again; how curves were
    fitted is not in them."""
    table = run.table("profiles")
    of_base = table.start.str.startswith("0-")
    between = table[~of_base & table.t.between(0, 1)]
    kinds = between if len(between) else table
    of_tasks = kinds[kinds.task.isin(run.task_names)]  # a mean has the examples of all
    paths = ",".join(dict.fromkeys((kinds.path + "-" + kinds.space).tolist()))
    points, examples = kinds.groupby(["path", "space", "start", "end"]).t.nunique().max(), of_tasks.num_examples.max()
    flags = ["--paths", paths, "--other-paths", paths, "--num-points", str(points), "--num-examples", str(examples)]
    return [*flags, *(["--from-base"] if of_base.any() else [])]


def measure(commands: Sequence[Sequence[str]], only_tell: bool = False) -> bool:
    """Say on stderr how long the commands take, by their own `--dry-run`, and run them; whether all these ended well.

    One that `--dry-run` refuses, as there are too few runs perhaps, is left out and named with its reason.
    """
    if not commands:
        warn("nothing is missing: every figure's tables are there")
        return True
    possible: list[tuple[float, Sequence[str]]] = []  # seconds, infinite where they cannot be told
    is_whole = True
    warn("What is missing; a few pieces of each are timed first")
    for words in commands:
        done = _run(words, "--dry-run", "--json", stderr=subprocess.PIPE)
        if done.returncode:
            warn(f"left out: {command(*words)}: {_last_line(done.stderr).removeprefix('error: ')}")
            continue
        takes = json.loads(done.stdout)["seconds"]
        possible.append((math.inf if takes is None else float(takes), words))
        warn(f"  {'not told' if takes is None else duration(takes):>12}  {command(*words)}")
    known = [seconds for seconds, _ in possible if seconds < math.inf]
    rest = "" if len(known) == len(possible) else " and what is not told"
    warn(f"about {duration(sum(known))}{rest} in all, what takes least first")
    for _, words in () if only_tell else sorted(possible):
        warn(command(*words))
        if (done := _run(words, "--json")).returncode:
            is_whole = False
            fail(f"{command(*words)} ended with exit code {done.returncode}, for the reason above")
    return is_whole


def _run(words: Sequence[str], *flags: str, stderr: int | None = None) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "mcanalysis", *words, *flags]
    return subprocess.run(line, stdout=subprocess.PIPE, stderr=stderr, text=True)


def _last_line(text: str) -> str:
    return next((line for line in reversed(text.splitlines()) if line.strip()), "")
