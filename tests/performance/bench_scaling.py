"""How the cost of evaluating a path grows with points, tasks, examples, length and rank, each doubled three times."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
from engine_way import engine_way
from matrix_products import record
from points import Case, random_ends, random_objectives
from setups import embedded_model
from timing import take_turns
from workload import Aim, Options, Section, Table

TITLE = "W9: cost as points, tasks, examples, length and rank grow"
FACTORS = (1, 2, 4, 8)
POINTS, TASKS, EXAMPLES, LENGTH, RANK = 3, 1, 48, 32, 4
KINDS = ("points", "tasks", "examples", "length", "rank")
_STARTS = dict(zip(KINDS, (POINTS, TASKS, EXAMPLES, LENGTH, RANK), strict=True))
FIGURE = "docs/scaling.png"


def measure(options: Options) -> Section:
    factors = FACTORS[:2] if options.quick else FACTORS
    runs: dict[str, Callable[[], float]] = {}
    operations: dict[str, int] = {}
    for kind in KINDS:
        for factor in factors:
            name = f"{kind} {factor}"
            runs[name], operations[name] = _timed(kind, factor, options.quick)
    seconds = {name: np.array(turns) for name, turns in take_turns(runs, options.repetitions).items()}
    aims, rows = [], []
    for kind in KINDS:
        base = seconds[f"{kind} 1"]
        cells = []
        for factor in factors:
            turns = seconds[f"{kind} {factor}"]
            cells.append(f"{np.median(turns) / np.median(base):.2f}")
        last = seconds[f"{kind} {factors[-1]}"]
        each = last / base
        work = operations[f"{kind} {factors[-1]}"] / operations[f"{kind} 1"]
        rows.append([f"{kind}, from {_STARTS[kind]}", f"{np.median(base) * 1e3:.0f}", *cells, f"{work:.2f}"])
        limit = factors[-1] * 1.05
        value = float(np.median(last) / np.median(base))
        aims.append(
            Aim(f"cost at × {factors[-1]} {kind}", limit, value, detail=f"({each.min():.2f} to {each.max():.2f})")
        )
    _draw(seconds, factors, options)
    header = ["what grows", "ms at × 1", *(f"cost at × {f}" for f in factors), f"operations at × {factors[-1]}"]
    return Section(
        aims,
        [Table("Medians of the turns.", [header, *rows])],
        [
            f"![Cost against size]({FIGURE})",
            f"{options.repetitions} turns, one thread; the engine, not compiled, from two adapters to the losses. "
            f"What does not grow is {POINTS} points, {TASKS} task, {EXAMPLES} examples of {LENGTH} random tokens (4 "
            f"of them the answer), rank {RANK}, on the embedded base. Limit: 1.05 × linear, for what a measurement "
            "can tell.",
            "“Operations” are those in matrix products, counted. Length: attention's products grow with its square. "
            "Rank: merged weights cost the same at any rank, so only the merging grows.",
        ],
    )


def _timed(kind: str, factor: int, quick: bool) -> tuple[Callable[[], float], int]:
    """A run at one size, and the operations in its matrix products."""
    size = {name: start * (factor if name == kind else 1) for name, start in _STARTS.items()}
    if quick:
        size["examples"] //= 12
    case = _case(size["tasks"], size["examples"], size["length"], size["rank"])
    way = engine_way(case)
    ts = np.linspace(0, 1, size["points"]).tolist()
    products = record(lambda: way(ts))

    def run() -> float:
        started = time.perf_counter()
        way(ts)
        return time.perf_counter() - started

    return run, products.operations


def _case(num_tasks: int, num_examples: int, length: int, rank: int) -> Case:
    """Random tokens: every example has the same length and no prefix is shared."""
    model = embedded_model(rank=rank)
    objectives = random_objectives(model, num_tasks, num_examples, length, 4)
    return Case(model, objectives, *random_ends(model))


def _draw(seconds: dict[str, np.ndarray], factors: Sequence[int], options: Options) -> None:
    """Cost relative to the smallest size, on logarithmic axes, beside the line of proportion."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(3.6, 2.8), layout="constrained")
    axes.plot(factors, factors, color="0.6", linewidth=1, linestyle="--", label="linear")
    for kind, marker, colour in zip(
        KINDS, "osD^v", ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00"), strict=True
    ):
        cost = [seconds[f"{kind} {f}"] / np.median(seconds[f"{kind} 1"]) for f in factors]
        axes.errorbar(
            factors,
            [np.median(c) for c in cost],
            yerr=[[np.median(c) - c.min() for c in cost], [c.max() - np.median(c) for c in cost]],
            marker=marker,
            markersize=4,
            linewidth=1.2,
            capsize=2,
            color=colour,
            label=kind,
        )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    ticks = [str(f) for f in factors]
    axes.set_xticks(factors, ticks)
    axes.set_yticks(factors, ticks)
    axes.set_xlabel("size (times the smallest)")
    axes.set_ylabel("time (times the smallest)")
    axes.legend(fontsize=8, frameon=False)
    axes.grid(color="0.92")
    axes.spines[["top", "right"]].set_visible(False)
    file = options.folder / FIGURE
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=200)
    plt.close(figure)
