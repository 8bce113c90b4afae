"""What every figure shares: which runs, what they have measured, the flags, and the files that are written.

Only the standard library is imported here, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from mcanalysis.cli.console import command, fail, of_runs, say, warn
from mcanalysis.cli.flags import Parser, comma_list
from mcanalysis.cli.running import run_script
from mcanalysis.registry import Registry

if TYPE_CHECKING:
    import pandas as pd

    from mcanalysis.runs.finished import FinishedRun

FIRST = ("sequential", "er", "ilora")  # strategies that come first where runs are looked for
FORMATS = ("pdf", "png", "svg")
_noted: set[str] = set()


def missing(table: str, runs: Sequence[FinishedRun], by: str = "") -> Exception:
    """The error of a table that no run has: what is missing where, and the command that makes it (`by`, a figure's
    `ANALYSIS`)."""
    from mcanalysis.errors import UserError

    named = [word for run in runs for word in ("--run", str(run.directory))]
    remedy = f"measure it with {command(*by.split(), *named)}" if by else "restore or measure it"
    return UserError(f"Expected the table {table}.csv in '{runs[0].directory / 'tables'}', got none; {remedy}.")


def having(runs: Sequence[FinishedRun], *tables: str, by: str = "") -> list[FinishedRun]:
    """The runs that have these tables, after a word on the others; raises the error of `missing` where none has."""
    found = [run for run in runs if all(run.has(table) for table in tables)]
    if not found:
        raise missing(next(t for t in tables if not runs[0].has(t)), runs, by)
    for run in runs:
        lacking = [table for table in tables if not run.has(table)]
        if lacking:
            remedy = f": {command(*by.split(), '--run', run.directory)}" if by else ""
            note = f"note: left out {run.name}, without {lacking[0]}.csv{remedy}"
            if note not in _noted:  # of several figures of one table
                _noted.add(note)
                warn(note)
    return found


def comparable(runs: Sequence[FinishedRun]) -> list[FinishedRun]:
    """Those on the first run's model, chat template and tasks; of several of one strategy and seed the first."""
    same = ("model", "tasks", "chat_template")
    alike = [run for run in runs if all(run.config.get(k) == runs[0].config.get(k) for k in same)]
    return list({(run.strategy, run.seed): run for run in reversed(alike)}.values())[::-1]


def together(runs: Sequence[FinishedRun], table: str) -> pd.DataFrame:
    """One table of several runs, one below the other."""
    import pandas as pd

    return pd.concat([run.table(table) for run in runs], ignore_index=True)


def found_runs(folder: Path) -> list[FinishedRun]:
    """The finished runs that lie in a folder: sequential, replay and I-LoRA first, then by name."""
    from mcanalysis.runs.finished import runs_in

    rank = {name: i for i, name in enumerate(FIRST)}
    return sorted(runs_in(folder)[0], key=lambda r: (rank.get(r.strategy, len(rank)), r.name))


class _Figures(Registry[ModuleType]):
    """Modules with `draw(runs)` beside the script, which are imported when drawn, and those of other packages."""

    def __init__(self, files: Sequence[str], group: str) -> None:
        super().__init__("figure", "figures", group=group)
        self.files = files

    def search(self) -> dict[str, Callable[[], ModuleType]]:
        return {file: partial(import_module, file) for file in self.files}

    def chosen(self, found: Any, name: str) -> ModuleType | None:
        return found if hasattr(found, "draw") else None


def main(names: Sequence[str], description: str | None, group: str = "") -> None:
    """Draw figures from the runs that the flags give; a mistake ends it with one line and exit code 2.

    A figure whose measurements are missing does not keep the others from being drawn; what is missing is said last, and
    is a mistake where the figure was asked for by name. With `--measure` it is measured first.

    Args:
        names: of the files beside the script, each with `draw(runs)`, which returns the figure's `Picture`s.
        description: what `--help` says first.
        group: of the entry points under which other packages give more; "": none.
    """
    figures = _Figures(names, group)
    run_script(lambda: _draw(_parser(figures.names(), description).parse(), figures))


def _draw(args: argparse.Namespace, figures: _Figures) -> None:
    from mcanalysis.errors import DataError, UserError
    from mcanalysis.plotting.picture import save
    from mcanalysis.plotting.style import on_page

    errors, absent = [], []
    if args.dry_run and not args.measure:
        raise UserError("Expected --dry-run with --measure, got it alone; add --measure to be told how long it takes.")
    page, chosen, folder, runs = _settled(args, figures.names())
    is_named = len(figures.names()) == 1 or args.only is not None
    is_whole = not args.measure or _measure(args, figures, chosen, runs)
    for name in () if args.dry_run else chosen:
        figure = None
        try:
            figure = figures.get(name)
            with on_page(page):
                for picture in figure.draw(runs(getattr(figure, "FOLDER", None))):
                    save(picture, folder, args.format)
                    say(str(folder / f"{picture.stem}.{args.format[0]}"))
        except UserError as error:
            is_mistake = is_named or figure is None or isinstance(error, DataError)
            (errors if is_mistake else absent).append(f"{name}: {error}")
    for line in absent:
        warn(f"not drawn: {line}")
    for error in errors:
        fail(error)
    if errors or not is_whole:
        sys.exit(2)
    named = of_runs(args.run or [])
    named += ["--output-dir", str(args.output_dir)] if args.output_dir else []
    if absent and not args.measure:
        warn(f"next: {command('figures', '--measure', *named)}")
    elif not args.dry_run:
        warn(f"next: {command('report', *(args.run or []))}")


