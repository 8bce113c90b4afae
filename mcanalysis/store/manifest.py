"""The run manifest: what a run was, with which versions, on which data, and whether it finished."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import os
import platform
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Literal

from mcanalysis.errors import DataError, RunDirectoryError, RunInUseError
from mcanalysis.store.atomic import PARTIAL_SUFFIX, plain_json, write_json_atomic
from mcanalysis.store.code_key import code_key
from mcanalysis.store.hashing import hash_json
from mcanalysis.store.lock import lock_folder
from mcanalysis.store.recorded import RECORD_NAME, begin_record, check_recorded

MANIFEST_NAME = "manifest.json"
FORMAT = 2
"""Of a run directory: since it, the hashes of all files are recorded; version 0.1 wrote no format."""
logger = logging.getLogger(__name__)

_PACKAGES = ("mcanalysis", "torch", "transformers", "peft", "numpy")


def new_manifest(
    config: Mapping[str, Any],
    seed: int | None = None,
    base_hash: str | None = None,
    data_hashes: Mapping[str, str] | None = None,
    execution: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the manifest of a run that starts now, with `status` "running".

    `config` is the resolved configuration, `data_hashes` maps a task to its content hash. `git_commit` is
    that of the checkout this package lies in, None when it lies in none, `code` its `code_key`. Versions of absent
    packages are None; no package is imported to learn them. `execution` (threads, device, …) is recorded, not compared.
    Raises `TypeError` for a configuration that JSON cannot hold.

    >>> manifest = new_manifest({"strategy": "ilora"}, seed=0)
    >>> manifest["status"], sorted(manifest["versions"])
    ('running', ['mcanalysis', 'numpy', 'peft', 'python', 'torch', 'transformers'])
    """
    return {
        "status": "running",
        "created": _now(),
        "finished": None,
        "config": plain_json(config),
        "seed": seed,
        "hashes": {"base": base_hash, "data": dict(data_hashes or {})},
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}},
        "git_commit": git_commit(),
        "code": code_key(),
        "execution": plain_json(execution or {}),
    }


def write_manifest(run_directory: str | os.PathLike[str], manifest: Mapping[str, Any]) -> None:
    """Write `<run>/manifest.json` atomically."""
    write_json_atomic(Path(run_directory) / MANIFEST_NAME, manifest)


