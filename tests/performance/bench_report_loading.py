"""How large the report of three runs is, and how long a browser takes until it can be used."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from workload import REPOSITORY, Aim, Options, Section, Table

TITLE = "The report in a browser"
VIEWS: dict[str, dict[str, Any]] = {
    "desktop": {"viewport": {"width": 1280, "height": 900}},
    "phone": {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2, "is_mobile": True},
}
SMALL = "--strategy sequential,er,ilora --steps 5 --num-train 16 --num-test 10 --num-examples 4 --curve-steps 2"
SMALLEST = "--strategy sequential --steps 1 --num-train 4 --num-test 1 --num-examples 1 --curve-steps 1 --num-points 2"


def measure(options: Options) -> Section:
    with tempfile.TemporaryDirectory() as folder:
        report = _make_report(Path(folder), options.quick)
        size = report.stat().st_size
        seconds = _loading_seconds(report, options.repetitions)
    rows = [["view", "can be used after, s", "first chart drawn after, s"]]
    for view in VIEWS:
        rows.append([view, *(_cell(seconds, view, mark) for mark in ("ready", "chart"))])
    notes = [
        f"Three runs of eight tasks, all paths of `connectivity.py`'s default; medians of {options.repetitions} loads, "
        "range in brackets. Training is short, which changes no count of points, tasks or transitions.",
        "From the start of navigation to the file on this disk. Headless Chromium without a GPU, in a fresh context "
        "per load. Charts are drawn when they come into view.",
    ]
    if not seconds:
        notes.append(
            "Not measured: no Chromium, or no playwright. `pip install -c constraints.txt -e '.[test]'`, `apt-get "
            "install chromium`, then `python tests/performance --only report_loading`."
        )
    return Section([Aim("size of the file, MB", 8.0, size / 1e6)], [Table("Loading.", rows)], notes)


def _cell(seconds: Mapping[tuple[str, str], list[float]], view: str, mark: str) -> str:
    found = seconds.get((view, mark))
    return f"{np.median(found):.2f} ({min(found):.2f} to {max(found):.2f})" if found else "not measured"


def _make_report(folder: Path, quick: bool) -> Path:
    """Runs as the main job leaves them, after less training, and their report."""
    for script, flags in (("connectivity", SMALLEST if quick else SMALL), ("report", "")):
        command = [sys.executable, str(REPOSITORY / "analyses" / f"{script}.py"), *flags.split()]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{script}.py ended with {done.returncode}: {done.stderr.strip()[-500:]}")
    found = list(folder.rglob("report.html"))
    if len(found) != 1:
        raise RuntimeError(f"expected one report, got {found}")
    return found[0]


def _loading_seconds(report: Path, repetitions: int) -> dict[tuple[str, str], list[float]]:
    """Seconds per (view, what is waited for); {} where there is no browser."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return {}
    if chromium is None:
        return {}
    seconds: dict[tuple[str, str], list[float]] = {}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
        )
        for turn in range(repetitions + 1):  # the first one fills the system's caches
            for view, settings in VIEWS.items():
                context = browser.new_context(offline=True, **settings)
                page = context.new_page()
                page.set_default_timeout(120_000)
                page.goto(report.as_uri())
                page.wait_for_selector("html[data-ready]")
                ready = page.evaluate("performance.getEntriesByName('report-ready')[0].startTime")
                page.locator("[data-part=chart]").first.scroll_into_view_if_needed()
                page.wait_for_function(
                    "() => [...document.querySelectorAll('[data-part=chart]')].some(c => c._fullLayout)"
                )
                drawn = page.evaluate("performance.now()")
                context.close()
                if turn:
                    seconds.setdefault((view, "ready"), []).append(ready / 1000)
                    seconds.setdefault((view, "chart"), []).append(drawn / 1000)
        browser.close()
    return seconds
