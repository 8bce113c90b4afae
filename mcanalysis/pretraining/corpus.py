"""The documents a base is pre-trained on: generated, or read from a folder of the user's text."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import NamedTuple

from mcanalysis.errors import DataError
from mcanalysis.pretraining.instructions import instruction
from mcanalysis.tasks.embedded import grammars


class Document(NamedTuple):
    """Text to learn from: a prompt (empty for plain text), predicted or only read, and what follows it."""

    prompt: str
    text: str
    predict_prompt: bool = False


def generated_documents(seed: int) -> Iterator[Document]:
    """An endless stream: one half instructions of other domains, one half plain text of the tasks' domains.

    >>> next(generated_documents(0)).text != ""
    True
    """
    rng = Random(f"mcanalysis-pretraining-1/{seed}")
    plain = [grammar.plain for _, grammar in sorted(grammars().items())]
    while True:
        yield Document(*instruction(rng))
        yield Document("", rng.choice(plain)(rng))


def _json_documents(file: Path) -> list[Document]:
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))
        return [Document(row["prompt"], row["answer"], predict_prompt=True) for row in rows]
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        raise DataError(
            f"Expected a JSON list of {{'prompt', 'answer'}} in {file}, got {type(error).__name__}: {error}; "
            "correct or remove the file."
        ) from None


def folder_documents(folder: str | Path) -> list[Document]:
    """All documents under a folder: paragraphs of `*.txt` files, and the *train* splits of TRACE-form tasks.

    `eval.json` and `test.json` are never read. Other JSON files are ignored.
    """
    root = Path(folder)
    if not root.is_dir():
        raise DataError(f"Expected a folder of text, got '{folder}', which is no directory; check --text-dir.")
    documents: list[Document] = []
    for file in sorted(root.rglob("*.txt")):
        paragraphs = file.read_text(encoding="utf-8").split("\n\n")
        documents += [Document("", p.strip()) for p in paragraphs if p.strip()]
    for file in sorted(root.rglob("train.json")):
        documents += _json_documents(file)
    if not documents:
        raise DataError(
            f"Expected *.txt files or <TASK>/train.json under '{folder}', got none; point --text-dir at text."
        )
    return documents