def _train(only_tell: bool) -> None:
    """The runs of the main job, from nothing; ends the script where they cannot be trained or are not to be."""
    from mcanalysis.cli.measuring import measure

    warn("No runs are there: those of the main job come first, and then it is said how long the rest takes")
    if not measure([["connectivity", "--resume"]], only_tell):
        sys.exit(2)
    if only_tell:
        sys.exit(0)


def _measure(
    args: argparse.Namespace, figures: _Figures, chosen: Sequence[str], runs: Callable[[str | None], list[FinishedRun]]
) -> bool:
    """Measure what these figures lack; whether all of it could be. One that cannot be imported is named when drawn."""
    from mcanalysis.cli.measuring import lacking, measure
    from mcanalysis.errors import UserError

    asked = []
    for name in chosen:
        with suppress(UserError):
            asked.append(figures.get(name))
    return measure(lacking(asked, runs, bool(args.run)), args.dry_run)


def _parser(names: Sequence[str], description: str | None) -> Parser:
    parser = Parser(description, config=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--run", action="append", type=Path, metavar="DIR",
        help="a finished run; repeatable; of several of one strategy and seed comparisons take the first (default: all "
        "in runs/, for ablations also those in runs/ablations/)",
    )  # fmt: skip
    parser.add_argument("--measure", action="store_true", help="measure what figures lack, after a word on how long")
    parser.add_argument("--dry-run", action="store_true", help="with --measure: say how long that takes, and end")
    parser.add_argument("--style", default="paper", help="paper, slides or screen: size of text and lines (paper)")
    parser.add_argument(
        "--width", help="a venue (acl, icml, ieee, …) or two widths in inches, one column and all: 3,6.3"
    )
    parser.add_argument("--format", type=comma_list, default=["pdf", "png"], help="among pdf, png, svg (pdf,png)")
    parser.add_argument("--output-dir", type=Path, metavar="DIR", help="default: figures/ beside the runs")
    parser.set_defaults(only=None)
    if len(names) > 1:
        parser.add_argument("--only", type=comma_list, metavar="A,B", help=f"some of {', '.join(names)}")
    return parser


def _settled(
    args: argparse.Namespace, names: Sequence[str]
) -> tuple[Any, list[str], Path, Callable[[str | None], list[FinishedRun]]]:
    """Page, figures, folder, and the runs for a figure; raises `UserError` before anything is drawn."""
    from mcanalysis.errors import UnknownNameError, UserError
    from mcanalysis.runs.finished import FinishedRun

    asked = args.only or names
    chosen = [name for name in names if name in asked]
    for kind, known, given in (("figure", names, asked), ("format", FORMATS, args.format)):
        for name in given:
            if name not in known:
                raise UnknownNameError(kind, name, known)
    page = _page(args)
    if args.output_dir is not None and args.output_dir.exists() and not args.output_dir.is_dir():
        raise UserError(f"Expected a folder for --output-dir, got the file '{args.output_dir}'; name another.")
    given = [FinishedRun(directory) for directory in args.run or ()]
    home = Path("runs")
    found = given or found_runs(home)
    if args.measure and not found:
        _train(args.dry_run)
        found = found_runs(home)

    def runs(folder: str | None) -> list[FinishedRun]:
        of_figure = found if given or folder is None else found + found_runs(home / folder)
        if not of_figure:
            raise UserError("Expected finished runs in 'runs', got none; make them with make demo, or give --run DIR.")
        return of_figure

    if len(chosen) > 1:
        runs(None)  # one figure may do with the runs of its own folder; all without runs would say so each
    beside = found[0].directory.parent if found else home
    return page, chosen, args.output_dir or beside / "figures", runs


def _page(args: argparse.Namespace) -> Any:
    from mcanalysis.errors import UnknownNameError, UserError
    from mcanalysis.plotting.style import STYLES, VENUES

    if args.style not in STYLES:
        raise UnknownNameError("style", args.style, STYLES)
    page = STYLES[args.style]
    if args.width is None:
        return page
    if args.width in VENUES:
        return page._replace(single=VENUES[args.width][0], double=VENUES[args.width][1])
    try:
        single, double = (float(width) for width in args.width.split(","))
    except ValueError:
        raise UnknownNameError(
            "width", args.width, VENUES, "Or two numbers of inches, one column and all: 3,6.3."
        ) from None
    if not (2.5 <= single <= double and 4.5 <= double <= 20):
        raise UserError(
            f"Expected a column of at least 2.5 inches and a page of 4.5 to 20, got {args.width}; give --width 3,6.3."
        )
    return page._replace(single=single, double=double)
