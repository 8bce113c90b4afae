"""Train one strategy on a sequence of tasks; writes a run directory with minima, accuracy matrix and metrics."""

from __future__ import annotations

from arguments import Parser, add_run_flags, bar, quiet_libraries, run_config, run_script, typed


def main() -> None:
    parser = Parser(__doc__)
    add_run_flags(parser)
    parser.add_argument("--strategy", default="ilora", help="the method")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--output-dir", default=None, help="the run directory (default runs/<benchmark>-<strategy>-seed<n>)"
    )
    args = parser.parse()

    quiet_libraries()
    import reporting

    from mcanalysis.experiments.strategies import run_name
    from mcanalysis.run import load_run
    from mcanalysis.training.continual_trainer import train

    config = run_config(args, args.strategy, args.seed, typed(args.settings))
    directory = args.output_dir or f"runs/{run_name(config)}"
    train(config, directory, resume=args.resume, device=args.device, progress=bar)
    reporting.run(load_run(directory))


if __name__ == "__main__":
    run_script(main)
