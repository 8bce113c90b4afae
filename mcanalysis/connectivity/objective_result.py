"""What an objective may return: one number, something with a `loss`, or values per example."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mcanalysis.errors import UserError


def loss_of(result: Any) -> Any:
    """Return what a result says is the loss: the `loss` of an object or a dict, else the result itself.

    An object without `loss` whose values per example are there has Σ nll / Σ targets. Gradients are kept.

    Raises:
        UserError: for None, for several values without names, and for an object without a loss.

    >>> loss_of({"loss": 0.5, "logits": None}), loss_of(0.25)
    (0.5, 0.25)
    """
    if _is_number(result):
        return result
    named = _named(result)
    loss = getattr(named, "loss", None)
    if loss is None and has_examples(named):
        nll, targets = (_array(getattr(named, name), name) for name in ("nll", "targets"))
        return float(nll.sum() / targets.sum())
    if loss is None or callable(loss):
        got = "None" if result is None else f"a {type(result).__name__}"
        if isinstance(result, tuple | list):
            got += f" of {len(result)}"
        elif result is not None:
            got += " without one"
        raise UserError(
            f"Expected an objective that returns a number or something with a loss, got {got}; return the loss, or an "
            "object with nll and targets."
        )
    return loss


def number_of(result: Any) -> float:
    """Return the loss of a result as a number; raises `UserError` as `loss_of` does, and for more than one value.

    >>> import torch
    >>> number_of(torch.tensor([2.0], requires_grad=True))
    2.0
    """
    return _number(loss_of(result), "loss")


def score_of(result: Any) -> float | None:
    """Return the score of a result as a number: its `score`, else the mean of its `scores`, else None.

    Things of those names that are no numbers, a method or a dict of several metrics, say, are no scores.

    >>> score_of({"loss": 1.0, "score": 0.25}), score_of({"loss": 1.0, "scores": [0.0, 1.0]}), score_of(1.0)
    (0.25, 0.5, None)
    """
    named = _named(result)
    for name, read in (("score", _number), ("scores", _mean)):
        try:
            value = getattr(named, name, None)
            if value is not None:
                return read(value, name)
        except Exception:  # whatever a stranger's property raises
            continue
    return None


def has_examples(result: Any) -> bool:
    """Return whether a result has values per example, `nll` and `targets`; raises `UserError` for one of the two.

    >>> has_examples(0.5)
    False
    """
    there = [name for name in ("nll", "targets") if getattr(_named(result), name, None) is not None]
    if there == ["nll"]:
        raise UserError(
            "Expected targets (n,) beside nll (n,), got nll alone; add the number of targets of each example, 1 each "
            "for a classifier."
        )
    return there == ["nll", "targets"]


def examples_of(result: Any) -> SimpleNamespace:
    """Return `loss`, `nll` (n,), `targets` (n,), and `scores` (n,) and `score` or None of a result with examples.

    `scores` without a `score` have their mean; of shape (0,) they were not kept. Raises `UserError` for arrays of other
    shapes, naming the array.

    >>> found = examples_of(SimpleNamespace(nll=[1.0, 3.0], targets=[1, 1], scores=[1, 0]))
    >>> found.loss, found.score
    (2.0, 0.5)
    """
    result = _named(result)
    nll, targets = _array(result.nll, "nll"), _array(result.targets, "targets")
    scores = getattr(result, "scores", None)
    scores = None if scores is None else _array(scores, "scores")
    for name, values in (("targets", targets), ("scores", scores)):
        kept = name == "targets" or (values is not None and values.size)  # scores (0,): not kept per example
        if values is not None and kept and values.shape != nll.shape:
            raise UserError(
                f"Expected {name} of shape {nll.shape}, one per example like nll, got {values.shape}; return as many."
            )
    score = getattr(result, "score", None)
    if score is None and scores is not None and scores.size:
        score = scores.mean()
    return SimpleNamespace(
        loss=number_of(result),
        nll=nll,
        targets=targets,
        scores=scores,
        score=None if score is None else _number(score, "score"),
    )


def _named(result: Any) -> Any:
    return SimpleNamespace(**result) if type(result) is dict else result


def _is_number(value: Any) -> bool:
    return isinstance(value, Tensor | np.ndarray | np.generic | int | float)


def _number(value: Any, what: str) -> float:
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        size = value.numel()
    else:
        size = np.size(value) if _is_number(value) else 0
    if size != 1:
        got = f"shape {tuple(value.shape)}" if hasattr(value, "shape") else f"a {type(value).__name__}"
        raise UserError(
            f"Expected the {what} to be one number, got {got}; return the mean, or an object with nll and targets for "
            "intervals."
        )
    return float(value.item() if hasattr(value, "item") else value)


def _mean(values: Any, name: str) -> float | None:
    array = _array(values, name)
    return float(array.mean()) if array.size else None


def _array(values: Any, name: str) -> NDArray[np.float64]:
    if isinstance(values, Tensor):
        values = values.detach().cpu().double().numpy()
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise UserError(
            f"Expected {name} to be an array of numbers, got a {type(values).__name__} of something else; return one "
            "number per example."
        ) from None
    if array.ndim != 1:
        raise UserError(f"Expected {name} of shape (n,), one per example, got {array.shape}; flatten it.")
    return array
