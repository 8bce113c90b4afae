"""Data sets of the hub: which commit, loaded once, and what was drawn of it kept on this machine."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from mcanalysis.errors import DataError, UserError
from mcanalysis.store.atomic import write_json_atomic
from mcanalysis.store.cache_folder import cache_folder
from mcanalysis.store.hashing import hash_json
from mcanalysis.tasks.raw.rows import NamedRows
from mcanalysis.tasks.task import SPLITS, Example, Task, TaskData
from mcanalysis.time_limit import answer_within

logger = logging.getLogger(__name__)

SECONDS = 15.0
"""How long the hub may take to answer before it counts as out of reach."""


class HubFile(NamedTuple):
    """A data set of the hub, its configuration, the task that is made of it, and how (as JSON types)."""

    dataset: str
    config: str | None
    task: str
    recipe: Any


@dataclass(frozen=True)
class Drawn:
    """Examples by split, and the commit of the data set that they are of."""

    dataset: str
    commit: str
    splits: dict[str, list[Example]]

    def task_data(self, task: Task) -> TaskData:
        """The task with these examples; its `origin` says the data set and the commit."""
        return replace(TaskData.of(task, self.splits), origin=f"{self.dataset}@{self.commit}")


def rows_from_hub(
    file: HubFile, draw: Callable[[Callable[[str], NamedRows]], TaskData], commit: str | None = None
) -> Drawn:
    """What `draw` takes of a data set's rows; it is given a function from a split's name to its rows.

    What was drawn is kept in `hub` of `cache_folder()`, and taken from there from then on, by the same recipe: the hub
    is asked once, a run on a machine without it works, and a data set that changes does not change under a study.
    `commit`: the one to load; without it the one that is kept here (of several the last), else that of the main branch
    as it is now.

    Raises `UserError` in one line where the hub does not answer within 15 s.
    """
    recipe = hash_json(file.recipe)[:8]
    folder = cache_folder() / "hub"
    stem = "--".join(filter(None, (file.dataset.replace("/", "--"), file.config, file.task, recipe)))
    kept = sorted(folder.glob(f"{stem}--{commit or '*'}.json"), key=lambda f: f.stat().st_mtime)
    if kept:
        found = _read(kept[-1], file.dataset)
        if found is not None:
            return found
    commit = commit_of(file.dataset, commit)  # also where it is given: `load_dataset` would try for a minute
    data = draw(lambda split: _rows(file, split, commit))
    splits = {split: list(data.splits[split]) for split in SPLITS}
    content = {split: [[e.prompt, e.answer] for e in examples] for split, examples in splits.items()}
    try:
        write_json_atomic(folder / f"{stem}--{commit}.json", {"commit": commit, "splits": content})
    except OSError as error:
        logger.warning("%s is not kept in '%s' (%s): the hub is asked again", file.task, folder, error.strerror)
    logger.info("%s is of %s at %s", file.task, file.dataset, commit)
    return Drawn(file.dataset, commit, splits)


def commit_of(dataset: str, revision: str | None = None) -> str:
    """The commit that a data set's branch or tag stands at; raises `UserError` where the hub cannot be asked."""
    from huggingface_hub import HfApi

    def ask() -> str | None:
        return HfApi().dataset_info(dataset, revision=revision, timeout=SECONDS).sha

    try:
        commit = answer_within(SECONDS, ask)
    except Exception as error:  # of httpx, of the operating system, of the hub's answer
        raise UserError(_out_of_reach(dataset, error)) from None
    if not commit:
        raise UserError(_out_of_reach(dataset, DataError("no commit in its answer")))
    return commit


def download(source: str, commit: str | None = None) -> tuple[Path, str]:
    """Bring a data set's JSON files here: `OWNER/NAME` or `OWNER/NAME@REVISION`; returns their folder and the commit.

    `commit` is taken in place of the revision, as when a run is opened again. Raises `UserError` where the hub is out
    of reach and the files are not here already.
    """
    from huggingface_hub import snapshot_download

    dataset, _, revision = source.partition("@")
    kinds: dict[str, Any] = {"repo_type": "dataset", "allow_patterns": ["*.json", "*.jsonl", "*.ndjson"]}
    if commit is not None:
        try:
            return Path(snapshot_download(dataset, revision=commit, local_files_only=True, **kinds)), commit
        except Exception as error:
            logger.debug("%s at %s is not here: %s", dataset, commit, error)
    commit = commit_of(dataset, commit or revision or None)
    try:
        return Path(snapshot_download(dataset, revision=commit, **kinds)), commit
    except Exception as error:
        raise UserError(_out_of_reach(dataset, error)) from None


def _rows(file: HubFile, split: str, commit: str) -> NamedRows:
    from datasets import load_dataset

    try:
        return NamedRows(load_dataset(file.dataset, file.config, split=split, revision=commit))
    except Exception as error:  # of datasets, httpx, the file system: each has kinds of its own
        raise UserError(_out_of_reach(file.dataset, error)) from None


def _read(file: Path, dataset: str) -> Drawn | None:
    """What was drawn before; None for a damaged file, which is drawn again."""
    try:
        kept = json.loads(file.read_text("utf-8"))
        splits = {split: [Example(str(p), str(a)) for p, a in kept["splits"][split]] for split in SPLITS}
        return Drawn(dataset, str(kept["commit"]), splits)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        logger.warning("'%s' is damaged and is made again", file)
        return None


def _out_of_reach(dataset: str, error: Exception) -> str:
    reason = " ".join(str(error).split())[:160].rstrip(".") or type(error).__name__
    return (
        f"Expected the data set '{dataset}' from the hub, got: {reason}; connect to the hub, or give a copy of the "
        "data with --data-dir DIR."
    )
