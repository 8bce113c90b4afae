"""The main job: train strategies on a sequence of tasks, measure the paths between their minima, draw them.

With no flag: sequential fine-tuning, experience replay and I-LoRA on the embedded base and benchmark. With --run:
finished runs. With --minima and --data: adapters or whole models trained elsewhere; of more than two, a matrix.
"""

from __future__ import annotations

import argparse
from typing import Any

from start import run_script

from mcanalysis.cli.console import bar, figure, growing_figure, say
from mcanalysis.cli.flags import Parser, comma_list
from mcanalysis.cli.run_flags import engine, limit_of_all, study_runs
from mcanalysis.cli.studies import run_study
from mcanalysis.cli.workers import number_of_workers
from mcanalysis.errors import UserError
from mcanalysis.studies.connectivity.study import Connectivity


def main() -> None:
    parser = Parser(__doc__)
    adapters = parser.group("minima trained elsewhere instead of runs")
    adapters.add_argument(
        "--minima", type=comma_list, default=None, metavar="DIR1,DIR2",
        help="PEFT adapters, or whole models (folders, hub ids), or a pattern in quotes: 'out/checkpoint-*'",
    )  # fmt: skip
    adapters.add_argument(
        "--data", type=comma_list, default=None, metavar="FILE[,FILE2]",
        help="data to measure on, or lm_eval:TASK,… for tasks of lm-evaluation-harness",
    )  # fmt: skip
    adapters.add_argument(
        "--objective", default=None, metavar="MODULE:FUNCTION", help="a loss of your own in place of --data"
    )
    adapters.add_argument("--score", default=None, help="how outputs are scored (default exact_match)")
    adapters.add_argument("--num-fewshot", type=int, default=None, metavar="N", help="examples in prompts of lm_eval:")
    adapters.add_argument(
        "--recipe", default=None, metavar="FILE", help="of mergekit: its point is marked on the path of the two"
    )
    parser.basic |= {"minima", "data"}
    run_study(
        Connectivity, __doc__, parser=parser, instead=two_adapters, dry_run=forecast, also=cut_prompts,
        unsaid=("profiles",),
    )  # fmt: skip


def opening(args: argparse.Namespace) -> Any:
    """Minima trained elsewhere where the flags name them, else None."""
    if args.data is not None and args.objective is not None:
        raise UserError("Expected --data or --objective, got both; leave one out.")
    if (args.minima is None) != (args.data is None and args.objective is None):
        raise UserError("--minima DIR1,DIR2 and --data FILE (or --objective) go together: give both.")
    if args.minima is None:
        if args.recipe is not None:
            raise UserError("--recipe marks a point between two --minima: name these, or leave it out.")
        return None
    for flag in ("run", "general_data", "general_tasks"):
        if getattr(args, flag) is not None:
            name = flag.replace("_", "-")
            raise UserError(f"--minima is measured on --data alone, not with --{name}: leave one out.")
    from pathlib import Path

    from mcanalysis.models.chat_template import read_template
    from mcanalysis.studies.adapters import AdaptersOpening
    from mcanalysis.studies.minima import expanded

    return AdaptersOpening(
        adapters=expanded(args.minima),
        model_name=args.model,
        data_files=tuple(args.data or ()),
        directory=Path(args.output_dir or "runs/adapters"),
        dtype=args.dtype,
        device=args.device,
        engine=engine(args),
        score=args.score,
        max_new_tokens=limit_of_all(args),
        max_length=args.max_length,
        revision=args.revision,
        chat_template=read_template(args.chat_template),
        num_fewshot=args.num_fewshot,
        objective=args.objective,
    )


def two_adapters(study: Any, args: argparse.Namespace, workers: Any) -> Any:
    """The paths between minima trained elsewhere where the flags name them."""
    if (pair := opening(args)) is None:
        return None
    from mcanalysis.studies.adapters import connect_adapters

    return connect_adapters(
        pair, marking(study, pair, args), workers,
        progress=bar, on_figure=figure, on_growing=growing_figure, on_cost=say,
    )  # fmt: skip


def marking(study: Any, pair: Any, args: argparse.Namespace) -> Any:
    """The study of minima from elsewhere, which marks the point of a recipe if one is named."""
    from mcanalysis.recipes.place import place_between
    from mcanalysis.studies.adapters import AdapterConnectivity

    marked = place_between(args.recipe, pair.adapters) if args.recipe else None
    return AdapterConnectivity(**vars(study), marked=marked)


def forecast(study: Any, args: argparse.Namespace) -> None:
    """Say what the study would take."""
    from mcanalysis.cli import run_reporting
    from mcanalysis.evaluation.harness_tasks import harness_tasks
    from mcanalysis.studies.adapters import checked_pair
    from mcanalysis.studies.connectivity.forecast import forecast

    pair = opening(args)
    if pair is None:
        runs: Any = study_runs(args)
    elif harness_tasks(pair.data_files):
        raise UserError("--dry-run times the engine, which does not measure tasks of lm-eval: leave it out.")
    else:
        found, study, _ = checked_pair(pair, marking(study, pair, args))
        runs = [found]
    run_reporting.forecast(forecast(study, runs, 1 if args.scheduler else number_of_workers(args)))


def cut_prompts(outcome: Any) -> dict[str, Any]:
    from mcanalysis.studies.connectivity.summaries import cut_prompts

    return {"cut_prompts": cut_prompts(outcome.tables["profiles"])}


if __name__ == "__main__":
    run_script(main)
