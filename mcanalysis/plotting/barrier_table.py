"""The small table below each pair of panels: barriers, t* and gain of every path of a transition."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes

from mcanalysis.numbers_as_text import shown_number
from mcanalysis.plotting.style import PathLine, shortened
from mcanalysis.plotting.transition_rows import TransitionRows, are_adapters

LINE = 0.122  # inches from one line of the table to the next
_CELLS = {  # line of the table: task (None: the new one), quantity and column of the barriers
    "old": ("mean_old", "loss", "chord_barrier"),
    "new": (None, "loss", "chord_barrier"),
    "t_star": ("mean", "score", "t_star"),
    "gain": ("mean", "score", "interpolation_gain"),
    "low": ("mean", "score", "interpolation_gain_low"),
    "high": ("mean", "score", "interpolation_gain_high"),
}
_WORDS = {
    "old": "barrier, old",
    "new": "barrier, new",
    "t_star": "t*",
    "gain": "gain",
    "low": "95 % from",
    "high": "to",
}
_MOST_LETTERS = 12  # of a line's words, which stand in the margin


def table_lines(shown: Sequence[TransitionRows]) -> dict[str, str]:
    """The lines that have a number somewhere, and their words; between two adapters these are the data files' names."""
    has_gain = any(bool(s.barriers.interpolation_gain.notna().any()) for s in shown)
    names = [n for n in _CELLS if n == "new" or (any(s.has_old for s in shown) if n == "old" else has_gain)]
    words = _WORDS
    if are_adapters(shown[0].rows):
        words = words | {role: shortened(name, _MOST_LETTERS) for role, name in shown[0].role_names().items()}
    return {name: words[name] for name in names}


def table_notes(shown: Sequence[TransitionRows], num_lines: int) -> list[str]:
    """What the small tables hold, on one line or one sentence per line."""
    what = "Numbers" if are_adapters(shown[0].rows) else "Barrier"
    notes = [f"{what}: chord barrier of the loss (nats/token)."]
    if "gain" in table_lines(shown):
        notes.append("Gain: S̄(t*) − max(S̄(0), S̄(1)), S̄ = ½ (old + new).")
    return notes if num_lines > 1 else ["  ".join(notes)]


def write_table(
    axes: Axes,
    transition: TransitionRows,
    paths: Mapping[tuple[str, str], PathLine],
    lines: Mapping[str, str],
    below: float,
    size: tuple[float, float],
    labelled: bool,
) -> None:
    """Write the table `below` inches under axes of `size` (width, height) inches, with words on its left or without."""
    width, height = size

    def write(x: float, line: int, words: str, **style) -> None:
        axes.text(x, -(below + line * LINE) / height, words, transform=axes.transAxes, va="top", **style)

    for column, (kind, path) in enumerate(paths.items()):
        x = (column + 0.5) / len(paths)
        if len(paths) > 1:
            write(x, 0, path.short, ha="center", style="italic")
        for i, name in enumerate(lines, start=len(paths) > 1):
            task, quantity, cell = _CELLS[name]
            value = transition.number(kind, task or transition.new, quantity, cell)
            signed = name in ("gain", "low", "high")
            write(x, i, shown_number(value, signed), ha="center", gid=f"table {name} {'-'.join(kind)}")
    for i, words in enumerate(lines.values() if labelled else (), start=len(paths) > 1):
        write(-0.08 / width, i, words, ha="right")
