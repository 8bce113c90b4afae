"""How often certificates of barriers hold: random profiles whose barriers are known, and a table of what came of them.

Each example has a curve of its own: a chord, a share of one shape that all have in common, and two waves. The shape is
smooth, has a kink, or is a bump of a given width. So the mean curve of a population is a closed form, its bounds too.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from mcanalysis.connectivity.certificate import Certificate, barrier_certificate
from mcanalysis.progress import Progress, silent

Array = NDArray[np.float64]
WIDTHS = (0.5, 0.25, 0.1, 0.05, 0.02, 0.01)
FAMILIES = ("smooth", "kink", *(f"bump of width {width:g}" for width in WIDTHS))
TOLERANCE = 0.04  # ± 0.02
NUM_EXAMPLES = 1000
_DENSE = np.linspace(0.0, 1.0, 20_001)
_LEAST = 1e-9  # rounding of a truth that is the maximum on a dense grid


@dataclass(frozen=True, eq=False)
class Population:
    """Losses of N examples along a path: f_i(t) = (1−t)·start + t·end + share·shape(t) + waves."""

    family: str
    place: float
    height: float
    start: Array
    end: Array
    share: Array
    waves: Array

    @property
    def num_examples(self) -> int:
        """N."""
        return len(self.start)

    def shape(self, t: Any) -> Any:
        """What all have in common, 0 at both ends."""
        t = np.asarray(t, dtype=np.float64)
        if self.family == "smooth":
            return self.height * (np.sin(np.pi * t) + self.place * np.sin(2 * np.pi * t))
        if self.family == "kink":
            return self.height * np.minimum(t / self.place, (1 - t) / (1 - self.place))
        bump, first, last = (np.exp(-(((x - self.place) / self._width) ** 2)) for x in (t, 0.0, 1.0))
        return self.height * (bump - (1 - t) * first - t * last)

    @property
    def _width(self) -> float:
        return float(self.family.rsplit(" ", 1)[-1])

    def __call__(self, point: Any, rows: NDArray[np.int64]) -> SimpleNamespace:
        """Losses of some examples at a point."""
        t = float(point["t"])
        own = self.waves[:, rows]
        nll = (1 - t) * self.start[rows] + t * self.end[rows] + self.share[rows] * self.shape(t)
        nll = nll + own[0] * np.sin(np.pi * t) + own[1] * np.sin(2 * np.pi * t)
        return SimpleNamespace(nll=nll, targets=np.ones(len(rows)))

    def mean(self, point: Any) -> float:
        """The loss of all examples at a point, as one number."""
        return float(self(point, np.arange(self.num_examples)).nll.mean())

    @property
    def barrier(self) -> float:
        """The chord barrier, on a dense grid."""
        wave, second = self.waves.mean(axis=1)
        above = float(self.share.mean()) * self.shape(_DENSE)
        above += wave * np.sin(np.pi * _DENSE) + second * np.sin(2 * np.pi * _DENSE)
        if self.family == "kink":
            own = float(self.share.mean()) * self.height
            own += wave * np.sin(np.pi * self.place) + second * np.sin(2 * np.pi * self.place)
            above = np.append(above, own)
        return max(float(above.max()), 0.0)

    def curvature(self, a: float, b: float) -> float:
        """A bound on |d²/dt²| of the mean curve on [a, b]; for a shape without a kink."""
        wave, second = np.abs(self.waves.mean(axis=1)) * np.pi**2 * np.array([1.0, 4.0])
        size = abs(float(self.share.mean()) * self.height)
        if self.family == "smooth":
            return float(size * np.pi**2 * (1 + 4 * abs(self.place)) + wave + second)
        u = (np.array([a, b]) - self.place) / self._width
        extremes = [x for x in (0.0, np.sqrt(1.5), -np.sqrt(1.5)) if u[0] < x < u[1]]  # of the second derivative
        bends = [abs(4 * x * x - 2) * np.exp(-x * x) for x in (*u, *extremes)]
        return float(size * max(bends) / self._width**2 + wave + second)

    @property
    def lipschitz(self) -> float:
        """A bound on |d/dt| of the mean curve with a kink."""
        wave, second = np.abs(self.waves.mean(axis=1)) * np.pi * np.array([1.0, 2.0])
        steepest = abs(float(self.share.mean()) * self.height) / min(self.place, 1 - self.place)
        return float(abs((self.end - self.start).mean()) + steepest + wave + second)


def population(family: str, seed: int, num_examples: int = NUM_EXAMPLES) -> Population:
    """A random population of a family: heights of the shape from −0.3 to 0.6 nats, losses with long tails."""
    rng = np.random.default_rng([FAMILIES.index(family), seed])
    start, end = rng.gamma(1.5, [[0.4], [0.8]], (2, num_examples))
    place = rng.uniform(-0.5, 0.5) if family == "smooth" else rng.uniform(0.15, 0.85)
    share = rng.gamma(1.0, 1.0, num_examples)
    waves = rng.normal(0, [[0.15], [0.08]], (2, num_examples)) * np.sqrt(start + end)
    return Population(family, place, rng.uniform(-0.3, 0.6), start, end, share, waves)


def trial(family: str, seed: int, num_examples: int = NUM_EXAMPLES, tolerance: float = TOLERANCE) -> dict[str, Any]:
    """What two certificates of one population say: with its bound, on all examples, and without, on samples."""
    chosen = population(family, seed, num_examples)
    bound = {"lipschitz": chosen.lipschitz} if family == "kink" else {"curvature": chosen.curvature}
    proven = barrier_certificate(line, chosen.mean, tolerance, **bound)  # type: ignore[arg-type]
    sampled = barrier_certificate(line, chosen, tolerance, seed=seed)
    truth = chosen.barrier
    row: dict[str, Any] = {"family": family, "seed": seed, "barrier": truth}
    for name, found in (("bound", proven), ("sampled", sampled)):
        row |= {f"{name}_holds": _holds(found.low, truth, found.high), f"{name}_cost": found.cost}
        row |= {f"{name}_proven_holds": _holds(found.proven_low, truth, found.proven_high)}
        row |= {f"{name}_reached": found.reached, f"{name}_proven": found.proven}
    return row | {"error": _error(sampled, truth)}


def trials(num_profiles: int, file: Path, progress: Progress = silent) -> list[dict[str, Any]]:
    """So many trials, of all families alike, kept one a line in a file; those that it holds are not made again."""
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    rows = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]  # a kill cuts the last
    known = {(row["family"], row["seed"]) for row in rows}
    wanted = [(FAMILIES[i % len(FAMILIES)], i // len(FAMILIES)) for i in range(num_profiles)]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    bar = progress(total=num_profiles, desc="certificates")
    try:
        with file.open("a", encoding="utf-8") as stream:
            for family, seed in wanted:
                if (family, seed) not in known:
                    rows.append(trial(family, seed))
                    stream.write(json.dumps(rows[-1]) + "\n")
                    stream.flush()
                bar.update(1)
    finally:
        bar.close()
    chosen = set(wanted)
    return [row for row in rows if (row["family"], row["seed"]) in chosen]


def line(t: float) -> dict[str, torch.Tensor]:
    """A path whose points are their t."""
    return {"t": torch.tensor([t], dtype=torch.float64)}


def table(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """One row per family: how often certificates hold and reach the tolerance, and what they cost; a grid costs 21."""
    found = []
    for family, own in pd.DataFrame(list(rows)).groupby("family", sort=False):
        found.append(
            {
                "family": family,
                "profiles": len(own),
                "violations of what is proven": int(
                    (~own.bound_proven_holds).sum() + (~own.sampled_proven_holds).sum()
                ),
                "bound: reached": own.bound_reached.mean(),
                "bound: evaluations": own.bound_cost.median(),
                "sampled: holds": own.sampled_holds.mean(),
                "sampled: reached": own.sampled_reached.mean(),
                "sampled: evaluations": own.sampled_cost.median(),
                "sampled: at most 4.2": (own.sampled_cost <= 4.2).mean(),
                "sampled: most": own.sampled_cost.max(),
                "median error": own.error.median(),
            }
        )
    made = pd.DataFrame(found)
    return made.set_index("family").reindex([f for f in FAMILIES if f in set(made.family)]).reset_index()


def cells(made: pd.DataFrame) -> list[list[str]]:
    """The table as text, its header first."""
    rows = [[f"{v:.3g}" if isinstance(v, float) else str(v) for v in row] for row in made.itertuples(index=False)]
    return [list(map(str, made.columns)), *rows]


def markdown(made: pd.DataFrame) -> str:
    """The table as Markdown."""
    head, *rows = cells(made)
    return "".join("| " + " | ".join(row) + " |\n" for row in (head, ["---"] * len(head), *rows))


def _holds(low: float, truth: float, high: float) -> bool:
    return bool(low - _LEAST <= truth <= high + _LEAST)


def _error(found: Certificate, truth: float) -> float:
    return abs((found.low + found.high) / 2 - truth)
