"""Results of studies, a JSON file each, whose name says everything that the result depends on."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mcanalysis.errors import DataError
from mcanalysis.store.atomic import write_json_atomic
from mcanalysis.store.small_files import read_json

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class JsonResult:
    """One result in a file; NaN and infinite numbers come back as None.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     result = JsonResult(Path(folder, "of", "a-study.json"))
    ...     result.find(), result.keep({"loss": 0.5, "trace": float("nan")}), result.find()
    (None, {'loss': 0.5, 'trace': None}, {'loss': 0.5, 'trace': None})
    """

    file: Path

    def find(self) -> Any:
        """What the file holds; None where it is not there, or is damaged, which a warning says: it is made again."""
        try:
            return read_json(self.file) if self.file.exists() else None
        except DataError as error:
            logger.warning("A stored result is left out and made again. %s", error)
            return None

    def keep(self, result: Any) -> Any:
        """Write the file, whole or not at all; returns what is read from it."""
        write_json_atomic(self.file, result)
        return read_json(self.file)
