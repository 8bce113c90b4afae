"""The house in numbers and in one picture: `make house`, or `make house ARGS="--revision REV"` for another revision.

The table has a row per folder of the package: lines, files, lines of the median file, and the share of lines that
import. Below it stand the circles of imports between folders, and the imports that go up, by the rule that
`tests/test_import_directions.py` has at that revision. The picture shows the folders on their floors, and of the
imports between them those that no others imply.
"""

from __future__ import annotations

import argparse
import ast
import io
import re
import statistics
import subprocess
import sys
import tarfile
import textwrap
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

ROOT = Path(__file__).parents[1]
RULE = "tests/test_import_directions.py"
PACKAGE = "mcanalysis"
Links = Mapping[str, set[str]]


def sources(revision: str | None = None) -> dict[str, str]:
    """Text of each Python file of the package, by its place in the repository, and of the rule where there is one."""
    if revision is None:
        files = [*(ROOT / PACKAGE).rglob("*.py"), ROOT / RULE]
        return {file.relative_to(ROOT).as_posix(): file.read_text(encoding="utf-8") for file in files}
    command = ["git", "archive", "--format=tar", revision, PACKAGE, "tests"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True)
    if done.returncode:
        sys.exit(f"error: {done.stderr.decode().strip()}")
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        wanted = [m for m in archive if m.name == RULE or (m.name.startswith(f"{PACKAGE}/") and m.name.endswith(".py"))]
        return {m.name: archive.extractfile(m).read().decode() for m in wanted}  # type: ignore[union-attr]


def part_of(file: str) -> str:
    """The folder of the package that a file lies in, or its own name where it lies in none.

    >>> part_of("mcanalysis/paths/linear.py"), part_of("mcanalysis/errors.py")
    ('paths', 'errors')
    """
    return file.split("/")[1].removesuffix(".py")


def imports(text: str) -> list[tuple[str, int]]:
    """Full names of the modules that a file imports, wherever in it, each with the lines that its statement takes.

    >>> imports("from mcanalysis.paths import (\\n    Linear,\\n)")
    [('mcanalysis.paths.Linear', 3)]
    """
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            base = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            found += [(base + alias.name, (node.end_lineno or 0) - node.lineno + 1) for alias in node.names]
    return found


def import_lines(text: str) -> int:
    """How many lines of a file belong to import statements."""
    nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import | ast.ImportFrom)]
    return len({line for node in nodes for line in range(node.lineno, (node.end_lineno or 0) + 1)})


def links(files: Mapping[str, str]) -> dict[str, list[str]]:
    """For each part the parts that it imports, once per name; its own are left out, and so is the package's front."""
    files = {file: text for file, text in files.items() if file not in (RULE, f"{PACKAGE}/__init__.py")}
    parts = {part_of(file) for file in files}
    found: dict[str, list[str]] = {part: [] for part in sorted(parts)}
    for file, text in sorted(files.items()):
        targets = [name.split(".")[1] for name, _ in imports(text) if name.startswith(f"{PACKAGE}.")]
        found[part_of(file)] += [target for target in targets if target in parts - {part_of(file)}]
    return found


def rule(text: str) -> dict[str, Any]:
    """The tables of the rule's file (`BELOW`, `ANYWHERE`, `DOORS`): what it assigns from nothing but these."""
    found: dict[str, Any] = {}
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign | ast.AugAssign):
            known = {"set", *found}
            if {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)} <= known:
                exec(compile(ast.Module([node], []), RULE, "exec"), found)
    return found


def reached(graph: Links) -> dict[str, set[str]]:
    """For each part all that it imports, directly or through others."""
    found = {part: set(targets) for part, targets in graph.items()}
    for middle in found:
        for targets in found.values():
            if middle in targets:
                targets |= found[middle]
    return found


def circles(graph: Links) -> list[set[str]]:
    """The groups of parts that all import each other, directly or through others.

    >>> circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [{"a", "b", "c"}]
    True
    """
    far = reached(graph)
    return [
        group
        for part in sorted(graph)
        if part in far[part] and part == min(group := {other for other in far[part] if part in far[other]})
    ]


