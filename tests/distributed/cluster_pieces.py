"""Pieces that the tests of clusters send to workers, which import this file by its name."""

import contextlib
import logging
import os
import signal
import time
from pathlib import Path

from mcanalysis.errors import DataError, UserError
from mcanalysis.training.stopping import Stopped, listening


def square(x, progress):
    bar = progress(total=2, desc=f"square {x}")
    bar.update(1)
    bar.update(1)
    bar.close()
    return x * x, os.getpid()


def worry(number, progress):
    logging.getLogger("mcanalysis.somewhere").warning("a run on the cluster is odd")
    logging.getLogger("mcanalysis.somewhere").warning("piece %d on it, too", number)


def nothing(progress):
    return None


def slow(seconds, progress):
    time.sleep(seconds)
    return os.getpid()


def note(folder, x, progress):
    """Leave a file for each call."""
    (folder / f"{x}.{time.monotonic_ns()}").touch()
    time.sleep(0.1)
    return x


def fail(kind, progress):
    if kind == "system":
        raise OSError("no such device")
    raise UserError("There is no task FOMCC.")


def die(folder, times, progress):
    """Count the call, and die by SIGKILL in the first `times`."""
    progress(total=3, desc="dies").update()
    (folder / f"{len(list(folder.iterdir()))}.{os.getpid()}").touch()
    if len(list(folder.iterdir())) <= times:
        os.kill(os.getpid(), signal.SIGKILL)
    return "alive"


def need_data(folder, progress):
    """The first process that gets here lacks something."""
    with contextlib.suppress(FileExistsError):
        (folder / "first").symlink_to(str(os.getpid()))
    if str((folder / "first").readlink()) == str(os.getpid()):
        raise DataError("There is no data here.")
    return os.getpid()


def train(folder, steps, progress):
    """As training does: counts its steps in a file, goes on from there, saves and ends when it is told to."""
    file = Path(folder) / "steps"
    (Path(folder) / f"pid.{os.getpid()}").touch()
    done = int(file.read_text()) if file.exists() else 0
    with listening() as stop:
        bar = progress(total=steps, desc="train")
        while done < steps:
            time.sleep(0.05)
            done += 1
            bar.update(1)
            if stop:
                file.write_text(str(done))
                (Path(folder) / f"saved.{os.getpid()}").touch()
                raise Stopped(stop.signal)
    return done, bool(file.exists())


def train_run(config, directory, progress):
    """Training as studies ask for it: whoever comes second goes on."""
    from mcanalysis.training.config import Execution
    from mcanalysis.training.continual_trainer import train

    execution = Execution(save_steps=2)
    train(
        config, directory, resume=True, device="cpu", execution=execution, progress=progress, lock_seconds=60.0
    )  # fmt: skip
