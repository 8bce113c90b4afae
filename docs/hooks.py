"""The site's hooks: files beside docs/ become pages of it, and doctests in docstrings become code blocks."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
STUDY = "analyses/study"
OTHERS = ("CHANGELOG.md", "BENCHMARKS.md", "STUDY.md", "CITATION.cff", "analyses/slurm/analyse.sbatch")
OTHERS += (f"{STUDY}/RESULTS.md", f"{STUDY}/trials.csv", "analyses/real/small.yaml", "mcanalysis/studies/README.md")
PAGES = {"README.md": "index.md"} | {name: name for name in OTHERS}


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pages that lie beside docs/, their links as seen from within."""
    for name, place in PAGES.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        text = text.replace("](docs/", "](").replace("](../../docs/", "](../../")
        files.append(File.generated(config, place, content=text))
    for picture in sorted((ROOT / STUDY / "figures").glob("*.png")):
        place = picture.relative_to(ROOT).as_posix()
        files.append(File.generated(config, place, abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown: str, *, page: Page, **_: Any) -> str:
    """Links to a file beside docs/ lead to its page; the page about figures ends with the gallery."""
    for name, place in PAGES.items():
        markdown = markdown.replace(f"](../{name}", f"]({place}")
    return markdown + (gallery() if page.file.src_uri == "figures.md" else "")


def gallery() -> str:
    """Return every picture of docs/gallery under its name."""
    files = sorted((ROOT / "docs" / "gallery").glob("*.png"))
    shown = [f"### {f.stem.replace('_', ' ')}\n\n![{f.stem.replace('_', ' ')}](gallery/{f.name})" for f in files]
    return "\n\n".join(["\n\n## Gallery", *shown]) if shown else ""


class Doctests(griffe.Extension):
    """Puts `>>>` examples of a docstring into a fence; Markdown takes them for quotations otherwise."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of one object."""
        if obj.docstring:
            obj.docstring.value = fence_doctests(obj.docstring.value)


def fence_doctests(text: str) -> str:
    """Return a docstring with each run of lines from a `>>>` to the next empty line as a fenced block."""
    paragraphs = re.split(r"\n\s*\n", text)
    return "\n\n".join(f"```pycon\n{p}\n```" if p.startswith(">>> ") else p for p in paragraphs)
