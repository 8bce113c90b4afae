"""The look of every figure: widths, text sizes, what colours, lines and markers mean, and how files are saved."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import replace
from functools import cache, wraps
from pathlib import Path
from typing import Any, NamedTuple, ParamSpec

import matplotlib
import pandas as pd
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter

from mcanalysis import fonts
from mcanalysis.errors import UserError
from mcanalysis.plotting.scaled_output import pdf_bytes, png_bytes, svg_bytes
from mcanalysis.store.atomic import write_bytes_atomic

P = ParamSpec("P")

TEXT_SIZE = 7.0  # points; nothing in a figure is smaller
TITLE_SIZE = 7.5  # points
RESOLUTION = 200  # dots per inch of the PNG
SINGLE_COLUMN, DOUBLE_COLUMN = 3.25, 6.75  # inches, on a page of the style `paper`


class Page(NamedTuple):
    """What a figure is for: the widths it is laid out in (inches), and by how much everything is then enlarged.

    Laid out in a narrower column and enlarged, the same figure has larger text beside the same data, as slides want.
    """

    single: float = SINGLE_COLUMN
    double: float = DOUBLE_COLUMN
    scale: float = 1.0


_PAPER = Page()
STYLES: Mapping[str, Page] = {
    "paper": _PAPER,
    "slides": Page(single=3.0, double=5.2, scale=1.9),  # up to 9.9 inches wide, text of 13 points
    "screen": Page(scale=1.5),  # text of 10.5 points
}
VENUES: Mapping[str, tuple[float, float]] = {  # one column, the whole width of the text; inches
    "acl": (3.03, 6.30),
    "cvpr": (3.25, 6.875),
    "icml": (3.25, 6.75),
    "ieee": (3.5, 7.16),
    "jmlr": (2.9, 6.0),  # one column of text here and below: the first is for two figures side by side
    "nature": (3.50, 7.20),
    "neurips": (2.7, 5.5),
}
_PAGE: ContextVar[Page] = ContextVar("page", default=_PAPER)


@contextmanager
def on_page(page: Page) -> Iterator[None]:
    """A context in which figures are laid out and saved for a page; without one it is that of the style `paper`.

    >>> with on_page(STYLES["slides"]):
    ...     double_column()
    5.2
    >>> double_column()
    6.75
    """
    token = _PAGE.set(page)
    try:
        yield
    finally:
        _PAGE.reset(token)


def single_column() -> float:
    """The width of one column of the page, in inches before it is enlarged."""
    return _PAGE.get().single


def double_column() -> float:
    """The width of the page, in inches before it is enlarged."""
    return _PAGE.get().double


# Okabe and Ito's palette (2008), which people with any of the common colour-vision deficiencies can tell apart.
BLACK, ORANGE, SKY_BLUE, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
BLUE, VERMILLION, PURPLE = "#0072B2", "#D55E00", "#CC79A7"
GREY = "#8C8C8C"
SLANTED: Mapping[str, Any] = {"ha": "right", "va": "center", "rotation_mode": "anchor"}  # names at ticks of an x axis


class Mark(NamedTuple):
    """A colour with the marker that says the same without colour, and the words of the legend."""

    colour: Any  # as matplotlib takes it
    marker: str
    label: str

    def handle(self, **style: Any) -> Line2D:
        """Its entry in a legend; `style` goes to the line."""
        return Line2D([], [], **{"color": self.colour, "marker": self.marker, "label": self.label} | style)


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

_PUBLISHED_NAMES: Mapping[str, str] = {  # as their papers write them; others, those of users too, by their own name
    "agem": "A-GEM",
    "cls_er": "CLS-ER",
    "der": "DER++",
    "er": "ER",
    "ewc": "EWC",
    "gem": "GEM",
    "ilora": "I-LoRA",
    "inc_lora": "IncLoRA",
    "inflora": "InfLoRA",
    "l2p": "L2P",
    "lwf": "LwF",
    "magmax": "MagMax",
    "mc_sgd": "MC-SGD",
    "n_lora": "N-LoRA",
    "migu": "MIGU",
    "o_lora": "O-LoRA",
    "opcm": "OPCM",
    "osf": "OSF",
    "slao": "SLAO",
    "sure": "SuRe",
}
_STRATEGIES: Mapping[tuple[str, str], tuple[str, str]] = {
    ("sequential", "fast"): (BLACK, "X"),
    ("er", "fast"): (GREEN, "s"),
    ("ilora", "fast"): (SKY_BLUE, "^"),
    ("ilora", "slow"): (VERMILLION, "o"),
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
        from mcanalysis.paths import get_path, path_names  # loads torch, which drawing needs for nothing else

        kind = get_path(path) if path in path_names() else None
        from_base = kind is not None and not kind.joins_minima
        label = f"{name}: base (t = 0) to merged (1)" if from_base else f"{name}, {space}"
        short = name if kind is not None and len(kind.spaces) == 1 else f"{name} {space}"
        lines[path, space] = PathLine(dashes, label, shortened(short, 9))
    return lines


def strategy_name(strategy: str) -> str:
    """A strategy's name in pictures.

    >>> strategy_name("ilora"), strategy_name("progressive_prompts")
    ('I-LoRA', 'progressive prompts')
    """
    return _PUBLISHED_NAMES.get(strategy, strategy.replace("_", " "))


def whose(row: Any) -> str:
    """Whose minima a row of a table is about, for the head of a picture."""
    return f"{strategy_name(row.strategy)}, {row.learner} adapter, seed {row.seed}"


def strategy_marks(names: Iterable[tuple[str, str]]) -> dict[tuple[str, str], Mark]:
    """How to mark each (strategy, learner), known ones always alike, others with spare markers, in their own order.

    >>> strategy_marks([("er", "fast"), ("gem", "fast")])["gem", "fast"].label
    'GEM'
    """
    marks: dict[tuple[str, str], Mark] = {}
    spare = 0
    for name in dict.fromkeys(names):
        strategy, learner = name
        label = strategy_name(strategy)
        if learner != "fast" or strategy == "ilora":  # whose fast learner is never alone
            label += f", {learner}"
        if name in _STRATEGIES:
            colour, marker = _STRATEGIES[name]
        else:
            colour, marker = _SPARE_COLOURS[spare % len(_SPARE_COLOURS)], _SPARE_MARKERS[spare % len(_SPARE_MARKERS)]
            spare += 1
        marks[name] = Mark(colour, marker, label)
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
        # Shipped with matplotlib and with this package: the same letters on every machine, Chinese ones too.
        "font.family": ["DejaVu Sans", _chinese_family()],
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


def in_print_style(plot: Callable[P, Figure]) -> Callable[P, Figure]:
    """A function that draws a figure, made to do so in the print style whatever the caller's settings are."""

    @wraps(plot)
    def drawn(*arguments: P.args, **named: P.kwargs) -> Figure:
        with print_style():
            figure = plot(*arguments, **named)
            figure.draw_without_rendering()  # makes the ticks while the style holds
        return figure

    return drawn


