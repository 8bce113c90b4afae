"""`python -m mcanalysis NAME …` runs a script by name, as `python analyses/NAME.py …` does in a checkout.

The wheel carries the folder `analyses` as `mcanalysis/scripts`; a checkout has it beside the package. With no name the
scripts are listed.
"""

from __future__ import annotations

import ast
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

import mcanalysis
from mcanalysis.errors import UnknownNameError, UserError

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
    return (ast.get_docstring(ast.parse(file.read_text("utf-8"))) or "").partition("\n")[0]


def listing() -> str:
    """Return every script with one line each."""
    scripts = find_scripts()
    width = max(map(len, scripts))
    lines = [f"  {name:<{width}}  {describe(file)}" for name, file in scripts.items()]
    head = "usage: python -m mcanalysis SCRIPT [flags]; SCRIPT --help lists the flags"
    return "\n".join([head, "", *lines, "", f"scripts and configurations: {script_folder()}", ""])


def run(name: str, arguments: Sequence[str]) -> None:
    """Run a script as `python <script> …` would: as the main module, from its folder, with these arguments."""
    scripts = find_scripts()
    if name not in scripts:
        raise UnknownNameError("script", name, scripts)
    script = scripts[name]
    sys.argv = [str(script), *arguments]
    sys.path.insert(0, str(script.parent))
    runpy.run_path(str(script), run_name="__main__")


def main() -> None:
    """Run the script named first on the command line; list them where none is, and end with 2 where it is unknown."""
    name, *arguments = sys.argv[1:] or ["--help"]
    try:
        if name in ("-h", "--help", "help"):
            sys.stdout.write(listing())
        elif name == "--version":
            sys.stdout.write(f"mcanalysis {mcanalysis.__version__}\n")
        else:
            run(name.removesuffix(".py").replace("-", "_"), arguments)
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)


if __name__ == "__main__":
    main()
