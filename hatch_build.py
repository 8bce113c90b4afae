"""Build hook: a wheel carries the scripts, so that `python -m mcanalysis connectivity` works without a checkout.

An editable installation finds them in the checkout and gets no copies.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

# Folder of the checkout → its place in the package; `mcanalysis/__main__.py` looks for scripts in both.
CARRIED = {"analyses": "mcanalysis/scripts", "figures": "mcanalysis/scripts/figures"}


class CarryScripts(BuildHookInterface):
    """Adds the folders of scripts to a wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Name the folders to include; `version` is "standard" for a wheel and "editable" for `pip install -e`."""
        if self.target_name == "wheel" and version == "standard":
            folders = {str(Path(self.root) / folder): place for folder, place in CARRIED.items()}
            build_data["force_include"].update({f: place for f, place in folders.items() if Path(f).is_dir()})
