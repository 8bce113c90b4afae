"""The look of every figure: widths, text sizes, what colours, lines and markers mean, and how files are saved."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mcanalysis.errors import UserError
from mcanalysis.store.atomic import write_bytes_atomic

SINGLE_COLUMN = 3.25  # inches
DOUBLE_COLUMN = 6.75  # inches
TEXT_SIZE = 7.0  # points; nothing in a figure is smaller
TITLE_SIZE = 7.5  # points
RESOLUTION = 200  # dots per inch of the PNG

# Okabe and Ito's palette (2008), which people with any of the common colour-vision deficiencies can tell apart.
BLACK, ORANGE, SKY_BLUE, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
BLUE, VERMILLION, PURPLE = "#0072B2", "#D55E00", "#CC79A7"
GREY = "#8C8C8C"


class Mark(NamedTuple):
    """A colour with the marker that says the same without colour, and the words of the legend."""

    colour: str
    marker: str
    label: str


class PathLine(NamedTuple):
    """The line of one kind of path: its dash pattern, the words of the legend, and a short form for table heads."""

    dashes: Any
    label: str
    short: str


ROLES: Mapping[str, Mark] = {
    "old": Mark(BLUE, "s", "old tasks (mean)"),
    "new": Mark(ORANGE, "o", "new task"),
    "mean": Mark(BLACK, "*", "½ (old + new)"),
}

_PATH_LINES: Mapping[tuple[str, str], PathLine] = {
    ("linear", "factor"): PathLine("-", "linear, factor space", "factor"),
    ("linear", "delta"): PathLine((0, (4, 1.6)), "linear, ΔW space", "ΔW"),
    ("linear", "aligned"): PathLine((0, (7, 1.2, 1, 1.2, 1, 1.2)), "linear, aligned factors", "aligned"),
    ("bezier", "factor"): PathLine((0, (1, 1.1)), "Bezier, factor space", "Bezier"),
    ("bezier", "delta"): PathLine((0, (4, 1.2, 1, 1.2)), "Bezier, ΔW space", "Bez. ΔW"),
    ("polychain", "factor"): PathLine((0, (8, 2)), "polygonal chain, factor space", "chain"),
}
_SPARE_DASHES = ((0, (2, 1)), (0, (6, 1, 2, 1)), (0, (3, 3)), (0, (1, 3)), (0, (9, 1, 1, 1)), (0, (5, 1, 1, 1, 1, 1)))

_STRATEGIES: Mapping[tuple[str, str], Mark] = {
    ("sequential", "fast"): Mark(BLACK, "X", "sequential"),
    ("er", "fast"): Mark(GREEN, "s", "ER"),
    ("ilora", "fast"): Mark(SKY_BLUE, "^", "I-LoRA, fast"),
    ("ilora", "slow"): Mark(VERMILLION, "o", "I-LoRA, slow"),
}
_SPARE_MARKERS = ("D", "v", "P", "p", "<", ">", "h", "d", "8", "H")
_SPARE_COLOURS = (PURPLE, BLUE, ORANGE, GREY)


def path_lines(kinds: Iterable[tuple[str, str]]) -> dict[tuple[str, str], PathLine]:
    """How to draw each (path, space), known kinds first and always alike, others with spare dash patterns.

    >>> list(path_lines([("bezier", "factor"), ("linear", "factor")]))
    [('linear', 'factor'), ('bezier', 'factor')]
    """
    present = set(kinds)
    lines = {kind: line for kind, line in _PATH_LINES.items() if kind in present}
    for i, (path, space) in enumerate(sorted(present - set(lines))):
        dashes = _SPARE_DASHES[i % len(_SPARE_DASHES)]
        name = path.replace("_", " ")
        lines[path, space] = PathLine(dashes, f"{name}, {space}", shortened(f"{name} {space}", 9))
    return lines


def strategy_marks(names: Iterable[tuple[str, str]]) -> dict[tuple[str, str], Mark]:
    """How to mark each (strategy, learner), known ones always alike, others with spare markers, in their own order.

    >>> strategy_marks([("er", "fast"), ("gem", "fast")])["gem", "fast"].label
    'gem'
    """
    marks: dict[tuple[str, str], Mark] = {}
    spare = 0
    for name in dict.fromkeys(names):
        if name in _STRATEGIES:
            marks[name] = _STRATEGIES[name]
            continue
        strategy, learner = name
        label = strategy if learner == "fast" else f"{strategy}, {learner}"
        colour, marker = _SPARE_COLOURS[spare % len(_SPARE_COLOURS)], _SPARE_MARKERS[spare % len(_SPARE_MARKERS)]
        marks[name] = Mark(colour, marker, label)
        spare += 1
    return marks


def print_style() -> AbstractContextManager[None]:
    """A context in which figures are built and saved in the print style; the caller's settings return afterwards.

    >>> before = matplotlib.rcParams["font.size"]
    >>> with print_style():
    ...     matplotlib.rcParams["font.size"]
    7.0
    >>> matplotlib.rcParams["font.size"] == before
    True
    """
    sizes = dict.fromkeys(
        ("font.size", "axes.labelsize", "xtick.labelsize", "ytick.labelsize", "legend.fontsize", "figure.labelsize"),
        TEXT_SIZE,
    )
    settings: dict[Any, Any] = {
        **matplotlib.rcParamsDefault,
        **sizes,
        "axes.titlesize": TITLE_SIZE,
        "font.family": "DejaVu Sans",  # shipped with matplotlib: the same letters on every machine
        "axes.linewidth": 0.6,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "lines.linewidth": 1.2,
        "lines.dash_capstyle": "butt",
        "hatch.linewidth": 0.5,
        "legend.frameon": False,
        "savefig.bbox": None,
        "figure.dpi": RESOLUTION,
        "savefig.dpi": RESOLUTION,
        "pdf.fonttype": 42,  # TrueType outlines, embedded: what conferences ask for
        "svg.hashsalt": "mcanalysis",
    }
    for name in ("backend", "backend_fallback", "interactive", "toolbar", "datapath"):
        settings.pop(name, None)
    return matplotlib.rc_context(settings)


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of `width` x `height` inches that needs no display."""
    figure = Figure(figsize=(width, height), dpi=RESOLUTION)
    FigureCanvasAgg(figure)
    return figure


