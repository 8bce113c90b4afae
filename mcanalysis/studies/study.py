"""What a study is, and how one is carried out: pieces, tables, pictures, the same way for all.

A study is a frozen dataclass in a file of its own: its fields are the settings (and, where they have a help text, the
flags), its methods say what it measures of a run, what is drawn and what is said of it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from mcanalysis.errors import UserError
from mcanalysis.progress import Progress, silent
from mcanalysis.store.atomic import clear_partial_files, write_text_atomic
from mcanalysis.store.lock import lock_measurements
from mcanalysis.store.small_files import table_text
from mcanalysis.studies.drawn import Drawn, origin
from mcanalysis.studies.engine import FIRST_TRAINING, TRAINING, Engine, Here, Steps, Workers

if TYPE_CHECKING:
    import pandas as pd

    from mcanalysis.plotting.picture import Picture
    from mcanalysis.runs.run import Run, RunSoFar
    from mcanalysis.studies.training import Training

Tables = dict[str, "pd.DataFrame"]
"""Tables by the names of their files."""
Rows = list[list[str]]
"""A table in words, the first row its header."""


def check_transition(number: int, num_minima: int) -> None:
    """Raise `UserError` for a transition that a run of so many minima does not have."""
    if num_minima < 2:
        raise UserError(f"Expected a run with at least two minima, got {num_minima}: train on more --tasks.")
    if not 1 <= number < num_minima:
        raise UserError(
            f"Expected a transition from 1 to {num_minima - 1} between minima 1 to {num_minima}, got {number}: give "
            "another --transition (it may be the default that this run lacks), or train on more tasks."
        )


@dataclass(frozen=True)
class Setting:
    """What a study is given besides its settings: the strategy of the first run, how many workers there are, and who
    draws what is not whole yet."""

    main: str = ""
    num_workers: Callable[[], int] = lambda: 1
    draw: Callable[[Path, Iterable[Picture]], None] = lambda folder, pictures: None


class Study(ABC):
    """A study of finished runs. Subclasses are frozen dataclasses; of the methods only `measure` has to be there."""

    strategies: ClassVar[tuple[str, ...]] = ("sequential", "er", "ilora")
    """What is trained where no run is named."""
    begins_with: ClassVar[int] = 0
    """After so many tasks the training of the first run gives way to `begin`, so that there is something to see; 0:
    never."""
    leads_to: ClassVar[str] = "figures"
    """The script that is proposed when it is done."""

    def check(self, num_minima: int) -> None:
        """Raise `UserError` for what a run of so many minima will not have; asked before it is trained."""

    def check_all(self, runs: Sequence[Run | Training]) -> None:
        """Raise `UserError` for runs that are too few together; asked before any is trained."""

    @abstractmethod
    def measure(self, run: Run, setting: Setting) -> Steps[Tables]:
        """The tables of one run. Raises `UserError`, before it asks for anything, for a run that it cannot measure."""

    def begin(self, run: RunSoFar, setting: Setting) -> Steps[None]:
        """Measure and draw what there is of a run that has learned `begins_with` tasks; `measure` finds it kept."""
        yield from ()

    def compare(self, tables: Tables, runs: Sequence[Run]) -> Tables:
        """Further tables made from those of all runs together; they are written to `comparison/`."""
        return {}

    def pictures(self, tables: Tables) -> Iterable[Picture]:
        """What is drawn of one run."""
        return ()

    def pictures_of_all(self, tables: Tables) -> Iterable[Picture]:
        """What is drawn of all runs together, into `comparison/`."""
        return ()

    def words(self, tables: Tables) -> Iterator[str | Rows]:
        """What is said of it: lines, and tables as rows of text."""
        yield from ()


@dataclass(frozen=True)
class Outcome:
    """The tables of all runs together by name, the files drawn, the runs, and which of the tables each run has and
    which lie in `comparison`; some are in both."""

    tables: Tables
    figures: list[Path] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    of_each: Sequence[str] = ()
    compared: Sequence[str] = ()
    comparison: Path | None = None


def carry_out(
    study: Study,
    runs: Sequence[Run | Training],
    output_dir: str | Path,
    workers: Workers | None = None,
    *,
    progress: Progress = silent,
    on_figure: Callable[[Path], None] = lambda _: None,
    on_growing: Callable[[Path], None] = lambda _: None,
) -> Outcome:
    """Train and measure what is missing; write tables and pictures of each run, and what compares them to `output_dir`.

    `workers` compute the pieces, by default this process. What is kept is not computed again, so that a stopped study
    goes on where it was. `on_figure` is called with one file of each picture as soon as it is there, `on_growing` with
    that of a picture that is not whole yet, each time that it is drawn.

    Raises `UserError` for what cannot be measured, before anything is computed where that can be known, and
    `RunDirectoryError` where another process measures one of the runs. If a run fails, the others are measured first.
    """
    workers = workers or Here(progress)
    figures: list[Path] = []

    def show(files: Sequence[Path], is_whole: bool = True) -> None:
        figures.extend(file for file in files if file not in figures)
        (on_figure if is_whole else on_growing)(files[-1])

    def draw(folder: Path, pictures: Iterable[Picture], texts: Sequence[str]) -> None:
        """Draw what is whole, made of tables with these texts, unless it is there as it would come out."""
        drawn = Drawn(folder / "figures" / f".{type(study).__name__}.json", origin(study, texts))
        if (there := drawn.find()) is not None:
            for files in there:
                show(files)
            return
        from mcanalysis.plotting.picture import save

        made: list[list[Path]] = []
        beside: list[Path] = []
        for picture in pictures:
            made.append(save(picture, folder / "figures"))
            beside += picture.beside(folder / "figures")
            show(made[-1])
        drawn.keep(made, beside)

    def draw_growing(folder: Path, pictures: Iterable[Picture]) -> None:
        from mcanalysis.plotting.picture import save

        for picture in pictures:
            show(save(picture, folder / "figures"), is_whole=False)

    from mcanalysis.studies.training import Training

    for run in runs:
        if isinstance(run, Training):
            study.check(run.num_minima)
    study.check_all(runs)
    if len(orders := dict.fromkeys(run.order or "an order without a name" for run in runs)) > 1:
        raise UserError(
            f"Expected runs of one order of the tasks, whose minima are each other's, got {' and '.join(orders)}; "
            "analyse one order at a time."
        )
    finished = [run for run in runs if not isinstance(run, Training)]  # `trainings` asks the same of others
    if len(templates := dict.fromkeys(getattr(run, "chat_template", "") or "none" for run in finished)) > 1:
        raise UserError(
            f"Expected runs with one chat template, whose means over seeds are taken, got {' and '.join(templates)}; "
            "analyse those of each alone."
        )
    setting = Setting(runs[0].strategy, lambda: workers.count, draw_growing)

    def of_run(run: Run | Training) -> Steps[tuple[Run, Tables, list[str]]]:
        if isinstance(run, Training):
            turn = FIRST_TRAINING if run is runs[0] and study.begins_with else TRAINING
            if turn == FIRST_TRAINING and (so_far := (yield from run.first_steps(study.begins_with, turn))):
                with lock_measurements(so_far.directory):
                    yield from study.begin(so_far, setting)
                so_far.let_go()
            ready = yield from run.steps(turn)
        else:
            ready = run
        with lock_measurements(ready.directory):
            for name in ("tables", "figures", "curves"):  # of a start that was killed
                clear_partial_files(ready.directory / name)
            tables = yield from study.measure(ready, setting)
            texts = write_tables(tables, ready.directory / "tables")
            draw(ready.directory, study.pictures(tables), texts)
        return ready, tables, texts

    found = Engine(workers, progress).run([of_run(run) for run in runs])
    measured = [run for run, *_ in found]
    tables = together([tables for _, tables, _ in found])
    compared = study.compare(tables, measured)
    comparison = Path(output_dir) / "comparison"
    texts = write_tables(compared, comparison / "tables")
    draw(
        comparison, study.pictures_of_all(tables | compared), [text for *_, of_run in found for text in of_run] + texts
    )
    return Outcome(tables | compared, figures, measured, list(tables), list(compared), comparison / "tables")


def together(of_runs: Sequence[Tables]) -> Tables:
    """The tables of several runs put together, by name."""
    import pandas as pd

    names = dict.fromkeys(name for tables in of_runs for name in tables)
    return {name: pd.concat([t[name] for t in of_runs if name in t], ignore_index=True) for name in names}


def write_tables(tables: Mapping[str, pd.DataFrame], directory: Path) -> list[str]:
    """Write `<directory>/<name>.csv` of each table; returns the texts, each after the name of its table."""
    texts = []
    for name, table in tables.items():
        text = table_text(table)
        write_text_atomic(directory / f"{name}.csv", text)
        texts.append(f"{name}\n{text}")
    return texts