def report(files: dict[str, str]) -> str:
    """The table, and what is said of the imports, as text."""
    own = {file: text for file, text in files.items() if file != RULE}
    folders: dict[str, dict[str, str]] = {}
    for file, text in own.items():
        folders.setdefault(part_of(file) if file.count("/") > 1 else "(single files)", {})[file] = text
    rows = [f"{'folder':<16}{'lines':>8}{'files':>8}{'median':>8}{'imports':>9}"]
    for name, texts in [*sorted(folders.items()), ("in all", own)]:
        lengths = [len(text.splitlines()) for text in texts.values()]
        share = sum(map(import_lines, texts.values())) / max(sum(lengths), 1)
        rows.append(f"{name:<16}{sum(lengths):>8,}{len(lengths):>8}{statistics.median(lengths):>8.0f}{share:>8.1%} ")
    graph, tables = links(files), rule(files.get(RULE, ""))
    doors = tables.get("DOORS", set())
    without_doors = {part: {t for t in targets if (part, t) not in doors} for part, targets in graph.items()}
    found = circles(without_doors)
    rows += ["", f"circles of imports between folders: {len(found)}", *(f"  {', '.join(sorted(c))}" for c in found)]
    rows += [f"doors upwards, opened by a call: {', '.join(f'{a} → {b}' for a, b in sorted(doors)) or 'none'}"]
    if "BELOW" not in tables:
        return "\n".join([*rows, "imports that go up: no rule at this revision"])
    every = [(part, target) for part, targets in graph.items() for target in targets]
    up = [
        (a, b) for a, b in every if b not in tables["BELOW"].get(a, set()) | tables["ANYWHERE"] and (a, b) not in doors
    ]
    rows += [f"imports that go up: {len(up)} of {len(every):,}", *(f"  {a} → {b}" for a, b in sorted(set(up)))]
    return "\n".join(rows)


def needed(graph: Links) -> dict[str, set[str]]:
    """Of the links those that no others imply: a → c is implied where a → b and b → … → c.

    >>> needed({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == {"a": {"b"}, "b": {"c"}, "c": set()}
    True
    """
    far = reached(graph)
    return {
        part: {t for t in targets if not any(t in far[o] for o in targets - {t})} for part, targets in graph.items()
    }


def floors(graph: Links, below: Links) -> dict[str, int]:
    """The floor of each part, above all that the rule lets it import; where several will do, one with few others.

    >>> floors({"a": set(), "b": set(), "c": set()}, {"a": set(), "b": {"a"}, "c": set()})
    {'a': 0, 'b': 1, 'c': 0}
    """
    allowed = {part: below[part] & set(graph) for part in graph}
    floor: dict[str, int] = {}
    while len(floor) < len(graph):  # those of which all that lies below has its floor
        for part in sorted(set(graph) - set(floor)):
            if allowed[part] <= set(floor):
                floor[part] = max((floor[lower] + 1 for lower in allowed[part]), default=0)
    top = max(floor.values())
    for part in sorted(floor, key=lambda part: (-floor[part], part)):
        highest = min((floor[other] - 1 for other in floor if part in allowed[other]), default=top)
        number = [sum(level == f for other, f in floor.items() if other != part) for level in range(top + 1)]
        floor[part] = min(range(floor[part], highest + 1), key=lambda level: number[level])
    return floor


