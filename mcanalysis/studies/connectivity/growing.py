"""The figure of a run's transitions while they are measured: drawn once there is one, and again as more arrive."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from mcanalysis.paths.path_kinds import path_kind

if TYPE_CHECKING:
    from mcanalysis.plotting.picture import Picture
    from mcanalysis.studies.connectivity.measuring import Measured, PathName, RunPaths
    from mcanalysis.studies.connectivity.study import Connectivity

_SHARE = 0.02  # of the time goes into drawing, at most: whoever computes may wait for it


class Growing:
    """What is measured of a run's paths so far; `show` draws pictures into the run's folder.

    Drawn are the transitions of which the kind of path named first is there.
    """

    def __init__(self, study: Connectivity, paths: RunPaths, show: Callable[[Path, Iterable[Picture]], None]) -> None:
        self._study, self._paths, self._show = study, paths, show
        self._kinds = [kind for kind in study.paths if not path_kind(kind).is_of_whole_run]
        self._found: dict[PathName, Measured] = {}
        self._not_before = 0.0

    def add(self, name: PathName, measured: Measured) -> None:
        """One path more."""
        self._found[name] = measured

    def draw(self) -> None:
        """Draw what there is, unless that is nothing or all of it, or was done a moment ago."""
        began = time.monotonic()
        if began < self._not_before or not self._kinds or not self._there(self._kinds[0]) or not self._lacking():
            return
        self._show(self._paths.run.directory, self._pictures())
        now = time.monotonic()
        self._not_before = now + (now - began) / _SHARE

    def _there(self, kind: str) -> list[PathName]:
        return [name for name in self._paths.names(kind) if name in self._found]

    def _pictures(self) -> Iterator[Picture]:
        from mcanalysis.studies.connectivity.study import tables_of

        first = self._there(self._kinds[0])
        shown = {name.number for name in first}
        of_kinds = [[self._found[name] for name in self._there(kind) if name.number in shown] for kind in self._kinds]
        number, total = len(first), len(self._paths.all_transitions)
        so_far = f"{number} of {total} so far" if number < total else "not all paths yet"
        lacking = f"Not whole yet, and drawn again as more is measured. Missing: {'; '.join(self._lacking())}."
        yield from self._study.pictures(tables_of(self._paths, of_kinds), so_far, lacking)

    def _lacking(self) -> list[str]:
        """What is not there yet: transitions, and other kinds of path on those that are."""
        labels = self._paths.all_transitions
        shown = [name.number for name in self._there(self._kinds[0])]
        absent = [label for number, label in enumerate(labels) if number not in shown]
        words = [", ".join(absent)] if absent else []
        for kind in self._kinds[1:]:
            there = {name.number for name in self._there(kind)}
            without = [labels[number] for number in shown if number not in there]
            if without:
                words.append(f"{kind} on {'all that is shown' if len(without) == len(shown) else ', '.join(without)}")
        return words
