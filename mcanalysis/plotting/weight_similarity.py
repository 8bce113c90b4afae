"""How alike minima are in their weights: distances and cosines of ΔW, principal angles per module."""

from __future__ import annotations

import math
import re

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from mcanalysis.errors import UserError
from mcanalysis.plotting.accuracy_matrix import _readable_on
from mcanalysis.plotting.legend import legend_rows
from mcanalysis.plotting.selection import label_name
from mcanalysis.plotting.similarity_panels import (
    LINK,
    finish,
    minima_of,
    minimum_labels,
    minimum_marks,
    name_minima,
    row_of_axes,
    rows_of_learner,
    write_head,
)
from mcanalysis.plotting.style import add_axes, double_column, in_print_style, new_figure, shortened

WEIGHT_COLUMNS = ("strategy", "seed", *LINK, "space", "module", "distance", "cosine")
ANGLE_COLUMNS = ("strategy", "seed", *LINK, "module", "side", "smallest_angle", "mean_angle", "largest_angle")
MOST_KINDS = 7  # of modules, side by side
NUMBERED_MINIMA = 10  # more than these have no room for numbers in a heat map's cells


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
                colour = _readable_on(colormaps[shades](scale(value)))
                text = f"{value:.{2 if top < 9.995 or name == 'cosine' else 1 if top < 99.95 else 0}f}"
                axes.text(b, a, text.replace("-", "−"), ha="center", va="center", color=colour, gid=f"{name} {a} {b}")
        name_minima(axes, names, "x")
        name_minima(axes, names, "y")
        axes.tick_params(length=0, labelleft=i == 0)
        for spine in axes.spines.values():
            spine.set_visible(False)
        axes.set_title(title, pad=3)
        bar = add_axes(figure, left + side + 0.07, below, 0.08, side)
        figure.colorbar(image, cax=bar)
        bar.tick_params(length=1.5)
    write_head(figure, rows, learner, "")
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
    legend = 0.14 * legend_rows(minimum_labels(marks), double_column(), 4) + 0.08
    height = 1.25
    figure = new_figure(double_column(), 0.34 + 2 * height + 0.12 + 0.40 + legend)
    for r, side in enumerate(("column", "row")):
        panels = row_of_axes(figure, len(kinds), legend + 0.40 + (1 - r) * (height + 0.12), height, between=0.08)
        for axes, kind in zip(panels, kinds, strict=True):
            of_panel = rows[(rows.side == side) & (rows.kind == kind)]
            layers = sorted(rows.layer.unique())
            for i, (end, (colour, marker)) in enumerate(marks.items()):
                line = of_panel[of_panel.end == end].sort_values("layer")
                bars = np.abs([line.mean_angle - line.smallest_angle, line.largest_angle - line.mean_angle])
                aside = 0.6 * ((i + 0.5) / len(marks) - 0.5)
                axes.errorbar(
                    line.layer + aside, line.mean_angle, bars, color=colour, marker=marker, markersize=2.8,
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
    finish(figure, rows, learner, ", successive minima", marks, 4)
    return figure


def place_of(module: str) -> tuple[int, str]:
    """Layer and kind of a module: `model.layers.2.self_attn.q_proj` is `self_attn.q_proj` of layer 3."""
    found = re.search(r"(?:^|\.)(\d+)\.(.+)$", module)
    return (int(found[1]) + 1, found[2]) if found else (1, module)
