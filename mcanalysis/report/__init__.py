"""One HTML file that shows finished runs in a browser, with no network: `write_report`."""

from mcanalysis.report.page import render, write_report
from mcanalysis.report.runs import find_runs

__all__ = ["find_runs", "render", "write_report"]
