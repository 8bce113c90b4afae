"""How a script runs: alone or shared out over a launch, its bars and tables, and its last words when it fails."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any


def quiet_libraries() -> None:
    """Keep transformers' loading bars and advice off the terminal; errors still show, and warnings once."""
    import logging
    import warnings

    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    if not is_main_process():
        logging.getLogger("mcanalysis").setLevel(logging.ERROR)


def is_main_process() -> bool:
    """Whether this process prints: it is alone, or the first of those that torchrun or accelerate started."""
    return os.environ.get("RANK", "0") == "0"


def num_processes() -> int:
    """How many processes torchrun or accelerate started."""
    count = os.environ.get("WORLD_SIZE", "1")
    return int(count) if count.isdigit() else 2  # what is wrong with it is said when they meet


def _share_out(main: Callable[[], None]) -> None:
    """The first process of a launch runs main, the others take jobs from it."""
    from mcanalysis.experiments.launch import Launch
    from mcanalysis.experiments.ranks import Ranks, serve

    launch = Launch.of_environment()
    if launch.rank > 0:
        serve(launch, quiet_libraries)
        return
    with Ranks(launch, quiet_libraries):
        main()


def run_script(main: Callable[[], None], *, shared: bool = False) -> None:
    """Run a script's main; a mistake in the input ends it with one line on stderr and exit code 2.

    A stop by SIGTERM or Ctrl-C ends it with 143 or 130. `shared`: where a launch has several processes, they share the
    jobs of one main; else each runs its own.
    """
    from mcanalysis.errors import UserError
    from mcanalysis.training.stopping import Stopped

    try:
        if shared and num_processes() > 1:
            _share_out(main)
        else:
            main()
    except UserError as error:
        _last_words(f"error: {' '.join(str(error).split())}")
        sys.exit(2)
    except (Stopped, KeyboardInterrupt) as stop:
        if is_main_process():
            _end_bars()
            print("stopped; what was saved is kept, and --resume goes on from there", file=sys.stderr)
        sys.exit(stop.exit_code if isinstance(stop, Stopped) else 130)


def _last_words(line: str) -> None:
    """Print once: what is wrong in all processes is said by the main one, and ends the others while they wait here."""
    if not is_main_process():
        time.sleep(10)
        line = f"process {os.environ['RANK']}: {line}"
    _end_bars()
    print(line, file=sys.stderr, flush=True)


def _end_bars() -> None:
    """Leave the line that a bar was drawn on."""
    if "tqdm" in sys.modules:
        from tqdm import tqdm

        for drawn in list(getattr(tqdm, "_instances", ())):
            drawn.close()


def bar(*, total: int, desc: str) -> Any:
    """A bar with time left on stderr, rarely redrawn where that is no terminal; of several only the first stays."""
    from tqdm import tqdm

    interval = 0.5 if sys.stderr.isatty() else 20
    return tqdm(total=total, desc=desc, mininterval=interval, dynamic_ncols=True, leave=None)


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text with aligned columns, the first row a header."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])
