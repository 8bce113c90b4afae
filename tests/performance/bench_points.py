"""Many points of the embedded base: the engine against the peers, and against its own matrix products."""

from __future__ import annotations

from points import embedded_case
from side_by_side import BY_HAND, EAGER, LENGTH, PADDED, PADDED_BATCH, PEER, TRAINER, compare
from workload import Aim, Options, Section, Table

TITLE = "W1: 21 points × 8 tasks × 200 examples on the embedded base, loss only"


def measure(options: Options) -> Section:
    num_points, num_tasks, num_examples, length, every = (2, 2, 8, 96, 4) if options.quick else (21, 8, 200, LENGTH, 20)
    case = embedded_case(num_tasks, num_examples)
    found = compare(case, (PEER, BY_HAND, TRAINER, PADDED), num_points, options, length, every)
    aims = []
    for way, limit in ((PADDED, 10.0), (PEER, 1.6), (BY_HAND, 1.6)):
        value, detail = found.times(way)
        aims.append(Aim(f"{way} / this engine", limit, value, at_most=False, detail=detail))
    share, detail = found.share_of_floor()
    aims.append(Aim("its matrix products alone / this engine", 0.70, share, at_most=False, detail=detail))
    eager, spread = found.share_of_floor(EAGER)
    return Section(
        aims,
        [Table(f"{num_tasks} tasks of {num_examples} examples, one thread.", found.rows())],
        [
            f"Medians of {options.long_repetitions} turns; range over turns in brackets.",
            *found.notes(),
            f"“{PADDED}”: one point, every {every}th example, batches of {PADDED_BATCH}: every padded example costs "
            "the same.",
            f"Not compiled, the engine reaches {eager:.2f} {spread} of the floor's rate.",
        ],
    )
