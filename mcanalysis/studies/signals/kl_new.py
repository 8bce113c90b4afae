"""KL(before‖after) on the new task: how far the predictions of its answers were moved."""

from __future__ import annotations

from mcanalysis.studies.signals.base import Move, Signal


def kl_new(move: Move) -> float:
    """Nats per target token, over the vocabulary, on the reference answers."""
    return float(move.on_new.kl.sum() / move.on_new.targets.sum())


SIGNAL = Signal("kl_new", kl_new, "2 forward (new)", "Shenfeld et al. 2025, arXiv 2509.04259, with the start as base")
