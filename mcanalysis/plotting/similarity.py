"""How alike a run's minima are, in what they compute and answer and in their weights; every figure and caption."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mcanalysis.errors import UserError
from mcanalysis.plotting.heat_map import hide_frame, readable_on
from mcanalysis.plotting.legend import legend_size
from mcanalysis.plotting.selection import error_bars, label_name, only_value, require_columns, transitions
from mcanalysis.plotting.style import (
    BLUE,
    GREY,
    SLANTED,
    VERMILLION,
    Mark,
    add_axes,
    double_column,
    in_print_style,
    new_figure,
    plain_numbers,
    shortened,
    single_column,
    strategy_name,
    write_head,
)

LINK = ("comparison", "start", "start_learner", "end", "end_learner")
COMPARISONS = {"successive": "minimum before → after", "base": "base → minimum", "learners": "fast ↔ slow adapter"}
_MARKERS = "osD^vP*X<>hp"
CKA_COLUMNS = ("strategy", "seed", *LINK, "task", "layer", "cka", "cka_low", "cka_high")
PREDICTION_COLUMNS = (
    "strategy",
    "seed",
    *LINK,
    "task",
    *(c + e for c in ("churn", "kl") for e in ("", "_low", "_high")),
)
KL_LINEAR_TO = 1e-3  # nats per token; the axis is logarithmic from here on
WEIGHT_COLUMNS = ("strategy", "seed", *LINK, "space", "module", "distance", "cosine")
ANGLE_COLUMNS = ("strategy", "seed", *LINK, "module", "side", "smallest_angle", "mean_angle", "largest_angle")
MOST_KINDS = 7  # of modules, side by side
NUMBERED_MINIMA = 10  # more than these have no room for numbers in a heat map's cells


def plot_similarity(tables: Mapping[str, pd.DataFrame]) -> dict[str, Figure]:
    """Draw every figure of one run, by the stem of its file: `similarity_<what>_<learner>`.

    `tables`: `cka`, `prediction_similarity`, `weight_distance` and `subspace_overlap` of one strategy and seed. Raises
    `UserError` for missing columns and for tables of several runs.
    """
    kinds = {
        "cka": (plot_cka, "cka"),
        "predictions": (plot_predictions, "prediction_similarity"),
        "distances": (plot_weight_distances, "weight_distance"),
        "angles": (plot_principal_angles, "subspace_overlap"),
    }
    return {
        f"similarity_{what}_{learner}": draw(tables[table], learner)
        for what, (draw, table) in kinds.items()
        for learner in learners(tables[table])
    }


def captions(tables: Mapping[str, pd.DataFrame]) -> dict[str, str]:
    """What each figure of `plot_similarity` shows, in words."""
    cka = tables["cka"]
    first = cka.iloc[0]
    number = int(cka[cka.task == first.task].num_examples.iloc[0])
    run = f"{strategy_name(first.strategy)}, seed {first.seed}"
    texts = {
        "cka": f"Linear CKA (unbiased HSIC) of the hidden states at the last token of the prompt, per layer ({run}, "
        "LEARNER adapter). Mean over the tasks learned before the minimum named, "
        f"{number} test examples of each; bars: 95 % intervals over examples (jackknife). The last layer is read after "
        "the final norm where the model has one. 1: alike up to rotation and scale; about 0: unrelated.",
        "predictions": f"Share of examples with another greedy answer (churn), and KL divergence of the next-token "
        f"distributions at the reference answer's tokens ({run}, LEARNER adapter), {number} test examples per task. "
        "Mean over the tasks learned before the minimum named, with 95 % intervals over examples. KL is "
        "from the earlier point (the base, the minimum before, the fast adapter) to the later.",
        "distances": f"Frobenius norm of ΔW_b − ΔW_a and cosine of ΔW_a and ΔW_b over all adapted modules, for all "
        f"pairs of minima ({run}, LEARNER adapter). Distances in the other spaces and per module are in the table.",
        "angles": f"Principal angles between the column spaces (upper) and row spaces (lower) of successive minima's "
        f"ΔW, per adapted module ({run}, LEARNER adapter). Marker: mean; bar: smallest to largest. 0°: a shared "
        f"direction; 90°: orthogonal. At most {MOST_KINDS} kinds of modules are shown.",
    }
    return {
        f"similarity_{what}_{learner}": text.replace("LEARNER", learner)
        for what, text in texts.items()
        for learner in learners(cka)
    }


@in_print_style
def plot_cka(cka: pd.DataFrame, learner: str) -> Figure:
    """Draw linear CKA against the layer, one line per minimum reached, mean over the tasks learned before it.

    One panel per comparison: with the minimum before, with the base, and between learners where there are several.
    Bars: 95 % intervals over examples, set apart sideways where they would cover each other.
    """
    rows = rows_of_learner(cka, CKA_COLUMNS, "cka", learner)
    rows = rows[rows.task == "mean_old"]
    if rows.empty:
        raise UserError("Expected rows of the task mean_old in the table cka, got none; pass cka.csv of a run.")
    shown = [c for c in COMPARISONS if (rows.comparison == c).any()]
    marks = minimum_marks(rows)
    width = single_column() if len(shown) == 1 else double_column()
    per_row = 2 if width == single_column() else 4
    legend, foot = legend_of_minima(marks, width, per_row)
    figure = new_figure(width, 0.34 + 1.75 + 0.40 + foot)
    panels = row_of_axes(figure, len(shown), foot + 0.40, 1.75)
    numbers = sorted(rows.layer.unique())
    low = float(np.nanmin([rows.cka_low.min(), rows.cka.min(), 0.9]))
    for axes, comparison in zip(panels, shown, strict=True):
        of_panel = rows[rows.comparison == comparison]
        for i, (end, mark) in enumerate(marks.items()):
            line = of_panel[of_panel.end == end].sort_values("layer")
            aside = 0.4 * ((i + 0.5) / len(marks) - 0.5)
            axes.errorbar(
                line.layer + aside, line.cka, error_bars(line, "cka"), color=mark.colour, marker=mark.marker,
                markersize=3.2, linewidth=0.9, elinewidth=0.6, gid=f"{comparison} {end}",
            )  # fmt: skip
        axes.set_title(COMPARISONS[comparison], pad=3)
        axes.set_xlabel("layer", labelpad=2)
        axes.set_xticks(numbers if len(numbers) <= 8 else numbers[:: math.ceil(len(numbers) / 8)])
        axes.set_ylim(low - 0.03 * (1.0 - low), 1.0 + 0.03 * (1.0 - low) + 0.005)
        axes.axhline(1.0, color=GREY, linewidth=0.5, zorder=0)
        axes.tick_params(labelleft=axes is panels[0])
    panels[0].set_ylabel("linear CKA (unbiased)")
    write_head(figure, f"{whose_minima(rows, learner)}, test split, mean over old tasks")
    figure.legend(**legend)
    return figure


@in_print_style
def plot_predictions(predictions: pd.DataFrame, learner: str) -> Figure:
    """Draw churn (left) and KL divergence (right, nats per target token) on the tasks learned before each minimum.

    Against the minimum before (circles), the base (squares) and, where there are several, between learners (triangles):
    means over these tasks with 95 % intervals. The axis of KL is logarithmic, and linear below 0.001 where
    intervals reach that far.
    """
    rows = rows_of_learner(predictions, PREDICTION_COLUMNS, "prediction_similarity", learner)
    rows = rows[rows.task == "mean_old"]
    if rows.empty:
        raise UserError(
            "Expected rows of the task mean_old in the table prediction_similarity, got none; pass that of a run."
        )
    ends = [end for end in minima_of(rows) if end in set(rows.end)]
    handles = []
    styles = {"successive": (BLUE, "o"), "base": (VERMILLION, "s"), "learners": (GREY, "^")}
    longest = max(len(shortened(label_name(end), 14)) for end in ends)
    bottom = 0.12 + 0.056 * (longest + 2) * math.sin(math.radians(50)) + 0.24
    figure = new_figure(double_column(), 0.34 + 1.5 + bottom)
    panels = row_of_axes(figure, 2, bottom, 1.5, between=0.55)
    for axes, name in zip(panels, ("churn", "kl"), strict=True):
        for i, (comparison, (colour, marker)) in enumerate(styles.items()):
            line = rows[rows.comparison == comparison]
            if line.empty:
                continue
            places = [ends.index(end) + 0.12 * (i - 1) for end in line.end]
            axes.errorbar(
                places, line[name], error_bars(line, name), color=colour, marker=marker, markersize=3.4,
                linestyle="none", elinewidth=0.8, gid=f"{name} {comparison}",
            )  # fmt: skip
            if axes is panels[0]:
                label = COMPARISONS[comparison]
                handles.append(Line2D([], [], color=colour, marker=marker, markersize=3.4, linewidth=0.8, label=label))
        name_minima(axes, ends, "x")
        if name == "kl":
            _kl_axis(axes, float(rows.kl_low.min()), float(rows.kl_high.max()))
        else:
            axes.set_ylim(-0.03, 1.03)
        axes.set_xlim(-0.5, len(ends) - 0.5)
    panels[0].set_ylabel("churn (share of answers)")
    panels[1].set_ylabel("KL(before‖after) (nats/token)")
    write_head(figure, f"{whose_minima(rows, learner)}, test split, mean over old tasks")
    figure.legend(handles=handles, loc="lower center", ncols=3, borderaxespad=0.3, columnspacing=1.2)
    return figure


def _kl_axis(axes: Axes, low: float, high: float) -> None:
    """Logarithmic, as from base to minimum the divergence is a thousand times that from fast to slow."""
    if low > KL_LINEAR_TO:
        axes.set_yscale("log")
        axes.set_ylim(low / 1.6, 1.6 * high)
    else:
        axes.set_yscale("symlog", linthresh=KL_LINEAR_TO, linscale=0.5)
        axes.set_ylim(-KL_LINEAR_TO / 5, max(2 * KL_LINEAR_TO, 1.6 * high))
    plain_numbers(axes.yaxis)


@in_print_style
def plot_weight_distances(distances: pd.DataFrame, learner: str) -> Figure:
    """Draw the distances ‖ΔW_b − ΔW_a‖ (left) and cosines (right) between all minima of a learner, in ΔW space."""
    rows = rows_of_learner(distances, WEIGHT_COLUMNS, "weight_distance", learner)
    rows = rows[(rows.space == "delta") & (rows.module == "all") & (rows.start_learner == rows.end_learner)]
    names = minima_of(rows)
    if len(names) < 2:
        raise UserError("Expected two minima or more in the table weight_distance, got fewer; pass that of a run.")
    longest = max(len(shortened(label_name(name), 14)) + 2 for name in names) * 0.062
    side = (double_column() - longest - 0.15 - 2 * 0.62) / 2
    below = 0.10 + longest * math.sin(math.radians(50)) + 0.08
    figure = new_figure(double_column(), 0.40 + side + below)
    quantities = (("distance", "Blues", "‖ΔW difference‖"), ("cosine", "PuOr", "cosine of ΔW"))
    for i, (name, shades, title) in enumerate(quantities):
        values = np.full((len(names), len(names)), np.nan)
        for row in rows.to_dict("records"):
            a, b = names.index(row["start"]), names.index(row["end"])
            values[a, b] = values[b, a] = row[name]
        left = longest + 0.12 + i * (side + 0.62)
        axes = add_axes(figure, left, below, side, side)
        finite = values[np.isfinite(values)]
        top = float(finite.max()) if len(finite) and finite.max() > 0 else 1.0
        scale = Normalize(0, top) if name == "distance" else Normalize(-1, 1)
        image = axes.imshow(np.ma.masked_invalid(values), cmap=shades, norm=scale, gid=name)
        for (a, b), value in np.ndenumerate(values):
            if np.isfinite(value) and len(names) <= NUMBERED_MINIMA:
                colour = readable_on(colormaps[shades](scale(value)))
                text = f"{value:.{2 if top < 9.995 or name == 'cosine' else 1 if top < 99.95 else 0}f}"
                axes.text(b, a, text.replace("-", "−"), ha="center", va="center", color=colour, gid=f"{name} {a} {b}")
        name_minima(axes, names, "x")
        name_minima(axes, names, "y")
        axes.tick_params(length=0, labelleft=i == 0)
        hide_frame(axes)
        axes.set_title(title, pad=3)
        bar = add_axes(figure, left + side + 0.07, below, 0.08, side)
        figure.colorbar(image, cax=bar)
        bar.tick_params(length=1.5)
    write_head(figure, whose_minima(rows, learner))
    return figure


@in_print_style
def plot_principal_angles(angles: pd.DataFrame, learner: str) -> Figure:
    """Draw the principal angles between successive minima's ΔW against the layer, in degrees.

    Columns: kinds of modules; upper row: column spaces (what is written), lower row: row spaces (what is read). Marker:
    mean of a module's angles; bar: from the smallest to the largest. A module with ΔW = 0 has none and is not drawn.
    """
    rows = rows_of_learner(angles, ANGLE_COLUMNS, "subspace_overlap", learner)
    rows = rows[rows.comparison == "successive"].dropna(subset=["mean_angle"])
    if rows.empty:
        raise UserError(
            "Expected principal angles in the table subspace_overlap, got none, as every ΔW is zero; pass that of a "
            "trained run."
        )
    places = [place_of(module) for module in rows.module]
    rows = rows.assign(layer=[layer for layer, _ in places], kind=[kind for _, kind in places])
    kinds = list(dict.fromkeys(rows.kind))[:MOST_KINDS]
    marks = minimum_marks(rows)
    legend, foot = legend_of_minima(marks, double_column(), 4)
    height = 1.25
    figure = new_figure(double_column(), 0.34 + 2 * height + 0.12 + 0.40 + foot)
    for r, side in enumerate(("column", "row")):
        panels = row_of_axes(figure, len(kinds), foot + 0.40 + (1 - r) * (height + 0.12), height, between=0.08)
        for axes, kind in zip(panels, kinds, strict=True):
            of_panel = rows[(rows.side == side) & (rows.kind == kind)]
            layers = sorted(rows.layer.unique())
            for i, (end, mark) in enumerate(marks.items()):
                line = of_panel[of_panel.end == end].sort_values("layer")
                bars = np.abs([line.mean_angle - line.smallest_angle, line.largest_angle - line.mean_angle])
                aside = 0.6 * ((i + 0.5) / len(marks) - 0.5)
                axes.errorbar(
                    line.layer + aside, line.mean_angle, bars, color=mark.colour, marker=mark.marker, markersize=2.8,
                    linestyle="none", elinewidth=0.6, gid=f"{side} {kind} {end}",
                )  # fmt: skip
            axes.set_ylim(-3, 93)
            axes.set_yticks([0, 30, 60, 90])
            axes.set_xticks(layers if len(layers) <= 6 else layers[:: math.ceil(len(layers) / 4)])
            axes.set_xlim(min(layers) - 0.5, max(layers) + 0.5)
            axes.tick_params(labelleft=axes is panels[0], labelbottom=side == "row")
            if side == "column":
                axes.set_title(shortened(kind.rpartition(".")[2], 12), pad=3)
            else:
                axes.set_xlabel("layer", labelpad=2)
        panels[0].set_ylabel(f"angle, {side} spaces (°)")
    write_head(figure, f"{whose_minima(rows, learner)}, successive minima")
    figure.legend(**legend)
    return figure


def place_of(module: str) -> tuple[int, str]:
    """Layer and kind of a module: `model.layers.2.self_attn.q_proj` is `self_attn.q_proj` of layer 3."""
    found = re.search(r"(?:^|\.)(\d+)\.(.+)$", module)
    return (int(found[1]) + 1, found[2]) if found else (1, module)


def learners(table: pd.DataFrame) -> list[str]:
    """The learners whose own minima a table compares, in its order.

    >>> learners(pd.DataFrame({"start_learner": ["base", "slow"], "end_learner": ["slow", "slow"]}))
    ['slow']
    """
    require_columns(table, ["start_learner", "end_learner"], "of similarities")
    return list(dict.fromkeys(table[table.start_learner == table.end_learner].end_learner))


def rows_of_learner(table: pd.DataFrame, columns: Sequence[str], name: str, learner: str) -> pd.DataFrame:
    """The rows of a learner's minima, of one run; raises `UserError` where there are none or of several runs."""
    require_columns(table, columns, name)
    for column in ("strategy", "seed"):
        only_value(table, column, name)
    rows = table[(table.end_learner == learner) | ((table.comparison == "learners") & (table.start_learner == learner))]
    if rows.empty:
        raise UserError(f"Expected rows of the learner {learner} in the table {name}, got none; pass that of the run.")
    return rows


