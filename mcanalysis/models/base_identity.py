"""Which base it is: the contents of all files that its numbers can come from, or the commit of a model of the hub."""

from __future__ import annotations

import fnmatch
import json
import logging
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

from mcanalysis.errors import RunDirectoryError, UserError
from mcanalysis.models.base_source import model_source
from mcanalysis.models.loading import plain_source
from mcanalysis.store.hashing import hash_file_once, hash_files, hash_json

logger = logging.getLogger(__name__)

_FILES, _COMMIT = "files-2:", "commit-2:"  # the formula is told with its value, so that no two are ever compared
_IS_COMMIT = re.compile("[0-9a-f]{40}")

# What lies in a base's folder and is never read when it is loaded. Whatever is not known to be harmless counts.
_TEXTS = ("readme*", "license*", "licence*", "notice*", "use_policy*", "changelog*", "citation*", "*.md", "*.pdf",
          "*.png", "*.jpg", "*.jpeg", "*.gif", "*.svg", "*.log")  # fmt: skip
_LEFT_BY_TRAINING = ("optimizer.pt", "optimizer.bin", "scheduler.pt", "scaler.pt", "rng_state*.pth",
                     "training_args.bin", "trainer_state.json", "train_results.json", "eval_results.json",
                     "all_results.json", "events.out.tfevents*")  # fmt: skip
_FOLDERS = ("checkpoint-*", "global_step*", "runs", "logs", "wandb", "mlruns", "__pycache__")


def base_identity(name: str, revision: str | None = None) -> str | None:
    """Return what tells a base from every other one: a hash of its folder's files, or its commit on the hub.

    In a folder every file counts, those of subfolders too, but texts for readers (`README*`, `LICENSE*`, `*.md`,
    pictures), hidden files, what training leaves (optimiser states, `checkpoint-*`, `runs`, run directories); what the
    index of shards names counts wherever it lies. A GGUF file is the folder that is made of it. A model of the hub is
    its commit: that of the revision, or of `main`, in the local cache; None where there is no copy of it here. Files
    are hashed at the speed of SHA-256 and disk, once per process. Raises `UserError` for a file that cannot be read.

    >>> str(base_identity("embedded"))[:8]
    'files-2:'
    """
    folder = Path(plain_source(name))
    if folder.is_dir():
        return _FILES + hash_json(_contents(folder))
    commit = _commit(name, revision)
    return commit and _COMMIT + commit


def recorded_commit(recorded: str | None) -> str | None:
    """The commit in a recorded identity, for a base of the hub; None for any other.

    >>> recorded_commit("commit-2:0f3c"), recorded_commit("files-2:0f3c")
    ('0f3c', None)
    """
    return recorded.removeprefix(_COMMIT) if recorded and recorded.startswith(_COMMIT) else None


def accepted_identities(name: str, recorded: str | None, revision: str | None = None) -> list[str]:
    """What a manifest may hold for a base as it is now: today's identity first, then that of version 0.1.

    A model of the hub is the recorded commit's, which is what is loaded. Empty where there is no copy of it here.
    """
    now = base_identity(name, recorded_commit(recorded) or revision)
    return [now, _former_hash(name)] if now else []


def established(recorded: str | None, name: str) -> str | None:
    """A recorded identity by today's formula where it certainly is this base's; else as it was recorded.

    Version 0.1 hashed `.safetensors`, `.json` and `.model` files at the top of a folder: where nothing else counts,
    its hash says as much as today's.
    """
    if recorded is None or recorded.startswith((_FILES, _COMMIT)):
        return recorded
    folder = Path(model_source(name))
    if folder.is_dir() and recorded == _former_hash(name) and _former_saw_all(folder):
        return base_identity(name)
    return recorded


