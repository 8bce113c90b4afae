"""Incremental LoRA: a new adapter for each task beside the frozen ones of earlier tasks, and nothing else."""

from __future__ import annotations

from mcanalysis.strategies.strategy import SummedAdapters


class IncLora(SummedAdapters):
    """Cross entropy on the current task; only its own adapter trains, and all adapters so far are summed.

    The baseline "IncLoRA" of O-LoRA's paper and of those that follow it; "SeqLoRA" there is `sequential` here. It is
    `o_lora` with λ₁ = λ₂ = 0, but for the random start of each A. What the papers leave open is done as in `o_lora`:
    every adapter has the same scaling α/r, and no adapter is told apart when the model answers.

    >>> IncLora.name, IncLora.learners
    ('inc_lora', ('fast',))
    """

    name = "inc_lora"
    reference = "IncLoRA of Wang et al. 2023, arXiv 2310.14152"
