"""How much of a barrier in factor space is the parametrisation: barriers over random factors of the same adapters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd
from torch import Tensor

from mcanalysis.connectivity.profile import PerExample, Profile, profile
from mcanalysis.errors import PointMismatchError, UserError
from mcanalysis.metrics.barriers import BY_NAME
from mcanalysis.params.gauge import SPREAD, gauge_change, random_gauge
from mcanalysis.params.lora import holds_lora_tensors
from mcanalysis.paths import Linear


def gauge_spread(
    a: Mapping[str, Tensor],
    b: Mapping[str, Tensor],
    objective: Callable[[Mapping[str, Tensor]], float | PerExample],
    num_gauges: int = 20,
    *,
    spread: float = SPREAD,
    seed: int = 0,
    ts: Sequence[float] | None = None,
) -> pd.DataFrame:
    """Measure the loss barriers of the straight factor path over random (B·R, R⁻¹·A), and of the ΔW line they share.

    The end b is given other factors (`mcanalysis.params.gauge.random_gauge`), a keeps its own: on the path only
    R_b·R_a⁻¹ counts. Ends and ΔW line are the same for all, so what differs between rows is the parametrisation.

    Args:
        a: the adapter at t = 0.
        b: the adapter at t = 1, of the same modules and ranks.
        objective: as of `profile`; evaluated (num_gauges + 3)·n times for n values of t.
        num_gauges: at least 1.
        spread: of the logarithms of R's singular values.
        seed: of the first draw; each further one has the next.
        ts: as of `profile`, 0 and 1 among them.

    Returns:
        One row per path: `gauge` ("stored", "aligned", "delta", then the seeds of the draws), `chord_barrier`,
        `mean_barrier`, `max_barrier` and `chord_dip` in the unit of the loss, `delta_change`, by how much ΔW of the
        end was moved, relative (at most 1e-6).

    Raises:
        PointMismatchError: if the adapters have no common factor space.
        UserError: if `num_gauges` is below 1, and as `profile` and `random_gauge` do.

    >>> import torch
    >>> a = {"q.lora_A.weight": torch.tensor([[1.0]]), "q.lora_B.weight": torch.tensor([[1.0]])}
    >>> b = {"q.lora_A.weight": torch.tensor([[2.0]]), "q.lora_B.weight": torch.tensor([[2.0]])}
    >>> found = gauge_spread(a, b, lambda p: -float(p["q.lora_B.weight"] @ p["q.lora_A.weight"]), num_gauges=1)
    >>> found.set_index("gauge").chord_barrier.round(3)[["stored", "delta"]].tolist()
    [0.25, 0.0]
    """
    if not (holds_lora_tensors(a) and holds_lora_tensors(b)):
        raise PointMismatchError("Expected two LoRA adapters, got weights without factors to turn; use mc.profile.")
    if num_gauges < 1:
        raise UserError(f"Expected at least 1 gauge, got {num_gauges}; draw 20 for a spread.")
    rows = [
        {"gauge": name, **_barriers(profile(Linear(a, b, space=space), objective, ts)), "delta_change": 0.0}
        for name, space in (("stored", "factor"), ("aligned", "aligned"), ("delta", "delta"))
    ]
    for number in range(seed, seed + num_gauges):
        turned = random_gauge(b, number, spread)
        found = _barriers(profile(Linear(a, turned), objective, ts))
        rows.append({"gauge": number, **found, "delta_change": gauge_change(b, turned)})
    return pd.DataFrame(rows)


def _barriers(found: Profile) -> dict[str, Any]:
    return {name: float(getattr(found, name)()) for name in BY_NAME}
