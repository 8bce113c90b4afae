"""The other tools that are timed beside this one: in a folder of their own, which only what times them looks into.

What is pinned in `peers.txt` is installed there from PyPI when first needed, without dependencies: numpy, scipy and
torch are the project's own. The project's environment stays as it was.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType

PINNED = Path(__file__).with_name("peers.txt")
FOLDER = Path(sys.prefix) / "bench-peers"
may_install = True  # a quick run uses what is there


class PeerMissingError(Exception):
    """A peer that could not be installed, and why."""


def folder() -> Path:
    """The folder with the peers in it, filled if need be. Raises `PeerMissingError` where pip cannot."""
    stamp = FOLDER / "installed.txt"
    pinned = PINNED.read_text(encoding="utf-8")
    if not stamp.exists() or stamp.read_text(encoding="utf-8") != pinned:
        if not may_install:
            raise PeerMissingError("not installed, and a quick run installs nothing")
        command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps"]
        command += ["--upgrade", "--target", str(FOLDER), "-r", str(PINNED)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or [
                f"pip {done.returncode}"
            ]
            raise PeerMissingError(errors[0].removeprefix("ERROR: "))
        stamp.write_text(pinned, encoding="utf-8")
    return FOLDER


def load(name: str) -> ModuleType:
    """A peer as a module; nothing of its folder stays on the path. Raises `PeerMissingError`."""
    where = str(folder())
    sys.path.append(where)  # at the end: the project's own packages come first
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise PeerMissingError(str(error)) from error
    finally:
        sys.path.remove(where)