class Drawing:
    """Where boxes and arrows lie: on each floor a row of parts and of arrows that pass through (`(a, b, floor)`)."""

    def __init__(self, graph: Links, floor_of: Mapping[str, int]) -> None:
        self.chains: list[list[Any]] = []
        for a, targets in sorted(graph.items()):
            for b in sorted(targets):
                passed = [(a, b, level) for level in range(floor_of[a] - 1, floor_of[b], -1)]
                self.chains.append([a, *passed, b])
        self.beside: dict[Any, list[Any]] = {part: [] for part in graph}
        for chain in self.chains:
            for upper, lower in pairwise(chain):
                self.beside.setdefault(upper, []).append(lower)
                self.beside.setdefault(lower, []).append(upper)
        self.level = {node: floor_of[node] if isinstance(node, str) else node[2] for node in self.beside}
        self.rows = self._ordered()
        self.x = self._placed()

    def _ordered(self) -> list[list[Any]]:
        """Rows with few crossings: the best of many starts, each node drawn to the mean of its neighbours."""
        best, fewest, random = [], float("inf"), Random(0)
        for _ in range(300):
            rows = [[n for n in self.beside if self.level[n] == level] for level in range(max(self.level.values()) + 1)]
            for row in rows:
                random.shuffle(row)
            for step in range(12):
                place = {n: (i + 1) / (len(row) + 1) for row in rows for i, n in enumerate(row)}
                for row in rows if step % 2 else rows[::-1]:
                    row.sort(key=lambda n: sum(place[m] for m in self.beside[n]) / max(len(self.beside[n]), 1))
                    place |= {n: (i + 1) / (len(row) + 1) for i, n in enumerate(row)}
            if (count := self._crossings(rows)) < fewest:
                best, fewest = rows, count
        return best

    def _crossings(self, rows: list[list[Any]]) -> int:
        place = {n: i for row in rows for i, n in enumerate(row)}
        count = 0
        for row in rows:
            lines = [(place[n], place[m]) for n in row for m in self.beside[n] if self.level[m] < self.level[n]]
            count += sum((a < c) != (b < d) for a, b in lines for c, d in lines if a < c and b != d)
        return count

    def _placed(self) -> dict[Any, float]:
        """Centres, in widths of a box: each is drawn to the mean of its neighbours, and kept clear of its row."""
        x = {n: float(i) for row in self.rows for i, n in enumerate(row)}
        for _ in range(200):
            for row in self.rows:
                wanted = {n: sum(x[m] for m in self.beside[n]) / max(len(self.beside[n]), 1) for n in row}
                ahead, back = [], []
                for nodes, side, out in ((row, 1, ahead), (row[::-1], -1, back)):
                    for i, node in enumerate(nodes):
                        least = out[-1] + side * self._apart(nodes[i - 1], node) if i else wanted[node]
                        out.append(max(least, wanted[node]) if side > 0 else min(least, wanted[node]))
                x |= {n: (a + b) / 2 for n, a, b in zip(row, ahead, back[::-1], strict=True)}
        return x

    @staticmethod
    def _apart(one: Any, other: Any) -> float:
        return sum(0.54 if isinstance(node, str) else 0.07 for node in (one, other))


def words(text: str) -> list[str]:
    """What a folder says about itself, in three short lines: as much of its first line as ends with a clause.

    >>> words("'The command line: flags, running, and all that is said to those who start a script'")
    ['The command line:', 'flags, running']
    """
    line = re.sub(r" \(.*?\)", "", (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]).removesuffix(".")
    for marks in (
        r"(?<=.{20})[:;.] ",
        r"[:;,.] ",
    ):  # better at the end of more than a clause, unless it says too little
        cuts = [textwrap.wrap(line[: end.start()], 20) for end in re.finditer(f"{marks}|$", line)]
        if fitting := [cut for cut in cuts if len(cut) <= 3]:
            return fitting[-1]
    return textwrap.wrap(line, 20, max_lines=3, placeholder=" …")


# What a part knows of decides its colour: the first of these that it is or imports, directly or through others.
KINDS = {"runs": ("knows finished runs", "#f6d9b8"), "tasks": ("knows language models and tasks", "#cfe3cf")}
ANY = ("for any network", "#d3e0f0")
WIDTH, HEIGHT, STOREY = 1.14, 0.54, 0.8  # inches: a box, and from floor to floor


