"""Curvature at minima: spectra, eigenvalues along a sequence of tasks, and predicted against measured forgetting."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mcanalysis.errors import UserError
from mcanalysis.numbers_as_text import fixed
from mcanalysis.plotting.legend import legend_size
from mcanalysis.plotting.selection import label_name, require_columns, span, where
from mcanalysis.plotting.style import (
    GREY,
    ROLES,
    Mark,
    add_axes,
    double_column,
    in_print_style,
    new_figure,
    plain_numbers,
    shortened,
    single_column,
    strategy_marks,
    strategy_name,
)

_RUN = ["strategy", "learner", "seed"]
_LEFT, _RIGHT, _TOP, _GAP = 0.52, 0.08, 0.20, 0.14
_LINEAR = {"eigenvalues": 1.0, "forgetting": 0.1}  # below, the symmetric logarithmic axes are linear
_LOSS = "nats/token"


@in_print_style
def plot_spectrum(spectrum: pd.DataFrame) -> Figure:
    """Draw the density of the Hessian's eigenvalues on a logarithmic axis, one panel per run (`spectrum.csv`).

    Orange: the loss of the minimum's own task; blue, dashed: the mean loss of the tasks before it. The axis ends at a
    tenth of the height of one single eigenvalue. Raises `UserError` for missing columns or an empty table.
    """
    need = [*_RUN, "minimum", "task", "eigenvalue", "density", "width", "num_coordinates"]
    require_columns(spectrum, need, "spectrum")
    runs = _runs(spectrum, "spectrum")
    single = 1.0 / (spectrum.num_coordinates * spectrum.width * np.sqrt(2 * np.pi))
    looks: list[dict[str, Any]] = [  # of the minimum's own task, of the old tasks
        {"color": ROLES[role].colour, "linestyle": dashes, "linewidth": 1.0}
        for role, dashes in (("new", "-"), ("old", "--"))
    ]
    drawn = set(spectrum.task == "mean_old")
    words = ("the minimum's own task", "mean of the old tasks")
    handles = [Line2D([], [], label=words[is_old], **looks[is_old]) for is_old in (False, True) if is_old in drawn]
    figure, panels = _panels(len(runs), 0.62, 1.45, handles)
    top = 3 * spectrum.density.max()
    for axes, (name, rows) in zip(panels, runs, strict=True):
        for task, of_task in rows.groupby("task", sort=False):
            axes.plot(of_task.eigenvalue, of_task.density, **looks[task == "mean_old"])
        axes.set_yscale("log")
        axes.set_ylim(single.min() / 10, top)
        axes.axvline(0.0, color=GREY, linewidth=0.5, zorder=0)
        axes.set_title(f"{_label(name, runs)}, {shortened(str(rows.minimum.iloc[0]), 16)}", pad=3)
    _name_axes(figure, panels, f"eigenvalue ({_LOSS} per unit²)", "density (per eigenvalue)")
    return figure


def spectrum_caption(spectrum: pd.DataFrame) -> str:
    """What the picture of `plot_spectrum` shows, in words."""
    runs = _runs(spectrum, "spectrum")
    widths = "; ".join(
        f"{_label(name, runs)} "
        + ", ".join(f"{own.width.iloc[0]:.2g} ({task.replace('mean_old', 'old tasks')})" for task, own in curves)
        for name, rows in runs
        if (curves := [(str(task), own) for task, own in rows.groupby("task", sort=False)])
    )
    minima = ", ".join(dict.fromkeys(map(str, spectrum.minimum)))
    return (
        f"Spectral density of the Hessian of the test loss with respect to the LoRA factors at {minima}, by stochastic "
        f"Lanczos quadrature ({span(spectrum.num_examples)} examples, {span(spectrum.num_coordinates)} "
        f"coordinates; {_seeds(spectrum)}). Each curve is smoothed by a Gaussian of its own width, which no detail is "
        f"narrower than, the peak at 0 neither: {widths}. Panels have different ranges of eigenvalues. The lower end "
        "of the axis is a tenth of the height that a single eigenvalue has in the smoothest curve; the mass at an "
        "outlier varies with the random probes and can be too small to be seen, while its place is that of an "
        "eigenvalue."
    )


@in_print_style
def plot_eigenvalues(curvature: pd.DataFrame) -> Figure:
    """Draw the largest and the smallest eigenvalue at each minimum (`curvature.csv`), a line per run.

    Left: of the loss of the minimum's own task; right: of the mean loss of the tasks before it. Full lines and filled
    marks: largest; dashed lines and open marks: smallest. Of a single run the next ones are small dots. The axis is
    logarithmic on both sides of 0 and linear within ±1. Raises `UserError` for missing columns or an empty table.
    """
    require_columns(curvature, [*_RUN, "minimum", "task", "top_1", "bottom_1"], "curvature")
    runs = _runs(curvature, "curvature")
    marks = _marks(runs)
    names = list(dict.fromkeys(curvature.minimum))
    handles = [
        m.handle(markersize=4, linewidth=1.0, label=_label(name, runs))
        for (name, _), m in zip(runs, marks, strict=True)
    ]
    plain = {"color": GREY, "marker": "h", "markersize": 4, "linewidth": 1.0}
    handles.append(Line2D([], [], label="filled: largest", **plain))
    handles.append(Line2D([], [], label="open: smallest", linestyle="--", markerfacecolor="white", **plain))
    if len(runs) == 1 and {"top_2", "bottom_2"} & {*curvature}:
        style = {"color": marks[0].colour, "marker": "o", "markersize": 1.8, "linestyle": ""}
        handles.append(Line2D([], [], label="small: the next ones", **style))
    figure, panels = _panels(2, 1.02, 1.75, handles, double_column())
    for axes, is_old, title in zip(
        panels, (False, True), ("loss of the own task", "mean loss of the old tasks"), strict=True
    ):
        for number, ((name, rows), mark) in enumerate(zip(runs, marks, strict=True)):
            shown = rows[(rows.task == "mean_old") == is_old]
            aside = 0.3 * ((number + 0.5) / len(runs) - 0.5)
            places = [names.index(m) + aside for m in shown.minimum]
            style = {"color": mark.colour, "marker": mark.marker, "markersize": 4, "linewidth": 1.0}
            axes.plot(places, shown.top_1, gid=f"top {' '.join(map(str, name))}", **style)
            axes.plot(
                places, shown.bottom_1, linestyle="--", markerfacecolor="white",
                gid=f"bottom {' '.join(map(str, name))}", **style,
            )  # fmt: skip
            if len(runs) == 1:
                rest = [c for c in map(str, rows) if c.startswith(("top_", "bottom_")) and not c.endswith("_1")]
                for column in rest:
                    axes.plot(places, shown[column], "o", color=mark.colour, markersize=1.8, markeredgewidth=0)
        axes.axhline(0.0, color=GREY, linewidth=0.5, zorder=0)
        axes.set_yscale("symlog", linthresh=_LINEAR["eigenvalues"], linscale=0.5)
        plain_numbers(axes.yaxis)
        axes.set_xlim(-0.4, len(names) - 0.6)
        labels = [shortened(label_name(n), 12) for n in names]
        axes.set_xticks(range(len(names)), labels, rotation=40, ha="right", rotation_mode="anchor")
        axes.set_title(title, pad=3)
    _share_limits(panels)
    _name_axes(figure, panels, "minimum after the task", f"eigenvalue ({_LOSS} per unit²)")
    return figure


def eigenvalues_caption(curvature: pd.DataFrame) -> str:
    """What the picture of `plot_eigenvalues` shows, in words."""
    return (
        "Extreme eigenvalues of the Hessian of the test loss (nats per target token) with respect to the LoRA factors "
        "A and B, the scaling multiplied into B, at the minimum after each task; left: of the loss of the task just "
        f"learned, right: of the mean loss of the tasks before it; {span(curvature.num_examples)} examples each, "
        f"largest residual ‖Hv − λv‖ {curvature.largest_residual.max():.2g}; {_seeds(curvature)}. Markers are set "
        "apart sideways. The axis is linear within ±1 and logarithmic beyond. No intervals over examples are computed."
    )


@in_print_style
def plot_predicted_forgetting(forgetting: pd.DataFrame, correlations: pd.DataFrame) -> Figure:
    """Draw measured against predicted forgetting (`predicted_forgetting.csv`), one large mark per transition and run.

    Large marks: means over the old tasks; small ones: each old task. The diagonal is where the second-order expansion
    is right. Axes are logarithmic on both sides of 0 and linear within ±0.1. The legend gives Spearman's ρ over
    (transition, old task) pairs from `correlations` (`forgetting_correlations.csv`). Raises `UserError` for missing
    columns or an empty table.
    """
    require_columns(forgetting, [*_RUN, "task", "predicted", "measured"], "predicted_forgetting")
    require_columns(correlations, [*_RUN, "over", "predictor", "rho", "n"], "forgetting_correlations")
    runs = _runs(forgetting, "predicted_forgetting")
    marks = _marks(runs)
    side = single_column() - _LEFT - _RIGHT
    lines = len(runs) + 2
    bottom = 0.42 + 0.135 * lines
    figure = new_figure(single_column(), bottom + side * 0.85 + _RIGHT)
    axes = add_axes(figure, _LEFT, bottom, side, side * 0.85)
    handles = []
    for (name, rows), mark in zip(runs, marks, strict=True):
        single, mean = rows[rows.task != "mean_old"], rows[rows.task == "mean_old"]
        axes.plot(
            single.predicted, single.measured, mark.marker, color=mark.colour, markersize=2.2, alpha=0.55,
            markeredgewidth=0, gid=f"tasks {' '.join(map(str, name))}",
        )  # fmt: skip
        drawn = axes.plot(
            mean.predicted, mean.measured, mark.marker, color=mark.colour, markersize=5, markeredgecolor="black",
            markeredgewidth=0.5, label=f"{_label(name, runs)}{_rho(correlations, name)}",
            gid=f"transitions {' '.join(map(str, name))}",
        )  # fmt: skip
        handles += drawn
    for which, axis in (("x", axes.xaxis), ("y", axes.yaxis)):
        getattr(axes, f"set_{which}scale")("symlog", linthresh=_LINEAR["forgetting"], linscale=0.7)
        plain_numbers(axis)
        axis.set_tick_params(which="minor", length=0)
    for get, put in ((axes.get_xlim, axes.set_xlim), (axes.get_ylim, axes.set_ylim)):
        left, right = get()  # 0 and the first power of ten belong to it, so that there are ticks to read
        put(min(left, -0.3 * _LINEAR["forgetting"]), max(right, 1.3 * _LINEAR["forgetting"]))
    low = min(axes.get_xlim()[0], axes.get_ylim()[0])
    high = max(axes.get_xlim()[1], axes.get_ylim()[1])
    line = np.concatenate([-np.geomspace(-low, 1e-3, 200), np.geomspace(1e-3, high, 200)]) if low < 0 else [0, high]
    limits = axes.get_xlim(), axes.get_ylim()
    axes.plot(line, line, color=GREY, linewidth=0.8, zorder=0, gid="identity")
    axes.set(xlim=limits[0], ylim=limits[1])
    axes.axhline(0, color=GREY, linewidth=0.4, linestyle=":", zorder=0)
    axes.axvline(0, color=GREY, linewidth=0.4, linestyle=":", zorder=0)
    axes.set_xlabel(f"predicted rise, g·Δ + ½ΔᵀHΔ ({_LOSS})", labelpad=2)
    axes.set_ylabel(f"measured rise ({_LOSS})", labelpad=2)
    small = {"linestyle": "", "marker": "o", "markersize": 2.2, "markeredgewidth": 0}
    handles.append(Line2D([], [], color=GREY, label="small: single old tasks; large: their mean", **small))
    handles.append(Line2D([], [], color=GREY, linewidth=0.8, label="measured = predicted"))
    figure.legend(handles=handles, loc="lower center", borderaxespad=0.2, labelspacing=0.25, handlelength=1.8)
    return figure


def predicted_forgetting_caption(forgetting: pd.DataFrame, correlations: pd.DataFrame) -> str:
    """What the picture of `plot_predicted_forgetting` shows, in words."""
    chosen = where(correlations, predictor="predicted", over="transitions")
    shown = "; ".join(
        f"{strategy_name(str(r.strategy))} {r.learner} ρ = {fixed(r.rho)} (n = {r.n})"  # type: ignore
        for r in chosen.itertuples()
    )
    return (
        "Rise of the old tasks' test loss over each transition: second-order prediction at its start against what was "
        "measured at its end; Δ: the change of the LoRA factors, g and H: gradient and Hessian of the old task's loss "
        f"at the start; {_seeds(forgetting)}, {span(forgetting.num_examples[forgetting.task != 'mean_old'])} "
        "examples per task. Large marks: mean over the old tasks of a transition; small marks: single old tasks, over "
        "which the legend's Spearman ρ is taken (they are not independent). Over transitions: "
        f"{shown}. Axes are linear within ±0.1 and logarithmic beyond."
    )


def _runs(table: pd.DataFrame, name: str) -> list[tuple[tuple[str, str, int], pd.DataFrame]]:
    if table.empty:
        raise UserError(f"Expected rows in the table {name}, got none; pass {name}.csv of a run.")
    return [((str(s), str(k), int(n)), rows) for (s, k, n), rows in table.groupby(_RUN, sort=False)]  # type: ignore


def _marks(runs: list) -> list[Mark]:
    by_name = strategy_marks((s, learner) for (s, learner, _), _ in runs)
    return [by_name[s, learner] for (s, learner, _), _ in runs]


def _label(name: tuple[str, str, int], runs: list) -> str:
    strategy, learner, seed = name
    label = strategy_marks([(strategy, learner)])[strategy, learner].label
    return f"{label}, seed {seed}" if len({n[2] for n, _ in runs}) > 1 else label


def _rho(correlations: pd.DataFrame, name: tuple[str, str, int]) -> str:
    chosen = where(correlations, **dict(zip(_RUN, name, strict=True)), over="tasks", predictor="predicted")
    if chosen.empty or not np.isfinite(chosen.rho.iloc[0]):
        return ""
    return f": ρ = {fixed(chosen.rho.iloc[0])} ({chosen.n.iloc[0]} small marks)"


def _seeds(table: pd.DataFrame) -> str:
    numbers = sorted(set(table.seed))
    return f"seed{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers))}"


def _panels(number: int, bottom: float, height: float, handles: list, width: float | None = None):
    """A figure with panels in rows of at most three, above a legend; `bottom` with one row of the legend."""
    columns = min(number, 3)
    width = width or (single_column() if columns == 1 else double_column())
    in_legend, lines = legend_size(handles, width, 6)
    bottom += 0.135 * (lines - 1)
    num_rows = -(-number // columns)
    pitch = height + _TOP + 0.24
    figure = new_figure(width, bottom + num_rows * pitch - 0.24)
    panel = (width - _LEFT - _RIGHT - (columns - 1) * (_GAP + 0.22)) / columns
    panels: list[Axes] = []
    for i in range(number):
        row, column = divmod(i, columns)
        place = bottom + (num_rows - 1 - row) * pitch
        panels.append(add_axes(figure, _LEFT + column * (panel + _GAP + 0.22), place, panel, height))
    figure.legend(
        handles=handles, loc="lower center", ncols=in_legend, borderaxespad=0.2, columnspacing=1.2, handlelength=2.4,
        labelspacing=0.25,
    )  # fmt: skip
    return figure, panels


def _share_limits(panels: list[Axes]) -> None:
    """One range for all panels, with room for the marks at its ends."""
    low, high = min(a.get_ylim()[0] for a in panels), max(a.get_ylim()[1] for a in panels)
    for axes in panels:
        axes.set_ylim(1.4 * low if low < 0 else low, 1.4 * high)


def _name_axes(figure: Figure, panels: list[Axes], across: str, up: str) -> None:
    left = panels[0].get_position().x0
    for axes in panels:
        if abs(axes.get_position().x0 - left) < 1e-6:
            axes.set_ylabel(up, labelpad=2)
    lowest = min(a.get_position().y0 for a in panels)
    bottom = [a for a in panels if abs(a.get_position().y0 - lowest) < 1e-6]
    if len(bottom) == 1 or len(across) < 40:
        for axes in bottom:
            axes.set_xlabel(across, labelpad=2)
    else:
        figure.text(0.5, 0.26 / figure.get_figheight(), across, ha="center", va="baseline")