def minima_of(rows: pd.DataFrame) -> list[str]:
    """Labels of all minima of the rows, in order, the base left out."""
    pairs = transitions(rows)
    labels = dict.fromkeys(label for pair in pairs for label in pair)
    ends = {end for _, end in pairs}
    return sorted((n for n in labels if n in ends or not n.startswith("0-")), key=lambda n: int(n.partition("-")[0]))


def minimum_marks(rows: pd.DataFrame) -> dict[str, Mark]:
    """How to mark each minimum reached, dark to light in the order of training."""
    ends = [n for n in minima_of(rows) if n in set(rows.end)]
    shades = colormaps["viridis"](np.linspace(0.0, 0.84, len(ends)))
    labels = [f"after {end.partition('-')[0]} {shortened(label_name(end), 16)}" for end in ends]
    return {end: Mark(tuple(shades[i]), _MARKERS[i % len(_MARKERS)], labels[i]) for i, end in enumerate(ends)}


def row_of_axes(figure: Figure, number: int, bottom: float, height: float, between: float = 0.14) -> list[Axes]:
    """Panels side by side over the width of the figure; lengths in inches."""
    left, right = 0.52, 0.08
    width = (figure.get_figwidth() - left - right - (number - 1) * between) / number
    return [add_axes(figure, left + i * (width + between), bottom, width, height) for i in range(number)]


def name_minima(axes: Axes, names: Sequence[str], which: str) -> None:
    """Write `<k> <TASK>` at the ticks 0, 1, … of the x or y axis."""
    words = [f"{n.partition('-')[0]} {shortened(label_name(n), 14)}" for n in names]
    if which == "y":
        axes.set_yticks(range(len(names)), words)
    else:
        axes.set_xticks(range(len(names)), words, rotation=50, **SLANTED)


def whose_minima(rows: pd.DataFrame, learner: str) -> str:
    """What is said above the panels, and in captions, of rows of one learner's minima."""
    row = rows.iloc[0]
    return f"{strategy_name(row.strategy)}, {learner} adapter, seed {row.seed}"


def legend_of_minima(marks: Mapping[str, Mark], width: float, most: int) -> tuple[dict[str, Any], float]:
    """The legend below the panels, in `most` columns at most, as arguments of `Figure.legend`; its height in inches."""
    handles = [mark.handle(markersize=3.2, linewidth=0.9) for mark in marks.values()]
    columns, lines = legend_size(handles, width, most)
    look = {"loc": "lower center", "borderaxespad": 0.3, "columnspacing": 1.2}
    return {"handles": handles, "ncols": columns, **look}, 0.14 * lines + 0.08
