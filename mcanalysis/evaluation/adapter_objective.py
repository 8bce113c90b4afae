"""An objective for adapters trained elsewhere: a function of a point, from a base model and a data file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, ValuesView
from os import PathLike, fspath
from typing import Any

from torch import Tensor, nn

from mcanalysis.errors import PointMismatchError, UserError
from mcanalysis.evaluation.engine import Engine
from mcanalysis.evaluation.objective import make_objective
from mcanalysis.models.adapter_files import LoraSettings
from mcanalysis.models.adapter_tensors import check_own_names, first_of
from mcanalysis.models.chat_template import AUTO, choose_template, use_template
from mcanalysis.models.loading import default_device, load_base
from mcanalysis.models.lora_model import LoraModel
from mcanalysis.models.target_modules import find_target_modules
from mcanalysis.params.lora import key_a, key_b, module_names
from mcanalysis.params.point import check_point
from mcanalysis.store.measurements import Measurement
from mcanalysis.tasks.trace_files import load_examples


def adapter_objective(
    model: str | PathLike[str],
    adapters: Sequence[Mapping[str, Tensor]],
    data_file: str | PathLike[str],
    *,
    score: str | None = None,
    max_new_tokens: int | None = None,
    num_examples: int | None = None,
    max_length: int = 1024,
    dtype: str = "auto",
    device: str | None = None,
    revision: str | None = None,
    chat_template: str = AUTO,
) -> Callable[[Mapping[str, Tensor]], Measurement]:
    """Return a function of a point that gives loss and score on a data file, with their values per example.

    It takes every point between the adapters, of any rank: what `mcanalysis.profile` wants along a path in any space.

    Args:
        model: `embedded`, `smollm2`, a folder, a GGUF file or a hub id: the base that the adapters were trained on.
        adapters: the points that will be joined, as `load_adapter(DIR).point` gives them. Their ranks and modules may
            differ.
        data_file: `[{"prompt": …, "answer": …}, …]` in JSON, or such a record a line in a `.jsonl` file.
        score: how outputs are scored; by default exact match, or the task's own score for a file named after a task.
        max_new_tokens: the most tokens generated for an answer; by default 64, or the task's own for such a file.
        num_examples: the first ones only; None: all.
        max_length: tokens; longer prompts lose their middle.
        dtype: in which the base is loaded; by default as it was saved.
        device: by default a GPU where there is one.
        revision: branch, tag or commit of a model of the hub; None: its main branch.
        chat_template: `none`, a Jinja text, or `auto`: the tokenizer's own where the model was trained to answer in it
            and the prompts are plain, which a line says.

    Raises:
        PointMismatchError: if a point is not a LoRA point, or does not fit the base.
        UserError: for an argument of another kind, no adapter, a model that is not there or has too few
            positions, or a device that is not.
        DataError: for a file that is not there or not of this form.
    """
    adapters = list(adapters) if isinstance(adapters, ValuesView) else adapters
    _check_kinds(model, adapters, data_file, score)
    model = fspath(model)
    task = load_examples(data_file, score, max_new_tokens)
    base, tokenizer = load_base(model, dtype, device or default_device(), revision=revision)
    use_template(tokenizer, choose_template(chat_template, tokenizer, [task]))
    slot = attach_slot(base, tokenizer, adapters, model)
    chosen = make_objective(task, "test", tokenizer, max_length, num_examples)
    engine = Engine(slot)
    engine.check_room([chosen])

    def measure_at(point: Mapping[str, Tensor]) -> Measurement:
        return engine.measure(point, [chosen])[0]

    return measure_at


def _check_kinds(model: Any, adapters: Any, data_file: Any, score: Any) -> None:
    """Say in one line which argument is of another kind, before the base is loaded."""
    if not isinstance(model, str | PathLike):
        raise UserError(
            f"Expected the folder or hub id of the base, got a {type(model).__name__}; save it with "
            "save_pretrained(folder), its tokenizer too, and give that folder."
        )
    if isinstance(adapters, str | Mapping) or not isinstance(adapters, Sequence):
        raise UserError(
            f"Expected a list of points, got a {type(adapters).__name__}; put the points that will be joined into one."
        )
    for point in adapters:
        check_point(point)
    if not isinstance(data_file, str | PathLike):
        raise UserError(
            f"Expected the path of a data file, got a {type(data_file).__name__}; write the records with json.dump and "
            "give the file's path."
        )
    if score is not None and not isinstance(score, str):
        raise UserError(
            f"Expected the name of a score, got a {type(score).__name__}; put it into a file that is found by name "
            "(docs/your-own-score.md), and give the name."
        )


def attach_slot(base: nn.Module, tokenizer: Any, points: Sequence[Mapping[str, Tensor]], name: str) -> LoraModel:
    """Return the base with a slot on every module that one of the points adapts, so that all points between them fit.

    Raises `PointMismatchError` for a point that is no LoRA point, or adapts what the base does not have or what cannot
    be evaluated here (its output layer, experts), or has other dimensions than the base, and `UserError` for no point.
    """
    for point in points:
        check_own_names(point)
    modules = dict.fromkeys(module for point in points for module in module_names(point))
    if not modules:
        raise UserError("Expected at least one adapter, got none; pass the points that will be joined.")
    check_fits(base, list(modules), name)
    model = LoraModel.attach(base, tokenizer, LoraSettings(rank=1, target_modules=tuple(modules)), 0, name)
    for point in points:
        for module in module_names(point):
            for key, side in ((key_a(module), 1), (key_b(module), 0)):
                wanted, got = model.parameters[key].shape[side], point[key].shape[side]
                if wanted != got:
                    raise PointMismatchError(
                        f"Expected {key} of size {wanted} in dimension {side}, as '{name}' has it, got {got}; give the "
                        "base model that the adapters were trained on."
                    )
    return model


def check_fits(base: nn.Module, modules: Sequence[str], name: str) -> None:
    """Raise `PointMismatchError` in one line where a module is not a linear layer inside the base."""
    linear = set(find_target_modules(base, ("all-linear",)))
    unfit = [module for module in modules if module not in linear]
    if not unfit:
        return
    known = dict(base.named_modules())
    module = unfit[0]
    if module in known and known[module] is getattr(base, "get_output_embeddings", lambda: None)():
        got, remedy = "it is the output layer", "train an adapter without it"
    elif module in known:
        got = f"it is a {type(known[module]).__name__}"
        remedy = "use adapters of the linear layers inside the decoder"
    elif any(other.endswith(f".{module}") for other in linear):
        full_name = next(other for other in linear if other.endswith(f".{module}"))
        got = f"the base calls it '{full_name}'"
        remedy = "train one of AutoModelForCausalLM, since this was made of a model without its head (AutoModel)"
    else:
        got, remedy = "the base has none of that name", "give the base model that the adapters were trained on"
    raise PointMismatchError(
        f"Expected adapters of linear layers of '{name}', got one of {first_of(unfit)}: {got}; {remedy}."
    )
