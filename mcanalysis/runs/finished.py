"""A finished run as its files tell it: settings, scores, costs, losses, outputs and tables. No torch is loaded."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

from mcanalysis.benchmarks import load_benchmark
from mcanalysis.errors import DataError, RunDirectoryError, UserError, did_you_mean
from mcanalysis.html_table import html_table, number
from mcanalysis.models.base_identity import established, recorded_commit
from mcanalysis.models.chat_template import NONE, template_name
from mcanalysis.runs.general import General, general_hashes, told_apart
from mcanalysis.store.manifest import MANIFEST_NAME, read_manifest
from mcanalysis.store.recorded import check_all_there
from mcanalysis.store.small_files import AGAIN, read_json, read_table
from mcanalysis.tasks.names import check_name
from mcanalysis.tasks.task import TaskData

logger = logging.getLogger(__name__)


_TEXT, _MAYBE_TEXT, _NUMBER, _BLOCK = (str,), (str, type(None)), (int, float), (dict,)
_TYPES = {
    "strategy": _TEXT, "benchmark": _TEXT, "model": _TEXT, "dtype": _TEXT, "scored_split": _TEXT, "seed": (int,),
    "tasks": (list,), "data_dir": _MAYBE_TEXT, "quantization": _MAYBE_TEXT, "order": _MAYBE_TEXT,
    "revision": _MAYBE_TEXT, "chat_template": _TEXT, "lora_rank": (int,), "lora_alpha": _NUMBER,
    "target_modules": (list, type(None)), "scores": _BLOCK, "sizes": _BLOCK, "max_new_tokens": _BLOCK,
    "training": _BLOCK, "strategy_settings": _BLOCK,
}  # fmt: skip


class _Config(dict[str, Any]):
    """The configuration in a manifest, which may come from anywhere: what is not there, or is no value, is refused."""

    def __init__(self, directory: Path, values: dict[str, Any]) -> None:
        super().__init__(values)
        self._directory = directory

    def __missing__(self, name: str) -> Any:
        raise RunDirectoryError(
            f"Expected the config's {name} in '{self._directory}/{MANIFEST_NAME}', got none; restore it."
        )

    def check(self) -> None:
        """Raise `RunDirectoryError` for a value of another type than was written, `DataError` for no name of a task."""
        for name, kinds in _TYPES.items():
            value = self.get(name)
            if name in self and (not isinstance(value, kinds) or isinstance(value, bool)):
                raise self._refusal(name, value)
        for name in ("tasks", "target_modules"):
            if not all(isinstance(one, str) for one in self.get(name) or ()):
                raise self._refusal(name, self[name])
        length = self.get("training", {}).get("max_length", 1)
        if not isinstance(length, int) or isinstance(length, bool):
            raise self._refusal("training.max_length", length)
        for task in self.get("tasks", ()):
            check_name(task)

    def _refusal(self, name: str, got: Any) -> RunDirectoryError:
        return RunDirectoryError(
            f"Expected the config's {name} as it was written in '{self._directory}/{MANIFEST_NAME}', got "
            f"{repr(got)[:60]}; restore it."
        )


class FinishedRun:
    """A run directory that training has finished. Each file is read when it is asked for, and is whole or refused.

    Raises `RunDirectoryError` for an unfinished run, a folder that is no run, and one whose scores are of another split
    than `scored_split`: nobody is to take those that settings were chosen by for test scores. What reads a file that is
    missing, damaged or cut raises `DataError`.
    """

    has_ended = True

    def __init__(self, directory: str | os.PathLike[str], scored_split: str = "test") -> None:
        self.directory = Path(directory)
        self.manifest = self._read_manifest()
        self.config = _Config(self.directory, self.manifest["config"])
        if self.scored_split != scored_split:
            raise RunDirectoryError(
                f"Expected a run scored on the {scored_split} split, got '{directory}', scored on "
                f"{self.scored_split} to choose settings; train one with these settings (compare.py --tuned)."
            )
        if self.has_ended and self.manifest.get("status") != "finished":
            finisher = "the script that trains it" if "trainer" in self.config else "train.py --resume"
            raise RunDirectoryError(
                f"Expected a finished run in '{directory}', got an unfinished one (its manifest says "
                f"'{self.manifest.get('status')}'); finish it with {finisher}."
            )
        hashes = self.manifest.get("hashes")
        if not (isinstance(hashes, dict) and isinstance(hashes.get("data"), dict)):
            raise RunDirectoryError(
                f"Expected the hashes of base and data in '{directory}/manifest.json', got none; restore the file."
            )
        self.config.check()
        if missing := [name for name in ("strategy", "seed", "tasks") if name not in self.config]:
            raise RunDirectoryError(
                f"Expected the config's {' and '.join(missing)} in '{directory}/manifest.json', got none; restore it."
            )

    def _read_manifest(self) -> dict[str, Any]:
        return read_manifest(self.directory)

    def __repr__(self) -> str:
        name = type(self).__name__
        return f"{name}('{self.directory}', strategy='{self.strategy}', seed={self.seed}, tasks={self.task_names})"

    def _repr_html_(self) -> str:
        matrix, metrics = self.accuracy_matrix, self.metrics
        rows = [["base" if k == 0 else f"after {k}", *values] for k, *values in matrix.itertuples(index=False)]
        values = ", ".join(f"{n.replace('_', ' ')} {number(metrics[n])}" for n in metrics if n != "learners")
        scores = html_table(["score", *matrix.columns[1:]], rows, shaded=range(1, len(matrix.columns)))
        return f"<p><code>{escape(repr(self))}</code></p>{scores}<p>{escape(values)}</p>"

    @property
    def name(self) -> str:
        """The name of its directory."""
        return self.directory.resolve().name

    @property
    def strategy(self) -> str:
        """Name of the strategy."""
        return self.config["strategy"]

    @property
    def seed(self) -> int:
        """The run's seed."""
        return self.config["seed"]

    @property
    def order(self) -> str | None:
        """The name of the order of its tasks; None where it was not asked for by a name."""
        return self.config.get("order")

    @property
    def scored_split(self) -> str:
        """The split whose examples its accuracy matrix is of."""
        return self.config.get("scored_split", "test")

    @property
    def task_names(self) -> list[str]:
        """Tasks in the order they were learned."""
        return self.config["tasks"]

    @cached_property
    def tasks(self) -> dict[str, TaskData]:
        """The run's data; raises `RunDirectoryError` if it has changed since."""
        c = self.config
        limits = c.get("max_new_tokens")  # absent where no task has another limit than its own
        origins = self.manifest["hashes"].get("origins", {})  # of data of the hub: OWNER/NAME@COMMIT
        data = load_benchmark(
            c["benchmark"], c["data_dir"], tuple(c["tasks"]), c["scores"], c["sizes"], limits,
            commits={task: origin.rpartition("@")[2] for task, origin in origins.items()},
        )  # fmt: skip
        for task in data:
            recorded = self.manifest["hashes"]["data"].get(task.task.name)
            if recorded != task.content_hash:
                raise RunDirectoryError(
                    f"Expected the data of {task.task.name} as '{self.directory}' was trained on, got other content; "
                    "restore the data or train a new run."
                )
        return {t.task.name: t for t in data}

    @cached_property
    def general_tasks(self) -> dict[str, TaskData]:
        """The data that were measured and never trained, by their names in the tables (`general/<NAME>` where a trained
        task is called NAME); without what is gone, or is not what it was, which one warning says.
        """
        recorded = self.manifest["hashes"].get("general")
        if not recorded:
            return {}
        try:
            if "general" not in self.manifest:
                raise DataError("its manifest does not say where they lie, which train.py --general-data records")
            data = General.from_record(self.manifest["general"]).load()
        except UserError as error:
            logger.warning("General tasks of '%s' are left out: %s", self.directory, error)
            return {}
        kept = [d for d in data if recorded.get(d.task.name) == general_hashes([d])[d.task.name]]
        if others := sorted(set(recorded) - {d.task.name for d in kept}):
            logger.warning(
                "General tasks of '%s' are left out, as their data are not what was measured in training: %s; restore "
                "them, or measure them again with train.py --general-data",
                self.directory, ", ".join(others),
            )  # fmt: skip
        return {d.task.name: d for d in told_apart(kept, self.task_names)}

    @property
    def recorded_base(self) -> str | None:
        """What the manifest says of which base it was."""
        return self.manifest["hashes"].get("base")

    @property
    def revision(self) -> str | None:
        """Which state of a model of the hub it was: the commit, where one is recorded."""
        return recorded_commit(self.recorded_base) or self.config.get("revision")

    @property
    def chat_template(self) -> str:
        """The name of the chat template that prompts are put into, empty without one; its text is in `config`."""
        return template_name(self.config.get("chat_template", NONE))

    @property
    def base_id(self) -> str | None:
        """What tells this run's base from others, as far as it is recorded; nothing is compared with files of now."""
        return established(self.recorded_base, self.config["model"])

    @property
    def minima_labels(self) -> list[str]:
        """Labels `<k>-<TASK>` of the saved minima, in order; of joint training one, `<T>-JOINT`."""
        return _in_order(f.name for f in (self.directory / "minima").glob("*-*"))

    @property
    def learners(self) -> list[str]:
        """Learners with saved minima."""
        return sorted({f.name for f in (self.directory / "minima").glob("*-*/*")})

    @property
    def has_paths(self) -> bool:
        """Whether LoRA adapters were saved, between which there are paths."""
        adapters = sorted((self.directory / "minima").glob("*-*/*/adapter_config.json"))
        return bool(adapters) and _read(adapters[0], dict).get("peft_type") == "LORA"

    @property
    def losses(self) -> dict[str, list[float]]:
        """The training loss at each step, by the label of what was trained, in order."""
        folder = self.directory / "losses"
        check_all_there(folder)
        return {
            label: _read(folder / f"{label}.json", list) for label in _in_order(f.stem for f in folder.glob("*.json"))
        }

    @property
    def is_joint(self) -> bool:
        """Whether all tasks were learned at once."""
        return self._trained == {f"{len(self.task_names)}-JOINT"}

    @property
    def is_sequential(self) -> bool:
        """Whether tasks were learned one after another: not all at once, nor none at all."""
        return bool(self._trained) and not self.is_joint

    @property
    def _trained(self) -> set[str]:
        """Labels of what was trained, by what it left: minima may be kept elsewhere."""
        return {*self.minima_labels, *(f.stem for f in (self.directory / "losses").glob("*.json"))}

    @property
    def metrics(self) -> dict[str, Any]:
        """The continual-learning metrics, undefined ones None; `learners` has the same for each learner."""
        file = self.directory / "tables" / "metrics.json"
        metrics = read_json(file)
        learners = metrics.get("learners") if isinstance(metrics, dict) else None
        if not isinstance(learners, dict) or not all(isinstance(values, dict) for values in learners.values()):
            raise DataError(f"Expected metrics of each learner in '{file}', got none; {AGAIN}.")
        return metrics

    @cached_property
    def answering_learner(self) -> str:
        """The learner whose scores are the run's scores: the others' matrices have their names."""
        learners = self.metrics["learners"]
        found = [name for name in learners if not self.has(f"accuracy_matrix_{name}")]
        if len(found) != 1:
            raise DataError(
                f"Expected accuracy_matrix_<learner>.csv of all but one of {', '.join(learners)} in "
                f"'{self.directory / 'tables'}', got {len(learners) - len(found)}; restore them or train again."
            )
        return found[0]

    @property
    def metrics_by_learner(self) -> dict[str, dict[str, float | None]]:
        """The metrics of each learner, the answering one first."""
        learners, first = self.metrics["learners"], self.answering_learner
        return {first: learners[first], **learners}

    @property
    def accuracy_matrix(self) -> pd.DataFrame:
        """Scores after each task (rows, 0 = base), per task (columns), of the answering learner."""
        return self.accuracy_matrix_of(self.answering_learner)

    def accuracy_matrix_of(self, learner: str) -> pd.DataFrame:
        """The same of any learner."""
        name = "accuracy_matrix" if learner == self.answering_learner else f"accuracy_matrix_{learner}"
        table, last = self.table(name), len(self.task_names)
        columns = list(table.select_dtypes("number").columns)
        if columns != ["after", *self.task_names] or table.after.tolist() not in ([*range(last + 1)], [0, last]):
            raise DataError(
                f"Expected rows 0 to {last} and a column of numbers for each task in "
                f"'{self.directory}/tables/{name}.csv', got another table; {AGAIN}."
            )
        return table

    @property
    def cost(self) -> dict[str, float | None]:
        """Seconds and bytes that training took; empty where they are not recorded."""
        file = self.directory / "tables" / "cost.json"
        return _read(file, dict, "remove it: costs are then left empty") if file.exists() else {}

    def outputs(self, learner: str) -> dict[int, tuple[str, dict[str, list[str]]]]:
        """What a learner wrote on the test split: number of the stage (0 = base) -> (its task, the texts by task)."""
        check_all_there(self.directory / "generations")
        found, suffix = {}, f"-{learner}"
        for file in sorted((self.directory / "generations").glob("*.json")):
            stage, _, name = file.stem.partition("-")
            if file.stem != "0-base" and not name.endswith(suffix):
                continue
            outputs = _read(file, dict)
            if not (stage.isdigit() and all(isinstance(texts, list) for texts in outputs.values())):
                raise DataError(f"Expected lists of texts by task in '{file}', got something else; train again.")
            texts = {task: [str(text) for text in of_task] for task, of_task in outputs.items()}
            found[int(stage)] = (name.removesuffix(suffix), texts)
        return found

    def has(self, table: str) -> bool:
        """Whether `tables/<table>.csv` was written with rows: without any it is a single newline."""
        file = self.directory / "tables" / f"{table}.csv"
        return file.is_file() and file.stat().st_size != 1

    def table(self, table: str, columns: Sequence[str] = ()) -> pd.DataFrame:
        """`tables/<table>.csv` as `read_table` gives it; raises `DataError` where it lacks one of `columns`."""
        found = self._read_table(table)
        missing = [column for column in columns if column not in found]
        if missing:
            file = self.directory / "tables" / f"{table}.csv"
            raise DataError(f"Expected the column(s) {', '.join(missing)} in '{file}', got none; measure it again.")
        return found

    def _read_table(self, table: str) -> pd.DataFrame:
        folder = self.directory / "tables"
        if not (folder / f"{table}.csv").exists():
            there = sorted(file.stem for file in folder.glob("*.csv"))
            raise DataError(
                f"Expected one of the tables in '{folder}' ({', '.join(there) or 'none yet'}), got no {table}.csv; "
                f"name one that is there, or run the script that writes it.{did_you_mean(str(table), there)}"
            )
        return read_table(folder / f"{table}.csv")


