"""Where what can be made or fetched again is kept on this machine."""

from __future__ import annotations

import os
from pathlib import Path

CACHE_VARIABLE = "MCANALYSIS_CACHE"


def cache_folder() -> Path:
    """`$MCANALYSIS_CACHE`, else `$XDG_CACHE_HOME/mcanalysis`, else `~/.cache/mcanalysis`."""
    if given := os.environ.get(CACHE_VARIABLE):
        return Path(given).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "mcanalysis"
