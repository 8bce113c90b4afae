"""Train a small base model from scratch: on the generated corpus (the shipped base), or on a folder of text."""

from __future__ import annotations

from start import run_script

from mcanalysis.cli.console import answer, bar, say
from mcanalysis.cli.flags import Parser
from mcanalysis.cli.running import quiet_libraries


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--text-dir", default=None, help="*.txt files and <TASK>/train.json (default: generated text)")
    parser.add_argument("--output-dir", default="runs/base", help="a new folder; give it to --model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=11000)
    parser.add_argument("--batch-size", type=int, default=16, help="rows per step")
    parser.add_argument("--row-length", type=int, default=96, help="tokens per row")
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--vocab-size", type=int, default=4096)
    parser.add_argument("--hidden-size", type=int, default=128)
    parser.add_argument("--num-layers", type=int, default=3)
    args = parser.parse()

    from mcanalysis.pretraining.pretrain import PretrainingConfig, pretrain

    quiet_libraries()
    config = PretrainingConfig(
        text_dir=args.text_dir,
        seed=args.seed,
        num_steps=args.steps,
        batch_size=args.batch_size,
        row_length=args.row_length,
        learning_rate=args.learning_rate,
        vocab_size=args.vocab_size,
        hidden_size=args.hidden_size,
        num_layers=args.num_layers,
        intermediate_size=3 * args.hidden_size,
    )
    summary = pretrain(config, args.output_dir, progress=bar)
    say(
        f"{summary['num_parameters']:,} parameters, mean training loss {summary['mean_training_loss']:.3f}, "
        f"{summary['seconds']:.0f} s; the base is in {args.output_dir}"
    )
    answer(directory=args.output_dir, **summary)


if __name__ == "__main__":
    run_script(main)
