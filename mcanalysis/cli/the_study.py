"""The script of the study: its flags, pieces that are missing, answers as tables, pictures and a page."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from mcanalysis.cli.console import answer, bar, duration, figure, next_step, say
from mcanalysis.cli.flags import Parser
from mcanalysis.cli.running import quiet_libraries
from mcanalysis.cli.studies import speak
from mcanalysis.cli.workers import add_workers_flags, number_of_workers, workers
from mcanalysis.errors import UserError
from mcanalysis.studies.claims.settings import StudySettings

if TYPE_CHECKING:
    from mcanalysis.studies.claims.pieces import Found
    from mcanalysis.studies.claims.protocol import Planned
    from mcanalysis.studies.training import Training


def run_the_study(description: str | None) -> None:
    """The main of `study.py`; `description`: the first lines of `--help`."""
    parser = Parser(description)
    parser.add_settings(StudySettings, group="study", basic=True)
    parser.add_argument("--dry-run", action="store_true", help="say what is there and what the rest takes, and end")
    add_workers_flags(parser)
    args = parser.parse()
    settings = parser.settings(StudySettings, args)
    args.model, args.device = "embedded", None  # what the number of workers depends on
    quiet_libraries()
    from mcanalysis.studies.claims.pieces import absent_bases, carry_out, find, make_base
    from mcanalysis.studies.claims.protocol import BASE_MINUTES
    from mcanalysis.studies.claims.report import seconds_left, write_report

    protocol, tuned = settings.protocol, settings.tuned
    there: list[Found] = []
    missing: list[tuple[Planned, Training]] = []
    wanted: dict[str, int] = {}
    for part in protocol.parts:
        planned = protocol.planned(part, tuned)
        wanted[part.name] = len(planned)
        try:
            found, absent = find(protocol, planned, settings.results_folder, settings.runs_folder)
        except UserError as error:
            if part.name not in ("real", "bases") or part.name in settings.part:
                raise
            say(f"{part.name}, {part.about}: left out, as it needs what is not here ({error})")
            continue
        say(f"{part.name}, {part.about}: {len(found)} of {len(planned)} pieces are there")
        if unknown := len(planned) - len(found) - len(absent):
            say(f"{unknown} more on bases that are still to be trained, which is not in the time below")
        there += found
        missing += absent if part in settings.parts else []
    number = 1 if args.scheduler else number_of_workers(args)
    seconds = seconds_left(there, missing) / number
    if missing:
        say(f"the other {len(missing)} take about {duration(seconds)} on {number} worker(s)")
    if args.dry_run:
        answer({}, missing=[planned.name for planned, _ in missing], seconds=seconds)
        next_step("the same command without --dry-run")
        return
    start = time.monotonic()

    def time_left() -> float:
        return settings.minutes * 60 - (time.monotonic() - start)

    with workers(args) as those:
        for part in settings.parts:
            planned = protocol.planned(part, tuned)
            now = [piece for piece in missing if piece[0].part == part.name]
            done = {piece.planned.name for piece in there}
            for base in absent_bases([p for p in planned if p.name not in done], settings.runs_folder):
                name = base.config.model
                if time_left() < BASE_MINUTES[name] * 60:
                    takes = f"about {BASE_MINUTES[name]} minutes in one go"
                    say(f"the base {name} is not trained, which takes {takes}; raise --minutes")
                else:
                    say(f"a base is trained, {name}")
                    make_base(base, settings.runs_folder, bar)
                    _, now = find(protocol, planned, settings.results_folder, settings.runs_folder)
            for piece in carry_out(protocol, now, those, seconds=time_left(), progress=bar):
                there.append(piece)
                say(f"{piece.planned.part}: {piece.planned.name}, after {duration(time.monotonic() - start)}")
    report = write_report(there, settings.report_folder, wanted, figure)
    speak(report.words)
    if left := sum(wanted.values()) - len(there):
        say(f"{left} pieces are not there yet: run the same command again; what is there counts as done")
    say(f"tables, figures and {report.page.name}: {settings.report_folder}")
    answer(report.tables, missing=left)
    next_step("the same command" if left else "report")
