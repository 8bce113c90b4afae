"""Leading singular vectors of the weights at the end that resemble none of the base, or none at the start."""

from __future__ import annotations

from mcanalysis.params.lora import delta_weights
from mcanalysis.params.spectra import intruder_dimensions
from mcanalysis.studies.signals.base import Move, Signal, mean


def intruders(move: Move) -> dict[str, float]:
    """Of the 10 leading ones of each module those whose |cosine| with all is below ½; mean over modules."""
    start, end = (delta_weights(point) for point in (move.start, move.end))
    counts: dict[str, dict[str, float]] = {"base": {}, "start": {}}
    for module, delta in end.items():
        base = move.base_weight(module).double().cpu()
        after = base + delta.double().cpu()
        counts["base"][module] = intruder_dimensions(base, after)
        counts["start"][module] = intruder_dimensions(base + start[module].double().cpu(), after)
    return {name: mean(of_modules) for name, of_modules in counts.items()}


COST = "an SVD of each adapted weight, four times"
SIGNAL = Signal("intruders", intruders, COST, "Shuttleworth et al. 2024, arXiv 2410.21228", parts=("base", "start"))
