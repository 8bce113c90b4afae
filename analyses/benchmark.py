"""What a benchmark asks of a model: label shares, baselines, and what one fresh adapter learns of each task alone."""

from __future__ import annotations

from start import run_script

from mcanalysis.cli.console import answer, bar, next_step, say, table
from mcanalysis.cli.flags import Parser
from mcanalysis.cli.run_flags import add_model_flags
from mcanalysis.cli.running import quiet_libraries
from mcanalysis.training.config import RunConfig, TrainingConfig


def main() -> None:
    parser = Parser(__doc__)
    add_model_flags(parser)
    parser.add_settings(RunConfig, only=("benchmark", "data_dir", "tasks"))
    parser.add_settings(TrainingConfig, only=("num_steps",), defaults={"num_steps": 200})
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse()

    quiet_libraries()
    from mcanalysis.benchmarks import load_benchmark
    from mcanalysis.models.chat_template import read_template
    from mcanalysis.studies.benchmark import describe_benchmark

    tasks = load_benchmark(args.benchmark, args.data_dir, args.tasks)
    described = describe_benchmark(
        tasks, args.model, parser.settings(TrainingConfig, args), args.seed, args.device,
        progress=bar, revision=args.revision, chat_template=read_template(args.chat_template),
    )  # fmt: skip
    rows = [
        ["task", "score", "tokens", "distinct", "leaked", "labels", "most common", "bag of words", "base", "adapter"]
    ]
    for r in described.itertuples():
        rows.append(
            [
                str(r.task), str(r.score_name), f"{r.tokens:.1f}", f"{r.distinct:.0%}", str(r.leaked), str(r.labels),
                f"{r.most_common:.2f}", f"{r.bag_of_words:.2f}", f"{r.base:.2f}", f"{r.adapter:.2f}",
            ]
        )  # fmt: skip
    say()
    table(rows)
    say(f"mean example length {described.tokens.mean():.1f} tokens")
    answer({"tasks": described})
    data = () if args.data_dir is None else ("--data-dir", args.data_dir)
    next_step("train", "--model", args.model, "--benchmark", args.benchmark, *data)


if __name__ == "__main__":
    run_script(main)
