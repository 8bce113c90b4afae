"""A card of two adapters: on one page, in Markdown and HTML, what lies between them, to be pasted into a model card.

Barriers in each space, whether a point between scores better than both, how far they are apart, what was cut.
"""

from __future__ import annotations

from pathlib import Path

from start import run_script

from mcanalysis.cli.console import answer, bar, next_step, say
from mcanalysis.cli.flags import Parser, comma_list
from mcanalysis.cli.run_flags import add_model_flags, engine
from mcanalysis.cli.running import quiet_libraries
from mcanalysis.cli.workers import add_workers_flags, workers
from mcanalysis.errors import UserError
from mcanalysis.studies.card_settings import CardPaths


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("first", metavar="FIRST", help="a PEFT adapter, at t = 0")
    parser.add_argument("second", nargs="?", metavar="SECOND", help="another of the same base, at t = 1")
    parser.add_argument("--data", type=comma_list, metavar="FILE[,FILE2]", help="prompts and answers; needed")
    parser.add_argument("--score", default=None, help="how outputs are scored (default exact_match)")
    parser.add_argument("--max-new-tokens", type=int, default=None, metavar="N", help="the longest answer (64)")
    parser.add_argument("--max-length", type=int, default=1024, metavar="N", help="longer prompts lose their middle")
    parser.add_argument("--output-dir", default=None, metavar="DIR", help="default: runs/card-FIRST-SECOND")
    parser.add_settings(CardPaths, only=("num_points", "num_examples", "tolerance", "noticeable"))
    hub = parser.group("hub (nothing is uploaded without --push)")
    hub.add_argument(
        "--push", default=None, metavar="OWNER/NAME", help="upload a point and its card, as a PEFT adapter"
    )
    hub.add_argument(
        "--t", type=float, default=None, metavar="X", help="the point, (1-t)·FIRST + t·SECOND (default t*)"
    )
    add_model_flags(parser)
    parser.set_defaults(model=None)
    add_workers_flags(parser)
    args = parser.parse()
    if args.second is None:
        minima = " ".join(map(str, sorted(Path(args.first).glob("minima/*/*"))[:2]))
        found = f"a run; two of its minima are {minima}" if minima else f"{args.first} alone"
        parser.error(f"expected FIRST and SECOND, two adapters, got {found}")
    if args.data is None:
        parser.error("expected --data FILE with prompts and answers, got none")
    if args.t is not None and (args.push is None or not 0 <= args.t <= 1):
        parser.error(f"expected --t from 0 to 1 and with --push, got {args.t:g}")

    quiet_libraries()
    from mcanalysis.models.chat_template import read_template
    from mcanalysis.models.hub_upload import check_upload, push_to_hub
    from mcanalysis.studies.card import base_of, card, default_folder

    if args.push is not None:
        check_upload(args.push)
    adapters = (args.first, args.second)
    args.model = args.model or base_of(adapters)
    with workers(args) as those:
        made = card(
            *adapters, args.data,
            model=args.model, score=args.score, output_dir=args.output_dir,
            study=parser.settings(CardPaths, args), workers=those, progress=bar,
            dtype=args.dtype, device=args.device, engine=engine(args), max_new_tokens=args.max_new_tokens,
            max_length=args.max_length, revision=args.revision, chat_template=read_template(args.chat_template),
        )  # fmt: skip
    files = made.save(args.output_dir or default_folder(adapters))
    for sentence in made.verdict:
        say(sentence)
    say(f"\ncard: {files[0]} and {files[1].name}")
    address = None
    if args.push is not None:
        t = made.t_star if args.t is None else args.t
        if t != t:
            raise UserError("Expected a point to upload, got no t*: no gain could be measured; name one with --t.")
        address = push_to_hub(made.point(t), args.push, made.base_name, made.of_point(t))
        say(f"t = {t:g} is uploaded: {address}")
    measured = ("--minima", ",".join(adapters), "--data", ",".join(args.data), "--num-examples", "all")
    next_step("connectivity", "--model", args.model, *measured)
    answer(made.tables, [], verdict=list(made.verdict), t_star=made.t_star, card=list(map(str, files)), pushed=address)


if __name__ == "__main__":
    run_script(main)
