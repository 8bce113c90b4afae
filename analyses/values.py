"""Every example's loss and score at every point of the paths of runs, as one Parquet file for analyses of your own.

Give the flags that connectivity.py was given: what it has measured is read, the rest is measured now.
"""

from __future__ import annotations

from pathlib import Path

from start import run_script

from mcanalysis.cli.console import answer, bar, next_step, say
from mcanalysis.cli.flags import Parser
from mcanalysis.cli.running import quiet_libraries
from mcanalysis.errors import UserError
from mcanalysis.studies.connectivity.study import Connectivity

FLAGS = (
    "num_points", "num_examples", "paths", "other_paths", "num_bends", "curve_steps", "finder", "tolerance",
    "from_base", "extrapolate",
)  # fmt: skip


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a finished run directory")
    parser.add_argument("--output", default="runs/values.parquet", metavar="FILE", help="the file that is written")
    parser.add_settings(Connectivity, group="what was measured", only=FLAGS)
    args = parser.parse()
    study = parser.settings(Connectivity, args)

    quiet_libraries()
    from mcanalysis.runs.run import load_run
    from mcanalysis.store.one_file import check_output
    from mcanalysis.studies.connectivity.values import all_values, write_values

    if len({Path(run).resolve() for run in args.runs}) < len(args.runs):
        raise UserError(f"Expected each run once, got one twice: {', '.join(args.runs)}; leave out the second.")
    check_output(Path(args.output), b"PAR1", "a Parquet file")
    table = all_values([load_run(run) for run in args.runs], study, bar)
    size = write_values(table, args.output)
    say(f"{len(table):,} values of {len(args.runs)} run(s), {size / 1e6:.1f} MB: {args.output}")
    answer(values=args.output, rows=len(table), bytes=size)
    next_step(f'in Python: pandas.read_parquet("{args.output}")')


if __name__ == "__main__":
    run_script(main)
