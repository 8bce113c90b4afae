"""`python -m mcanalysis NAME …` runs a script by name, as `python analyses/NAME.py …` does in a checkout.

The wheel carries the folder `analyses` as `mcanalysis/scripts`; a checkout has it beside the package. A name that is no
script's is that of a study which an installed package gives. With no name all are listed. `completion SHELL` and
`schema NAME` print what is made of the scripts' flags.
"""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import mcanalysis
from mcanalysis.cli.completion import SHELLS, completion
from mcanalysis.cli.flags import Described, Parser
from mcanalysis.cli.schema import config_schema
from mcanalysis.cli.studies import STUDIES, run_by_name
from mcanalysis.errors import UnknownNameError, UserError
from mcanalysis.registry import first_line

PACKAGE = Path(__file__).parent


def script_folder() -> Path:
    """Return the folder of the scripts, in the package or in the checkout; raises `UserError` where there is none."""
    places = (PACKAGE / "scripts", PACKAGE.parent / "analyses")
    for folder in places:
        if (folder / "start.py").is_file():
            return folder
    raise UserError(f"Expected the scripts in '{places[0]}' or '{places[1]}', got neither; install the package anew.")


def find_scripts() -> dict[str, Path]:
    """Return what can be run by name: every file of the folder that is a program, and the folder of figures.

    >>> "connectivity" in find_scripts(), "start" in find_scripts()
    (True, False)
    """
    folder = script_folder()
    found = {f.stem: f for f in sorted(folder.glob("*.py")) if '__name__ == "__main__"' in f.read_text("utf-8")}
    for figures in (folder / "figures", PACKAGE.parent / "figures"):
        if (figures / "__main__.py").is_file():
            found.setdefault("figures", figures)
    return dict(sorted(found.items()))


def describe(script: Path) -> str:
    """Return the first line of what a script says about itself."""
    file = script / "__main__.py" if script.is_dir() else script
    return first_line(file.read_text("utf-8"))


def listing() -> str:
    """Return every script with one line each, and every study of another package, none of which is imported."""
    scripts = {name: describe(file) for name, file in find_scripts().items()}
    studies = {name: STUDIES.summary(name) for name in STUDIES.names() if name not in scripts}
    width = max(map(len, [*scripts, *studies]))
    lines, theirs = ([f"  {name:<{width}}  {says}".rstrip() for name, says in of.items()] for of in (scripts, studies))
    head = "usage: python -m mcanalysis NAME [flags]; NAME --help lists the flags"
    foot = ["", "studies of installed packages:", *theirs] if theirs else []
    more = "completion bash|zsh: a script for the shell; schema NAME: the JSON schema of its --config files"
    return "\n".join([head, "", *lines, *foot, "", more, f"scripts and configurations: {script_folder()}", ""])


def run(name: str, arguments: Sequence[str]) -> None:
    """Run a script as `python <script> …` would: as the main module, from its folder, with these arguments.

    Or a study of another package; of a name that both have the script is run.
    """
    scripts, studies = find_scripts(), STUDIES.names()
    as_file = name.removesuffix(".py").replace("-", "_")
    if as_file in scripts:
        script = scripts[as_file]
        sys.argv = [str(script), *arguments]
        sys.path.insert(0, str(script.parent))
        runpy.run_path(str(script), run_name="__main__")
        return
    study = name if name in studies else as_file
    if study not in studies:
        raise UnknownNameError("script", name, [*scripts, *studies])
    run_by_name(study, arguments)


def parser_of(name: str) -> Parser:
    """The flags of a script, or of a study of another package, of which nothing else is run."""
    before = sys.argv, sys.path
    sys.path = [*sys.path]
    try:
        return Described.by(lambda: run(name, []))
    finally:
        sys.argv, sys.path = before


def parsers() -> dict[str, Parser]:
    """Those of everything that can be run; studies of other packages that cannot be imported are left out."""
    found = {}
    for name in [*find_scripts(), *STUDIES.names()]:
        with suppress(UserError, SystemExit):
            found.setdefault(name, parser_of(name))
    return found


def _only(of: Sequence[str], what: str, known: Sequence[str]) -> str:
    """The one word that is asked for."""
    if len(of) != 1 or of[0] not in known:
        raise UnknownNameError(what, " ".join(of), known)
    return of[0]


def main() -> None:
    """Run what is named first on the command line; list all where nothing is, and end with 2 where it is unknown."""
    name, *arguments = sys.argv[1:] or ["--help"]
    try:
        if name in ("-h", "--help", "help"):
            sys.stdout.write(listing())
        elif name == "--version":
            sys.stdout.write(f"mcanalysis {mcanalysis.__version__}\n")
        elif name == "completion":
            sys.stdout.write(completion(_only(arguments, "shell", SHELLS), parsers()))
        elif name == "schema":
            script = _only(arguments, "script", [*find_scripts(), *STUDIES.names()])
            sys.stdout.write(json.dumps(config_schema(parser_of(script)), indent=1, ensure_ascii=False) + "\n")
        else:
            run(name, arguments)
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)


if __name__ == "__main__":
    main()
