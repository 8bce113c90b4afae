"""The same along a path of a model with a vocabulary of 32,000, whose logits are most of the work of the plain way."""

from __future__ import annotations

from points import embedded_case
from side_by_side import EAGER, PEER, compare
from workload import Aim, Options, Section, Table

TITLE = "W2: the same shape with a vocabulary of 32,000"
VOCABULARY = 32_000


def measure(options: Options) -> Section:
    num_points, num_tasks, num_examples = (2, 2, 8) if options.quick else (21, 8, 200)
    found = compare(embedded_case(num_tasks, num_examples, VOCABULARY), (PEER,), num_points, options)
    value, detail = found.times(PEER)
    share, spread = found.share_of_floor()
    eager, eager_spread = found.share_of_floor(EAGER)
    return Section(
        [Aim(f"{PEER} / this engine", 4.0, value, at_most=False, detail=detail)],
        [Table(f"{num_tasks} tasks of {num_examples} examples, one thread.", found.rows())],
        [
            f"Random weights, the tokens of the embedded tasks. Medians of {options.long_repetitions} turns; range "
            "over turns in brackets.",
            *found.notes(),
            f"Share of the floor's rate: {share:.2f} {spread}; not compiled {eager:.2f} {eager_spread}.",
        ],
    )
