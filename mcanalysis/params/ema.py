"""The exponential moving average that draws a slow point behind a trained (fast) one, in place."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mcanalysis.errors import UserError
from mcanalysis.params.point import check_compatible


def ema_decay_at(step: int, ema_decay: float) -> float:
    """Return the decay used at a step, min(1 − 1/(step + 1), ema_decay).

    While 1 − 1/(step + 1) is the smaller, the slow point is the mean of its start and all fast points so far,
    and no start lingers; after that it is a moving average. The ramp is that of the code of mean teachers
    (Tarvainen & Valpola 2017, arXiv 1703.01780).

    Args:
        step: counts from 1.
        ema_decay: the decay in the long run, in [0, 1].

    Raises:
        UserError: if `step` is below 1 or `ema_decay` outside [0, 1].

    >>> ema_decay_at(1, 0.99), ema_decay_at(1000, 0.99)
    (0.5, 0.99)
    """
    if step < 1:
        raise UserError(f"Expected an EMA step of at least 1, got {step}; count steps from 1.")
    _check_decay(ema_decay)
    return min(1.0 - 1.0 / (step + 1), ema_decay)


@torch.no_grad()
def ema_update_(
    slow: Mapping[str, Tensor], fast: Mapping[str, Tensor], decay: float, scale: Mapping[str, float] | None = None
) -> None:
    """Move the slow point towards the fast one, in place: slow ← decay·slow + (1 − decay)·fast.

    At decay 1 nothing changes, at decay 0 slow becomes fast, and where both are equal slow stays as it is,
    each bit for bit. Keep slow in float32: in bfloat16 a step of 1 − decay = 0.01 is mostly rounded away.

    Args:
        slow: the averaged point; its tensors are overwritten and keep their dtype.
        fast: the trained point, of the same names and shapes; left as it is.
        decay: in [0, 1].
        scale: numbers that tensors of fast are multiplied by, by name; 1 for the others. With LoRA's scaling of B a
            live adapter can be averaged as a point, without a copy of it.

    Raises:
        PointMismatchError: if the two differ in names, shapes or devices.
        UserError: if `decay` is outside [0, 1], or a tensor of slow shares storage with one of fast (an
            average of a parameter with itself, which would never move).

    >>> slow, fast = {"w": torch.tensor([0.0])}, {"w": torch.tensor([4.0])}
    >>> ema_update_(slow, fast, decay=0.75)
    >>> slow["w"]
    tensor([1.])
    """
    _check_decay(decay)
    check_compatible(slow, fast)
    owners = {tensor.untyped_storage().data_ptr(): name for name, tensor in fast.items() if tensor.numel()}
    for name, tensor in slow.items():
        if tensor.numel() and tensor.untyped_storage().data_ptr() in owners:
            owner = owners[tensor.untyped_storage().data_ptr()]
            raise UserError(
                f"Expected slow and fast tensors in memory of their own, got slow '{name}' sharing storage "
                f"with fast '{owner}'; clone the slow point before the first update."
            )
    if decay == 1.0:
        return
    for name, tensor in slow.items():
        target, factor = fast[name], 1.0 if scale is None else scale.get(name, 1.0)
        if factor != 1.0:
            target = target.to(torch.promote_types(target.dtype, torch.float32)) * factor
        if decay == 0.0:
            tensor.copy_(target)
        else:
            tensor.lerp_(target.to(tensor.dtype), 1.0 - decay)


def _check_decay(decay: float) -> None:
    if not 0.0 <= decay <= 1.0:
        raise UserError(f"Expected an EMA decay in [0, 1], got {decay}; choose one near 1 to average over many steps.")