@cache
def _chinese_family() -> str:
    """The name of the font for Chinese, which matplotlib knows from now on."""
    manager = font_manager.fontManager
    manager.addfont(str(fonts.FILE))
    regular = manager.ttflist[-1]
    for look in ({"weight": 700}, {"style": "italic"}):  # there is one cut, which stands in for these
        manager.ttflist.append(replace(regular, **look))
    return fonts.FAMILY


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


def write_head(figure: Figure, words: str, below: float = 0.05) -> None:
    """Say above the panels whose data they show; `below`: inches from the upper edge."""
    across, up = figure.get_size_inches()
    figure.text(0.05 / across, 1 - below / up, words, ha="left", va="top", color="#404040")


def cross_not_finite(axes: Axes, places: Sequence[float] | pd.Series, colour: str, gid: str) -> None:
    """Crosses on the upper edge of a panel where values are not finite."""
    axes.plot(
        places, [1.0] * len(places), linestyle="none", marker="x", markersize=3.6, color=colour,
        transform=axes.get_xaxis_transform(), clip_on=False, zorder=4, gid=gid,
    )  # fmt: skip


def plain_numbers(axis: Axis) -> None:
    """Let a logarithmic axis say 0.1 instead of a power of ten, whose exponent would be below the smallest text."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}".replace("-", "−")))
    axis.set_minor_formatter(NullFormatter())


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

    PNG has 200 dots per inch; PDF and SVG embed their fonts or outlines. Everything is enlarged by the scale of the
    page (`on_page`). Each file is replaced as a whole or not at all.

    Raises `UserError` for a format other than pdf, png and svg, before anything is written.
    """
    unknown = [name for name in formats if name not in _BYTES]
    if unknown or not formats:
        raise UserError(
            f"Expected formats among {', '.join(_BYTES)}, got {', '.join(unknown) or 'none'}; choose from these."
        )
    stem, scale = Path(stem_path), _PAGE.get().scale
    with print_style():
        rendered = {stem.with_name(f"{stem.name}.{f}"): _BYTES[f](figure, scale, RESOLUTION) for f in formats}
    for file, content in rendered.items():
        write_bytes_atomic(file, content)
    return list(rendered)


_BYTES = {"pdf": pdf_bytes, "png": png_bytes, "svg": svg_bytes}