def runs_in(folder: str | os.PathLike[str]) -> tuple[list[FinishedRun], list[str]]:
    """The finished runs in a folder, by name, and the names of the unfinished ones.

    What `card.py` and `connectivity.py --minima` leave there has a manifest, too, and is no run of a strategy.
    """
    there = {f.parent: read_manifest(f.parent) for f in sorted(Path(folder).glob(f"*/{MANIFEST_NAME}"))}
    directories = [d for d, manifest in there.items() if not _is_of_adapters(manifest)]
    finished = [d for d in directories if there[d].get("status") == "finished"]
    return [FinishedRun(d) for d in finished], [d.name for d in directories if d not in finished]


def _is_of_adapters(manifest: Mapping[str, Any]) -> bool:
    config = manifest.get("config")
    return isinstance(config, Mapping) and "adapters" in config and "strategy" not in config


def _read(file: Path, kind: type, remedy: str = "restore it or train again") -> Any:
    found = read_json(file, remedy)
    if not isinstance(found, kind):
        raise DataError(f"Expected a {kind.__name__} in '{file}', got another JSON value; {remedy}.")
    return found


def _in_order(labels: Iterable[str]) -> list[str]:
    """Labels `<k>-<TASK>` by their number; others are none."""
    numbered = [(int(k), label) for label in labels if (k := label.partition("-")[0]).isdecimal()]
    return [label for _, label in sorted(numbered)]
