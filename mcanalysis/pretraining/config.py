"""What a base is: every setting of its training, in one frozen object."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from mcanalysis.errors import UserError
from mcanalysis.settings import BASIC, Flag


@dataclass(frozen=True)
class PretrainingConfig:
    """Settings of a base; the defaults are those of the shipped one.

    AdamW (betas 0.9, 0.98; weight decay 0.1), warm-up over 200 steps, cosine decay to zero, gradients clipped to 1.
    """

    text_dir: Annotated[str | None, "*.txt files and <TASK>/train.json (default: generated text)", BASIC] = None
    seed: Annotated[int, "of text, weights and order"] = 0
    num_steps: Annotated[int, "optimiser steps", Flag(name="steps", basic=True)] = 11000
    batch_size: Annotated[int, "rows per step"] = 16
    row_length: Annotated[int, "tokens per row"] = 96
    learning_rate: Annotated[float, "at its peak"] = 3e-3
    vocab_size: Annotated[int, "tokens that there are, bytes among them"] = 4096
    hidden_size: Annotated[int, "of a token's state; layers are three times as wide within"] = 128
    num_layers: Annotated[int, "of the decoder"] = 3
    num_heads: int = 4
    intermediate_size: int = 384

    def __post_init__(self) -> None:
        for name in ("num_steps", "batch_size", "row_length", "num_layers"):
            if getattr(self, name) < 1:
                raise UserError(f"Expected {name} of at least 1, got {getattr(self, name)}; raise it.")
        if self.vocab_size < 300:
            raise UserError(
                f"Expected a vocabulary of at least 300 (256 bytes and some), got {self.vocab_size}; raise it."
            )
        if self.hidden_size % (2 * self.num_heads):
            raise UserError(
                f"Expected hidden_size to be a multiple of 2 × num_heads, got {self.hidden_size} and {self.num_heads}; "
                "change one of them."
            )
