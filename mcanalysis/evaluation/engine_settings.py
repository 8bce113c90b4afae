"""How points are evaluated, where a user does not leave it to the engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from mcanalysis.errors import UserError
from mcanalysis.settings import Bounds, check_bounds


@dataclass(frozen=True)
class EngineSettings:
    """How points are evaluated; nothing here changes a number by more than rounding.

    `token_budget` bounds the padded tokens that are read at once, hence the memory (None: 2048, or the longest
    example). `adapter`: `merged` into the weights or `unmerged` beside them (`auto`: merged in float32 and float64).
    `prefix`: what a task's prompts begin with alike is `shared`, computed once per point, or read with every example,
    `whole` (`auto`: shared where it is a part worth it). `compile`: the decoder goes through `torch.compile`.
    """

    token_budget: Annotated[int | None, "most tokens evaluated at once (2048)", Bounds(1)] = None
    adapter: Literal["auto", "merged", "unmerged"] = "auto"
    prefix: Literal["auto", "shared", "whole"] = "auto"
    compile: bool = False

    def __post_init__(self) -> None:
        check_bounds(self)
        for name, allowed in (("adapter", ("auto", "merged", "unmerged")), ("prefix", ("auto", "shared", "whole"))):
            if getattr(self, name) not in allowed:
                raise UserError(f"Expected {name} to be one of {', '.join(allowed)}, got '{getattr(self, name)}'.")


AUTO = EngineSettings()
"""All choices left to the engine."""
