"""BENCHMARKS.md: all aims in one table, then a section per workload, with the machine and moment of its measuring."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import torch
from workload import REPOSITORY, Section, Workload

from mcanalysis.store.atomic import write_text_atomic
from mcanalysis.store.manifest import new_manifest

_HEAD = """# Benchmarks

Output of `make bench`, unedited: a section per workload, each with its machine, versions and date. Seconds are of that
machine, which may have been shared; compare the **ratios**, whose two sides took turns within one run.
`python tests/performance --only NAME` measures one workload again and replaces its section.
What every turn measured is in `BENCHMARKS.json`, for plots of your own.
"""


_AIMS = ("aim", "limit", "measured", "")


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows as a Markdown table, the first one its header.

    >>> print(markdown_table([["a", "b"], ["1", "2"]]))
    | a | b |
    | --- | --- |
    | 1 | 2 |
    """
    header, *rest = rows
    return "\n".join(f"| {' | '.join(row)} |" for row in [header, ["---"] * len(header), *rest])


def section_text(workload: Workload, section: Section, measured: str, seconds: float, command: str) -> str:
    """A section of the file; `measured`: its `circumstances`."""
    parts = [
        f"## {workload.title}",
        f"{measured} Workload `{workload.name}`, {seconds / 60:.1f} min, `{command}`.",
        markdown_table([_AIMS, *(a.cells() for a in section.aims)]),
    ]
    for table in section.tables:
        parts += [table.caption, markdown_table(table.rows)]
    if section.notes:
        parts.append("\n".join(f"- {note}" for note in section.notes))
    return "\n\n".join(parts)


def write_sections(file: Path, sections: dict[str, str]) -> None:
    """Put sections into the file, each in the place of the one it replaces, the others left as they are; above them a
    table of all their aims."""
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    kept = dict(re.findall(r"<!-- begin (\w+) -->\n(.*?)\n<!-- end \1 -->", text, flags=re.DOTALL))
    merged = sorted({**kept, **sections}.items(), key=lambda item: (*_place(item[1]), item[0]))
    body = "\n\n".join(f"<!-- begin {name} -->\n{section}\n<!-- end {name} -->" for name, section in merged)
    write_text_atomic(file, f"{_HEAD}\n{summary([section for _, section in merged])}\n\n{body}\n")


def summary(sections: Sequence[str]) -> str:
    """The aims of all sections in one table, and how many were met.

    >>> aims = markdown_table([_AIMS, ["s", "≤ 1", "2", "missed"]])
    >>> print(summary([f"## W8: import\\n\\n{aims}"]))
    Aims: 0 met, 1 missed, 0 not measured.
    <BLANKLINE>
    | workload | aim | limit | measured |  |
    | --- | --- | --- | --- | --- |
    | W8: import | s | ≤ 1 | 2 | missed |
    """
    rows = [["workload", *_AIMS]]
    for section in sections:
        head, _, after = section.partition(f"{markdown_table([_AIMS])}\n")
        title = head.partition("\n")[0].removeprefix("## ")
        for line in after.partition("\n\n")[0].splitlines():
            rows.append([title, *line.strip("| ").split(" | ")])
            title = ""  # said once
    counts = [f"{sum(row[-1] == verdict for row in rows)} {verdict}" for verdict in ("met", "missed", "not measured")]
    return f"Aims: {', '.join(counts)}.\n\n{markdown_table(rows)}"


def _place(section: str) -> tuple[int, str]:
    """The numbered workloads come first, W1 to W9, those of one number by title."""
    found = re.match(r"## W(\d+).*", section)
    return (int(found.group(1)), found.group(0)) if found else (100, "")


def circumstances(section: Section) -> str:
    """When, of which commit and on what a workload was measured, in one line."""
    manifest = new_manifest({})
    versions = ", ".join(f"{name} {version}" for name, version in manifest["versions"].items() if name != "mcanalysis")
    commit = (manifest["git_commit"] or "none")[:10] + (" with local changes" if _is_changed() else "")
    machine = section.ran_on or f"{_processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} thread used"
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return f"{now}, commit {commit}; {machine}; {platform.system()}, {versions}."


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        found = re.search(r"model name\s*: (.+)", cpuinfo.read_text(encoding="utf-8"))
        if found:
            return found.group(1)
    return platform.processor() or platform.machine()


def _is_changed() -> bool:
    """Whether tracked files other than this report differ from the commit."""
    command = ["git", "-C", str(REPOSITORY), "status", "--porcelain", "--untracked-files=no", "--", ":!BENCHMARKS.*"]
    try:
        return bool(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())
    except (OSError, subprocess.CalledProcessError):
        return False
