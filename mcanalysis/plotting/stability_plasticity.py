"""What interpolation trades: score of the old tasks against score of the new task, along paths and per strategy.

Where general tasks were measured, a panel below has the third axis: what is kept of the base's general ability, against
S̄ = ½ (old + new), the diagonals of the panel above. A triangle of shares old : new : general would put a model that is
bad at all three where one is that is good at all three.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import Normal, Stroke

from mcanalysis.errors import UserError
from mcanalysis.metrics.front import non_dominated
from mcanalysis.plotting.label_placement import LabelPlacer, Place, places_around
from mcanalysis.plotting.legend import close_legend
from mcanalysis.plotting.selection import (
    PROFILE_KEYS,
    are_from_base,
    between_ends,
    error_bars,
    examples_per_task,
    few_events,
    label_name,
    new_task,
    only_value,
    require_columns,
    rows_of_test_split,
    transitions,
    where,
)
from mcanalysis.plotting.style import (
    Mark,
    PathLine,
    add_axes,
    in_print_style,
    new_figure,
    path_lines,
    single_column,
    strategy_marks,
)

CURVE_STRATEGY = "sequential"  # the one whose two minima the curves join
LABELLED_TS = (0.25, 0.5, 0.75)
ISO_LEVELS = (0.25, 0.5, 0.75)

_CURVE_COLOUR = "#404040"
_HALO = {"path_effects": [Stroke(linewidth=1.6, foreground="white"), Normal()]}
_MARKER_SIZE = 5.6  # points
_SAME_PLACE = 0.03  # of the scores' range: markers nearer than this cover each other
_LEFT, _RIGHT, _TOP, _BOTTOM = 0.42, 0.08, 0.22, 0.34  # inches
_GENERAL_HEIGHT = 1.15  # inches, of the lower panel
_TICKS = ([0, 0.25, 0.5, 0.75, 1], ["0", "0.25", "0.5", "0.75", "1"])


@in_print_style
def plot_stability_plasticity(profiles: pd.DataFrame, transition: tuple[str, str] | None = None) -> Figure:
    """Draw mean score of the old tasks (x) against score of the new task (y), both in [0, 1], at one transition.

    `profiles`: `profiles.csv` of one seed and any number of strategies; the test split is drawn. `transition`: the
    (start, end) labels, by default the last one of the strategy `sequential`. Curves: every path between the two minima
    of `sequential`, a dot per measured t. Markers: each strategy and learner after the transition (t = 1), with 95 %
    intervals. Diagonals: equal S̄ = ½(x + y). Grey steps: the front, the markers and dots that no other one beats in
    one score without losing in the other. Where the transition has rows of general tasks, a second panel below draws
    their mean retention in [0, 1] (y) against S̄ (x). The figure has one column's width.

    Raises `UserError` for missing columns, several seeds, repeated rows, no row of `sequential`, an unknown transition,
    or one without old tasks.
    """
    rows, (start, end) = _rows_of_transition(profiles, transition)
    new = new_task(rows, end)
    sequential = rows[rows.strategy == CURVE_STRATEGY]
    only_value(sequential, "learner", f"profiles ({CURVE_STRATEGY})")
    curves = {
        kind: _pairs(where(sequential, path=kind[0], space=kind[1]), new)
        for kind in dict.fromkeys(zip(sequential.path, sequential.space, strict=True))
    }
    lines = path_lines(curves)
    curves = {kind: curves[kind] for kind in lines}
    if any(curve.empty for curve in curves.values()):
        raise UserError(
            f"Expected rows of the tasks mean_old and {new} from {start} to {end}, got {_named(sequential.task)}; "
            "choose a transition that has old tasks."
        )
    results, kept = {}, {}
    for (strategy, learner), own in rows.groupby(["strategy", "learner"], sort=False):
        first = next(iter(path_lines(zip(own.path, own.space, strict=True))))
        after = _pairs(where(own, path=first[0], space=first[1]), new)
        after = after[after.index == 1.0]
        if not after.empty:
            results[str(strategy), str(learner)] = after.iloc[0]
            at_end = _kept(where(own, path=first[0], space=first[1], t=1.0))
            kept |= {} if at_end.empty else {(str(strategy), str(learner)): at_end.iloc[0]}
    kept_along = {kind: _kept(where(sequential, path=kind[0], space=kind[1])) for kind in curves}
    kept_along = {kind: curve for kind, curve in kept_along.items() if not curve.empty}
    marks = strategy_marks(results)

    handles = [
        Line2D([], [], color=_CURVE_COLOUR, linestyle=v.dashes, marker="o", markersize=1.8, label=v.label)
        for v in lines.values()
    ]
    handles += [
        m.handle(markersize=5, markeredgecolor="black", markeredgewidth=0.5, linewidth=0.9) for m in marks.values()
    ]
    handles.append(Line2D([], [], color="#B8B8B8", linewidth=2.6, label="Pareto front"))
    side = single_column() - _LEFT - _RIGHT
    legend_height = 0.14 * math.ceil(len(handles) / 2) + 0.08
    below = legend_height + (_BOTTOM + _GENERAL_HEIGHT + 0.1 if kept_along else 0.0)
    figure = new_figure(single_column(), below + _BOTTOM + side + _TOP)
    axes = add_axes(figure, _LEFT, below + _BOTTOM, side, side)
    axes.set(xlim=(-0.05, 1.05), ylim=(-0.05, 1.05))
    axes.set_xticks(*_TICKS)
    axes.set_yticks(*_TICKS)
    axes.set_xlabel("stability: mean score of the old tasks (0–1)", labelpad=2)
    axes.set_ylabel(f"plasticity: score of {new} (0–1)", labelpad=2)
    axes.set_title(f"{label_name(start)} → {label_name(end)}", pad=5)
    for level in ISO_LEVELS:
        axes.plot([2 * level - 2, 2 * level + 2], [2, -2], color="#C8C8C8", linewidth=0.6, zorder=0.5, gid="iso")
    front = _front(curves, results)
    axes.step(*front.T, where="pre", color="#B8B8B8", linewidth=2.6, zorder=1, solid_joinstyle="miter", gid="front")
    looks = lines, marks, _marker_sizes(results)
    _draw(axes, ("old", "new"), curves, results, *looks)
    _label(axes, curves, results, front)
    if kept_along:
        general = add_axes(figure, _LEFT, legend_height + _BOTTOM, side, _GENERAL_HEIGHT)
        general.set(xlim=(-0.05, 1.05), ylim=(-0.05, 1.05))
        general.set_xticks(*_TICKS)
        general.set_yticks([0, 0.5, 1], ["0", "0.5", "1"])
        general.set_xlabel("S̄ = ½ (old + new), the diagonals above (0–1)", labelpad=2)
        general.set_ylabel("general ability kept (0–1)", labelpad=2)
        general.axhline(1.0, color="#C8C8C8", linewidth=0.6, zorder=0.5, gid="base")
        general.text(-0.03, 0.98, "the base", color="#707070", va="top")
        _draw(general, ("mean", "general"), kept_along, kept, *looks, of="general ")
    close_legend(figure, handles, 2, handlelength=2.6, borderpad=0.2)
    return figure


def drawn_rows(profiles: pd.DataFrame, transition: tuple[str, str] | None = None) -> pd.DataFrame:
    """The rows that `plot_stability_plasticity` draws: scores of the old tasks and of the new one; same errors.

    Where there are general tasks, theirs and those of S̄ as well.
    """
    rows, (_, end) = _rows_of_transition(profiles, transition)
    shown = rows.task.isin(["mean_old", new_task(rows, end)])
    if _has_general(rows):
        shown |= (rows.task == "mean") | (rows.role == "general")
    rows = rows[shown]
    return rows[(rows.strategy == CURVE_STRATEGY) | (rows.t == 1.0)]


def stability_plasticity_caption(profiles: pd.DataFrame, transition: tuple[str, str] | None = None) -> str:
    """What the picture of `plot_stability_plasticity` shows, in words; same input and errors."""
    rows, (start, end) = _rows_of_transition(profiles, transition)
    return (
        f"Mean score of the old tasks against score of {new_task(rows, end)} at the transition "
        f"{label_name(start)} → {label_name(end)}, seed {rows.seed.iloc[0]}, test split. Curves: paths between the two "
        f"minima of {CURVE_STRATEGY}, a dot per measured t, larger at the named ones of the first path. Markers: each "
        "strategy after the transition, of the learners that were measured, with 95 % intervals over "
        "examples; one within another has nearly the same scores. Diagonals: equal S̄ = ½(x + y). Grey steps: the "
        "Pareto front, what no other marker or dot beats in one score without losing in the other. "
        + _general_words(rows)
        + " ".join(filter(None, (examples_per_task(rows), few_events(drawn_rows(profiles, transition)))))
    ).rstrip()


def _rows_of_transition(
    profiles: pd.DataFrame, transition: tuple[str, str] | None
) -> tuple[pd.DataFrame, tuple[str, str]]:
    require_columns(profiles, [*PROFILE_KEYS, "score", "score_low", "score_high"], "profiles")
    rows = between_ends(rows_of_test_split(profiles, PROFILE_KEYS, "profiles"))
    rows = rows[~are_from_base(rows)]
    only_value(rows, "seed", "profiles")
    sequential = where(rows, strategy=CURVE_STRATEGY)
    if sequential.empty:
        raise UserError(
            f"Expected rows of the strategy {CURVE_STRATEGY} in the table profiles, got {_named(rows.strategy)}; "
            f"train {CURVE_STRATEGY} as well."
        )
    known = transitions(sequential)
    chosen = known[-1] if transition is None else transition
    if tuple(chosen) not in known:
        raise UserError(
            f"Expected a transition among {', '.join(f'{a} to {b}' for a, b in known)}, got {transition!r}; "
            "pass its (start, end) labels."
        )
    return where(rows, start=chosen[0], end=chosen[1]), chosen


def _pairs(rows: pd.DataFrame, new: str) -> pd.DataFrame:
    """Scores of the old tasks and the new one side by side, indexed by t where both are known."""
    columns = {"score": "", "score_low": "_low", "score_high": "_high"}
    sides = [
        rows[rows.task == task].set_index("t")[list(columns)].rename(columns={c: side + e for c, e in columns.items()})
        for task, side in (("mean_old", "old"), (new, "new"))
    ]
    return sides[0].join(sides[1], how="inner").sort_index()


def _has_general(rows: pd.DataFrame) -> bool:
    return "retention" in rows and bool(rows.retention.notna().any())


def _kept(rows: pd.DataFrame) -> pd.DataFrame:
    """S̄ and the mean retention over the general tasks that have one, each with its interval, indexed by t.

    Tasks are independent samples: the ends of the mean lie as far from it as the root of the summed squares tells.
    """
    columns = ["mean", "mean_low", "mean_high", "general", "general_low", "general_high"]
    if not _has_general(rows):
        return pd.DataFrame(columns=columns)
    general = rows[rows.retention.notna()]
    below, above = error_bars(general, "retention")
    parts = pd.DataFrame({"t": general.t, "general": general.retention, "below": below**2, "above": above**2})
    by_t = parts.groupby("t")
    found = by_t.general.mean().to_frame()
    for side, end, sign in (("below", "low", -1), ("above", "high", 1)):
        apart = np.sqrt(by_t[side].sum(min_count=1)) / by_t.size()
        found[f"general_{end}"] = (found.general + sign * apart).clip(0, 1)
    mean = rows[rows.task == "mean"].set_index("t")[["score", "score_low", "score_high"]]
    mean.columns = columns[:3]
    return found.join(mean, how="inner")[columns].sort_index()


def _draw(
    axes: Axes,
    sides: tuple[str, str],
    along: Mapping[tuple[str, str], pd.DataFrame],
    after: Mapping[tuple[str, str], pd.Series],
    lines: Mapping[tuple[str, str], PathLine],
    marks: Mapping[tuple[str, str], Mark],
    sizes: Mapping[tuple[str, str], float],
    of: str = "",
) -> None:
    """Curves, where they start, and what each strategy reaches: up and to the right is better in both `sides`."""
    x, y = sides
    for kind, curve in along.items():
        axes.plot(
            curve[x], curve[y], color=_CURVE_COLOUR, linestyle=lines[kind].dashes, linewidth=1.0, marker="o",
            markersize=1.8, zorder=2, gid=f"{of}{CURVE_STRATEGY} {'-'.join(kind)}",
        )  # fmt: skip
    start = next(iter(along.values())).loc[[0.0]]
    axes.plot(
        start[x], start[y], marker="o", markersize=5, markerfacecolor="white", markeredgecolor=_CURVE_COLOUR,
        zorder=3.5, gid=f"{of}before",
    )  # fmt: skip
    for name, values in after.items():
        value = values.to_frame().T.astype(float)
        across, up = (np.nan_to_num(error_bars(value, side), posinf=0.0) for side in sides)
        axes.errorbar(
            value[x], value[y], xerr=across, yerr=up, color=marks[name].colour, elinewidth=0.9,
            marker=marks[name].marker, markersize=sizes[name], markeredgecolor="black", markeredgewidth=0.5, zorder=4,
            gid=f"{of}after {' '.join(name)}",
        )  # fmt: skip


def _general_words(rows: pd.DataFrame) -> str:
    if not _has_general(rows):
        return ""
    names = list(dict.fromkeys(rows.task[rows.retention.notna()]))
    of_what = f"of {names[0]}" if len(names) == 1 else f"over {', '.join(names)} (mean)"
    return (
        f"Below: retention {of_what}, never trained, against S̄; 1 (grey line) is the base, and what is better than it "
        "counts as 1. "
    )


def _front(curves: dict[tuple[str, str], pd.DataFrame], results: dict[tuple[str, str], pd.Series]) -> np.ndarray:
    """Corners of the front of everything that is drawn, from the edge x = 0 to the edge y = 0; shape (n, 2)."""
    drawn = [curve[["old", "new"]].to_numpy(float) for curve in curves.values()]
    drawn += [np.array([[value.old, value.new]], dtype=float) for value in results.values()]
    points = np.concatenate(drawn)
    best = np.unique(points[non_dominated(*points.T)], axis=0)  # by rising stability, and so by falling plasticity
    return best if not len(best) else np.concatenate([[[0.0, best[0, 1]]], best, [[best[-1, 0], 0.0]]])


def _marker_sizes(results: dict[tuple[str, str], pd.Series]) -> dict[tuple[str, str], float]:
    """Points; where results coincide, each later one is smaller, so that all of them are seen."""
    sizes: dict[tuple[str, str], float] = {}
    for name, value in results.items():
        near = [n for n in sizes if math.hypot(results[n].old - value.old, results[n].new - value.new) < _SAME_PLACE]
        sizes[name] = _MARKER_SIZE * 0.68 ** len(near)
    return sizes


def _label(
    axes: Axes,
    curves: dict[tuple[str, str], pd.DataFrame],
    results: dict[tuple[str, str], pd.Series],
    front: np.ndarray,
) -> None:
    """Name both ends, a few t on the first path, and the diagonals, where they cover nothing."""
    traced = []
    for curve in curves.values():
        points = curve[["old", "new"]].to_numpy(dtype=float)
        traced += [np.linspace(a, b, 40) for a, b in pairwise(points)]
    for value in results.values():
        traced += [
            np.linspace((value.old_low, value.new), (value.old_high, value.new), 40),
            np.linspace((value.old, value.new_low), (value.old, value.new_high), 40),
            np.repeat([[value.old, value.new]], 20, axis=0),
        ]
    for (x0, y0), (x1, y1) in pairwise(front):  # its steps go up or down first, then across
        traced += [np.linspace((x0, y0), (x0, y1), 80), np.linspace((x0, y1), (x1, y1), 80)]
    for level in ISO_LEVELS:  # few points, as a label on a diagonal is better than one on a curve
        traced.append(np.stack([np.linspace(2 * level - 1, 1, 25), np.linspace(1, 2 * level - 1, 25)], axis=1))
    obstacles = np.concatenate(traced)
    placer = LabelPlacer(axes, obstacles[np.isfinite(obstacles).all(axis=1)])
    first = next(iter(curves.values()))
    for t, words in ((0.0, "before (t = 0)"), (1.0, "after (t = 1)")):
        placer.add(words, places_around(first.old[t], first.new[t], (6, 10, 16, 24, 34, 46, 60)), zorder=6)
    for t in LABELLED_TS:
        near = first.index[np.isclose(first.index, t)]
        if len(near):
            at = near[0]
            axes.plot(first.old[[at]], first.new[[at]], marker="o", markersize=3.4, color=_CURVE_COLOUR, zorder=3)
            placer.add(f"t = {t:g}", places_around(first.old[at], first.new[at], (4, 8, 14, 20)), zorder=6, **_HALO)
    for level in ISO_LEVELS:
        low, high = max(0.0, 2 * level - 1), min(1.0, 2 * level)
        places = [
            Place(x, 2 * level - x, (2.5, 2.5), rotation=-45)
            for x in low + (high - low) * np.array([0.85, 0.15, 0.7, 0.3, 0.92, 0.08, 0.6, 0.4, 0.5])
        ]
        placer.add(f"S̄ = {level:g}", places, color="#707070", zorder=0.6)


def _named(column: pd.Series) -> str:
    return ", ".join(dict.fromkeys(map(str, column))) or "none"
