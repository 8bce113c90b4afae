"""How alike the minima of runs are: in their weights, in their hidden states, in their answers; tables and figures.

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
    parser.add_argument("--num-examples", type=count_or_all, default=100, help="test examples per task, or 'all'")
    args = parser.parse()

    from mcanalysis.studies.similarity import SimilaritySettings, study_similarity

    settings = SimilaritySettings(args.num_examples)
    quiet_libraries()
    from mcanalysis.cli import reporting

    result = study_similarity(
        study_runs(args), settings,
        workers=workers(args), progress=bar, on_figure=figure, initializer=quiet_libraries,
    )  # fmt: skip
    reporting.similarity(result)


if __name__ == "__main__":
    run_script(main, shared=True)
