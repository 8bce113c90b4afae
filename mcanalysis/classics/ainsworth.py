"""Entezari et al. 2022, Ainsworth et al. 2023: barriers that vanish when hidden units are put in order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mcanalysis.classics.classic import HIGH, Claim, Classic, OfSeed, as_tables
from mcanalysis.classics.digits import (
    STANDARD,
    Recipe,
    layer_names,
    load_digits,
    measure,
    objective,
    stream,
    train_pairs,
)
from mcanalysis.classics.frankle import rank_correlation
from mcanalysis.connectivity.profile import profile
from mcanalysis.params.point import Point, distance
from mcanalysis.paths import Linear
from mcanalysis.plotting.classics import Panel
from mcanalysis.symmetry import match_weights, mlp_spec, permute, random_permutations


@dataclass(frozen=True)
class Settings:
    """Two networks per seed and width, of `num_hidden` hidden layers each. Chosen on seeds from 100 on."""

    widths: tuple[int, ...] = (8, 16, 32, 64, 128, 256)
    num_hidden: int = 2
    copy_width: int = 16
    recipe: Recipe = STANDARD


EXACT = 1e-6  # nats: what float32 makes of a barrier of 0
NONE = 0.01  # nats: what we call no barrier between separately trained networks; ours, no source
COPY = "barrier to a permuted copy, train loss"
COPY_MATCHED = "barrier to the matched copy, train loss"
COPY_DISTANCE = "distance to the matched copy"
LOWERED = "independent nets, widest: barrier before minus after matching, train loss"
WIDEST = "independent nets, widest: barrier after matching, train loss"
TREND = "rank correlation of width and barrier after matching, train loss"
SHARE_TREND = "rank correlation of width and share of the barrier left after matching, train loss"


@as_tables
def measure_ainsworth(seeds: Sequence[int], settings: Settings | None = None) -> Iterator[OfSeed]:
    """Measure lines to a permuted copy and to an independent network, before and after weight matching."""
    settings = settings or Settings()
    train, _ = load_digits()
    widths = sorted(settings.widths)

    def pairs_of(width: int) -> list[tuple[Point, Point]]:
        return train_pairs((width,) * settings.num_hidden, seeds, train, settings.recipe, width)

    barriers: dict[tuple[int, int], tuple[float, float]] = {}
    worst: dict[int, float] = dict.fromkeys(seeds, 1.0)
    for width in widths:
        for seed, (a, b) in zip(seeds, pairs_of(width), strict=True):
            worst[seed] = min(worst[seed], *(measure(p, train).score for p in (a, b)))
            lines = (Linear(a, b), Linear(a, matched(a, b, stream(seed, "match", width))))
            before, after = (profile(line, objective(train)).chord_barrier() for line in lines)
            barriers[seed, width] = before, after
    for seed, (a, _) in zip(seeds, pairs_of(settings.copy_width), strict=True):
        spec = mlp_spec(a, layer_names(a))
        copy = permute(a, spec, random_permutations(a, spec, stream(seed, "copy")))
        back = matched(a, copy, stream(seed, "match copy"))
        found = {"as permuted": profile(Linear(a, copy), objective(train))}
        found["after matching"] = profile(Linear(a, back), objective(train))
        pairs = [barriers[seed, width] for width in widths]
        before, after = zip(*pairs, strict=True)
        values = {
            COPY: found["as permuted"].chord_barrier(),
            COPY_MATCHED: found["after matching"].chord_barrier(),
            COPY_DISTANCE: distance(a, back),
            LOWERED: before[-1] - after[-1],
            WIDEST: after[-1],
            TREND: rank_correlation(widths, after),
            SHARE_TREND: rank_correlation(widths, [left / whole if whole else 1.0 for whole, left in pairs]),
            "train accuracy of the worst end": worst[seed],
        }
        curves = [("copy", series, line.ts, line.losses) for series, line in found.items()]
        curves += [("width", "as trained", widths, before), ("width", "after matching", widths, after)]
        yield OfSeed(seed, values, curves)


def matched(a: Point, b: Point, seed: int) -> Point:
    """The network b with its hidden units in the order in which its weights are closest to a's."""
    spec = mlp_spec(a, layer_names(a))
    return permute(b, spec, match_weights(a, b, spec, seed))


AINSWORTH = Classic(
    name="ainsworth",
    source="Entezari et al. 2022, arXiv 2110.06296; Ainsworth et al. 2023, arXiv 2209.04836",
    claims=(
        Claim("Permuting a network's hidden units, which changes no output, puts a barrier between it and itself.",
              COPY, "above", HIGH),
        Claim("Weight matching finds the permutation, and the barrier is gone.", COPY_MATCHED, "below", EXACT),
        Claim("Matching lowers the barrier between independent networks.", LOWERED, "above", 0.0),
        Claim("The barrier that is left falls with width.", TREND, "below", 0.0, ""),
        Claim("Matching removes a larger share of the barrier in wider networks.", SHARE_TREND, "below", 0.0, ""),
        Claim("Wide independent networks, matched, are linearly connected: the barrier is low.", WIDEST, "below", HIGH),
        Claim("Between wide independent networks, matched, there is no barrier at all.", WIDEST, "below", NONE),
    ),
    measure=measure_ainsworth,
    panels={
        "copy": Panel("to a permuted copy of itself", "position t on the line", "train cross entropy (nats)"),
        "width": Panel("between independent nets", "units per hidden layer", "barrier, train loss (nats)",
                       x_scale="log", y_scale="log"),
    },
)  # fmt: skip
