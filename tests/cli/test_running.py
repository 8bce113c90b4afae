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
