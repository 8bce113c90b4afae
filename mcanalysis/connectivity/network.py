"""A network at a point: any `torch.nn.Module` computes with the tensors of a point and is left exactly as it was."""

from __future__ import annotations

import logging
import math
import random
import warnings
import zlib
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import fields, is_dataclass
from functools import partial
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.parameter import is_lazy
from torch.utils import checkpoint

from mcanalysis.errors import PointMismatchError, UserError
from mcanalysis.params.point import check_point, working_dtype

logger = logging.getLogger(__name__)

Function = Callable[[nn.Module, Any], Any]
_END = object()
_NUM_MARKED = 997


class Batches:
    """Batches that are gone through once per point, in the same order each time.

    The numbers that a `DataLoader` draws come from one seed in every pass, so that shuffling is the same in all of
    them, and the global random state is left alone.

    >>> [batch for batch in Batches([1, 2], "batches")]
    [1, 2]
    """

    def __init__(self, batches: Iterable[Any], name: str) -> None:
        if not hasattr(batches, "__iter__") and not hasattr(batches, "__getitem__"):
            raise UserError(f"Expected {name} to be a list or a DataLoader, got {type(batches).__name__}; pass a list.")
        if isinstance(batches, Iterator):
            raise UserError(
                f"Expected {name} that can be gone through more than once, got a {type(batches).__name__}, which is "
                f"empty after one pass; pass list({name})."
            )
        one = isinstance(batches, tuple) and any(isinstance(part, Tensor | np.ndarray) for part in batches)
        if one or isinstance(batches, Mapping | Tensor | np.ndarray | str):
            raise UserError(
                f"Expected {name} to be a list of batches or a DataLoader, got a {type(batches).__name__}, which looks "
                f"like one batch; pass [{name}], or a list."
            )
        self._batches = batches
        self._name = name
        self._marks: list[int] = []  # one per batch, from the first pass
        self._seen_all = False  # whether one pass came to its end

    def __iter__(self) -> Iterator[Any]:
        state, iterator, number = None, None, 0
        while True:
            with torch.random.fork_rng(devices=[]):
                if state is None:
                    torch.default_generator.manual_seed(0)
                else:
                    torch.set_rng_state(state)
                iterator = iter(self._batches) if iterator is None else iterator
                batch = next(iterator, _END)
                state = torch.get_rng_state()
            if batch is _END:
                break
            self._compare(number, _mark(batch))
            yield batch
            number += 1
        self._compare(number, None)

    def _compare(self, number: int, mark: int | None) -> None:
        """Refuse a pass that differs from an earlier one: values per example would belong to other examples."""
        if mark is not None and number == len(self._marks) and not self._seen_all:
            self._marks.append(mark)
        elif number == 0 == len(self._marks):
            raise UserError(f"Expected at least one batch in {self._name}, got none; check the data set.")
        elif mark != (self._marks[number] if number < len(self._marks) else None):
            raise UserError(
                f"Expected the same {self._name} in the same order each time, got another batch {number + 1}; "
                "switch shuffling and random augmentation off."
            )
        self._seen_all |= mark is None


def _mark(batch: Any) -> int:
    """A number that tells batches apart, from up to a thousand values of each tensor in them."""
    return zlib.crc32(_shown(batch).encode())


