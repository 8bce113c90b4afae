"""Long commands, watched from outside: memory and open files must not grow, the store only by what is put into it.

Many tasks of a few steps, and thousands of points of one path, each in one process of the real scripts. What was seen
goes to `soak.csv`, and is drawn.
"""

from __future__ import annotations

import csv
import json
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

REPOSITORY = Path(__file__).resolve().parents[2]
MOST_GROWTH = 0.10
"""Of memory and of open files from the second quarter of a command to its last, relative."""
MOST_UNEVEN = 0.10
"""Of the store's bytes per row between the half and the end, relative."""
_EVERY = 0.5  # seconds


@dataclass(frozen=True)
class Seen:
    """A process at some time: seconds since its start, resident bytes, open files, bytes and rows of the store."""

    seconds: float
    memory: int
    files: int
    store: int
    rows: int


def soak(folder: Path, num_tasks: int, num_points: int) -> dict[str, dict[str, str]]:
    """What was found wrong, by command and kind; empty where all was well."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"T{number:03}" for number in range(num_tasks)]
    for number, name in enumerate(names):
        (folder / "data" / name).mkdir(parents=True, exist_ok=True)
        text = json.dumps([{"prompt": f"{number} {i}:", "answer": str(i)} for i in range(2)])
        for split in ("train", "eval", "test"):
            (folder / "data" / name / f"{split}.json").write_text(text)
    path = ("connectivity.py", "--run", "two", "--paths", "linear-factor", "--num-points", str(num_points))
    path += ("--num-examples", "2", "--workers", "1")
    found: dict[str, dict[str, str]] = {}
    _watched(folder, _training(names[:2], "two"), "two")
    for what, command, run in (
        (f"{num_tasks} tasks", _training(names, "many"), "many"),
        (f"{num_points} points", path, "two"),
    ):
        code, said, seen = _watched(folder, command, run)
        _write(folder / f"soak {what}.csv", seen)
        found[f"soak: {what}"] = {"unclear": said[-300:]} if code else _grown(seen)
    return found


def _training(names: Sequence[str], run: str) -> tuple[str, ...]:
    limits = ",".join(f"{name}=2" for name in names)
    return (
        "train.py", "--benchmark", "trace", "--data-dir", "data", "--tasks", ",".join(names), "--strategy", "er",
        "--batch-size", "2", "--lora-rank", "2", "--steps", "2", "--save-trajectory", "0", "--max-new-tokens", limits,
        "--output-dir", run,
    )  # fmt: skip


def _watched(folder: Path, command: Sequence[str], run: str) -> tuple[int, str, list[Seen]]:
    script, *flags = command
    with (folder / "said.txt").open("w") as said:
        process = subprocess.Popen(
            [sys.executable, str(REPOSITORY / "analyses" / script), *flags], cwd=folder, stdout=said, stderr=said
        )
        seen = list(_looks(process, folder / run / "measurements.sqlite"))
    return process.returncode, (folder / "said.txt").read_text(), seen


def _looks(process: subprocess.Popen[bytes], store: Path) -> Iterator[Seen]:
    started = time.monotonic()
    while process.poll() is None:
        with suppress(OSError, StopIteration):  # it has just ended
            status = Path(f"/proc/{process.pid}/status").read_text().splitlines()
            memory = int(next(line for line in status if line.startswith("VmRSS")).split()[1]) * 1024
            files = len(list(Path(f"/proc/{process.pid}/fd").iterdir()))
            size, rows = (store.stat().st_size, _num_rows(store)) if store.exists() else (0, 0)
            yield Seen(time.monotonic() - started, memory, files, size, rows)
        time.sleep(_EVERY)


def _num_rows(store: Path) -> int:
    with (
        suppress(sqlite3.Error),
        closing(sqlite3.connect(f"file:{store}?mode=ro", uri=True, timeout=_EVERY)) as connection,
    ):
        return int(connection.execute("SELECT COUNT(*) FROM measurements").fetchone()[0])
    return 0


def _grown(seen: Sequence[Seen]) -> dict[str, str]:
    """What grew: by the medians of the second quarter and of the last one."""
    found = {}
    quarter = max(len(seen) // 4, 1)
    for what in ("memory", "files"):
        values = np.array([getattr(s, what) for s in seen], dtype=float)
        before, after = np.median(values[quarter : 2 * quarter]), np.median(values[-quarter:])
        if after > (1 + MOST_GROWTH) * before:
            found[f"{what} grew"] = f"from {before:,.0f} to {after:,.0f}"
    written = [s for s in seen if s.rows > 100]
    if written:
        half, last = (s.store / s.rows for s in (written[len(written) // 2], written[-1]))
        if abs(last / half - 1) > MOST_UNEVEN:
            found["store not linear"] = f"{half:.0f} bytes a row at the half, {last:.0f} at the end"
    return {"wrong": "; ".join(f"{k}: {v}" for k, v in found.items())} if found else {}


def _write(file: Path, seen: Sequence[Seen]) -> None:
    import matplotlib.pyplot as plt

    names = ("seconds", "memory", "files", "store", "rows")
    with file.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerows([names, *([getattr(s, name) for name in names] for s in seen)])
    figure, panels = plt.subplots(1, 3, figsize=(6.9, 1.8), layout="constrained")
    minutes = [s.seconds / 60 for s in seen]
    for axes, name, unit, label in zip(
        panels, ("memory", "files", "store"), (1e6, 1, 1e6), ("memory (MB)", "open files", "store (MB)"), strict=True
    ):
        axes.plot(minutes, [getattr(s, name) / unit for s in seen], linewidth=0.8)
        axes.set(xlabel="minutes", ylabel=label)
        axes.set_ylim(bottom=0)
    figure.savefig(file.with_suffix(".png"), dpi=200)
    plt.close(figure)
