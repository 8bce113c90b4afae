"""Mirzadeh et al. 2021: continual and multitask minima that share an ancestor are joined by lines of low loss."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from mcanalysis.classics.classic import HIGH, Claim, Classic, OfSeed, as_tables
from mcanalysis.classics.digits import (
    Recipe,
    batches,
    load_digits,
    measure,
    new_network,
    objective,
    stream,
    train_networks,
)
from mcanalysis.connectivity.profile import Profile, profile
from mcanalysis.paths import Linear
from mcanalysis.plotting.classics import Panel

_GENTLE = Recipe(learning_rate=0.02)


@dataclass(frozen=True)
class Settings:
    """Task 1: upright digits; task 2: the same turned by a quarter. Both tasks together take twice the steps of one.

    Chosen on seeds from 100 on.
    """

    hidden: tuple[int, ...] = (100, 100)
    recipe: Recipe = _GENTLE


# Where the lines lead, as the figure names it.
SECOND = "to the minimum after task 2"
RELATED = "to multitask from this ancestor"
STRANGER = "to multitask from another start"

FIRST_TO_BOTH = "rise of the task 1 loss, first to multitask"
SECOND_TO_BOTH = "rise of the task 2 loss, second to multitask"
FIRST_TO_SECOND = "rise of the task 1 loss, first to second"
LESS_FORGOTTEN = "rise of the task 1 loss: first to second, minus first to multitask"
FIRST_ANCESTOR = "rise of the task 1 loss: first to a multitask net of another start, minus to one of its own"
SECOND_ANCESTOR = "rise of the task 2 loss: second to a multitask net of another start, minus to one of its ancestor"


@as_tables
def measure_mirzadeh(seeds: Sequence[int], settings: Settings | None = None) -> Iterator[OfSeed]:
    """Train task 1, from there task 2 and both tasks, and both tasks from another start; measure lines between them."""
    settings = settings or Settings()
    recipe = settings.recipe
    longer = replace(recipe, num_steps=2 * recipe.num_steps)
    train, test = load_digits()
    turned, turned_test = train.rotated(), test.rotated()
    both = train.together_with(turned)
    starts = [new_network(settings.hidden, stream(seed, "start")) for seed in seeds]
    others = [new_network(settings.hidden, stream(seed, "other start")) for seed in seeds]
    order = {
        name: [batches(data, how, stream(seed, name)) for seed in seeds]
        for name, data, how in (("first", train, recipe), ("second", turned, recipe), ("both", both, longer))
    }
    first = train_networks(starts, train, order["first"], recipe)
    second = train_networks(first, turned, order["second"], recipe)
    multitask = train_networks(first, both, order["both"], longer)
    stranger = train_networks(others, both, order["both"], longer)
    for i, seed in enumerate(seeds):
        lines = {
            ("task 1", SECOND): profile(Linear(first[i], second[i]), objective(test)),
            ("task 1", RELATED): profile(Linear(first[i], multitask[i]), objective(test)),
            ("task 1", STRANGER): profile(Linear(first[i], stranger[i]), objective(test)),
            ("task 2", RELATED): profile(Linear(second[i], multitask[i]), objective(turned_test)),
            ("task 2", STRANGER): profile(Linear(second[i], stranger[i]), objective(turned_test)),
        }
        rises = {name: rise(line) for name, line in lines.items()}
        values = {
            FIRST_TO_BOTH: rises["task 1", RELATED],
            SECOND_TO_BOTH: rises["task 2", RELATED],
            FIRST_TO_SECOND: rises["task 1", SECOND],
            LESS_FORGOTTEN: rises["task 1", SECOND] - rises["task 1", RELATED],
            FIRST_ANCESTOR: rises["task 1", STRANGER] - rises["task 1", RELATED],
            SECOND_ANCESTOR: rises["task 2", STRANGER] - rises["task 2", RELATED],
            "test accuracy of multitask, task 1": measure(multitask[i], test).score,
            "test accuracy of multitask, task 2": measure(multitask[i], turned_test).score,
            "test accuracy after task 1, task 1": measure(first[i], test).score,
            "test accuracy after task 2, task 1": measure(second[i], test).score,
            "test accuracy after task 2, task 2": measure(second[i], turned_test).score,
        }
        yield OfSeed(seed, values, [(*names, line.ts, line.losses) for names, line in lines.items()])


def rise(line: Profile) -> float:
    """How far the loss rises above that of the line's first end: 0 or more, in nats.

    Unlike a barrier it counts what the second end has forgotten.

    >>> import numpy as np
    >>> rise(Profile(np.array([0.0, 0.5, 1.0]), np.array([1.0, 1.5, 4.0])))
    3.0
    """
    return float(line.losses.max() - line.losses[0])


MIRZADEH = Classic(
    name="mirzadeh",
    source="Mirzadeh et al. 2021, arXiv 2010.04495",
    claims=(
        Claim("The line from task 1's minimum to the multitask minimum trained from it keeps task 1's loss low.",
              FIRST_TO_BOTH, "below", HIGH),
        Claim("The line from the continual minimum after task 2 to that multitask minimum keeps task 2's loss low.",
              SECOND_TO_BOTH, "below", HIGH),
        Claim("The line from the minimum of task 1 to the continual one after task 2 does not keep task 1's loss low.",
              FIRST_TO_SECOND, "above", HIGH),
        Claim("Task 1's loss rises less towards the multitask minimum than towards the continual one.",
              LESS_FORGOTTEN, "above", 0.0),
        Claim("It is the shared ancestor that connects: without one task 1's loss rises more.",
              FIRST_ANCESTOR, "above", 0.0),
        Claim("It is the shared ancestor that connects: without one task 2's loss rises more.",
              SECOND_ANCESTOR, "above", 0.0),
    ),
    measure=measure_mirzadeh,
    panels={
        "task 1": Panel("task 1, from its own minimum", "position t on the line", "test cross entropy (nats)"),
        "task 2": Panel("task 2, from the minimum after it", "position t on the line", "test cross entropy (nats)"),
    },
)  # fmt: skip