def draw(files: dict[str, str], picture: Path) -> None:
    """Draw the house into a PNG: what the rule lets everything import is one strip below it all."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import FancyBboxPatch, PathPatch
    from matplotlib.path import Path as Line
    from PIL import Image  # comes with matplotlib

    tables = rule(files[RULE])
    parts = {part for part in tables["BELOW"] if f"{PACKAGE}/{part}/__init__.py" in files}
    single = {part_of(file) for file in files if file.count("/") == 1 and file != RULE} - {"__init__", "__main__"}
    found = links(files)
    graph = {
        part: {t for t in found[part] if t in parts and (part, t) not in tables["DOORS"]} for part in sorted(parts)
    }
    far = reached(graph)
    drawing = Drawing(needed(graph), floors(graph, tables["BELOW"]))
    left = min(x - (0.5 if isinstance(node, str) else 0) for node, x in drawing.x.items())
    right = max(x + (0.5 if isinstance(node, str) else 0) for node, x in drawing.x.items())
    top = len(drawing.rows) * STOREY
    size = ((right - left) * WIDTH + 0.2, top + 0.3)
    figure = Figure(figsize=size, dpi=200)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(-0.1, size[0] - 0.1), ylim=(-0.5, size[1] - 0.5))
    axes.axis("off")

    def box(x: float, y: float, width: float, name: str, says: list[str], colour: str) -> None:
        shape = FancyBboxPatch((x - width / 2, y), width, HEIGHT, boxstyle="round,pad=0,rounding_size=0.05")
        shape.set(facecolor=colour, edgecolor="0.35", linewidth=0.7, zorder=3)
        axes.add_patch(shape)
        axes.text(x, y + HEIGHT - 0.05, name, ha="center", va="top", fontsize=8, weight="bold", zorder=4)
        axes.text(x, y + HEIGHT - 0.19, "\n".join(says), ha="center", va="top", fontsize=6.5, zorder=4)

    at = {node: ((x - left) * WIDTH, drawing.level[node] * STOREY) for node, x in drawing.x.items()}
    for part in parts:
        known = next((kind for name, kind in KINDS.items() if name in far[part] | {part}), ANY)
        box(*at[part], WIDTH * 0.96, part, words(files[f"{PACKAGE}/{part}/__init__.py"]), known[1])
    for chain in drawing.chains:
        points = []
        for node, upper in zip(chain, [None, *chain], strict=False):
            x, y = at[node]
            if isinstance(node, str):  # arrows of a box leave and arrive side by side, in the order of where they lead
                level = drawing.level[node] + (1 if upper is not None else -1)
                ends = sorted((m for m in drawing.beside[node] if drawing.level[m] == level), key=drawing.x.__getitem__)
                nearest = upper if upper is not None else chain[1]
                x += WIDTH * 0.8 * ((ends.index(nearest) + 1) / (len(ends) + 1) - 0.5)
                points.append((x, y + HEIGHT + 0.05 if upper is not None else y))
            else:
                points += [(x, y + HEIGHT), (x, y)]
        codes, bent = [Line.MOVETO], [points[0]]
        for (x1, y1), (x2, y2) in pairwise(points):
            middle = (y1 + y2) / 2
            bent += [(x1, middle), (x2, middle), (x2, y2)]
            codes += [Line.CURVE4] * 3
        axes.add_patch(PathPatch(Line(bent, codes), facecolor="none", edgecolor="0.45", linewidth=0.8, zorder=1))
        x, y = points[-1]
        axes.fill([x - 0.035, x + 0.035, x], [y + 0.03, y + 0.03, y - 0.05], color="0.45", linewidth=0, zorder=2)
    strip = FancyBboxPatch((0, -0.42), size[0] - 0.2, 0.24, boxstyle="round,pad=0,rounding_size=0.05")
    axes.add_patch(strip)
    strip.set(facecolor="0.95", edgecolor="0.35", linewidth=0.7)
    files_alone = f"single files: {', '.join(sorted(single))}"
    axes.text(size[0] / 2 - 0.1, -0.31, files_alone, ha="center", va="center", fontsize=7.5)
    for i, (says, colour) in enumerate((*KINDS.values(), ANY)):
        axes.text(
            0,
            top - 0.4 - 0.24 * i,
            says,
            fontsize=7.5,
            bbox={"facecolor": colour, "edgecolor": "0.35", "linewidth": 0.7, "pad": 2},
        )
    drawn = io.BytesIO()
    figure.savefig(drawn)
    Image.open(drawn).convert("RGB").quantize(48, dither=Image.Dither.NONE).save(picture, format="PNG", optimize=True)


def main() -> None:
    """Print the table; draw the picture of the files as they are, or of a revision where a file to write is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--revision", help="of git; nothing is checked out, and nothing drawn without --picture")
    parser.add_argument("--picture", type=Path, help="the PNG to write (docs/house.png)")
    arguments = parser.parse_args()
    files = sources(arguments.revision)
    sys.stdout.write(report(files) + "\n")
    picture = arguments.picture or (None if arguments.revision else ROOT / "docs/house.png")
    if picture is not None:
        draw(files, picture)


if __name__ == "__main__":
    main()
