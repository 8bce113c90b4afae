"""How long importing the package takes, and asking a script what it can do."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from timing import take_turns
from workload import REPOSITORY, Aim, Options, Section, Table

TITLE = "W8: import and --help"
IMPORT = "import mcanalysis"


def measure(options: Options) -> Section:
    scripts = _scripts()[:1] if options.quick else _scripts()
    ways = {IMPORT: _import_seconds}
    ways |= {f"{s.relative_to(REPOSITORY)} --help": (lambda s=s: _help_seconds(s)) for s in scripts}
    for once in ways.values():
        once()  # from here on files are in memory and compiled to bytecode
    found = take_turns(ways, options.repetitions)
    medians = {name: float(np.median(seconds)) for name, seconds in found.items()}
    slowest = max((name for name in medians if name != IMPORT), key=medians.__getitem__)
    rows = [[f"`{n}`", f"{medians[n]:.2f}", f"{min(s):.2f} to {max(s):.2f}"] for n, s in found.items()]
    return Section(
        [
            Aim(f"{IMPORT}, s", 0.5, medians[IMPORT]),
            Aim(
                "--help of the slowest script, s", 3.0, medians[slowest], detail=f"({slowest.removesuffix(' --help')})"
            ),
        ],
        [Table("Seconds.", [["command", "median", "range"], *rows])],
        [
            f"{options.repetitions} turns in fresh processes, after a first one. The import is timed inside its "
            "process; --help from its start to its end, Python's own start included.",
        ],
    )


def _scripts() -> list[Path]:
    """Those that can be started: analyses and figures."""
    return [
        file
        for folder in ("analyses", "figures")
        for file in sorted((REPOSITORY / folder).glob("*.py"))
        if "__main__" in file.read_text(encoding="utf-8") or file.name == "__main__.py"
    ]


def _import_seconds() -> float:
    code = f"import time; s = time.perf_counter(); {IMPORT}; print(time.perf_counter() - s)"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    return float(done.stdout)


def _help_seconds(script: Path) -> float:
    environment = os.environ | {"MPLBACKEND": "Agg"}
    started = time.perf_counter()
    command = [sys.executable, str(script), "--help"]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{script.name} --help ended with {done.returncode}:\n{done.stderr}")
    return time.perf_counter() - started