def identity_marker(recorded: str | None, name: str, whose: str | Path, *, warn: bool = True) -> str:
    """Return what the keys of stored values need so that values of an unknown base are not found: mostly nothing.

    Empty where a recorded identity says it all (whether it is this base's is not asked here), else a part of the
    present one, with one warning: what is measured from now on is found again as long as the base stays.
    """
    known, now = established(recorded, name), base_identity(name)
    if now is None or (known is not None and known.startswith((_FILES, _COMMIT))):
        return ""
    if warn:
        _warn_once(str(whose), name)
    return hash_json(now)[:12]


def check_identity(recorded: str | None, name: str, whose: str | Path) -> None:
    """Raise `RunDirectoryError` where the base is certainly not the one on which a run was trained."""
    accepted = accepted_identities(name, recorded)
    if recorded is None or not accepted or recorded in accepted:
        return
    raise RunDirectoryError(
        f"Expected the base model '{name}' with content {short_identity(recorded)}, on which '{whose}' was trained, "
        f"got content {short_identity(accepted[0])}; restore its files, or train a new run in another --output-dir."
    )


def short_identity(identity: str) -> str:
    """Enough of an identity for a reader.

    >>> short_identity("files-2:0123456789abcdef")
    '0123456789ab'
    """
    return identity.rpartition(":")[2][:12]


def base_files(folder: Path) -> list[Path]:
    """The files of a base's folder that count, in order; see `base_identity`."""
    return sorted({*_walk(folder), *_shards(folder)})


def cached_folder(name: str) -> Path | None:
    """Where the files of a base lie on this machine: its folder, or that of its commit in the hub's cache."""
    folder = Path(model_source(name))
    if folder.is_dir():
        return folder
    config = _cached_config(name)
    return config.parent if config else None


def _contents(folder: Path) -> list[tuple[str, str]]:
    files = base_files(folder)
    try:
        with ThreadPoolExecutor(4) as pool:  # hashing lets go of the interpreter
            hashes = pool.map(hash_file_once, files)
            return [(f.relative_to(folder).as_posix(), value) for f, value in zip(files, hashes, strict=True)]
    except OSError as error:
        raise UserError(
            f"Expected files that can be read in '{folder}', got: {error.strerror} ({error.filename}); restore the "
            "file or its permissions."
        ) from None


def _walk(folder: Path) -> Iterator[Path]:
    for place, folders, files in os.walk(folder):
        if Path(place) != folder and "manifest.json" in files:  # a run directory
            folders.clear()
            continue
        folders[:] = [f for f in folders if not f.startswith(".") and not _fits(f, _FOLDERS)]
        yield from (Path(place, f) for f in files if not f.startswith(".") and not _fits(f, _TEXTS + _LEFT_BY_TRAINING))


def _fits(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(name.lower(), pattern) for pattern in patterns)


def _shards(folder: Path) -> Iterator[Path]:
    for index in folder.glob("*.index.json"):
        try:
            named = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            continue  # loading says what is wrong with it
        yield from (file for file in (folder / str(name) for name in named) if file.is_file())


def _cached_config(name: str, revision: str | None = None) -> Path | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(name, "config.json", revision=revision)
    except HFValidationError:
        return None
    return Path(found) if isinstance(found, str) else None


def _commit(name: str, revision: str | None) -> str | None:
    """A revision that is a commit itself; else what the local cache has for it."""
    if revision is not None and _IS_COMMIT.fullmatch(revision):
        return revision
    config = _cached_config(name, revision)
    return config and config.parent.name


def _former_files(folder: Path) -> list[Path]:
    return [p for p in sorted(folder.iterdir()) if p.suffix in (".safetensors", ".json", ".model")]


def _former_hash(name: str) -> str:
    """The identity that version 0.1 recorded; of a model of the hub it was a hash of the name alone."""
    folder = Path(model_source(name))
    return hash_files(_former_files(folder)) if folder.is_dir() else hash_json(name)


def _former_saw_all(folder: Path) -> bool:
    return set(base_files(folder)) <= set(_former_files(folder))


@cache
def _warn_once(whose: str, name: str) -> None:
    logger.warning(
        "'%s' does not tell which contents the base '%s' had (version 0.1 did not record them all): values stored "
        "there are not used, they are measured anew",
        whose,
        name,
    )
