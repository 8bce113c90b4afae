"""Orders of a benchmark's tasks by name: those that papers publish, and `shuffled1`, `shuffled2`, … by seed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import chain, count
from math import factorial
from random import Random

from mcanalysis.benchmarks.benchmark import Benchmark
from mcanalysis.errors import UnknownNameError, UserError

_SHUFFLED = re.compile(r"shuffled[1-9]\d*", re.ASCII)


def order_names(benchmark: Benchmark, number: int, tasks: Sequence[str] | None = None) -> tuple[str, ...]:
    """The names of `number` orders: first the published ones, then shuffled ones.

    Of few `tasks` many orders are the same: of these only the first is taken. Raises `UserError` for a number below 1,
    or above that of all orders of the tasks.

    >>> order_names(Benchmark("mine", ("A", "B"), list, {"paper": ("B", "A")}), 3)
    ('paper', 'shuffled1', 'shuffled2')
    >>> order_names(Benchmark("mine", ("A", "B"), list, {"paper": ("B", "A")}), 2, ("A", "B"))
    ('paper', 'shuffled3')
    """
    if number < 1:
        raise UserError(f"Expected at least 1 order, got {number}; raise --num-orders.")
    names = (*benchmark.orders, *(f"shuffled{n}" for n in range(1, number + 1)))[:number]
    if tasks is None:
        return names
    if number > (most := factorial(len(set(tasks)))):
        raise UserError(f"Expected at most {most} orders of {len(set(tasks))} tasks, got {number}; lower --num-orders.")
    found: dict[tuple[str, ...], str] = {}
    for name in chain(benchmark.orders, (f"shuffled{n}" for n in count(1))):
        found.setdefault(tuple(in_order(benchmark, name, tasks_to_load(benchmark, name, tasks) or ())), name)
        if len(found) == number:
            break
    return tuple(found.values())


def check_order(benchmark: Benchmark, order: str) -> None:
    """Raise `UnknownNameError` for an order that is neither published nor shuffled."""
    if order not in benchmark.orders and not _SHUFFLED.fullmatch(order):
        known = [*benchmark.orders, "shuffled1", "shuffled2"]
        raise UnknownNameError(f"order of the benchmark '{benchmark.name}'", order, known, "shuffledN takes any N.")


def tasks_to_load(benchmark: Benchmark, order: str | None, tasks: Sequence[str] | None) -> Sequence[str] | None:
    """The tasks to load and their order; None leaves the choice to the benchmark.

    A published order is that of its tasks, of which `tasks`, in any order, may name some. Raises `UnknownNameError` for
    an unknown order, `UserError` for a task that a published order does not have.

    >>> mine = Benchmark("mine", ("A", "B", "C"), list, {"paper": ("C", "A")})
    >>> tasks_to_load(mine, "paper", None), tasks_to_load(mine, "paper", ["A"]), tasks_to_load(mine, None, ["B", "A"])
    (('C', 'A'), ('A',), ['B', 'A'])
    """
    if order is None:
        return tasks
    check_order(benchmark, order)
    if order not in benchmark.orders:
        return tasks
    published = benchmark.orders[order]
    for name in tasks or ():
        if name not in published:
            raise UserError(
                f"Expected tasks of the order '{order}' ({', '.join(published)}), got {name}; leave it out, or leave "
                "out --order and --num-orders: --tasks alone sets the order."
            )
    return published if tasks is None else tuple(name for name in published if name in tasks)


def in_order(benchmark: Benchmark, order: str | None, loaded: Sequence[str]) -> list[str]:
    """The names of loaded tasks as they are to be learned: as they were loaded, or shuffled.

    `shuffledN` is a permutation of the names, whatever their order, by Python's Mersenne Twister seeded with a text of
    the benchmark's name and N: the same on every machine.

    >>> mine = Benchmark("mine", ("A", "B", "C"), list)
    >>> in_order(mine, "shuffled1", ["A", "B", "C"]) == in_order(mine, "shuffled1", ["C", "A", "B"])
    True
    """
    if order is None or order in benchmark.orders:
        return list(loaded)
    names = sorted(loaded)
    Random(f"mcanalysis-order-1/{benchmark.name}/{order}").shuffle(names)
    return names
