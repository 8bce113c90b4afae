"""The weights of a whole model, read from disk tensor by tensor: a folder's, or a base's with an adapter merged."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from mcanalysis.errors import PointMismatchError, UserError
from mcanalysis.models.adapter_files import SavedAdapter
from mcanalysis.models.loading import load_config, load_tokenizer, plain_source
from mcanalysis.params.lora import key_a, key_b, ranks
from mcanalysis.params.point import working_dtype

logger = logging.getLogger(__name__)

_FLOATS = {"F64", "F32", "F16", "BF16"}
_TRAINING = ("optimizer*", "scheduler.pt", "global_step*", "rng_state*")
# Settings of a config.json on which no number in evaluation depends, or that are those of --model: its tokenizer.
_HARMLESS = re.compile(
    r"_name_or_path|_commit_hash|_attn_implementation.*|transformers_version|(torch_)?dtype|use_cache|architectures|"
    r"(bos|eos|pad)_token_id|.*dropout.*|.*pdrop|initializer_range|gradient_checkpointing|pretraining_tp|"
    r"id2label|label2id|task_specific_params|output_(attentions|hidden_states)|return_dict"
)


def saved_tensors(network: nn.Module) -> dict[str, tuple[Tensor, tuple[str, ...]]]:
    """The floating-point tensors that a network saves, each once by its first name, with all names that are tied to it.

    >>> list(saved_tensors(nn.BatchNorm1d(2)))
    ['weight', 'bias', 'running_mean', 'running_var']
    """
    found: dict[int, tuple[Tensor, list[str]]] = {}
    for name, tensor in network.state_dict(keep_vars=True).items():
        if tensor.is_floating_point():
            found.setdefault(id(tensor), (tensor, []))[1].append(name)
    return {names[0]: (tensor, tuple(names)) for tensor, names in found.values()}


def model_folder(place: str, revision: str | None = None) -> Path:
    """Where the files of a model lie: a folder, that of a GGUF file, or of a model of the hub, which is fetched.

    Raises `UserError` for a model of the hub that is neither here nor answered for.
    """
    source = plain_source(place)
    if Path(source).is_dir():
        return Path(source)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    from mcanalysis.models.hub_access import local_copy

    try:
        here = local_copy(place, revision)
        wanted = ["*.safetensors", "*.json", "tokenizer*"]
        return here or Path(snapshot_download(place, revision=revision, allow_patterns=wanted))
    except (HFValidationError, HfHubHTTPError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise UserError(
            f"Expected a model folder, an adapter folder or a hub id that this machine can fetch, got '{place}' "
            f"({reason}); check --minima."
        ) from None


class WeightFiles(Mapping[str, Tensor]):
    """The tensors of a model's safetensors by the names of a network of one architecture; each is read when asked for.

    Args:
        place: a folder, a GGUF file or a hub id, as with `--model`; of shards each is opened when it is needed.
        network: whose tensors are wanted, and whose names and shapes the files must have. Names that are tied in it are
            one tensor; a file may hold any of them. What transformers renames when it loads a model is renamed.
        tokenizer: of the network; a tokenizer in the folder has to have the same tokens.
        revision: of a model of the hub.

    Raises:
        PointMismatchError: naming the first tensor that is of another shape, lacking or not the network's, or the
            setting of config.json in which the two compute differently.
        UserError: for a folder without such weights, with a shard missing, with weights in 4 or 8 bits, or of an
            architecture of which transformers makes one tensor of several in the file, as of Mixtral's experts.
    """

    def __init__(self, place: str, network: nn.Module, tokenizer: Any = None, *, revision: str | None = None) -> None:
        self.place, self.folder = place, model_folder(place, revision)
        self._files = _index(self.folder, place)
        self._names: dict[str, str] = {}
        self._name_tensors(network)
        self._check_config(network)
        if tokenizer is not None:
            self._check_tokens(tokenizer)

    def __getitem__(self, name: str) -> Tensor:
        return self._read(self._names[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def _read(self, saved: str) -> Tensor:
        with safe_open(self._files[saved], "pt") as file:
            return file.get_tensor(saved)

    def _name_tensors(self, network: Any) -> None:
        """Find what each tensor of the network is called in the files, as transformers does, and look at it there."""
        # They bring in much that who reads a finished run need not wait for.
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, rename_source_key

        conversions = get_model_conversion_mapping(network)
        joined = [step for step in conversions if isinstance(step, WeightConverter)]
        renamed: list[Any] = [step for step in conversions if not isinstance(step, WeightConverter)]
        there: dict[str, str] = {}
        state = network.state_dict()
        for saved in self._files:
            name, pattern = rename_source_key(saved, renamed, joined, network.base_model_prefix, state)
            if pattern is not None and name not in self._files:
                raise UserError(
                    f"Expected tensors of '{self.place}' as its network has them, got '{saved}', which transformers "
                    "puts together with others when it loads the model; such architectures are not read here."
                )
            there[name] = saved
        for name, (tensor, names) in saved_tensors(network).items():
            saved, *tied = [there[n] for n in names if n in there] or [""]
            if not saved:
                raise self._differs(f"a tensor '{name}'", "none of that name")
            with safe_open(self._files[saved], "pt") as file:
                got = file.get_slice(saved)
                shape, kind = tuple(got.get_shape()), got.get_dtype()
            if shape != tuple(tensor.shape):
                raise self._differs(f"'{name}' of shape {tuple(tensor.shape)}", f"shape {shape}")
            if kind not in _FLOATS:
                raise UserError(
                    f"Expected weights in float32, bfloat16 or float16 in '{self.place}', got {kind} at '{saved}'; "
                    "give the model as it was before it was quantised."
                )
            for other in tied:
                if not torch.equal(self._read(other), self._read(saved)):
                    raise self._differs(f"'{other}' equal to '{saved}', to which it is tied", "two different tensors")
            self._names[name] = saved
        ignored = [re.compile(p) for p in network._keys_to_ignore_on_load_unexpected or ()]
        ignored += [re.compile(r"rotary_emb\.inv_freq|\.attn\.(masked_)?bias$")]  # computed, as older versions saved
        for name, saved in sorted(there.items()):
            if name not in state and not any(pattern.search(saved) for pattern in ignored):
                raise self._differs("no more tensors than it has", f"'{saved}' besides")

    def _differs(self, expected: str, got: str) -> PointMismatchError:
        return PointMismatchError(
            f"Expected {expected} in '{self.place}', as the base has it, got {got}; give models of one architecture "
            "and vocabulary, and one of them, or what they were fine-tuned from, with --model."
        )

    def _check_config(self, network: Any) -> None:
        """Whatever of the configuration could change a number must be the same: there is one network for all."""
        own = load_config(str(self.folder)).to_dict()
        of_base = network.config.to_dict()
        for name in sorted({*own, *of_base}):
            if not _HARMLESS.fullmatch(name) and own.get(name) != of_base.get(name):
                raise PointMismatchError(
                    f"Expected {name} {json.dumps(of_base.get(name))} in the config.json of '{self.place}', as the "
                    f"base has it, got {json.dumps(own.get(name))}; no path leads from one to the other: give models "
                    "of one configuration."
                )

    def _check_tokens(self, tokenizer: Any) -> None:
        if not any((self.folder / name).exists() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
            return  # a checkpoint of a trainer that was given none
        other, own = load_tokenizer(str(self.folder)).get_vocab(), tokenizer.get_vocab()
        if other != own:
            first = min(token for token in {*other, *own} if other.get(token) != own.get(token))
            raise PointMismatchError(
                f"Expected the tokenizer of the base in '{self.place}', got one in which token '{first}' has another "
                "number; give models with one tokenizer."
            )


class AdaptedWeights(Mapping[str, Tensor]):
    """The weights of a base with a LoRA or DoRA adapter merged into them, made tensor by tensor, in float32 at least.

    W + s·B·A and, with DoRA, each row of it at the length that its magnitude says (Liu et al., arXiv 2402.09353, eq.
    5).

    Args:
        base: the base's weights.
        adapter: its modules have to be linear layers of the network (checked by the caller).
        network: which of its layers keep their weight transposed, as GPT-2's.
    """

    def __init__(self, base: Mapping[str, Tensor], adapter: SavedAdapter, network: nn.Module) -> None:
        self._base, self._adapter = base, adapter
        modules = dict(network.named_modules())
        self._transposed = {f"{m}.weight": type(modules[m]).__name__ == "Conv1D" for m in ranks(adapter.point)}
        for name, transposed in self._transposed.items():
            module = name.removesuffix(".weight")
            shape = tuple(modules[module].weight.shape)[:: -1 if transposed else 1]  # type: ignore[union-attr]
            got = len(adapter.point[key_b(module)]), adapter.point[key_a(module)].shape[1]
            if got != shape:
                raise PointMismatchError(
                    f"Expected an adapter of {module} for (outputs, inputs) {shape}, as the base has it, got {got}; "
                    "give the base model that the adapters were trained on."
                )

    def __getitem__(self, name: str) -> Tensor:
        weight = self._base[name]
        if name not in self._transposed:
            return weight
        module, point = name.removesuffix(".weight"), self._adapter.point
        a, b = point[key_a(module)], point[key_b(module)]
        weight = weight.to(working_dtype([weight, a]))
        merged = torch.addmm(weight.T if self._transposed[name] else weight, b.to(weight), a.to(weight))
        if module in self._adapter.magnitudes:
            lengths = torch.linalg.vector_norm(merged, dim=1)
            merged = merged * (self._adapter.magnitudes[module].to(weight) / lengths).unsqueeze(1)
        return merged.T.contiguous() if self._transposed[name] else merged

    def __iter__(self) -> Iterator[str]:
        return iter(self._base)

    def __len__(self) -> int:
        return len(self._base)


def warn_of_two_sets(place: str | Path) -> None:
    """Say that a folder holds a model twice, whole and in shards, which need not be the same one."""
    logger.warning(
        "'%s' holds model.safetensors and an index of shards beside it: model.safetensors is taken, as transformers "
        "does; remove what is left over from another save",
        place,
    )


def _index(folder: Path, place: str) -> dict[str, Path]:
    """The file of each tensor by its name there."""

    def refused(got: str, remedy: str) -> UserError:
        return UserError(f"Expected a whole model (config.json and safetensors) in '{place}', got {got}; {remedy}.")

    listing, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    files = [single]
    if single.exists() and listing.exists():
        warn_of_two_sets(place)
    elif listing.exists():
        try:
            parts = sorted(set(json.loads(listing.read_text(encoding="utf-8"))["weight_map"].values()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise refused("an index of shards that cannot be read", "save the model again") from None
        files = [folder / part for part in parts]
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise refused(f"no {missing[0]}, which its index names", "restore that file")
    elif not single.exists():
        if list(folder.glob("pytorch_model*.bin")):
            raise refused("pytorch_model.bin, a pickle", "load the model with transformers and save it again")
        if states := [file.name for pattern in _TRAINING for file in folder.glob(pattern)]:
            raise refused(f"optimizer states only ({min(states)})", "give the folder that save_pretrained wrote")
        raise refused("no model.safetensors", "give the folder that save_pretrained wrote")
    found = {}
    for file in files:
        try:
            with safe_open(file, "pt") as opened:
                found |= dict.fromkeys(opened.keys(), file)
        except (OSError, SafetensorError) as error:
            raise refused(f"a damaged {file.name} ({error})", "restore that file") from None
    return found