def _shown(part: Any, depth: int = 0) -> str:
    if isinstance(part, np.ndarray) and part.dtype.kind in "biufc":
        part = torch.as_tensor(part.astype(part.dtype.newbyteorder("=")))
    elif isinstance(part, np.ndarray):
        part = part.tolist()
    if isinstance(part, Tensor):
        if part.is_nested:
            return _shown(part.unbind(), depth)
        flat = part.detach().to_dense().reshape(-1)
        step = max(1, len(flat) // _NUM_MARKED)
        while math.gcd(step, len(flat)) > 1:  # no column that is the same in all rows
            step += 1
        return f"{tuple(part.shape)} {flat[::step].tolist()}"
    if depth > 5 or part is None or isinstance(part, str | bytes | int | float | complex):
        return repr(part) if depth <= 5 else ""
    if is_dataclass(part):
        part = [getattr(part, field.name) for field in fields(part)]
    elif not isinstance(part, Mapping | list | tuple):
        part = getattr(part, "__dict__", {})
    parts = part.values() if isinstance(part, Mapping) else part
    return f"({', '.join(_shown(own, depth + 1) for own in parts)})"


class Network:
    """A module that computes at points, in evaluation mode: dropout is off, statistics stay as they are.

    Nothing that a call leaves in the module, in the point or in the random state outlives it, so that the value of a
    batch depends on the point and the batch alone: each starts from the buffers of the point, and a forward pass that
    draws random numbers draws the same ones at every point.

    A point may hold some of the module's parameters and floating-point buffers; the rest is the module's own. Tensors
    are cast to the module's device, and to its precision where that is below float32. Where `recalibrate` is given, the
    running statistics of BatchNorm are at every point the plain average over these batches (`update_bn` of Izmailov et
    al. 2018, arXiv 1803.05407, which Garipov et al. 2018 use along curves), and differentiable functions of the point.

    Args:
        module: any network; its parameters, buffers, modes and the global random state stay as they are.
        function: what is called on `recalibrate` batches, `function(module, batch)`.
        recalibrate: batches that can be gone through again; None: statistics are the point's or the module's.

    Raises:
        UserError: for `recalibrate` without a BatchNorm layer that keeps running statistics.
    """

    def __init__(self, module: nn.Module, function: Function | None = None, recalibrate: Any = None) -> None:
        if not isinstance(module, nn.Module):
            raise UserError(f"Expected a torch.nn.Module, got {type(module).__name__}; pass the network itself.")
        lazy = [name for name, tensor in _tensors(module).items() if is_lazy(tensor)]
        if lazy:
            raise UserError(f"Expected a module with shapes, got '{lazy[0]}' of a lazy layer; call it on a batch once.")
        self.module = module
        self._function = function
        self._recalibrate = None if recalibrate is None else Batches(recalibrate, "recalibrate")
        self._layers = {
            name: layer
            for name, layer in module.named_modules()
            if isinstance(layer, _NormBase) and layer.running_mean is not None
        }
        if self.recalibrates:
            for name, layer in self._layers.items():
                if not isinstance(layer, _BatchNorm):
                    raise UserError(
                        f"Expected only BatchNorm to keep running statistics, got {type(layer).__name__} at '{name}'; "
                        "leave recalibrate out and let the points hold its buffers, as mc.snapshot(module) does."
                    )
            if not self._layers:
                raise UserError(
                    "Expected a module with BatchNorm layers that keep running statistics to recalibrate, got none; "
                    "leave recalibrate out."
                )
        self._wrapped = _Applied(module)
        if any(type(part).__name__ == "OptimizedModule" or part._compiled_call_impl for part in module.modules()):
            # It looks at the gradients of what it is called with, which copies do not have.
            warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not a leaf")
        self._warned = False

    @property
    def recalibrates(self) -> bool:
        """Whether running statistics are estimated anew at every point."""
        return self._recalibrate is not None

    @property
    def held_names(self) -> frozenset[str]:
        """The names of buffers: a point may hold them, but they are not trained and have no curvature."""
        return frozenset(name for name, _ in self.module.named_buffers(remove_duplicate=False))

    def at(self, point: Mapping[str, Tensor]) -> Callable[[Function, Any], Any]:
        """Return `call(function, batch)`, which gives `function(module, batch)` with the point's tensors in place.

        Differentiable where a tensor of the point requires a gradient and gradients are on.

        Raises:
            PointMismatchError: for a name or a shape that the module does not have, and for tied weights of which the
                point holds two versions.
            UserError: for a running variance below 0 that is not estimated anew.
        """
        check_point(point)
        differentiable = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in point.values())
        tensors = self._placed(point)
        self._warn_of_missing(point)
        statistics: dict[str, tuple[Tensor, Tensor]] = {}
        if self._recalibrate is not None:
            with torch.set_grad_enabled(differentiable):
                statistics = self._estimated(tensors, self._recalibrate)
        self._check_variances(tensors)
        for name, (mean, var) in statistics.items():
            for key, value in (("running_mean", mean), ("running_var", var)):
                tensors[f"{name}.{key}" if name else key] = value.detach().to(tensors[f"{name}.{key}" if name else key])

        def call(function: Function, batch: Any) -> Any:
            with ExitStack() as stack:
                stack.enter_context(torch.set_grad_enabled(differentiable))
                if differentiable:  # F.batch_norm cannot be differentiated by its statistics
                    for name, (mean, var) in statistics.items():
                        hook = partial(_carry_gradients, mean, var)
                        stack.callback(self._layers[name].register_forward_pre_hook(hook, with_kwargs=True).remove)
                result = self._apply(tensors, function, batch)
            return result.detach() if isinstance(result, Tensor) and not differentiable else result

        return call

    def _apply(
        self, tensors: Mapping[str, Tensor], function: Function, batch: Any, training: Container[nn.Module] = ()
    ) -> Any:
        """One call, in evaluation mode but for some layers, of which nothing stays."""
        live = torch.is_grad_enabled()
        copies = {id(t): t.clone() if live and t.requires_grad else t.detach().clone() for t in tensors.values()}
        named = {f"module.{slot}": copies[id(t)] for name, t in tensors.items() for slot in self._slots[name]}
        with ExitStack() as stack:
            stack.enter_context(_as_it_was(self.module))
            stack.enter_context(_same_random_numbers(self.module, _mark(batch)))
            stack.enter_context(_no_checkpointing())
            stack.enter_context(_as_in_training())
            for part in self.module.modules():  # one by one, as a module's own way of switching may write into weights
                part.training = part in training
                if isinstance(part, nn.Embedding | nn.EmbeddingBag):
                    part.sparse = False
            try:
                return functional_call(self._wrapped, named, (function, batch), tie_weights=False)
            except RuntimeError as error:
                if not live and "does not require grad" in str(error):
                    raise UserError(
                        "Expected a function of the module that takes no derivatives, got one that does, with "
                        "gradients off; put torch.enable_grad() around that part."
                    ) from error
                widened = any(t.dtype == torch.float64 != self._own[name].dtype for name, t in tensors.items())
                if "dtype" not in str(error):
                    raise
                if not widened and _holds_double(batch) and not any(t.dtype == torch.float64 for t in tensors.values()):
                    raise UserError(
                        "Expected batches in the precision of the point, got float64, which the module cannot combine "
                        "with it; cast the floating-point tensors of the batches to float32, or the point to float64."
                    ) from error
                if not widened:
                    raise
                raise UserError(
                    "Expected batches in float64 like the point, got others, which the module cannot combine with it; "
                    "cast the floating-point tensors of the batches to float64, or the point to float32."
                ) from error

    def _placed(self, point: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors that the module is to compute with: the point's, and copies of its own buffers."""
        self._own, self._slots = _tensors(self.module), _slots(self.module)
        own, buffers = self._own, self.held_names
        unknown = [name for name in point if name not in own]
        if unknown:
            raise PointMismatchError(
                f"Expected names of {type(self.module).__name__}'s parameters and buffers, got '{unknown[0]}' "
                f"({len(unknown)} unknown in all); take the points with mc.snapshot(module) of the same network."
            )
        in_double = any(t.dtype == torch.float64 != own[name].dtype for name, t in point.items())
        placed: dict[str, Tensor] = {}
        of_tied: dict[int, str] = {}
        for name, tensor in point.items():
            if tensor.shape != own[name].shape:
                raise PointMismatchError(
                    f"Expected '{name}' with shape {tuple(own[name].shape)}, as the module has it, got "
                    f"{tuple(tensor.shape)}; take the points of the same network."
                )
            other = of_tied.setdefault(id(own[name]), name)
            if other != name:
                if not torch.equal(tensor, point[other]):
                    raise PointMismatchError(
                        f"Expected one value of '{other}' and '{name}', which the module ties, got two; leave one of "
                        "them out, as mc.snapshot(module) does."
                    )
                continue
            placed[self._slots[name][0]] = _cast(tensor.detach() if name in buffers else tensor, own[name], in_double)
        there = {id(own[name]) for name in point}
        for name, tensor in own.items():
            widened = in_double and tensor.dtype == torch.float32
            if id(tensor) not in there and (name in buffers or widened):
                there.add(id(tensor))
                placed[self._slots[name][0]] = tensor.detach().double() if widened else tensor.detach()
        return placed

    def _check_variances(self, tensors: Mapping[str, Tensor]) -> None:
        """Refuse running variances below 0, to which a path may lead beyond its ends: the layer would compute NaN."""
        for name, tensor in tensors.items():
            layer, _, last = name.rpartition(".")
            is_estimated = self.recalibrates and layer in self._layers
            if last == "running_var" and not is_estimated and bool((tensor < 0).any()):
                raise UserError(
                    f"Expected running variances of at least 0, got {float(tensor.min()):g} in '{name}', of a point "
                    "too far beyond the ends of its path or plane; stay nearer to them, or give recalibrate."
                )

    def _warn_of_missing(self, point: Mapping[str, Tensor]) -> None:
        if self._warned:
            return
        saved = self.module.state_dict().keys()
        missing = [
            name
            for name, tensor in self.module.named_buffers()
            if tensor.is_floating_point() and name in saved and name not in point
        ]
        if self.recalibrates:
            estimated = {f"{layer}.running_" if layer else "running_" for layer in self._layers}
            missing = [name for name in missing if not name.startswith(tuple(estimated))]
        if missing:
            self._warned = True
            logger.warning(
                "The points lack the buffer '%s' (%d in all), so that the module's own is used at every point: take "
                "the points with mc.snapshot(module)%s.",
                missing[0],
                len(missing),
                ", or give recalibrate" if self._layers and not self.recalibrates else "",
            )

    def _estimated(self, tensors: Mapping[str, Tensor], batches: Batches) -> dict[str, tuple[Tensor, Tensor]]:
        """Mean and unbiased variance of what each BatchNorm layer is given, averaged over the batches."""
        seen: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in self._layers}

        def collect(name: str, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x = _input(args, kwargs)
            if x.numel() // x.shape[1] < 2:
                raise UserError(
                    f"Expected batches of at least 2 values per channel to recalibrate '{name}', got 1; use larger "
                    "batches."
                )
            dims = [0, *range(2, x.dim())]
            x = x.to(working_dtype([x]))
            seen[name].append((x.mean(dims), x.var(dims, unbiased=True)))

        assert self._function is not None
        with ExitStack() as stack:
            for name, layer in self._layers.items():
                hook = layer.register_forward_pre_hook(partial(collect, name), with_kwargs=True)
                stack.callback(hook.remove)
            for batch in batches:
                self._apply(tensors, self._function, batch, training=set(self._layers.values()))
        return {
            name: (torch.stack([m for m, _ in values]).mean(0), torch.stack([v for _, v in values]).mean(0))
            for name, values in seen.items()
            if values
        }


def forward_pass(module: nn.Module, inputs: Any) -> Any:
    """The module's output: the function of `Network.at` that is no loss."""
    return module(inputs)


class _Applied(nn.Module):
    """What lets `functional_call` run any function of a module, not only its forward pass."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, function: Function, batch: Any) -> Any:
        return function(self.module, batch)


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers, under each of their names."""
    parameters = dict(module.named_parameters(remove_duplicate=False))
    return parameters | dict(module.named_buffers(remove_duplicate=False))


def _slots(module: nn.Module) -> dict[str, list[str]]:
    """Where the tensor of each name has to be put: one name per place, also of modules that are there twice."""
    own, once = _tensors(module), {name for name, _ in module.named_modules()}
    places: dict[int, list[str]] = defaultdict(list)
    for name, tensor in own.items():
        if name.rpartition(".")[0] in once:
            places[id(tensor)].append(name)
    return {name: places[id(tensor)] for name, tensor in own.items()}


@contextmanager
def _as_it_was(module: nn.Module) -> Iterator[None]:
    """Every part has its attributes back afterwards: modes, caches, counters, and what `_parameters` and lists hold."""
    parts = [(part, part.training, dict(vars(part))) for part in module.modules()]
    plain = {id(t): t for _, _, attributes in parts for t in attributes.values() if isinstance(t, Tensor)}
    copies = {key: t.clone() for key, t in plain.items()}  # of tensors that are in no slot, hence of no point
    for part, _, attributes in parts:
        vars(part).update({name: copies[id(t)] for name, t in attributes.items() if isinstance(t, Tensor)})
    containers = {id(own): own for _, _, attributes in parts for own in attributes.values() if type(own) in _REFILL}
    contents = [(own, own.copy() if own else ()) for own in containers.values()]
    try:
        yield
    finally:
        for part, training, attributes in parts:
            vars(part).clear()
            vars(part).update(attributes)
            part.training = training
        for own, before in contents:
            if own or before:
                own.clear()
                _REFILL[type(own)](own, before)


_REFILL: dict[type, Callable[[Any, Any], None]] = {
    dict: dict.update,
    OrderedDict: OrderedDict.update,
    defaultdict: defaultdict.update,
    set: set.update,
    list: list.extend,
    deque: deque.extend,
}


@contextmanager
def _same_random_numbers(module: nn.Module, seed: int) -> Iterator[None]:
    """Random numbers that depend on the seed alone: torch's, those of generators among the module's attributes, NumPy's
    and Python's; all states are left as they were."""
    devices = {t.device.index or 0 for t in _tensors(module).values() if t.is_cuda}
    own = {id(g): g for part in module.modules() for g in vars(part).values() if isinstance(g, torch.Generator)}
    states = [(generator, generator.get_state()) for generator in own.values()]
    of_numpy, of_python = np.random.get_state(), random.getstate()
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(seed)
        for device in devices:
            torch.cuda.default_generators[device].manual_seed(seed)
        for generator, _ in states:
            generator.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        try:
            yield
        finally:
            for generator, state in states:
                generator.set_state(state)
            np.random.set_state(of_numpy)
            random.setstate(of_python)


@contextmanager
def _as_in_training() -> Iterator[None]:
    """Attention takes the way that can be differentiated, with or without gradients: torch's fast one, which it takes
    without, sets what is padded to 0, and a module that reads those positions would have two losses."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextmanager
def _no_checkpointing() -> Iterator[None]:
    """Activation checkpointing is off: its second forward pass would run on the module's own weights, after the call.

    `torch.utils.checkpoint` then calls the function where it stands.
    """

    def generator(*_: Any, **__: Any) -> Iterator[None]:
        yield

    class Plain:
        @staticmethod
        def apply(function: Callable[..., Any], _: bool, *args: Any) -> Any:
            return function(*args)

    with patch.multiple(checkpoint, CheckpointFunction=Plain, _checkpoint_without_reentrant_generator=generator):
        yield


def _holds_double(batch: Any) -> bool:
    parts = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, list | tuple) else ()
    return (isinstance(batch, Tensor) and batch.dtype == torch.float64) or any(map(_holds_double, parts))


def _cast(tensor: Tensor, own: Tensor, in_double: bool) -> Tensor:
    dtype = torch.float64 if in_double and own.dtype == torch.float32 else own.dtype
    return tensor.to(device=own.device, dtype=dtype)


def _input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    return args[0] if args else kwargs["input"]


def _carry_gradients(mean: Tensor, var: Tensor, layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The input of a BatchNorm layer, made such that what it does with constant statistics is a differentiable function
    of them, whatever else a class of one's own does."""
    x = _input(args, kwargs)
    shape = (1, -1, *(1,) * (x.dim() - 2))
    scale = torch.rsqrt(var + layer.eps) * torch.sqrt(var.detach() + layer.eps)
    moved = (x - mean.to(x).view(shape)) * scale.to(x).view(shape) + mean.detach().to(x).view(shape)
    return ((moved, *args[1:]), kwargs) if args else (args, {**kwargs, "input": moved})
