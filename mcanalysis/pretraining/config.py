"""What a base is: every setting of its training, in one frozen object."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from mcanalysis.errors import UserError
from mcanalysis.settings import BASIC, MOST_STEPS, SEEDS, Bounds, Flag, check_bounds


@dataclass(frozen=True)
class PretrainingConfig:
    """Settings of a base; the defaults are those of the shipped one.

    AdamW (betas 0.9, 0.98; weight decay 0.1), warm-up over 200 steps, cosine decay to zero, gradients clipped to 1.
    """

    text_dir: Annotated[str | None, "*.txt files and <TASK>/train.json (default: generated text)", BASIC] = None
    seed: Annotated[int, "of text, weights and order", SEEDS] = 0
    num_steps: Annotated[int, "optimiser steps", Flag(name="steps", basic=True), Bounds(1, MOST_STEPS)] = 11000
    batch_size: Annotated[int, "rows per step", Bounds(1, 65_536)] = 16
    row_length: Annotated[int, "tokens per row", Bounds(1, 1_000_000)] = 96
    learning_rate: Annotated[float, "at its peak", Bounds(0.0, 100.0)] = 3e-3
    vocab_size: Annotated[int, "tokens that there are, 256 bytes among them", Bounds(300, 1_000_000)] = 4096
    hidden_size: Annotated[int, "of a token's state; layers are three times as wide within", Bounds(1, 65_536)] = 128
    num_layers: Annotated[int, "of the decoder", Bounds(1, 1000)] = 3
    num_heads: int = 4
    intermediate_size: int = 384

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.hidden_size % (2 * self.num_heads):
            raise UserError(
                f"Expected hidden_size to be a multiple of 2 × num_heads, got {self.hidden_size} and {self.num_heads}; "
                "change one of them."
            )
