"""Finished runs as one HTML file for the browser: scores, paths, landscape, samples; it needs no network.

Reads what the other scripts have measured, and says which command measures what is missing.
"""

from __future__ import annotations

from start import run_script

from mcanalysis.cli.console import answer, next_step, say
from mcanalysis.cli.flags import Parser


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("runs", nargs="*", default=["runs"], metavar="RUN", help="a run directory, or a folder of them")
    parser.add_argument("--output", default=None, metavar="FILE", help="default: report.html in the run or comparison/")
    parser.add_argument("--num-samples", type=int, default=4, help="test examples per task whose outputs are shown")
    args = parser.parse()

    from mcanalysis.report import find_runs, write_report

    found = find_runs(args.runs)
    output = args.output or found.default_output
    size = write_report(found.runs, output, args.num_samples, found.unfinished)
    if found.unfinished:
        say(f"left out, not finished: {', '.join(found.unfinished)}")
    say(f"report of {len(found.runs)} run(s), {size / 1e6:.1f} MB: {output}")
    runs = [str(run.directory) for run in found.runs]
    answer(report=str(output), bytes=size, runs=runs, unfinished=found.unfinished)
    next_step(f"open {output} in a browser")


if __name__ == "__main__":
    run_script(main)
