"""A picture as it is written: its files, its caption and the data in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from matplotlib.figure import Figure

from mcanalysis.plotting.style import save_figure
from mcanalysis.store.atomic import write_text_atomic
from mcanalysis.store.small_files import table_text


class Picture(NamedTuple):
    """One picture: the stem of its files, what is drawn, the same data as tables by the end of their stem, words."""

    stem: str
    figure: Figure
    data: Mapping[str, pd.DataFrame]
    caption: str

    def beside(self, folder: Path) -> dict[Path, str]:
        """What is written beside the picture in a folder: the texts of its caption and its data, by file."""
        texts = {f"{self.stem}_{end}.csv" if end else f"{self.stem}.csv": table_text(t) for end, t in self.data.items()}
        if self.caption:
            texts[f"{self.stem}.txt"] = self.caption + "\n"
        return {folder / name: text for name, text in texts.items()}


def save(picture: Picture, folder: Path, formats: Sequence[str] = ("pdf", "png")) -> list[Path]:
    """Write a picture, its caption and its data; returns the files of the picture, one per format."""
    files = save_figure(picture.figure, folder / picture.stem, formats)
    for file, text in picture.beside(folder).items():
        write_text_atomic(file, text)
    return files
