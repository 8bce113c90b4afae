"""A GGUF file as a plain model: its weights, dequantised, its configuration and tokenizer in a folder of our cache.

Everything above (PEFT, resuming, workers, what tells bases apart) knows folders only. transformers reads the file;
what it would get wrong in silence is refused here: weights that it leaves out or makes up, and rotary scaling.
"""

from __future__ import annotations

import json
import logging
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mcanalysis.errors import MissingPackageError, UserError
from mcanalysis.models.base_source import converted_folder
from mcanalysis.models.free_memory import check_memory
from mcanalysis.store.atomic import replace_directory_atomic, write_json_atomic
from mcanalysis.store.cache_folder import CACHE_VARIABLE, cache_folder
from mcanalysis.store.lock import lock_folder

logger = logging.getLogger(__name__)

_NAME = "model.gguf"  # of the file where transformers reads it
_BLOCK = re.compile(r"blk\.(\d+)\.")
# What `tokenizer.ggml.pre` may be where text is split as by GPT-2's tokenizer, and where digits are split off one by
# one before that (llama.cpp, src/llama-vocab.cpp). Files of before there was the field have none.
_SPLIT_AS_GPT2 = (None, "default", "gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "exaone4", "a.x-4.0",
                  "gigachat", "mellum")  # fmt: skip
_SPLIT_OFF_DIGITS = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b")


def plain_folder(file: Path) -> Path:
    """The folder with the plain model of a GGUF file, which is made where it is not there.

    Weights are kept in bfloat16 where that holds every value exactly, as for files of BF16, else in float32: values of
    quantised blocks are products of a half-precision scale and a small integer, of up to 19 significant bits, and
    float32 is what the format's own dequantisation gives. The folder is written whole or not at all; a second process
    waits for the first. Raises `UserError` for a file that cannot be read here, and where there is no memory for it.
    """
    folder = converted_folder(file)
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with lock_folder(folder.parent, wait=True):
            if not folder.is_dir():
                with replace_directory_atomic(folder) as fresh:
                    _convert(file, fresh, folder)
    except OSError as error:
        raise UserError(
            f"Expected a cache that can be written at '{cache_folder()}', got: {error.strerror or error}; make room "
            f"there, or set {CACHE_VARIABLE} to another folder."
        ) from None
    return folder


