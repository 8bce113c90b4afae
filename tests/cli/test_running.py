"""What a script writes on stderr besides its last words."""

import subprocess
import sys

PROGRAM = """
import logging
from mcanalysis.cli.running import run_script

logger = logging.getLogger("mcanalysis.somewhere")
run_script(lambda: [logger.warning("few examples of %s", task) for task in ("a", "b", "a", "a")])
run_script(lambda: logger.warning("few examples of %s", "a"))
"""


def test_a_warning_is_printed_once_for_a_script():
    """In a process of its own: under pytest, handlers take what would be printed."""
    said = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True).stderr
    assert said.splitlines() == ["few examples of a", "few examples of b", "few examples of a"]


def test_where_each_table_lies_is_said(capsys):
    """Some are in both places: those of each run, and all of them together."""
    from pathlib import Path

    from mcanalysis.cli.studies import tell
    from mcanalysis.studies.early import Early
    from mcanalysis.studies.study import Outcome

    class Silent(Early):
        def words(self, tables):
            return iter(())

    tell(Silent(), Outcome({}, of_each=["profiles"], compared=["profiles", "metrics"], comparison=Path("c/tables")))
    assert capsys.readouterr().out.strip().splitlines() == [
        "tables: profiles.csv in tables/ of each run",
        "tables of all runs together: profiles.csv, metrics.csv in c/tables/",
    ]
