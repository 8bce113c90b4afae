"""Runs of the study one after another: trained, measured while the weights are there, and kept as two small files.

`<folder>/<name>.json` is the run's result file, `<folder>/<name>.measured.json` what was measured of it. The result
file is written last, so that where it is, all of it is. The values of every example along paths, too many to commit, go
beside the runs, as `values/<name>.parquet`.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcanalysis.errors import DataError, RunDirectoryError, UserError
from mcanalysis.progress import Progress, silent
from mcanalysis.runs.general import General
from mcanalysis.runs.result_file import FiledRun, write_result
from mcanalysis.store.atomic import plain_json
from mcanalysis.store.code_key import MEASURING, code_key
from mcanalysis.store.hashing import hash_json
from mcanalysis.store.lock import lock_measurements
from mcanalysis.store.manifest import git_commit
from mcanalysis.store.sealed import read_sealed, write_sealed
from mcanalysis.studies.claims.measures import kept, measures
from mcanalysis.studies.claims.protocol import BASES, Planned, Protocol
from mcanalysis.studies.connectivity.study import Connectivity
from mcanalysis.studies.connectivity.values import joined, value_steps, write_values
from mcanalysis.studies.engine import Engine, Here, Steps, Workers
from mcanalysis.studies.study import Setting
from mcanalysis.studies.training import Training, trainings
from mcanalysis.training.config import Execution
from mcanalysis.training.continual_trainer import settled_for

if TYPE_CHECKING:
    import pandas as pd

    from mcanalysis.runs.run import Run
    from mcanalysis.training.config import RunConfig

logger = logging.getLogger(__name__)

_REMEDY = "restore it, or remove it and the result file beside it to measure the run again"


@dataclass(frozen=True)
class Found:
    """A finished piece: the run's result file, and the tables that were measured of it."""

    planned: Planned
    run: FiledRun
    file: Path

    @property
    def labels(self) -> dict[str, Any]:
        """What tells it from others, as columns."""
        config = self.planned.config
        labels = {"part": self.planned.part, "strategy": config.strategy, "label": self.planned.label}
        return labels | {"pair": self.planned.pair, "seed": config.seed, "order": config.order or ""}

    @property
    def seconds(self) -> float:
        """What it took: training, scoring and measuring, on a core that may have been shared."""
        trained = sum(float(self.run.cost.get(name) or 0) for name in ("train_seconds", "evaluation_seconds"))
        return trained + (float(self._measured["seconds"]) if self.planned.measured else 0.0)

    def check(self, protocol: Protocol) -> None:
        """Raise `DataError` where something else was measured of it than the protocol asks for."""
        if not self.planned.measured:
            return
        wanted, there = _settings(protocol, self.planned), self._measured["measures"]
        if differing := sorted(n for n in {*wanted, *there} if wanted.get(n) != there.get(n)):
            raise DataError(
                f"Expected measurements as the protocol asks for at '{self.file}', got others of "
                f"{', '.join(differing)}; remove it and the result file beside it to measure the run again."
            )

    @property
    def commits(self) -> set[str]:
        """Those of the code that trained and that measured."""
        trained = self.run.manifest.get("git_commit")
        return {str(trained)[:7]} | ({str(self._measured["git_commit"])[:7]} if self.planned.measured else set())

    @property
    def measuring_code(self) -> str | None:
        """The key of the code that measured; None where nothing was."""
        return str(self._measured.get("code", "not recorded")) if self.planned.measured else None

    @cached_property
    def tables(self) -> dict[str, pd.DataFrame]:
        """By name; raises `DataError` for a file that is damaged, changed or of another training of the run."""
        import pandas as pd

        return {
            name: pd.DataFrame({c: [math.nan if v is None else v for v in of] for c, of in columns.items()})
            for name, columns in (self._measured["tables"] if self.planned.measured else {}).items()
        }

    @cached_property
    def _measured(self) -> dict[str, Any]:
        values = read_sealed(self.file, "a file of measurements", _REMEDY)
        if values["of"] != hash_json(plain_json(self.run.metrics)):
            raise DataError(
                f"Expected measurements of the run in '{self.run.directory}' at '{self.file}', got those of another "
                f"training of it; {_REMEDY}."
            )
        return values


