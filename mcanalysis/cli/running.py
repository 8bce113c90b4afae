"""How a script runs, and its last words when it fails."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mcanalysis.cli.console import fail, is_main_process, warn
from mcanalysis.cli.machine_faults import machine_fault

# Read when NumPy is first imported. Its products here are small (bootstraps), and its threads wait for one another by
# spinning, which beside workers that compute takes several times as long as one thread.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def quiet_libraries() -> None:
    """Keep transformers' loading bars and advice off the terminal; errors still show, and warnings once."""
    import warnings

    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    if not is_main_process():
        logging.getLogger("mcanalysis").setLevel(logging.ERROR)


def num_processes() -> int:
    """How many processes torchrun or accelerate started."""
    count = os.environ.get("WORLD_SIZE", "1")
    return int(count) if count.isdigit() else 2


def run_script(main: Callable[[], None], *, launched: bool = False) -> None:
    """Run a script's main; a mistake in the input, or what the machine refuses, ends it with one line on stderr and 2.

    A stop by SIGTERM or Ctrl-C ends it with 143 or 130. `launched`: it may be launched as several processes, each of
    which takes its part, as training does; of others each would compute all.
    """
    from mcanalysis.errors import UserError
    from mcanalysis.training.stopping import Stopped

    try:
        if not launched and num_processes() > 1:
            raise UserError("torchrun and accelerate launch are for train.py: give --workers or --scheduler instead.")
        with _warned_once():
            main()
    except UserError as error:
        _last_words(str(error))
        sys.exit(2)
    except BrokenPipeError:  # whoever read our output wants no more of it, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)  # what a shell makes of SIGPIPE
    except Exception as error:
        reason = _not_repeated(error) or machine_fault(error)
        if reason is None:
            raise
        _last_words(reason)
        sys.exit(2)
    except (Stopped, KeyboardInterrupt) as stop:
        if is_main_process():
            warn("stopped; what was saved is kept: give the same command again, with --resume if training had begun")
        sys.exit(stop.exit_code if isinstance(stop, Stopped) else 130)


@contextmanager
def _warned_once() -> Iterator[None]:
    """Print each warning once for a script, however many runs, forks or sets of workers it comes from."""
    said: set[str] = set()

    def is_new(record: logging.LogRecord) -> bool:
        text = record.getMessage()
        return text not in said and not said.add(text)

    printed = logging.lastResort  # what prints where no handlers were set up, which scripts of ours leave to others
    if printed is None:
        yield
        return
    printed.addFilter(is_new)
    try:
        yield
    finally:
        printed.removeFilter(is_new)


def _not_repeated(error: Exception) -> str | None:
    """What to say of an operation that `--deterministic` does not allow; None for another error."""
    if not isinstance(error, RuntimeError) or "deterministic" not in str(error):
        return None
    reason = " ".join(str(error).split("You can")[0].split())
    return f"Expected operations that repeat (--deterministic), got: {reason} Leave --deterministic out."


def _last_words(reason: str) -> None:
    """Print once: what is wrong in all processes is said by the main one, and ends the others while they wait here."""
    if not is_main_process():
        time.sleep(10)
        reason = f"process {os.environ['RANK']}: {reason}"
    fail(reason)
