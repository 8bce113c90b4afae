"""Convert a data set from the form its authors publish to TRACE's: <output-dir>/<TASK>/{train,eval,test}.json."""

from __future__ import annotations

from start import run_script

from mcanalysis.cli.console import answer, say
from mcanalysis.cli.flags import Parser


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--task", default=None, help="MedMCQA or JEC-QA; needed")
    parser.add_argument("--source", default=None, metavar="DIR", help="the folder of the published files; needed")
    parser.add_argument("--output-dir", default=None, metavar="DIR", help="later given as --data-dir; needed")
    parser.add_argument("--seed", type=int, default=0, help="of the shuffle and the split")
    args = parser.parse()
    if None in (args.task, args.source, args.output_dir):
        parser.error("expected --task, --source and --output-dir, got not all of them; add what is missing")

    from mcanalysis.tasks.raw import convert

    done = convert(args.task, args.source, args.output_dir, args.seed)
    say(f"{done.task} is in {done.folder}" + (f"; {done.remark}" if done.remark else ""))
    for split, number in done.kept.items():
        say(f"{number:>8,}  {split}")
    for reason, number in done.left_out.items():
        say(f"{number:>8,}  left out: {reason}")
    answer(task=done.task, folder=str(done.folder), kept=done.kept, left_out=done.left_out, remark=done.remark)


if __name__ == "__main__":
    run_script(main)
