"""What a script says: tables and bars for a person, the same as plain text in a pipe, or one JSON document.

On a terminal *rich* draws tables and bars; colours respect `NO_COLOR`. In a pipe there are no colours, no control
characters and no bars: a long job says twice a minute on stderr how far it is. With `--json` stdout holds one JSON
document, written last, and nothing else.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcanalysis.progress import Pace, silent

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console
    from rich.progress import Progress

STARTED = time.monotonic()
_NUMBER = re.compile(r"[+−-]?\d[\d.,]*(e[+-]?\d+)?(%|\s|$)")
KNOWN_FROM = 0.1  # share of a job from which the rest of its time is told: the first steps may be unlike the others
LINE_EVERY = 30.0  # seconds between two lines on how far it is, off the terminal
SHOWN_AFTER = 1.0  # seconds before a job within a job gets a bar: what is over in a moment would only flicker

_answering_in_json = False
_figures: list[str] = []
_display: Progress | None = None  # of the bars that are open
_jobs: list[_Lines] = []  # that go on, off the terminal, the outermost first
_said: float | None = None  # when the last line on how far it is was said


def is_main_process() -> bool:
    """Whether this process prints: it is alone, or the first of those that torchrun or accelerate started."""
    return os.environ.get("RANK", "0") == "0"


def answer_in_json(chosen: bool) -> None:
    """Whether stdout is to hold one JSON document instead of text."""
    global _answering_in_json
    _answering_in_json = chosen
    _figures.clear()


def say(text: str = "") -> None:
    """A line for a person."""
    if not _answering_in_json:
        print(text, flush=True)


def next_step(script: str, *words: object) -> None:
    """The last line for a person: a command that goes on from here; `script` is one of ours by name, or a sentence."""
    say(f"\nnext: {command(script, *words) if script.isidentifier() else script}")


def command(script: str, *words: object) -> str:
    """A script as it is run here: by its file in a checkout, by its name where the package was installed.

    >>> command("train", "--data-dir", "my data"), command("figures")
    ("python analyses/train.py --data-dir 'my data'", 'python figures')
    """
    start = "figures" if script == "figures" else f"analyses/{script}.py"
    if "mcanalysis/scripts/" in Path(sys.argv[0]).as_posix():
        start = f"-m mcanalysis {script}"
    return f"python {start} {shlex.join(map(str, words))}".rstrip()


def of_runs(directories: Iterable[Path]) -> list[str]:
    """The flags that name these runs; none where they lie in `runs/`, in which figures look by themselves."""
    found = list(directories)
    if {directory.resolve().parent for directory in found} == {Path("runs").resolve()}:
        return []
    return [word for directory in found for word in ("--run", str(directory))]


def warn(text: str) -> None:
    """A line on stderr, whatever stdout is for."""
    _end_bars()
    print(text, file=sys.stderr, flush=True)


def fail(reason: str) -> None:
    """The last line of a script that cannot go on, on stderr."""
    from rich.text import Text

    _end_bars()
    line = Text.assemble(("error:", "bold red"), " ", " ".join(reason.split()))
    _console(sys.stderr).print(line, soft_wrap=True, highlight=False)


def figure(file: Path, more: str = "") -> None:
    """Say, once for each file, that a figure is there, and how long it took since the start."""
    if str(file) in _figures:
        return
    if not _figures:
        say()
    _figures.append(str(file))
    say(f"figure after {duration(time.monotonic() - STARTED)}{more}: {file}")


def growing_figure(file: Path) -> None:
    """The same of a figure that is not whole yet."""
    figure(file, ", which grows as more is measured")


def table(rows: Sequence[Sequence[str]]) -> None:
    """Rows of text in columns, the first row a header; columns of numbers are aligned at their right."""
    if _answering_in_json:
        return
    from rich import box
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=box.SIMPLE_HEAD, header_style="bold", show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for i, head in enumerate(rows[0]):
        cells = [row[i] for row in rows[1:] if row[i] not in ("", "–")]
        numbers = bool(cells) and all(map(_NUMBER.match, cells))
        shown.add_column(Text(head), justify="right" if numbers else "left", overflow="fold")
    for row in rows[1:]:
        shown.add_row(*map(Text, row))  # not markup: cells hold square brackets
    console = _console(sys.stdout)
    if console.is_terminal:
        console.print(shown)
        return
    with console.capture() as text:
        console.print(shown)
    print("\n".join(line.rstrip() for line in text.get().splitlines()), flush=True)


def answer(
    tables: Mapping[str, pd.DataFrame] | None = None, figures: Sequence[Path] | None = None, **facts: Any
) -> None:
    """With `--json`: print the document. `facts` come first, then the figures (those said to be there, unless others
    are given), then each table as records."""
    if not _answering_in_json:
        return
    import mcanalysis

    document: dict[str, Any] = {"script": Path(sys.argv[0]).stem, "version": mcanalysis.__version__, **facts}
    document["figures"] = _figures if figures is None else list(map(str, figures))
    document["tables"] = {name: records(frame) for name, frame in (tables or {}).items()}
    print(json.dumps(document, ensure_ascii=False, allow_nan=False, default=str), flush=True)


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """A table as a list of rows; what is undefined or infinite is null."""
    return json.loads(frame.to_json(orient="records", double_precision=15))


def duration(seconds: float) -> str:
    """A time for people.

    >>> duration(0.2), duration(75), duration(7300)
    ('0 min 00 s', '1 min 15 s', '2 h 01 min')
    """
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


class _Bar:
    """A job in the display on the terminal; jobs within a job leave no line when they are done."""

    def __init__(self, total: int, desc: str) -> None:
        global _display
        self._outer = _display is None
        if _display is None:
            _display = _new_display()
            _display.start()
        self._display = _display
        self._done, self._pace, self.is_open = 0, Pace(time.monotonic()), False
        self._task = self._display.add_task(desc, total=total, bar=self)

    @property
    def total(self) -> float:
        """How many steps there are, as far as is known."""
        return next((task.total or 0.0 for task in self._display.tasks if task.id == self._task), 0.0)

    @total.setter
    def total(self, value: float) -> None:
        self._display.update(self._task, total=value)

    def update(self, n: int = 1) -> None:
        self._done += n
        self._pace.mark(time.monotonic(), self._done)
        self._display.advance(self._task, n)

    def left(self, total: float, now: float) -> str:
        return "" if self.is_open else _left(self._pace, self._done, total, now)

    def close(self) -> None:
        if self._outer:
            _end_bars(self._display)
        elif self._display is _display and self._task in self._display.task_ids:
            self._display.remove_task(self._task)


class _Lines:
    """A job off the terminal: now and then a line on it and on the job that it is part of."""

    def __init__(self, total: int, desc: str) -> None:
        global _said
        now = time.monotonic()
        self.total, self._desc, self._done, self._pace = float(total), desc, 0, Pace(now)
        self.is_open = False
        _said = now if _said is None else _said
        _jobs.append(self)

    def update(self, n: int = 1) -> None:
        global _said
        self._done += n
        now = time.monotonic()
        self._pace.mark(now, self._done)
        if _said is None or now - _said >= LINE_EVERY:
            _said = now
            words = (job._words(now) for job in dict.fromkeys((*_jobs[:1], self)))
            print("; ".join(words), file=sys.stderr, flush=True)

    def close(self) -> None:
        if self in _jobs:
            _jobs.remove(self)

    def _words(self, now: float) -> str:
        left = "" if self.is_open else _left(self._pace, self._done, self.total, now)
        return f"{self._desc}: {self._done:,} of {self.total:,.0f}" + (f", {left} left" if left else "")


def _left(pace: Pace, done: float, total: float, now: float) -> str:
    """The time that is left in words, nothing while it cannot be told."""
    seconds = pace.left(max(0.0, total - done), now) if done >= KNOWN_FROM * total else None
    return "" if seconds is None else duration(seconds)


def bar(*, total: int, desc: str) -> Any:
    """A job's progress on stderr: a bar with the time left, or in a pipe two lines a minute, and no more for all."""
    if not is_main_process():
        return silent(total=total, desc=desc)
    return (_Bar if sys.stderr.isatty() else _Lines)(total, desc)


def _console(stream: Any) -> Console:
    """A console on a stream as it is now; a pipe is as wide as it takes."""
    from rich.console import Console

    return Console(file=stream, width=None if stream.isatty() else 10_000)


def _new_display() -> Progress:
    """A display for bars; what is printed to a pipe meanwhile goes there."""
    from rich import progress
    from rich.text import Text

    class Left(progress.ProgressColumn):
        max_refresh = 0.5

        def render(self, task: progress.Task) -> Text:
            words = task.fields["bar"].left(task.total or 0.0, time.monotonic())
            return Text(f"{words} left" if words and not task.finished else "", style="progress.remaining")

    class Display(progress.Progress):
        def get_renderables(self) -> Any:
            jobs = self.tasks
            yield self.make_tasks_table([*jobs[:1], *(job for job in jobs[1:] if (job.elapsed or 0.0) >= SHOWN_AFTER)])

    return Display(
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
        Left(),
        console=_console(sys.stderr),
        refresh_per_second=4,
        redirect_stdout=sys.stdout.isatty(),
    )


def _end_bars(display: Progress | None = None) -> None:
    """Leave the lines that the bars were drawn on."""
    global _display
    if _display is not None and display in (None, _display):
        _display.stop()
        _display = None
