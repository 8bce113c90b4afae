"""A picture as it is written: its files, its caption and the data in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from matplotlib.figure import Figure

from mcanalysis.plotting.style import save_figure
from mcanalysis.store.atomic import write_text_atomic


class Picture(NamedTuple):
    """One picture: the stem of its files, what is drawn, the same data as tables by the end of their stem, words."""

    stem: str
    figure: Figure
    data: Mapping[str, pd.DataFrame]
    caption: str


def save(picture: Picture, folder: Path, formats: Sequence[str] = ("pdf", "png")) -> list[Path]:
    """Write a picture, its caption and its data; returns the files of the picture, one per format."""
    files = save_figure(picture.figure, folder / picture.stem, formats)
    if picture.caption:
        write_text_atomic(folder / f"{picture.stem}.txt", picture.caption + "\n")
    for end, table in picture.data.items():
        name = f"{picture.stem}_{end}.csv" if end else f"{picture.stem}.csv"
        write_text_atomic(folder / name, table.to_csv(index=False))
    return files
