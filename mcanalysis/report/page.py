"""The page itself: template, style, scripts and data in one text, and as a file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

import mcanalysis
from mcanalysis import fonts
from mcanalysis.errors import MissingPackageError, UserError
from mcanalysis.report.contents import run_contents
from mcanalysis.report.embedding import font_face, plotly_source, script_json, security_policy
from mcanalysis.report.scores import comparison
from mcanalysis.runs.finished import FinishedRun
from mcanalysis.store.atomic import write_bytes_atomic
from mcanalysis.store.one_file import check_output

# In the order in which they build on one another.
SCRIPTS = ("page", "tables", "charts", "paths", "surfaces", "comparison", "start")
MOST_BYTES = 8_000_000


def render(runs: Sequence[FinishedRun], num_samples: int = 4, unfinished: Sequence[str] = ()) -> str:
    """The report of finished runs as one HTML text, the same from the same files.

    `num_samples`: test examples per task whose outputs are shown. `unfinished`: names of runs that are left out, which
    the page says. Everything from the runs' files is escaped, and the page may run its own scripts only.

    Raises `UserError` where plotly or jinja2 is missing, `DataError` for a damaged file of a run.
    """
    if num_samples < 0:
        raise UserError(f"Expected at least 0 samples per task, got {num_samples}; choose 0 to leave them out.")
    if find_spec("jinja2") is None:
        raise MissingPackageError("jinja2", "for the report", "report")
    from jinja2 import Environment, StrictUndefined

    library = plotly_source()
    contents = [run_contents(run, number, num_samples) for number, run in enumerate(runs, start=1)]
    side_by_side = comparison(runs)
    data = script_json({"runs": [c["data"] for c in contents], "comparison": side_by_side, "font": fonts.FAMILY})
    script = f'"use strict";\n(() => {{\n{"".join(_asset(f"{name}.js") for name in SCRIPTS)}}})();'
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(_asset("page.html"))
    parts = {
        "runs": contents,
        "comparison": side_by_side,
        "unfinished": unfinished,
        "version": mcanalysis.__version__,
        "style": _asset("style.css").replace("FONT_FAMILY", f'"{fonts.FAMILY}"'),
        "library": library,
        "script": script,
        "data": data,
        "policy": security_policy([library, script]),
    }
    shown = template.render({**parts, "library": "", "font": ""})
    return template.render(parts, font=font_face(shown))


def write_report(
    runs: Sequence[FinishedRun], output: str | os.PathLike[str], num_samples: int = 4, unfinished: Sequence[str] = ()
) -> int:
    """Write the report of `runs` to the file `output`, as a whole or not at all; returns its size in bytes.

    Arguments and errors as of `render`; also raises `UserError` for a page of more than 8 MB, which a phone would
    not like, and for an `output` that cannot be written.
    """
    file = Path(output)
    if file.is_dir():
        raise UserError(f"Expected a file for the report, got the folder '{file}'; pass --output {file}/report.html.")
    check_output(file, b"<!doctype html", "a page")
    content = render(runs, num_samples, unfinished).encode("utf-8")
    if len(content) > MOST_BYTES:
        raise UserError(
            f"Expected a report of at most {MOST_BYTES / 1e6:.0f} MB, got {len(content) / 1e6:.1f} MB for "
            f"{len(runs)} run(s); name fewer runs, or lower --num-samples."
        )
    try:
        write_bytes_atomic(file, content)
    except OSError as error:
        raise UserError(f"Expected to write '{file}', got: {error.strerror}; choose another --output.") from None
    return len(content)


def _asset(name: str) -> str:
    return (files("mcanalysis.report") / "assets" / name).read_text(encoding="utf-8")
