"""Planes through minima, slices around them and their sharpness: train what is missing, measure, tabulate, draw.

With no flag: sequential fine-tuning and I-LoRA on the embedded base and benchmark, about the second transition.
"""

from __future__ import annotations

from start import run_script

from mcanalysis.cli.console import bar, figure
from mcanalysis.cli.flags import Parser, count_or_all, integers
from mcanalysis.cli.run_flags import add_study_flags, engine, study_runs, workers
from mcanalysis.cli.running import quiet_libraries


def main() -> None:
    parser = Parser(__doc__)
    add_study_flags(parser, ["sequential", "ilora"])
    parser.add_argument("--transition", type=int, default=2, metavar="K", help="from the minimum K to K + 1")
    parser.add_argument("--third", default=None, metavar="RUN_DIR", help="a run whose minimum spans the plane, too")
    parser.add_argument("--space", default="factor", help="of the plane: factor, delta or aligned")
    parser.add_argument("--grid", type=integers, default=[25], metavar="N[,M]", help="nodes in x and in y")
    parser.add_argument("--num-examples", type=count_or_all, default=50, help="test examples per task, or 'all'")
    parser.add_argument("--num-directions", type=int, default=3, help="slices around each minimum (0: none)")
    parser.add_argument("--surface-grid", type=int, default=11, help="nodes a side of a slice along two directions")
    parser.add_argument("--sharpness-samples", type=int, default=10, help="directions of the mean rise (0: none)")
    args = parser.parse()

    quiet_libraries()
    from mcanalysis.cli import reporting
    from mcanalysis.runs.run import load_run
    from mcanalysis.studies.landscape.study import LandscapeSettings, study_landscape

    settings = LandscapeSettings(
        transition=args.transition, space=args.space, grid=tuple(args.grid), num_examples=args.num_examples,
        num_directions=args.num_directions, surface_grid=args.surface_grid, sharpness_samples=args.sharpness_samples,
    )  # fmt: skip
    third = load_run(args.third, args.device, engine(args)) if args.third else None
    result = study_landscape(
        study_runs(args), args.output_dir, settings,
        third=third, workers=workers(args), progress=bar, on_figure=figure, initializer=quiet_libraries,
    )  # fmt: skip
    reporting.landscape(result)


if __name__ == "__main__":
    run_script(main, shared=True)
