"""What a task changes, layer by layer: CKA of hidden states and distance of the weights to the minimum before."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from mcanalysis.errors import UserError
from mcanalysis.plotting.selection import error_bars
from mcanalysis.plotting.similarity import (
    CKA_COLUMNS,
    WEIGHT_COLUMNS,
    legend_of_minima,
    minimum_marks,
    place_of,
    row_of_axes,
    rows_of_learner,
    whose_minima,
)
from mcanalysis.plotting.style import double_column, in_print_style, new_figure, write_head

_HEIGHT, _TICKS, _HEAD = 1.7, 0.40, 0.34


@in_print_style
def plot_layers(cka: pd.DataFrame, distances: pd.DataFrame, learner: str) -> Figure:
    """Draw CKA (left) and ‖ΔW_b − ΔW_a‖ (right) of successive minima against the layer, a line per minimum reached.

    CKA is the mean over the tasks learned before, with 95 % intervals over examples. Distances: marker, the mean over a
    layer's modules; bar, from the smallest to the largest of them.

    Args:
        cka: `cka.csv` of one run.
        distances: `weight_distance.csv` of the same run.
        learner: whose minima are compared.

    Raises:
        UserError: for missing columns, several runs, or a learner without rows.
    """
    alike, apart = layer_rows(cka, distances, learner)
    marks = minimum_marks(alike)
    layers = sorted({*alike.layer, *apart.layer})
    legend, foot = legend_of_minima(marks, double_column(), 4)
    figure = new_figure(double_column(), _HEAD + _HEIGHT + _TICKS + foot)
    panels = row_of_axes(figure, 2, foot + _TICKS, _HEIGHT, between=0.56)
    for i, (end, mark) in enumerate(marks.items()):
        aside = 0.5 * ((i + 0.5) / len(marks) - 0.5)
        style = {"color": mark.colour, "marker": mark.marker, "markersize": 3.0, "linewidth": 0.8, "elinewidth": 0.7}
        line = alike[alike.end == end].sort_values("layer")
        panels[0].errorbar(line.layer + aside, line.cka, error_bars(line, "cka"), gid=f"cka {end}", **style)
        line = apart[apart.end == end].sort_values("layer")
        bars = [line.distance_mean - line.distance_min, line.distance_max - line.distance_mean]
        panels[1].errorbar(
            line.layer + aside, line.distance_mean, np.clip(bars, 0, None), gid=f"distance {end}", **style
        )
    for axes, letter in zip(panels, "ab", strict=True):
        axes.set_xticks(layers if len(layers) <= 8 else layers[:: math.ceil(len(layers) / 8)])
        axes.set_xlim(min(layers) - 0.5, max(layers) + 0.5)
        axes.set_xlabel("layer", labelpad=2)
        axes.set_title(letter, loc="left", fontweight="bold", pad=3)
    panels[0].set_ylabel("CKA with the minimum before (≤ 1)", labelpad=2)
    panels[1].set_ylabel("‖change of ΔW‖, mean and range", labelpad=2)
    panels[1].set_ylim(bottom=0)
    write_head(figure, f"{whose_minima(alike, learner)}, successive minima")
    figure.legend(**legend)
    return figure


def layer_rows(cka: pd.DataFrame, distances: pd.DataFrame, learner: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What is drawn: rows of `cka`, and mean, smallest and largest distance of a layer's modules; errors as above."""
    alike = rows_of_learner(cka, CKA_COLUMNS, "cka", learner)
    alike = alike[(alike.task == "mean_old") & (alike.comparison == "successive")]
    apart = rows_of_learner(distances, WEIGHT_COLUMNS, "weight_distance", learner)
    apart = apart[(apart.space == "delta") & (apart.module != "all") & (apart.comparison == "successive")]
    if alike.empty or apart.empty:
        raise UserError(
            f"Expected successive minima of {learner} in the tables cka and weight_distance, got none; measure a run "
            "of two tasks or more with similarity.py."
        )
    apart = apart.assign(layer=[place_of(str(module))[0] for module in apart.module])
    keys = ["strategy", "seed", "comparison", "start", "start_learner", "end", "end_learner", "layer"]
    apart = apart.groupby(keys, sort=False).distance.agg(["mean", "min", "max"]).add_prefix("distance_").reset_index()
    return alike, apart


def layers_caption(cka: pd.DataFrame, distances: pd.DataFrame, learner: str) -> str:
    """What the picture of `plot_layers` shows, in words."""
    alike, _ = layer_rows(cka, distances, learner)
    return (
        f"What each task changed, layer by layer ({whose_minima(alike, learner)}); layer 1 is the first block, "
        "`layers.0` in module names. (a) Linear CKA (unbiased HSIC) of the hidden states at the last token of the "
        "prompt with those at the minimum before; mean over the tasks learned before, bars: 95 % intervals over "
        "examples (jackknife); the axis starts where the data do. 1: alike up to rotation and scale; the estimate can "
        "be below 0. (b) Frobenius norm of the change of ΔW; marker: mean over a layer's adapted modules, bar: from "
        "the smallest to the largest, not an interval."
    )
