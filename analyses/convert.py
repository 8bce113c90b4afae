"""Convert a data set from the form its authors publish to TRACE's: <output-dir>/<TASK>/{train,eval,test}.json."""

from __future__ import annotations

from start import run_script

from mcanalysis.cli.console import answer, next_step, say
from mcanalysis.cli.flags import Parser


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--task", default=None, help="MedMCQA, JEC-QA, or a name for what --source holds; needed")
    parser.add_argument(
        "--source", default=None, metavar="PATH",
        help="published files, a folder or one: BIG-bench's task.json, chats (messages), JSON, JSON lines, CSV, "
        "Parquet; needed",
    )  # fmt: skip
    parser.add_argument("--output-dir", default=None, metavar="DIR", help="later given as --data-dir; needed")
    parser.add_argument(
        "--prompt", default="prompt", metavar="TEXT", help="of columns: the one of the prompt, or a text with {column}s"
    )
    parser.add_argument("--answer", default="answer", metavar="TEXT", help="the same of the answer")
    parser.add_argument("--seed", type=int, default=0, help="of the shuffle and the split")
    args = parser.parse()
    if None in (args.task, args.source, args.output_dir):
        parser.error("expected --task, --source and --output-dir, got not all of them; add what is missing")

    from mcanalysis.tasks.raw import convert

    done = convert(args.task, args.source, args.output_dir, args.seed, args.prompt, args.answer)
    say(f"{done.task} is in {done.folder}" + (f"; {done.remark}" if done.remark else ""))
    for split, number in done.kept.items():
        say(f"{number:>8,}  {split}")
    for reason, number in done.left_out.items():
        say(f"{number:>8,}  left out: {reason}")
    say(f"{done.most_common_share:>8.2f}  of test has the most common answer: {done.most_common}")
    answer(task=done.task, folder=str(done.folder), kept=done.kept, left_out=done.left_out, remark=done.remark,
           most_common=done.most_common, most_common_share=done.most_common_share)  # fmt: skip
    next_step("benchmark", "--benchmark", "trace", "--data-dir", args.output_dir)


if __name__ == "__main__":
    run_script(main)
