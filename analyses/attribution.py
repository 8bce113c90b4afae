"""Which layers and which kinds of module make the barrier between two successive minima: each alone along the path.

With no flag: the first transition of sequential fine-tuning and I-LoRA on the embedded base and benchmark.
"""

from __future__ import annotations

from start import run_script

from mcanalysis.cli.console import bar, figure
from mcanalysis.cli.flags import Parser, count_or_all
from mcanalysis.cli.run_flags import add_study_flags, study_runs, workers
from mcanalysis.cli.running import quiet_libraries


def main() -> None:
    parser = Parser(__doc__)
    add_study_flags(parser, ["sequential", "ilora"])
    parser.add_argument("--transition", type=int, default=1, help="number of the minimum that the path starts from")
    parser.add_argument("--space", default="factor", help="factor, delta or aligned")
    parser.add_argument("--num-points", type=int, default=11, help="points per group, both ends included")
    parser.add_argument("--num-examples", type=count_or_all, default=50, help="test examples per task, or 'all'")
    args = parser.parse()

    quiet_libraries()
    from mcanalysis.cli import reporting
    from mcanalysis.studies.attribution import AttributionSettings, study_attribution

    settings = AttributionSettings(args.transition, args.space, args.num_points, args.num_examples)
    result = study_attribution(
        study_runs(args), settings,
        workers=workers(args), progress=bar, on_figure=figure, initializer=quiet_libraries,
    )  # fmt: skip
    reporting.attribution(result)


if __name__ == "__main__":
    run_script(main, shared=True)
