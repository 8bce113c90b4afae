"""Train a small base model from scratch: on the generated corpus (the shipped base), or on a folder of text."""

from __future__ import annotations

from start import run_script

from mcanalysis.cli.console import answer, bar, next_step, say
from mcanalysis.cli.flags import Parser
from mcanalysis.cli.running import quiet_libraries
from mcanalysis.pretraining.config import PretrainingConfig


def main() -> None:
    parser = Parser(__doc__)
    parser.add_settings(PretrainingConfig, group="training")
    parser.add_argument("--output-dir", default="runs/base", help="a new folder; give it to --model")
    args = parser.parse()

    from mcanalysis.pretraining.pretrain import pretrain

    quiet_libraries()
    config = parser.settings(PretrainingConfig, args, intermediate_size=3 * args.hidden_size)
    summary = pretrain(config, args.output_dir, progress=bar)
    say(
        f"{summary['num_parameters']:,} parameters, mean training loss {summary['mean_training_loss']:.3f}, "
        f"{summary['seconds']:.0f} s; the base is in {args.output_dir}"
    )
    answer(directory=args.output_dir, **summary)
    next_step("train", "--model", args.output_dir)


if __name__ == "__main__":
    run_script(main)
