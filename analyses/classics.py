"""Reproduce classic results of mode connectivity on scikit-learn's digits, with the published claims beside them.

garipov: curves between minima. frankle: shared first steps. mirzadeh: continual and multitask minima. ainsworth:
permutations (and Entezari's conjecture). jordan: the statistics of BatchNorm between networks.
"""

from __future__ import annotations

from start import run_script

from mcanalysis.cli.console import answer, bar, next_step, say, table
from mcanalysis.cli.flags import Parser, whole


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument(
        "result", nargs="?", default="all", help="garipov, frankle, mirzadeh, ainsworth, jordan, or all"
    )
    parser.add_argument("--seeds", type=whole(1, 1000), default=5, help="how many, from 0 on")
    parser.add_argument("--output-dir", default="runs/classics", help="for classics.csv, classics.md and the figures")
    args = parser.parse()

    from mcanalysis.classics import claims_cells, reproduce_classics

    result = reproduce_classics(args.result, range(args.seeds), args.output_dir, progress=bar)
    table(claims_cells(result.claims))
    say(f"tables: {args.output_dir}/classics.csv, classics.md; figures: {', '.join(map(str, result.figures))}")
    answer({"claims": result.claims}, result.figures)
    next_step("connectivity")


if __name__ == "__main__":
    run_script(main)
