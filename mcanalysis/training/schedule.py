"""The learning rate of each step: transformers' schedules, begun one step in, so that no step is spent at rate 0.

Of S steps the first w are the warm-up. Step i = 0 … S − 1 has the peak rate times (i + 1)/(w + 1) for i < w, then
(S − i)/(S − w) (linear), ½(1 + cos(π(i − w)/(S − w))) (cosine) or 1 (constant). That is transformers' schedule of S + 1
steps with w + 1 of warm-up, without its first one, whose rate is 0: a task of 120 steps would lose one of them, and a
task of 10 a tenth. Without warm-up it is transformers' schedule itself. No step of it has rate 0.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

_OF_TRANSFORMERS = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}


def make_scheduler(schedule: str, optimizer: Optimizer, num_warmup_steps: int, num_steps: int) -> LambdaLR:
    """A scheduler that sets an optimizer's rate for the first step, and for each next one when it is stepped.

    `schedule`: linear, cosine or constant.

    >>> optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    >>> scheduler = make_scheduler("linear", optimizer, num_warmup_steps=1, num_steps=4)
    >>> rates = []
    >>> for _ in range(4):
    ...     rates.append(round(optimizer.param_groups[0]["lr"], 2))
    ...     optimizer.step()
    ...     scheduler.step()
    >>> rates
    [0.5, 1.0, 0.67, 0.33]
    """
    from transformers import get_scheduler

    unused = torch.optim.SGD([torch.zeros(1)], lr=1.0)  # a schedule is made for an optimizer, whose rate it sets
    whole: Any = get_scheduler(_OF_TRANSFORMERS[schedule], unused, num_warmup_steps + 1, num_steps + 1)
    (factor,) = whole.lr_lambdas
    return LambdaLR(optimizer, lambda step: factor(step + 1))
