"""Any file or folder of rows as a task: BIG-bench, chats, or named columns; its splits, or dealt by seed."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from mcanalysis.errors import DataError
from mcanalysis.tasks.raw import big_bench, chat
from mcanalysis.tasks.raw.questions import RawData, split_seeded
from mcanalysis.tasks.raw.rows import Values, is_missing, read_file, split_files, with_whole_numbers
from mcanalysis.tasks.task import SPLITS, Example

REPEATED = "the prompt was kept already"
IN_TWO_SPLITS = "the prompt is in another split, too"
NO_PROMPT, NO_ANSWER = "the prompt has no text", "the answer has no text"

_SHARES = {"train": 10, "eval": 1, "test": 4}  # as in TRACE
_PLACE = re.compile(r"\{([^{}]+)\}")


def read(source: Path, name: str, seed: int = 0, prompt: str = "prompt", answer: str = "answer") -> RawData:
    """The examples of a file, or of a folder with files of splits or a `task.json`.

    Rows with `messages` are chats (`raw.chat`), rows with `input` and `target` or `target_scores` BIG-bench's
    (`raw.big_bench`), all others columns: `prompt` and `answer` are the names of columns, or texts with `{column}` in
    them. Texts of chats and columns stay as they are, white space at their ends included. A prompt
    comes once: what test has leaves eval, and what these have leaves train. Splits that are not there are dealt out of
    what is, with Python's Mersenne Twister: train, eval and test 10 : 1 : 4; of train and test, eval out of train; of
    train and eval, test out of eval, 4 : 1. Raises `DataError` for what cannot be read.
    """
    files = _files(source)
    left_out: Counter[str] = Counter()
    remarks: list[str] = []
    canaries: list[str] = []
    parts: dict[str, list[Example]] = {}
    for split in ("test", "eval", "train", ""):  # what is tested on must not be trained on
        if split not in files:
            continue
        parts[split] = []
        for file in files[split]:
            rows, about = read_file(file)
            made, remark = _made(rows, about, file, prompt, answer)
            remarks += [remark] * (remark not in ("", *remarks))
            if isinstance(said := about.get("canary"), str) and said not in canaries:
                canaries.append(said)
            _keep(made, parts, split, left_out)
    return RawData(_dealt(parts, seed, name), left_out, "; ".join(remarks), " ".join(canaries))


def _files(source: Path) -> dict[str, list[Path]]:
    """The files by split; a file without one has the key ""."""
    if source.is_file():
        return {"": [source]}
    if not source.is_dir():
        raise DataError(f"Expected a file or a folder at {source}, got no such folder; check --source.")
    if (source / "task.json").is_file():
        return {"": [source / "task.json"]}
    found = {split: files for split in SPLITS if (files := split_files(source, split))}
    if not found:
        raise DataError(
            f"Expected train, eval or test files (.json, .jsonl, .csv, .parquet) or task.json in {source}, got none; "
            "name a file with --source."
        )
    return found


def _made(
    rows: Sequence[Values], about: Values, file: Path, prompt: str, answer: str
) -> tuple[list[Example | str], str]:
    if not rows:
        raise DataError(f"Expected rows in {file}, got none; give another file.")
    if chat.is_chat(rows):
        return [chat.example(row) for row in rows], "the user's message is the prompt, the assistant's the answer"
    if big_bench.is_big_bench(rows):
        return big_bench.examples(rows, about, str(file))
    return [_of_columns(row, n, file, prompt, answer) for n, row in enumerate(with_whole_numbers(rows))], ""


def _of_columns(row: Values, number: int, file: Path, prompt: str, answer: str) -> Example | str:
    def filled(flag: str, text: str) -> str:
        template = text if _PLACE.search(text) else f"{{{text}}}"
        for name in _PLACE.findall(template):
            if name not in row:
                raise DataError(
                    f"Expected the column '{name}' in {file} at row {number}, got {', '.join(map(repr, row))}; name "
                    f"another with {flag}."
                )
            if isinstance(row[name], list | dict):
                raise DataError(
                    f"Expected text in the column '{name}' of {file} at row {number}, got {str(row[name])[:40]}; name "
                    f"another with {flag}."
                )
        values = {name: "" if is_missing(row[name]) else str(row[name]) for name in _PLACE.findall(template)}
        if not any(value.strip() for value in values.values()):
            return ""
        return _PLACE.sub(lambda place: values[place[1]], template.replace("\\n", "\n"))

    return Example(filled("--prompt", prompt), filled("--answer", answer))


def _keep(
    made: Sequence[Example | str], parts: Mapping[str, list[Example]], split: str, left_out: Counter[str]
) -> None:
    """Add the examples to their split whose prompt is new, and count the others by reason."""
    own = {e.prompt for e in parts[split]}
    others = {e.prompt for name, part in parts.items() if name != split for e in part}
    for example in made:
        if isinstance(example, str):
            left_out[example] += 1
        elif not example.prompt.strip() or not example.answer.strip():
            left_out[NO_ANSWER if example.prompt.strip() else NO_PROMPT] += 1
        elif example.prompt in own or example.prompt in others:
            left_out[REPEATED if example.prompt in own else IN_TWO_SPLITS] += 1
        else:
            own.add(example.prompt)
            parts[split].append(example)


def _dealt(parts: Mapping[str, list[Example]], seed: int, name: str) -> dict[str, list[Example]]:
    """The three splits, those that are missing dealt out of the others."""
    match sorted(parts):
        case ["eval", "test", "train"]:
            for split, part in parts.items():
                if not part:
                    raise DataError(f"Expected {split} examples of {name}, got none that could be kept; use all files.")
            return {split: parts[split] for split in SPLITS}
        case ["test", "train"]:
            return {**split_seeded(parts["train"], {"train": 10, "eval": 1}, seed, name), "test": parts["test"]}
        case ["eval", "train"]:
            return {"train": parts["train"], **split_seeded(parts["eval"], {"eval": 1, "test": 4}, seed, name)}
        case _:
            everything = [example for part in parts.values() for example in part]
            return split_seeded(everything, _SHARES, seed, name)