def find(
    protocol: Protocol, planned: Sequence[Planned], results: Path, output_dir: Path
) -> tuple[list[Found], list[tuple[Planned, Training]]]:
    """What is there of one part, and what is still to be done, each with its training.

    Of runs whose base or data are not here, a base of the embedded one's family that is not trained yet
    (`absent_bases`) or a package that is not installed, only those are told that are whole as files, by these alone.
    Raises what `trainings` raises: for a result file of other settings, data or base than the protocol's; and what it
    raises for a base or data that are not here where a run is not whole.
    """
    if not planned:
        return [], []
    folders = [output_dir / p.folder / p.name for p in planned]
    general = General(protocol.general) if planned[0].part != "real" else None
    configs = [replace(p.config, model=str(base_folder(p, output_dir)) if of_family(p) else p.config.model)
               for p in planned]  # fmt: skip
    of_base: dict[str, list[int]] = {}
    for i, config in enumerate(configs):
        of_base.setdefault(config.model, []).append(i)
    there: list[Found] = []
    missing: list[tuple[Planned, Training]] = []
    for model, numbers in of_base.items():
        wanted, refusal = None, None
        if model == planned[numbers[0]].config.model or Path(model).exists():
            try:
                wanted = trainings(
                    [configs[i] for i in numbers], [folders[i] for i in numbers], resume=True,
                    execution=_execution(planned[numbers[0]]), general=general, results=results / planned[0].folder,
                )  # fmt: skip
            except RunDirectoryError:
                raise
            except UserError as error:
                refusal = error
        if wanted is None:
            files = [_by_files(protocol, planned[i], configs[i], results) for i in numbers]
            if refusal is not None and None in files:
                raise refusal
            there += [piece for piece in files if piece is not None]
            continue
        for i, training in zip(numbers, wanted, strict=True):
            file = measured_file(training)
            if training.filed is not None and (not planned[i].measured or file.exists()):
                there.append(Found(planned[i], training.filed, file))
                there[-1].check(protocol)
            else:
                missing.append((planned[i], training))
    return there, missing