def read_manifest(run_directory: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the manifest of a run; raises `RunDirectoryError` for one that is missing, malformed, changed since it was
    written, or of a later format.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_manifest(folder, new_manifest({"strategy": "ilora"}))
    ...     read_manifest(folder)["config"]
    {'strategy': 'ilora'}
    """
    path = Path(run_directory) / MANIFEST_NAME
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise RunDirectoryError(
            f"Expected a run directory at {run_directory}, got no {MANIFEST_NAME} there; "
            "give a directory that train.py wrote."
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise RunDirectoryError(
            f"Expected JSON in {path}, got: {error}; restore the file or choose another directory."
        ) from error
    if not isinstance(manifest, dict) or not isinstance(manifest.get("config"), dict):
        raise RunDirectoryError(
            f'Expected an object with a "config" object in {path}, got something else; '
            "restore the file or choose another directory."
        )
    found = manifest.get("format", 1)
    if not isinstance(found, int) or not 1 <= found <= FORMAT:
        raise RunDirectoryError(
            f"Expected a run of format 1 to {FORMAT} in {run_directory}, got format {str(found)[:20]}; read it with "
            "the mcanalysis that wrote it, or a newer one."
        )
    try:
        check_recorded(path)
    except DataError as error:
        raise RunDirectoryError(str(error)) from None
    if found > 1 and not (path.parent / RECORD_NAME).exists():
        _warn_of_no_record(path.parent)
    return manifest


@cache
def _warn_of_no_record(directory: Path) -> None:
    logger.warning(
        "'%s' has lost its %s, which lists the hashes of its files: they are used unchecked", directory, RECORD_NAME
    )


def run_identity(run_directory: str | os.PathLike[str]) -> str | None:
    """A hash of what makes a run the run that it is: configuration, seed, base and data; None without a manifest that
    can be read, which is for others to say. One that grows by tasks keeps what it began with (`keep_identity`)."""
    try:
        manifest = read_manifest(run_directory)
        if isinstance(manifest.get("identity"), str):
            return manifest["identity"]
        hashes = manifest.get("hashes") or {}
        return hash_json([manifest["config"], manifest.get("seed"), hashes.get("base"), hashes.get("data")])
    except (RunDirectoryError, AttributeError, TypeError):
        return None


def keep_identity(run_directory: str | os.PathLike[str]) -> None:
    """Write the identity into the manifest, for a run whose configuration will grow by tasks; nothing if it is there.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_manifest(folder, new_manifest({"tasks": ["A"]}))
    ...     keep_identity(folder)
    ...     first = run_identity(folder)
    ...     write_manifest(folder, {**read_manifest(folder), "config": {"tasks": ["A", "B"]}})
    ...     run_identity(folder) == first
    True
    """
    manifest = read_manifest(run_directory)
    if "identity" not in manifest:
        write_manifest(run_directory, {**manifest, "identity": run_identity(run_directory)})


def manifest_in(run_directory: str | os.PathLike[str]) -> dict[str, Any] | None:
    """The manifest of a directory, None where there is none; raises as `read_manifest` does for a malformed one."""
    return read_manifest(run_directory) if (Path(run_directory) / MANIFEST_NAME).exists() else None


def recorded_base(manifest: Mapping[str, Any] | None, model: str) -> str | None:
    """The identity of the base in a run's manifest; None where there is no manifest, or one of another model.

    >>> manifest = new_manifest({"model": "my/base"}, base_hash="ab")
    >>> recorded_base(manifest, "my/base"), recorded_base(manifest, "another/base")
    ('ab', None)
    """
    if manifest is None:
        return None
    return manifest.get("hashes", {}).get("base") if manifest["config"].get("model") == model else None


def open_template(asked: str, manifest: Mapping[str, Any] | None) -> str:
    """The chat template that is asked for; for `auto` that of the manifest, if there is one: `none` where it has none.

    >>> open_template("auto", None), open_template("auto", new_manifest({"model": "my/base"}))
    ('auto', 'none')
    """
    if asked != "auto" or manifest is None:
        return asked
    return manifest["config"].get("chat_template", "none")


def claim_run_directory(
    path: str | os.PathLike[str],
    config: Mapping[str, Any],
    resume: bool,
    *,
    seed: int | None = None,
    base_hash: str | None = None,
    former_base_hash: str | None = None,
    data_hashes: Mapping[str, str] | None = None,
    execution: Mapping[str, Any] | None = None,
) -> Literal["new", "resume", "finished"]:
    """Take a directory for a run, or say what is left to do in it.

    An absent or empty directory is made and given a manifest: "new", whatever `resume` says. A directory
    whose manifest holds an equal configuration is "finished", or, with `resume`, "resume". Seed and hashes
    are compared like the configuration where both the manifest and the caller have them; versions and the
    commit are not compared. `former_base_hash`: the hash of the same base by an earlier formula, which the manifest may
    hold instead.

    Raises `RunDirectoryError`, with nothing touched, for an unfinished run without `resume`, for a run of
    another configuration (naming each field that differs), and for a directory of something else.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     first = claim_run_directory(Path(folder, "run"), {"strategy": "er"}, resume=False)
    ...     again = claim_run_directory(Path(folder, "run"), {"strategy": "er"}, resume=True)
    >>> first, again
    ('new', 'resume')
    """
    directory = Path(path)
    manifest = new_manifest(config, seed, base_hash, data_hashes, execution)
    if not (directory / MANIFEST_NAME).exists():
        _make_empty(directory)
        begin_record(directory)
        write_manifest(directory, {"format": FORMAT, **manifest})
        return "new"
    recorded = read_manifest(directory)
    found = differences(
        recorded, config, seed=seed, base_hash=base_hash, former_base_hash=former_base_hash, data_hashes=data_hashes
    )
    if found:
        raise RunDirectoryError(
            f"Run directory {directory} belongs to another configuration: {'; '.join(found)}; "
            "give the recorded values and data, or choose another --output-dir."
        )
    if recorded.get("status") == "finished":
        return "finished"
    if not resume:
        raise RunDirectoryError(
            f"Expected a new or finished run directory, got an unfinished run in {directory}; "
            "pass --resume to go on with it, or choose another --output-dir."
        )
    return "resume"


def differences(
    recorded: Mapping[str, Any],
    config: Mapping[str, Any],
    *,
    seed: int | None = None,
    base_hash: str | None = None,
    former_base_hash: str | None = None,
    data_hashes: Mapping[str, str] | None = None,
) -> list[str]:
    """How a run differs from that of the manifest `recorded`, by the arguments of `claim_run_directory`.

    >>> differences(new_manifest({"seed": 0}), {"seed": 1})
    ['expected seed 0, got 1']
    """
    if former_base_hash is not None and recorded.get("hashes", {}).get("base") == former_base_hash:
        base_hash = former_base_hash
    hashes = {"base": base_hash, "data": dict(data_hashes or {})}
    return list(_differences(recorded, {"config": plain_json(config), "seed": seed, "hashes": hashes}))


@contextmanager
def lock_run_directory(path: str | os.PathLike[str]) -> Iterator[None]:
    """Keep a run directory, which is made if absent, to this process for the length of the block.

    As `lock_folder` does; raises `RunInUseError` while another process has it.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder, lock_run_directory(folder):
    ...     pass
    """
    directory = Path(path)
    with ExitStack() as stack:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            stack.enter_context(lock_folder(directory))
        except BlockingIOError:
            raise RunInUseError(
                f"Expected a run directory that no other process works on, got {directory}, on which one does; "
                "wait for it or choose another --output-dir."
            ) from None
        except OSError as error:
            raise _cannot_be_made(directory, error) from error
        yield


def mark_finished(run_directory: str | os.PathLike[str]) -> None:
    """Set a run's `status` to "finished"; raises `RunDirectoryError` when it has no manifest.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_manifest(folder, new_manifest({}))
    ...     mark_finished(folder)
    ...     read_manifest(folder)["status"]
    'finished'
    """
    manifest = read_manifest(run_directory)
    write_manifest(run_directory, {**manifest, "status": "finished", "finished": _now()})


def record_hashes(
    run_directory: str | os.PathLike[str], what: str, hashes: Mapping[str, str], place: Mapping[str, Any] | None = None
) -> None:
    """State under `hashes` of the manifest what was measured beside the run's own data; nothing for no hashes.

    `place`: fields of the manifest that say where these data lie.
    """
    if hashes:
        manifest = read_manifest(run_directory)
        stated = {**(place or {}), "hashes": {**manifest.get("hashes", {}), what: dict(hashes)}}
        if any(manifest.get(name) != value for name, value in stated.items()):
            write_manifest(run_directory, {**manifest, **stated})


def record_evaluation(run_directory: str | os.PathLike[str], choices: Mapping[str, Any]) -> None:
    """State in the manifest, under `evaluation`, how points were evaluated last; tasks are added to those stated.

    A folder without a manifest (of a trainer that is used by itself) is left as it is.
    """
    if not (Path(run_directory) / MANIFEST_NAME).exists():
        return
    manifest = read_manifest(run_directory)
    stated = manifest.get("evaluation") or {}
    new = {**stated, **choices}
    for name in {"shared_prefix_tokens", "cut_prompts"} & set(new):
        new[name] = {**stated.get(name, {}), **choices.get(name, {})}
    if new != stated:
        write_manifest(run_directory, {**manifest, "evaluation": new})


def _make_empty(directory: Path) -> None:
    """Make a directory; it may exist if it holds nothing but leftovers of a kill before there was a manifest."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        found = sorted(entry.name for entry in directory.iterdir())
    except OSError as error:
        raise _cannot_be_made(directory, error) from error
    begun = (f".{MANIFEST_NAME}.", f".{RECORD_NAME}.")
    leftovers = [n for n in found if n == RECORD_NAME or (n.startswith(begun) and n.endswith(PARTIAL_SUFFIX))]
    if found != leftovers:
        first = next(name for name in found if name not in leftovers)
        raise RunDirectoryError(
            f"Expected an empty directory or a run at {directory}, got files such as {first} and no "
            f"{MANIFEST_NAME}; choose another --output-dir."
        )
    for name in leftovers:
        (directory / name).unlink()


def _cannot_be_made(directory: Path, error: OSError) -> RunDirectoryError:
    return RunDirectoryError(
        f"Expected a directory that can be created at {directory}, got: {error.strerror}; choose another --output-dir."
    )


def _differences(recorded: Mapping[str, Any], wanted: Mapping[str, Any]) -> Iterator[str]:
    """Yield "expected <field> <recorded>, got <wanted>" for every field of a run's identity that differs."""
    before, now = _fields(recorded["config"]), _fields(wanted["config"])
    another = before.get("strategy") != now.get("strategy")
    for field in dict.fromkeys([*before, *now]):
        if another and field.startswith("strategy_settings"):
            continue  # those of two strategies always differ
        old, new = before.get(field), now.get(field)
        if old != new:
            expected = f"no {field}" if old is None else f"{field} {_short(old)}"
            yield f"expected {expected}, got {'none' if new is None else _short(new)}"
    before, now = _contents(recorded), _contents(wanted)
    for what in before:
        old, new = before[what], now.get(what)
        if old is not None and new is not None and old != new:
            old, new = (_short(str(value).rpartition(":")[2], 13) for value in (old, new))  # without its formula
            yield f"expected {what} {old}, got {new}"


def _contents(manifest: Mapping[str, Any]) -> dict[str, Any]:
    hashes = manifest.get("hashes", {})
    return {
        **({} if "seed" in manifest["config"] else {"seed": manifest.get("seed")}),
        "base model with content hash": hashes.get("base"),
        **{f"{task} with content hash": value for task, value in hashes.get("data", {}).items()},
    }


def _fields(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return dotted field -> JSON of its value."""
    fields: dict[str, str] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            fields |= _fields(value, f"{prefix}{name}.")
        else:
            fields[f"{prefix}{name}"] = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return fields


def _short(text: str, limit: int = 64) -> str:
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def git_commit() -> str | None:
    """Return the commit of the checkout that tracks this file; an installed copy has none."""
    here = Path(__file__).resolve()

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(here.parent), *arguments], capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", here.name)
        return git("rev-parse", "HEAD")
    except (OSError, subprocess.SubprocessError):
        return None


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
