"""From a study to a script: its flags, the runs it is made on, what it says; studies of other packages by name."""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from mcanalysis.cli.console import answer, bar, figure, growing_figure, next_step, of_runs, say, table
from mcanalysis.cli.flags import Parser
from mcanalysis.cli.run_flags import add_study_flags, study_runs
from mcanalysis.cli.running import quiet_libraries, run_script
from mcanalysis.cli.workers import number_of_workers, workers
from mcanalysis.registry import Registry

if TYPE_CHECKING:
    from mcanalysis.studies.engine import Workers
    from mcanalysis.studies.study import Outcome, Rows, Study


class _Studies(Registry["type[Study]"]):
    """Studies that installed packages give by an entry point, a class or a module with one; ours have scripts."""

    mismatch = "let it lead to a subclass of Study that has measure"

    def search(self) -> dict[str, Callable[[], type[Study]]]:
        return {}

    def chosen(self, found: Any, name: str) -> type[Study] | None:
        from mcanalysis.studies.study import Study

        things = [found]
        if isinstance(found, ModuleType):  # what it imports is not its own
            things = [thing for thing in vars(found).values() if getattr(thing, "__module__", None) == found.__name__]
        studies = [thing for thing in things if isinstance(thing, type) and issubclass(thing, Study)]
        return next((study for study in studies if not inspect.isabstract(study)), None)


STUDIES = _Studies("study", "", group="mcanalysis.studies")


def run_study(
    kind: type[Study],
    description: str | None,
    *,
    also: Callable[[Outcome], Mapping[str, Any]] = lambda _: {},
    unsaid: Sequence[str] = (),
    parser: Parser | None = None,
    instead: Callable[[Study, argparse.Namespace, Workers], Outcome | None] = lambda study, args, those: None,
    dry_run: Callable[[Study, argparse.Namespace], None] | None = None,
) -> None:
    """A script's main: read the flags, train and measure what is missing, say and draw what was found.

    `description`: the first lines of `--help`. `also`: further facts for `--json`, from the outcome. `unsaid`: tables
    that are too long for the document of `--json`. `parser`: one with further flags; `instead` may carry the study out
    in another way where these ask for it. `dry_run` says what it would take, in place of `forecast`.
    """
    parser = parser or Parser(description)
    add_study_flags(parser, kind.strategies)
    parser.add_settings(kind, group="what is measured", basic=True)
    parser.add_argument(
        "--dry-run", action="store_true", help="say what would be computed and needed, and write nothing"
    )
    args = parser.parse()
    study = parser.settings(kind, args)
    quiet_libraries()
    if args.dry_run:
        (dry_run or forecast)(study, args)
        next_step("the same command without --dry-run")
        return
    from mcanalysis.studies.study import carry_out

    with workers(args) as those:
        outcome = instead(study, args, those)
        if outcome is None:
            folder = args.output_dir or "runs"
            how = {"progress": bar, "on_figure": figure, "on_growing": growing_figure}
            outcome = carry_out(study, study_runs(args), folder, those, **how)
    tell(study, outcome, unsaid, **also(outcome))
    directories = [run.directory for run in outcome.runs]
    if getattr(args, "minima", None):
        are_adapters = all(Path(name, "adapter_config.json").exists() for name in args.minima)
        if are_adapters and len(args.minima) == 2 and args.data and all(map(Path.exists, map(Path, args.data))):
            next_step("card", *args.minima, "--data", ",".join(args.data))
        else:
            next_step("check_merge")
    elif study.leads_to == "figures":
        next_step("figures", *of_runs(directories))
    else:
        next_step(study.leads_to, *(word for directory in directories for word in ("--run", directory)))


def forecast(study: Study, args: argparse.Namespace) -> None:
    """Say what a study would take of finished runs; raises `UserError` where some are still to be trained, or where it
    would refuse them."""
    from mcanalysis.cli import run_reporting
    from mcanalysis.errors import UserError
    from mcanalysis.runs.run import Run, load_run
    from mcanalysis.studies.forecast import forecast_pieces

    found = study_runs(args)
    study.check_all(found)
    if absent := [run.directory for run in found if not isinstance(run, Run) and not run.is_there]:
        raise UserError(
            f"Expected finished runs to tell how long this takes, got {len(absent)} that are still to be trained, the "
            f"first '{absent[0]}'; ask connectivity.py --dry-run how long training takes."
        )
    runs = [
        run if isinstance(run, Run) else load_run(run.directory, args.device, run.execution.engine) for run in found
    ]
    run_reporting.pieces(forecast_pieces(study, runs, 1 if args.scheduler else number_of_workers(args)))


def run_by_name(name: str, arguments: Sequence[str]) -> None:
    """Run a study of another package as a script of that name with these arguments would."""
    sys.argv = [name, *arguments]

    def main() -> None:
        study = STUDIES.get(name)
        run_study(study, inspect.getdoc(study))

    run_script(main)


def tell(study: Study, outcome: Outcome, unsaid: Sequence[str] = (), **facts: Any) -> None:
    """Print what a study says, and with `--json` its tables."""
    speak(study.words(outcome.tables))
    of_each = ", ".join(f"{name}.csv" for name in outcome.of_each)
    say(f"\ntables: {of_each} in tables/ of each run" if of_each else "")
    if outcome.compared:
        of_all = ", ".join(f"{name}.csv" for name in outcome.compared)
        say(f"tables of all runs together: {of_all} in {outcome.comparison}/")
    answer({name: rows for name, rows in outcome.tables.items() if name not in unsaid}, **facts)


def speak(parts: Iterable[str | Rows]) -> None:
    """Print lines and tables."""
    for part in parts:
        say(part) if isinstance(part, str) else table(part)
