"""The main job: train strategies on a sequence of tasks, measure the paths between their minima, draw them.

With no flag: sequential fine-tuning, experience replay and I-LoRA on the embedded base and benchmark. With --run:
finished runs. With --minima and --data: two adapters trained elsewhere.
"""

from __future__ import annotations

import argparse
from typing import Any

from start import run_script

from mcanalysis.cli.console import bar, figure
from mcanalysis.cli.flags import Parser, comma_list
from mcanalysis.cli.run_flags import engine, limit_of_all
from mcanalysis.cli.studies import run_study
from mcanalysis.errors import UserError
from mcanalysis.studies.connectivity.study import Connectivity


def main() -> None:
    parser = Parser(__doc__)
    adapters = parser.group("two adapters instead of runs")
    adapters.add_argument("--minima", type=comma_list, default=None, metavar="DIR1,DIR2", help="two PEFT adapters")
    adapters.add_argument("--data", type=comma_list, default=None, metavar="FILE[,FILE2]", help="data to measure on")
    adapters.add_argument("--score", default=None, help="how outputs are scored (default exact_match)")
    run_study(Connectivity, __doc__, parser=parser, instead=two_adapters, also=cut_prompts, unsaid=("profiles",))


def two_adapters(study: Any, args: argparse.Namespace, workers: Any) -> Any:
    """The path between two adapters where the flags name them."""
    if (args.minima is None) != (args.data is None):
        raise UserError("--minima DIR1,DIR2 and --data FILE go together: give both.")
    if args.minima is None:
        return None
    from pathlib import Path

    from mcanalysis.models.chat_template import read_template
    from mcanalysis.studies.adapters import AdapterConnectivity, AdaptersOpening, connect_adapters

    opening = AdaptersOpening(
        adapters=tuple(args.minima),
        model_name=args.model,
        data_files=tuple(args.data),
        directory=Path(args.output_dir or "runs/adapters"),
        dtype=args.dtype,
        device=args.device,
        engine=engine(args),
        score=args.score,
        max_new_tokens=limit_of_all(args),
        max_length=args.max_length,
        chat_template=read_template(args.chat_template),
    )
    return connect_adapters(opening, AdapterConnectivity(**vars(study)), workers, progress=bar, on_figure=figure)


def cut_prompts(outcome: Any) -> dict[str, Any]:
    from mcanalysis.studies.connectivity.summaries import cut_prompts

    return {"cut_prompts": cut_prompts(outcome.tables["profiles"])}


if __name__ == "__main__":
    run_script(main)
