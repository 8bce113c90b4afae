"""Errors a user can cause and put right: one line that says what was expected, what was got and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class UserError(ValueError):
    """A mistake in the input; scripts print it as one line on stderr and exit with code 2."""


class UnknownNameError(UserError):
    """A name that is not registered.

    >>> str(UnknownNameError("task", "FOMCC", ["FOMC", "C-STANCE"]))
    "Unknown task 'FOMCC'. Did you mean 'FOMC'? Expected one of: C-STANCE, FOMC."
    >>> str(UnknownNameError("model", "folder", ["embedded", "<folder>"]))
    "Unknown model 'folder'. Expected one of: <folder>, embedded."
    """

    def __init__(self, kind: str, name: str, known: Iterable[str], remedy: str = "") -> None:
        names = sorted(known)
        name = shortened(name)
        text = f"Unknown {kind} '{name}'.{did_you_mean(name, names)} Expected one of: {', '.join(names)}."
        super().__init__(f"{text} {remedy}" if remedy else text)

    def __reduce__(self) -> tuple[type[UserError], tuple[str]]:
        return UserError, (str(self),)  # a worker process sends it as text


def shortened(value: Any, most: int = 60) -> str:
    """A value as an error shows it: whole where it is short, else its two ends.

    >>> shortened(12), shortened("a" * 100, 20)
    ('12', 'aaaaaaaa…aaaaaaaa (100 characters)')
    """
    try:
        text = str(value)
    except ValueError:  # an integer of more digits than Python writes
        return f"a number of about 2^{value.bit_length()}"
    end = most // 2 - 2
    return text if len(text) <= most else f"{text[:end]}…{text[-end:]} ({len(text):,} characters)"


def is_of_an_archive_writer(text: str) -> bool:
    """Whether a RuntimeError's text is what torch.save says where a disk refuses; why it does is not told.

    Which of three sentences depends on when it met the refusal: as it wrote, flushed or closed the archive.

    >>> is_of_an_archive_writer("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0")
    True
    >>> is_of_an_archive_writer("PytorchStreamReader failed reading zip archive")
    False
    """
    return any(said in text for said in ("PytorchStreamWriter", "iostream error", "unexpected pos"))


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The nearest of the known names as a question after a space; nothing where none is near.

    >>> did_you_mean("fomcc", ["FOMC", "C-STANCE"])
    " Did you mean 'FOMC'?"
    """
    names = {n.lower(): n for n in known if not n.startswith("<")}  # <folder> stands for any
    return "".join(f" Did you mean '{names[n]}'?" for n in difflib.get_close_matches(name.lower(), names, n=1))


class MissingPackageError(UserError):
    """A package of an extra that is not installed.

    >>> str(MissingPackageError("plotly", "for the report", "report"))  # doctest: +ELLIPSIS
    "Expected the package plotly for the report, got none; run pip install 'mcanalysis[report]' (in a checkout: ...)."
    """

    def __init__(self, package: str, purpose: str, extra: str) -> None:
        super().__init__(
            f"Expected the package {package} {purpose}, got none; run pip install 'mcanalysis[{extra}]' (in a "
            f"checkout: .venv/bin/pip install -c constraints.txt -e '.[{extra}]')."
        )

    def __reduce__(self) -> tuple[type[UserError], tuple[str]]:
        return UserError, (str(self),)  # a worker process sends it as text


class DataError(UserError):
    """Data on disk that is missing, empty or malformed."""


class RunDirectoryError(UserError):
    """A run directory that is unfinished, belongs to another configuration or is not a run."""


class DivergedError(UserError):
    """A training whose loss or parameters are no longer finite."""


class RunInUseError(RunDirectoryError):
    """A run directory that another process works on at the moment."""


class PointMismatchError(UserError):
    """Two points that do not share keys, shapes or a base model."""


class WorkerLostError(UserError):
    """A worker process that was killed or did not answer, whatever it was given, on every try."""
