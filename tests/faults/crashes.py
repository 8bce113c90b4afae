"""Real commands that are killed, stopped or refused by the machine at chosen moments, started again, and looked at.

Each command is a script of `analyses/` in a process of its own, forked from one that has loaded the libraries. What is
looked for after the fault, and after the command was given again:

* `half-written`: a file that is in place and cannot be read whole, or came there otherwise than by a rename;
* `not synced`: a file or folder renamed into place whose content was not forced to disk before;
* `lost`: a stored value, a curve or another result that was kept before the fault and computed again after it;
* `wrong`: a file that is not, byte for byte, that of the undisturbed command (of measurements, their rows);
* `unclear`: an error that is no single line with exit code 2 (143 and 130 where a signal asked for it), a traceback,
  another start that fails, a lock or a partial file that is left;
* `hang`: not done in time.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from random import Random

import fault_hook

REPOSITORY = Path(__file__).resolve().parents[2]
SECONDS = 120.0  # a command takes two or three
HUNG = 1000
FINDINGS = ("lost", "wrong", "half-written", "not synced", "unclear", "hang")

_TINY = ("--tasks", "FOMC,MedMCQA,JEC-QA", "--steps", "2", "--num-train", "6", "--num-test", "2", "--batch-size", "2")
_TRAINED = ("--lora-rank", "2", "--save-steps", "1", "--save-trajectory", "0")
_FEW = ("--num-examples", "2", "--workers", "1")


@dataclass(frozen=True)
class Command:
    """A script with its flags; those that work on a finished run get a copy of it as `run`."""

    name: str
    script: str
    flags: tuple[str, ...]
    trains: bool = False

    def again(self) -> tuple[str, ...]:
        return (*self.flags, "--resume") if self.trains else self.flags


def _training(strategy: str) -> Command:
    return Command(strategy, "train", ("--strategy", strategy, *_TINY, *_TRAINED, "--output-dir", "run"), True)


COMMANDS = {
    command.name: command
    for command in (
        *map(_training, ("er", "ewc", "gem", "ilora", "o_lora", "sure")),
        Command(
            "curves", "connectivity",
            ("--run", "run", "--paths", "linear-factor,bezier-factor", "--curve-steps", "3", "--num-points", "3",
             *_FEW),
        ),
        Command("profiles", "connectivity", ("--run", "run", "--paths", "linear-delta", "--num-points", "5", *_FEW)),
        Command(
            "plane", "landscape",
            ("--run", "run", "--grid", "3", "--transition", "1", "--num-directions", "0", "--sharpness-samples", "0",
             *_FEW),
        ),
        Command(
            "two workers", "connectivity",
            ("--run", "run", "--paths", "linear-factor", "--num-points", "5", "--num-examples", "2", "--workers", "2"),
        ),
    )
}  # fmt: skip

NUMBERS = {"er": 5, "ewc": 5, "gem": 5, "ilora": 6, "o_lora": 5, "sure": 5} | {
    "curves": 12, "profiles": 6, "plane": 8, "two workers": 4,
}  # fmt: skip
"""Kills and stops of each command in `make faults`; four times as many with SIZE=full."""


@dataclass
class Outcome:
    """How a process ended: its exit code (negative: the signal), what it said on stderr, its log."""

    code: int
    said: str
    log: list[str]

    def moments(self) -> int:
        return sum(line.startswith(("sync", "rename", "commit")) for line in self.log)


@dataclass
class Finding:
    """What was found wrong in one case, by kind."""

    case: str
    found: dict[str, str] = field(default_factory=dict)


def load_libraries() -> None:
    """What each command would import; nothing is computed, so that the process may fork."""
    for name, value in (("OMP_NUM_THREADS", "1"), ("HF_HUB_OFFLINE", "1"), ("TOKENIZERS_PARALLELISM", "false")):
        os.environ.setdefault(name, value)
    os.environ.setdefault("MPLBACKEND", "Agg")
    sys.path.insert(0, str(REPOSITORY / "analyses"))
    import torch

    torch.set_num_threads(1)
    import matplotlib.pyplot  # noqa: F401
    import transformers  # noqa: F401

    import mcanalysis.models.lora_model
    import mcanalysis.plotting.connectivity
    import mcanalysis.runs.run
    import mcanalysis.studies.connectivity.study
    import mcanalysis.studies.landscape.study
    import mcanalysis.training.continual_trainer
    import mcanalysis.training.task_trainer  # noqa: F401


def forked(
    command: Command, folder: Path, fault: str = "", *, again: bool = False, after: float | None = None,
    before: Callable[[], None] = lambda: None, seconds: float = SECONDS,
) -> Outcome:  # fmt: skip
    """Run a command in a new process in a folder; `after` so many seconds it is killed; `before` is called in it."""
    number = len(list(folder.parent.glob(f"{folder.name}.*.log")))
    log, said = (folder.parent / f"{folder.name}.{number}.{end}" for end in ("log", "said"))
    sys.stdout.flush()
    sys.stderr.flush()
    process = os.fork()
    if process == 0:
        code = 70
        try:
            code = _child(command, folder, fault, again, log, said, before)
        finally:
            os._exit(code)
    started, was_killed = time.monotonic(), False
    while (ended := os.waitpid(process, os.WNOHANG))[0] == 0:
        passed = time.monotonic() - started
        if not was_killed and (passed > seconds or (after is not None and passed > after)):
            os.kill(process, signal.SIGKILL)
            was_killed = True
        time.sleep(0.01)
    code = os.waitstatus_to_exitcode(ended[1])
    hung = was_killed and (after is None or after > seconds)
    return Outcome(HUNG if hung else code, said.read_text(), log.read_text().splitlines() if log.exists() else [])


def _child(
    command: Command, folder: Path, fault: str, again: bool, log: Path, said: Path, before: Callable[[], None]
) -> int:
    os.chdir(folder)
    with said.open("w") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    fault_hook.install(fault, log)
    before()
    sys.argv = [f"{command.script}.py", *(command.again() if again else command.flags)]
    spec = importlib.util.spec_from_file_location("the_script", REPOSITORY / "analyses" / f"{command.script}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    code = 0
    try:
        module.run_script(module.main)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def prepare(folder: Path) -> Path:
    """A finished run of three tasks, which the commands that measure get a copy of."""
    (folder / "finished").mkdir(parents=True)
    sequential = Command("sequential", "train", ("--strategy", "sequential", *_TINY, *_TRAINED, "--output-dir", "run"))
    made = forked(sequential, folder / "finished")
    assert made.code == 0, made.said
    return folder / "finished" / "run"


def _place(command: Command, folder: Path, finished: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if not command.trains:
        shutil.copytree(finished, folder / "run")
    return folder


@dataclass
class Whole:
    """The undisturbed command: its files, those that hold times (they differ between two of it), and its moments."""

    files: dict[str, bytes]
    timed: set[str]
    moments: int
    seconds: float


def undisturbed(command: Command, folder: Path, finished: Path) -> Whole:
    """Run a command twice without a fault."""
    both, started = [], time.monotonic()
    for number in (1, 2):
        place = _place(command, folder / f"{command.name}-whole-{number}", finished)
        made = forked(command, place)
        assert made.code == 0, made.said
        both.append(contents(place))
    timed = {name for name in both[0] if both[0][name] != both[1].get(name)}
    return Whole(both[0], timed, made.moments(), (time.monotonic() - started) / 2)


def contents(folder: Path) -> dict[str, bytes]:
    """The bytes of every file, of measurements their rows; checkpoints are for going on alone."""
    found = {}
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder).as_posix()
        if not file.is_file() or name.endswith(("-wal", "-shm")) or "/checkpoint/" in name:
            continue
        found[name] = _rows(file) if file.suffix == ".sqlite" else file.read_bytes()
    return found


def _rows(file: Path) -> bytes:
    with closing(sqlite3.connect(file)) as connection:
        columns = [row[1] for row in connection.execute("PRAGMA table_info(measurements)") if row[1] != "created"]
        rows = connection.execute(f"SELECT {', '.join(columns)} FROM measurements").fetchall()
    return "\n".join(sorted(map(repr, rows))).encode()


def half_written(folder: Path) -> list[str]:
    """Files in place that cannot be read whole."""
    wrong = []
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder).as_posix()
        if not file.is_file() or any(part.startswith(".") for part in Path(name).parts):
            continue
        content = file.read_bytes()
        try:
            if file.suffix == ".json":
                json.loads(content)
            elif file.suffix == ".csv" and not content.endswith(b"\n"):
                raise ValueError("cut")
            elif file.suffix == ".safetensors":
                length = int.from_bytes(content[:8], "little")
                spans = [t["data_offsets"][1] for k, t in json.loads(content[8 : 8 + length]).items() if k[0] != "_"]
                if len(content) != 8 + length + max(spans, default=0):
                    raise ValueError("cut")
            elif file.suffix == ".sqlite":
                with closing(sqlite3.connect(file)) as connection:
                    if connection.execute("PRAGMA integrity_check").fetchone()[0] != "ok":
                        raise ValueError("damaged")
            elif file.suffix == ".pdf" and not content.rstrip().endswith(b"%%EOF"):
                raise ValueError("cut")
        except (ValueError, LookupError, sqlite3.Error) as error:
            wrong.append(f"{name}: {error}")
    return wrong


def not_synced(log: Sequence[str], earlier: Sequence[str] = (), ended: bool = True) -> list[str]:
    """Renames of a file whose content had not been forced to disk, `earlier` or now, or whose folder was not later.

    `ended`: whether the process came so far as to do the latter.
    """
    synced = {line[5:] for line in earlier if line.startswith("sync ")}
    wrong, waiting = [], {}
    for line in log:
        if line.startswith("sync "):
            synced.add(line[5:])
            waiting = {target: folder for target, folder in waiting.items() if folder != line[5:]}
        elif line.startswith("rename\t"):
            _, source, target, what = line.split("\t")
            aside = target.endswith(".replaced")
            if what not in synced and not aside and Path(source).name.startswith("."):
                wrong.append(f"{target}: content")
            parent = Path(target).parent
            if parent.exists() and not aside:
                waiting[target] = fault_hook._identity(parent)
    return wrong + [f"{target}: folder" for target in waiting if ended]


def in_place_without_a_rename(folder: Path, before: set[str], logs: Sequence[Sequence[str]]) -> list[str]:
    """New files that no rename has put where they are."""
    renamed = {line.split("\t")[2] for log in logs for line in log if line.startswith("rename\t")}
    new = [f for f in folder.rglob("*") if f.is_file() and f.relative_to(folder).as_posix() not in before]
    own = (".sqlite", ".sqlite-wal", ".sqlite-shm", ".lock")  # SQLite writes in place, and a lock is no content
    return [
        str(f.relative_to(folder))
        for f in new
        if not f.name.endswith(own)
        and not any(part.startswith(".") for part in f.relative_to(folder).parts)
        and not any(str(place) in renamed for place in (f, *f.parents))
    ]


def lost(first: Sequence[str], second: Sequence[str]) -> list[str]:
    """What was kept for sure before the fault and is put, or renamed into its place, again after it."""
    kept = {line.split("\t")[1] for line in first if line.startswith("kept\t")}
    again = [line.split("\t")[1] for line in second if line.startswith("put\t")]
    places = [
        {line.split("\t")[2] for line in log if line.startswith("rename\t") and "/curves/" in line.split("\t")[2]}
        for log in (first, second)
    ]
    return [key for key in again if key in kept] + sorted(places[0] & places[1])


def case(
    command: Command, whole: Whole, finished: Path, folder: Path, fault: str = "", *, after: float | None = None,
    flags: str = "", before: Callable[[], None] = lambda: None, expected: Sequence[int] = (-signal.SIGKILL,),
) -> Finding:  # fmt: skip
    """One fault, one more start, and everything that is looked for; `flags`: of both starts.

    A fault that comes too late leaves a finished command, which is checked all the same.
    """
    place = _place(command, folder, finished)
    there = {file.relative_to(place).as_posix() for file in place.rglob("*")}
    name = f"{command.name}: {fault or (f'kill after {after:.2f} s' if after is not None else 'none')}{flags}"
    finding = Finding(name)
    first = forked(command, place, ",".join(filter(None, (fault, flags))), after=after, before=before)
    if first.code == HUNG:
        finding.found["hang"] = "the first start"
    if first.code not in (0, *expected) or _is_unclear(first):
        finding.found["unclear"] = f"exit code {first.code}: {first.said.strip()[-300:]}"
    if broken := half_written(place) + in_place_without_a_rename(place, there, [first.log]):
        finding.found["half-written"] = "; ".join(broken)
    second = forked(command, place, flags, again=True, before=before)
    if second.code == HUNG:
        finding.found["hang"] = "the second start"
    elif second.code != 0:
        finding.found["unclear"] = f"the second start, exit code {second.code}: {second.said.strip()[-300:]}"
    unsynced = not_synced(second.log, first.log) + not_synced(first.log, ended=first.code == 0)
    if unsynced:
        finding.found["not synced"] = "; ".join(unsynced)
    if again := lost(first.log, second.log):
        finding.found["lost"] = "; ".join(again[:3])
    now = contents(place)
    # What compares runs may be written by several processes, none of which may clear away what is another's.
    left = [n for n in now if n.endswith(".lock") or ".partial" in n or ".replaced" in n]
    beside = [n for n in left if "/comparison/" in n and n.endswith(".partial")]
    if stays := sorted({*left} - {*beside}):
        finding.found.setdefault("unclear", f"left behind: {', '.join(stays)}")
    differ = [n for n in {*whole.files, *now} - whole.timed - {*left} if whole.files.get(n) != now.get(n)]
    if differ and second.code == 0:
        finding.found["wrong"] = ", ".join(sorted(differ)[:5])
    if not finding.found:
        shutil.rmtree(place)
    return finding


def _is_unclear(outcome: Outcome) -> bool:
    if "Traceback" in outcome.said:
        return True
    errors = [line for line in outcome.said.splitlines() if line.startswith("error: ")]
    return outcome.code == 2 and len(errors) != 1


def drawn_moments(whole: Whole, number: int, seed: int) -> list[int]:
    """So many different moments, one from each equal part of all, or all where there are fewer."""
    rng, number = Random(f"moments/{seed}"), min(number, whole.moments)
    edges = [round(i * whole.moments / number) for i in range(number + 1)] if number else []
    return [rng.randint(a + 1, b) for a, b in pairwise(edges)]


def crash_cases(command: Command, whole: Whole, number: int, seed: int) -> list[dict[str, object]]:
    """Arguments of `case`: kills at drawn moments, one where there are no locks, a signal, and one at a drawn time."""
    rng = Random(f"crash/{command.name}/{seed}")
    moments = drawn_moments(whole, max(1, number - 2), seed)
    cases: list[dict[str, object]] = [{"fault": f"kill@{n}"} for n in moments[:-1]]
    cases.append({"fault": f"kill@{moments[-1]}", "flags": "no-flock"})
    at_a_time: dict[str, object] = {"after": rng.uniform(0.2, 1.0) * whole.seconds}
    name, code = rng.choice((("term", 143), ("int", 130)))
    # Only a training has something to save first; others end by the signal itself.
    cases += [{"fault": f"{name}@{rng.choice(moments)}", "expected": (code, -signal.SIGTERM)}, at_a_time]
    return cases[:number]


def disk_cases(whole: Whole, number: int, seed: int) -> Iterator[dict[str, object]]:
    """Arguments of `case`: from a drawn operation on no room, or no permission; a clock that goes back."""
    for i, n in enumerate(drawn_moments(whole, number, seed + 1)):
        yield {"fault": f"{'denied' if i % 4 == 3 else 'full'}@{n}", "expected": (2,)}
    yield {"fault": f"kill@{max(1, whole.moments // 2)}", "flags": "past"}