def _execution(planned: Planned) -> Execution:
    """How a run is trained: where signals are measured, with snapshots for those of the first 5 to 10 % of a task."""
    steps = planned.config.training.num_steps
    if not isinstance(steps, int) or "signals" not in planned.measured:
        return Execution()
    return Execution(save_trajectory=max(1, steps // 10))


def _by_files(protocol: Protocol, planned: Planned, config: RunConfig, results: Path) -> Found | None:
    """A piece whose base or data are not here, by its files; None where these are not whole.

    Raises `RunDirectoryError` for other settings; base and data cannot be compared.
    """
    file = results / planned.folder / f"{planned.name}.json"
    found = Found(planned, FiledRun(file, config.scored_split), _measured(file)) if file.exists() else None
    if found is None or (planned.measured and not found.file.exists()):
        return None
    own, recorded = plain_json(settled_for(config, found.run.manifest).resolved()), found.run.manifest["config"]
    if differing := sorted(
        n for n, v in own.items() if n not in ("model", "tasks", "data_dir") and v != recorded.get(n)
    ):
        raise RunDirectoryError(
            f"Expected the run of the protocol in '{file}', got other {', '.join(differing)}; remove it and the "
            "measurements beside it to make the run again."
        )
    found.check(protocol)
    return found


def of_family(planned: Planned) -> bool:
    """Whether the base of a run is one that `make_base` makes."""
    return planned.config.model in BASES


def base_folder(planned: Planned, output_dir: Path) -> Path:
    """Where that base lies."""
    return output_dir / "bases" / planned.config.model


def absent_bases(planned: Sequence[Planned], output_dir: Path) -> list[Planned]:
    """A run on each base of the embedded one's family that is not there."""
    first: dict[str, Planned] = {}
    for p in planned:
        if of_family(p) and not base_folder(p, output_dir).exists():
            first.setdefault(p.config.model, p)
    return list(first.values())


def make_base(planned: Planned, output_dir: Path, progress: Progress = silent) -> None:
    """Train a base of the embedded one's family: the same text, steps and settings, another size."""
    from mcanalysis.pretraining.config import PretrainingConfig
    from mcanalysis.pretraining.pretrain import pretrain

    size = BASES[planned.config.model]
    config = PretrainingConfig(
        hidden_size=size["hidden_size"], num_layers=size["num_layers"], intermediate_size=3 * size["hidden_size"]
    )
    pretrain(config, base_folder(planned, output_dir), progress)


def measured_file(training: Training) -> Path:
    """Beside the result file."""
    assert training.result_file is not None
    return _measured(training.result_file)


def _measured(result_file: Path) -> Path:
    return result_file.with_suffix(".measured.json")


def carry_out(
    protocol: Protocol,
    missing: Sequence[tuple[Planned, Training]],
    workers: Workers | None = None,
    *,
    seconds: float = math.inf,
    progress: Progress = silent,
) -> Iterator[Found]:
    """Train and measure what is missing, as many runs at a time as there are workers; none is begun after `seconds`."""
    workers = workers or Here(progress)
    start = time.monotonic()
    left = list(missing)
    while left and time.monotonic() - start < seconds:
        number = max(workers.count, 1)
        now, left = left[:number], left[number:]
        steps = [_or_missing(protocol, planned, training, workers) for planned, training in now]
        yield from (piece for piece in Engine(workers, progress).run(steps) if piece is not None)


def _or_missing(protocol: Protocol, planned: Planned, training: Training, workers: Workers) -> Steps[Found | None]:
    """The piece; None, and a warning, where it cannot be made, as where training diverges or a factorisation does not
    converge: it stays missing, and keeps no other from being made."""
    try:
        return (yield from _of_run(protocol, planned, training, workers))
    except OSError:
        raise  # a full disk: no other piece could be kept either
    except Exception as error:
        is_told = isinstance(error, UserError)
        logger.warning("%s has no result: %s", planned.name, error, exc_info=None if is_told else error)
        return None


def _settings(protocol: Protocol, planned: Planned) -> dict[str, Any]:
    """What is measured of a run, with every setting of it, as JSON has it."""
    known = measures(protocol, planned.config.strategy)
    found = {name: asdict(known[name]) for name in planned.measured}
    if "signals" in found:  # numbers of another version of a signal are another signal's
        from mcanalysis.studies.signals import get_signal, signal_names

        every = map(get_signal, signal_names())
        own = {of.name: of.version for of in every if of.measure.__module__.startswith("mcanalysis.")}
        found["signals"]["versions"] = own
    return plain_json(found)


def _of_run(protocol: Protocol, planned: Planned, training: Training, workers: Workers) -> Steps[Found]:
    run: Run = yield from training.steps()
    assert training.result_file is not None
    write_result(run, training.result_file)  # first: it refuses a training with other scores than those that are filed
    if planned.measured:
        start = time.monotonic()
        tables: dict[str, Any] = {}
        known = measures(protocol, run.strategy)
        setting = Setting(run.strategy, lambda: workers.count)
        values: list[pd.DataFrame] = []
        with lock_measurements(run.directory):
            for name in planned.measured:
                study = known[name]
                found = kept((yield from study.measure(run, setting)))
                if isinstance(study, Connectivity):
                    values.append((yield from value_steps(run, study)))
                for table, rows in found.items():
                    tables[f"rewinding_{table}" if name == "rewinding" else table] = rows.to_dict("list")
        if values:
            rows = joined(values).assign(run=planned.name)
            table = rows.drop_duplicates([c for c in rows if c not in ("loss", "targets", "score")])  # shared paths
            write_values(table, training.directory.parents[1] / "values" / f"{planned.name}.parquet")
        write_sealed(
            measured_file(training),
            {
                "of": hash_json(plain_json(run.metrics)),
                "measures": _settings(protocol, planned),
                "git_commit": git_commit(),
                "code": code_key(MEASURING),
                "seconds": round(time.monotonic() - start, 1),
                "tables": tables,
            },
        )
    return Found(planned, FiledRun(training.result_file), measured_file(training))