def add_axes(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Axes at a place given in inches from the figure's lower left corner."""
    across, up = figure.get_size_inches()
    axes = figure.add_axes((left / across, bottom / up, width / across, height / up))
    # Given by hand as well, since matplotlib looks up the settings of the moment whenever it adds a tick.
    axes.tick_params(which="major", length=2.5, width=0.6, pad=2.0, labelsize=TEXT_SIZE)
    axes.tick_params(which="minor", length=1.5, width=0.5, pad=2.0, labelsize=TEXT_SIZE)
    return axes


def shortened(text: str, length: int) -> str:
    """`text`, cut in the middle where it has more than `length` characters.

    >>> shortened("checkpoint-with-a-long-name", 12)
    'checkp…-name'
    """
    if len(text) <= length:
        return text
    tail = (length - 1) // 2
    return text[: length - 1 - tail] + "…" + text[len(text) - tail :]


def save_figure(
    figure: Figure, stem_path: str | os.PathLike[str], formats: Sequence[str] = ("pdf", "png")
) -> list[Path]:
    """Write `<stem_path>.<format>` for each format and return the files; equal figures give equal bytes.

    PNG has 200 dots per inch; PDF and SVG embed their fonts or outlines. Each file is replaced as a whole or not at
    all. Raises `UserError` for a format other than pdf, png and svg, before anything is written.
    """
    unknown = [name for name in formats if name not in _METADATA]
    if unknown or not formats:
        raise UserError(
            f"Expected formats among {', '.join(_METADATA)}, got {', '.join(unknown) or 'none'}; choose some of these."
        )
    stem = Path(stem_path)
    rendered: dict[Path, bytes] = {}
    with print_style():
        for name in formats:
            buffer = io.BytesIO()
            figure.savefig(buffer, format=name, dpi=RESOLUTION, metadata=_METADATA[name])
            rendered[stem.with_name(f"{stem.name}.{name}")] = buffer.getvalue()
    for file, content in rendered.items():
        write_bytes_atomic(file, content)
    return list(rendered)


# None drops what matplotlib would add by itself: times and versions.
_METADATA: Mapping[str, dict[str, None]] = {
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    "png": {"Software": None},
    "svg": {"Date": None, "Creator": None},
}
