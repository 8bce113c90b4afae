"""Loading a causal LM and its tokenizer: the embedded base, a folder, or a model of the hub."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from mcanalysis.errors import UnknownNameError, UserError
from mcanalysis.store.hashing import hash_files, hash_json

EMBEDDED = "embedded"
EMBEDDED_DIRECTORY = Path(__file__).parent / "embedded_base"
DTYPES = ("auto", "float32", "float64", "bfloat16", "float16")


def model_source(name: str) -> str:
    """Where a model name leads: the shipped folder for `embedded`, else the name itself.

    >>> model_source("meta-llama/Llama-2-7b-hf")
    'meta-llama/Llama-2-7b-hf'
    """
    return str(EMBEDDED_DIRECTORY) if name == EMBEDDED else name


def load_base(name: str = EMBEDDED, dtype: str = "auto", device: str = "cpu") -> tuple[Any, Any]:
    """Load (model, tokenizer) in evaluation mode.

    `name` is `embedded`, a folder or a hub id; `auto` keeps the dtype the weights were saved in. Raises `UserError` in
    one line for a model that is not there, a folder without a model, an unknown dtype or device.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    check_base(name, dtype, device)
    source = model_source(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        model = AutoModelForCausalLM.from_pretrained(
            source, dtype="auto" if dtype == "auto" else getattr(torch, dtype), attn_implementation=None
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"Expected a causal language model at '{name}', got: {reason}; give --model a folder with config.json, "
            "model.safetensors and a tokenizer, or an id this machine can download."
        ) from None
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"Expected a tokenizer with an end token at '{name}', got none; set eos_token in its tokenizer_config.json."
        )
    model = model.to(device).eval()  # type: ignore[arg-type]
    return model, tokenizer


def check_base(name: str, dtype: str, device: str) -> None:
    """Raise what `load_base` would for a dtype, device or model that is plainly wrong, before anything is started."""
    if dtype not in DTYPES:
        raise UnknownNameError("dtype", dtype, DTYPES)
    check_device(device)
    source = model_source(name)
    if not Path(source).exists() and (source.count("/") != 1 or source.startswith((".", "/", "~"))):
        if "/" in source or os.sep in source:
            raise UserError(f"Expected a model folder, got '{name}', which does not exist; check the path of --model.")
        raise UnknownNameError("model", name, [EMBEDDED, "<folder>", "<organisation>/<model>"])


def check_device(device: str) -> None:
    """Raise `UserError` for a device that is not there, naming those that are."""
    import torch

    present = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    if torch.cuda.is_available():
        present.append("cuda")
    if torch.backends.mps.is_available():
        present.append("mps")
    if device not in present:
        raise UserError(f"Expected a device of this machine ({', '.join(present)}), got '{device}'; change --device.")


def default_device() -> str:
    """`cuda` where there is one, else `cpu`."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def base_hash(name: str) -> str:
    """A hash of the model's files, or of its name where it lies on the hub."""
    source = Path(model_source(name))
    if source.is_dir():
        files = [p for p in sorted(source.iterdir()) if p.suffix in (".safetensors", ".json", ".model")]
        return hash_files(files)
    return hash_json(name)
