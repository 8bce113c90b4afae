"""Curvature at the minima of runs, and whether it foretells forgetting: eigenvalues, trace, spectrum; tables, figures.

With no flag: sequential fine-tuning, experience replay and I-LoRA on the embedded base and benchmark.
"""

from __future__ import annotations

from start import run_script

from mcanalysis.cli.console import bar, figure
from mcanalysis.cli.flags import Parser, count_or_all
from mcanalysis.cli.run_flags import add_study_flags, study_runs, workers
from mcanalysis.cli.running import quiet_libraries


def main() -> None:
    parser = Parser(__doc__)
    add_study_flags(parser, ["sequential", "er", "ilora"])
    parser.add_argument("--num-examples", type=int, default=40, help="test examples per loss, shared by its tasks")
    parser.add_argument("--num-eigenvalues", type=int, default=3, help="at each end of the spectrum")
    parser.add_argument("--tolerance", type=float, default=0.01, help="of eigenvalues, relative")
    parser.add_argument("--num-trace-samples", type=int, default=10, help="products for the trace")
    parser.add_argument("--spectrum-minimum", default=None, metavar="K", help="whose density is drawn (default: last)")
    parser.add_argument("--num-lanczos", type=int, default=40, help="Lanczos steps of each probe")
    parser.add_argument(
        "--num-forgetting-examples", type=count_or_all, default=100, help="test examples per old task, or 'all'"
    )
    args = parser.parse()

    from mcanalysis.studies.curvature import CurvatureSettings, study_curvature

    settings = CurvatureSettings(
        num_examples=args.num_examples, num_forgetting_examples=args.num_forgetting_examples,
        num_eigenvalues=args.num_eigenvalues, tolerance=args.tolerance, num_trace_samples=args.num_trace_samples,
        spectrum_minimum=args.spectrum_minimum, num_lanczos=args.num_lanczos,
    )  # fmt: skip
    quiet_libraries()
    from mcanalysis.cli import reporting

    result = study_curvature(
        study_runs(args), args.output_dir, settings,
        workers=workers(args), progress=bar, on_figure=figure, initializer=quiet_libraries,
    )  # fmt: skip
    reporting.curvature(result)


if __name__ == "__main__":
    run_script(main, shared=True)