@contextmanager
def as_transformers_reads(file: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """A folder and the arguments of `from_pretrained` that read a GGUF file; errors within are of one line.

    It lies there alone: what lies beside it elsewhere (a tokenizer, an adapter) would be read, and is no part of it.
    """
    with _one_line(file), tempfile.TemporaryDirectory() as folder:
        Path(folder, _NAME).symlink_to(file.resolve())
        yield folder, {"gguf_file": _NAME}


def read_header(file: Path) -> Any:
    """The fields and tensors of a GGUF file, as `gguf.GGUFReader` gives them; raises `UserError` where it cannot."""
    try:
        import gguf
    except ImportError:
        raise MissingPackageError("gguf", f"to read '{file.name}'", "gguf") from None
    import numpy as np

    with _one_line(file):
        reader = gguf.GGUFReader(file)
        for kind in {tensor.tensor_type for tensor in reader.tensors}:
            _, size = gguf.GGML_QUANT_SIZES[kind]
            gguf.dequantize(np.zeros((1, size), np.uint8), kind)  # raises for a type that it does not know
    return reader


def tokenizer_as_trained(tokenizer: Any, file: Path, header: Any) -> Any:
    """A tokenizer as transformers reads it, which splits text before it is merged as the file says.

    transformers takes GPT-2's splits where it does not know what the file names, and says nothing: other tokens come of
    the same text. Those that split off digits one by one are put right. Raises `UserError` for any other; a file that
    names none has GPT-2's.
    """
    from tokenizers import pre_tokenizers

    splits = _field(header, "tokenizer.ggml.pre")
    if _field(header, "tokenizer.ggml.model") != "gpt2" or splits in _SPLIT_AS_GPT2:
        return tokenizer
    backend = tokenizer.backend_tokenizer
    if splits in _SPLIT_OFF_DIGITS:
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    elif _splits_as_gpt2(json.loads(backend.pre_tokenizer.__getstate__())):
        raise UserError(
            f"Expected a GGUF file whose way of splitting text is known here, got '{file.name}' with '{splits}', for "
            "which GPT-2's would be taken, and with it other tokens; set --model to the model's own folder or hub id."
        )
    return tokenizer


def _splits_as_gpt2(pre_tokenizer: dict[str, Any]) -> bool:
    return pre_tokenizer["type"] == "ByteLevel" and pre_tokenizer["use_regex"]


def _convert(file: Path, fresh: Path, folder: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig

    reader = read_header(file)
    number = sum(int(tensor.n_elements) for tensor in reader.tensors)
    check_memory(4 * number, f"the weights of '{file.name}' in float32")
    logger.warning("'%s' is dequantised, once, into '%s'", file.name, folder)
    with as_transformers_reads(file) as (place, which):
        config = AutoConfig.from_pretrained(place, trust_remote_code=False, **which)
        tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False, **which)
        tokenizer = tokenizer_as_trained(tokenizer, file, reader)  # which may refuse it: before minutes of reading
        read, told = AutoModelForCausalLM.from_pretrained(  # type: ignore[reportGeneralTypeIssues]
            place,
            config=config,  # else it is read once more, and the fields of a file take seconds
            dtype=torch.float32,
            trust_remote_code=False,
            quantization_config=GgufConfig(dequantize=True),  # else it may compute on blocks, with code from the hub
            output_loading_info=True,
            **which,
        )
        _check_whole(file, reader, read, told["missing_keys"])
        # transformers refuses to save what came from a GGUF file, so its weights move into a model that did not.
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
        model.load_state_dict(read.state_dict(), assign=True)
        model.tie_weights()
        if all(torch.equal(w, w.bfloat16().float()) for w in model.parameters()):
            model = model.to(torch.bfloat16)  # type: ignore[arg-type]
        model.save_pretrained(fresh)
        tokenizer.save_pretrained(fresh)
    for written in fresh.glob("*.json"):  # the same file is the same base, whichever version reads it
        values = json.loads(written.read_text(encoding="utf-8"))
        if values.pop("transformers_version", None):
            write_json_atomic(written, values)
    about = f"{file.name} as a plain model, made by mcanalysis. It may be removed: it is made anew when it is needed.\n"
    (fresh / "README.md").write_text(about, encoding="utf-8")


def _check_whole(file: Path, reader: Any, model: Any, missing: Any) -> None:
    """Raise `UserError` where the model is not what the file says: transformers only logs that, or says nothing."""
    if missing:
        raise UserError(
            f"Expected all weights of a {model.config.model_type} model in '{file.name}', got none for "
            f"{len(missing)}, {min(missing)} say; give the whole file (parts are joined with llama-gguf-split --merge)."
        )
    unread = []
    scaling = _field(reader, f"{_field(reader, 'general.architecture')}.rope.scaling.type")
    rope = getattr(model.config, "rope_parameters", None) or {}
    kinds = [own for own in rope.values() if isinstance(own, dict)] or [rope]  # one for each kind of layer, or one
    if scaling not in (None, "none") and all(kind.get("rope_type", "default") == "default" for kind in kinds):
        unread.append(f"rotary scaling '{scaling}'")
    # Blocks behind the last layer predict further tokens; they are no part of the model itself.
    layers = model.config.num_hidden_layers
    own = [t for t in reader.tensors if not (found := _BLOCK.match(t.name)) or int(found[1]) < layers]
    once = {weight.data_ptr(): weight.numel() for weight in model.state_dict().values()}  # tied ones are one
    more = sum(int(t.n_elements) for t in own) - sum(once.values())
    if more > 0:
        sized = [t.name for t in own if t.n_elements == more]
        unread.append(f"{more} weights more than the model has{f', {sized[0]} say' if sized else ''}")
    if unread:
        raise UserError(
            f"Expected a GGUF file of which transformers reads all, got '{file.name}' with {' and '.join(unread)}, "
            "which it leaves out: another model would come of it; set --model to the model's own folder or hub id."
        )


def _field(reader: Any, name: str) -> Any:
    field = reader.get_field(name)
    return None if field is None else field.contents()


@contextmanager
def _one_line(file: Path) -> Iterator[None]:
    """Whatever a damaged or unknown file makes its readers raise, as a `UserError` of one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        text = str(error).strip()
        reason = f"{text.splitlines()[0].rstrip('.')}" if text else type(error).__name__
        raise UserError(
            f"Expected a whole GGUF file of a kind that transformers reads, got '{file.name}': {reason}; download it "
            "again, or set --model to another quantisation of it, a model's folder or a hub id."
        ) from None
