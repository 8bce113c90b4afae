"""A network at a point: any `torch.nn.Module` computes with the tensors of a point and is left exactly as it was."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from mcanalysis.errors import PointMismatchError, UserError
from mcanalysis.params.point import check_point, working_dtype

logger = logging.getLogger(__name__)

Function = Callable[[nn.Module, Any], Any]
_END = object()


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
        self._batches = batches
        self._name = name
        self._marks: list[str] = []  # one per batch, from the first pass

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

    def _compare(self, number: int, mark: str | None) -> None:
        """Refuse a pass that differs from an earlier one: values per example would belong to other examples."""
        if mark is not None and number == len(self._marks):
            self._marks.append(mark)
        elif number == 0 == len(self._marks):
            raise UserError(f"Expected at least one batch in {self._name}, got none; check the data set.")
        elif mark != (self._marks[number] if number < len(self._marks) else None):
            raise UserError(
                f"Expected the same {self._name} in the same order each time, got another batch {number + 1}; "
                "switch shuffling and random augmentation off."
            )


def _mark(batch: Any) -> str:
    """A few values of each tensor of a batch, which tell batches apart; the first alone may be a constant mask."""
    if isinstance(batch, Tensor):
        flat = batch.detach().reshape(-1)
        return f"{tuple(batch.shape)} {flat[:: max(1, len(flat) // 61)].tolist()}"
    parts = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, list | tuple) else ()
    return " ".join(map(_mark, parts))


class Network:
    """A module that computes at points, in evaluation mode: dropout is off, statistics stay as they are.

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
        """
        check_point(point)
        differentiable = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in point.values())
        tensors = self._placed(point)
        self._warn_of_missing(point)
        statistics: dict[str, tuple[Tensor, Tensor]] = {}
        if self._recalibrate is not None:
            with torch.set_grad_enabled(differentiable):
                statistics = self._estimated(tensors, self._recalibrate)
        for name, (mean, var) in statistics.items():
            for key, value in (("running_mean", mean), ("running_var", var)):
                tensors[f"{name}.{key}" if name else key] = value.detach().to(tensors[f"{name}.{key}" if name else key])

        def call(function: Function, batch: Any) -> Any:
            with ExitStack() as stack:
                stack.enter_context(torch.set_grad_enabled(differentiable))
                stack.enter_context(_modes(self.module, training=()))
                if differentiable:  # F.batch_norm cannot be differentiated by its statistics
                    for name, (mean, var) in statistics.items():
                        hook = partial(_normalise, mean, var)
                        layer = self._layers[name]
                        stack.callback(layer.register_forward_hook(hook, with_kwargs=True).remove)
                return self._apply(tensors, function, batch)

        return call

    def _apply(self, tensors: Mapping[str, Tensor], function: Function, batch: Any) -> Any:
        named = {f"module.{name}": tensor for name, tensor in tensors.items()}
        return functional_call(self._wrapped, named, (function, batch))

    def _placed(self, point: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors that the module is to compute with: the point's, and copies of its own buffers."""
        parameters = dict(self.module.named_parameters(remove_duplicate=False))
        buffers = dict(self.module.named_buffers(remove_duplicate=False))
        own = parameters | buffers
        unknown = [name for name in point if name not in own]
        if unknown:
            raise PointMismatchError(
                f"Expected names of {type(self.module).__name__}'s parameters and buffers, got '{unknown[0]}' "
                f"({len(unknown)} unknown in all); take the points with mc.snapshot(module) of the same network."
            )
        in_double = working_dtype(point.values()) == torch.float64
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
            placed[name] = _cast(tensor.detach() if name in buffers else tensor, own[name], in_double)
        there = {id(own[name]) for name in point}
        for name, tensor in buffers.items():
            if id(tensor) not in there:
                there.add(id(tensor))
                placed[name] = tensor.detach().clone()
                if in_double and tensor.dtype == torch.float32:
                    placed[name] = placed[name].double()
        return placed

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
        copies = {name: t.clone() if name in self.held_names else t for name, t in tensors.items()}  # updated in place

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
            stack.enter_context(_modes(self.module, training=self._layers.values()))
            for name, layer in self._layers.items():
                hook = layer.register_forward_pre_hook(partial(collect, name), with_kwargs=True)
                stack.callback(hook.remove)
            for batch in batches:
                self._apply(copies, self._function, batch)
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


@contextmanager
def _modes(module: nn.Module, training: Iterable[nn.Module]) -> Iterator[None]:
    """Evaluation mode but for some layers; every part has its own mode back afterwards."""
    before = [(part, part.training) for part in module.modules()]
    try:
        module.eval()
        for layer in training:
            layer.training = True
        yield
    finally:
        for part, mode in before:
            part.training = mode


def _cast(tensor: Tensor, own: Tensor, in_double: bool) -> Tensor:
    dtype = torch.float64 if in_double and own.dtype == torch.float32 else own.dtype
    return tensor.to(device=own.device, dtype=dtype)


def _input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    return args[0] if args else kwargs["input"]


def _normalise(mean: Tensor, var: Tensor, layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any], _: Any) -> Tensor:
    """What a BatchNorm layer gives in evaluation mode, as a differentiable function of its statistics."""
    x = _input(args, kwargs)
    shape = (1, -1, *(1,) * (x.dim() - 2))
    result = (x - mean.to(x).view(shape)) * torch.rsqrt(var.to(x) + layer.eps).view(shape)
    return result if layer.weight is None else result * layer.weight.view(shape) + layer.bias.view(shape)
