"""`parts.json` in a folder that is only right as a whole: the names of its files and the SHA-256 of each.

It is written last. A file that is missing or is not what was written is then found before anything is read from it;
files that came in later are nobody's business.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from mcanalysis.store.hashing import hash_file, hash_json

PARTS_NAME = "parts.json"


def write_parts(folder: str | os.PathLike[str]) -> None:
    """List the files that are in a folder and its subfolders now; raises `OSError` for what cannot be read or written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "step.txt").write_text("7")
    ...     write_parts(folder)
    ...     _ = Path(folder, "step.txt").write_text("8")
    ...     wrong_part(folder)
    'step.txt, which is not as it was written'
    """
    root = Path(folder)
    files = sorted(f for f in root.rglob("*") if f.is_file() and f != root / PARTS_NAME)
    parts = {file.relative_to(root).as_posix(): hash_file(file) for file in files}
    text = json.dumps({"parts": parts, "sha256": hash_json(parts)}, indent=2)
    (root / PARTS_NAME).write_text(text + "\n", encoding="utf-8")


def wrong_part(folder: str | os.PathLike[str]) -> str | None:
    """What keeps a folder from being what was listed, as it stands after "got"; None where nothing does.

    >>> wrong_part("/nonexistent")
    'no parts.json'
    """
    root = Path(folder)
    try:
        listed = json.loads((root / PARTS_NAME).read_text(encoding="utf-8"))
        parts = listed["parts"]
        if listed["sha256"] != hash_json(parts):
            return _CHANGED.format(PARTS_NAME)
        for name, expected in parts.items():
            if not (root / name).is_file():
                return f"no {name}"
            if hash_file(root / name) != expected:
                return _CHANGED.format(name)
    except (FileNotFoundError, NotADirectoryError) as error:
        return f"no {Path(error.filename).name}"
    except OSError as error:
        return f"{Path(error.filename).name}, which cannot be read ({error.strerror})"
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):  # no JSON, or JSON of another form
        return _CHANGED.format(PARTS_NAME)
    return None


_CHANGED = "{}, which is not as it was written"
