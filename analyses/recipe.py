"""Recipes of mergekit and of PEFT's add_weighted_adapter: read one and say its weights and t, or write a point's.

`recipe.py --read FILE --output-dir DIR` saves the point of adapters in DIR; `recipe.py FIRST SECOND --to mergekit` (or
`peft`) writes the recipe of the point at --t on --path, where one gives that very point.
"""

from __future__ import annotations

from start import run_script

from mcanalysis.cli.console import answer, next_step, say
from mcanalysis.cli.flags import Parser


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("models", nargs="*", metavar="FIRST SECOND", help="two adapters, or folders of whole models")
    parser.add_argument("--to", choices=("mergekit", "peft"), default="mergekit", help="what the recipe is for")
    parser.add_argument("--path", default="linear-delta", metavar="PATH-SPACE", help="the path between the two")
    parser.add_argument("--t", type=float, default=0.5, metavar="X", help="where on it")
    parser.add_argument("--base", default=None, metavar="BASE", help="of adapters, for mergekit: folder or hub id")
    parser.add_argument("--output", default="recipe.yaml", metavar="FILE", help="where the recipe is written")
    parser.add_argument("--read", default=None, metavar="FILE", help="a recipe instead, of mergekit or of PEFT")
    parser.add_argument("--output-dir", default=None, metavar="DIR", help="with --read: the point, as a PEFT adapter")
    args = parser.parse()
    if (args.read is None) == (len(args.models) != 2):
        parser.error("expected FIRST and SECOND, or --read FILE alone, got another number of models")
    if args.read is None and args.output_dir is not None:
        parser.error("expected --output-dir with --read, got FIRST and SECOND; name --output FILE")

    from pathlib import Path

    from mcanalysis.models.adapter_files import load_adapter, save_adapter
    from mcanalysis.recipes.files import read_tree
    from mcanalysis.recipes.mergekit import MergekitRecipe, mergekit_recipe, read_mergekit
    from mcanalysis.recipes.peft import peft_recipe, read_peft
    from mcanalysis.store.atomic import write_text_atomic
    from mcanalysis.store.one_file import check_output

    if args.read is None:
        if args.to == "peft":
            made = peft_recipe(args.path, args.t, args.models)
        else:
            made = mergekit_recipe(args.path, args.t, args.models, args.base)
        text = made.to_yaml()
        check_output(Path(args.output), text.partition(":")[0].encode(), "a recipe")
        write_text_atomic(Path(args.output), text)
        say(f"{args.path} at t = {args.t:g}, for {args.to}: {args.output}")
        merger = "add_weighted_adapter takes its keys" if args.to == "peft" else f"mergekit-yaml {args.output} OUT"
        next_step(f"{merger}; python analyses/recipe.py --read {args.output} reads it")
        answer(recipe=args.output, path=args.path, t=args.t)
        return
    recipe = read_mergekit(args.read) if "merge_method" in read_tree(args.read) else read_peft(args.read)
    if isinstance(recipe, MergekitRecipe):
        names, method, place, base = recipe.models, recipe.method, recipe.place, recipe.models[0].partition("+")[0]
        if args.output_dir is not None and "+" not in recipe.models[0]:
            parser.error(
                "expected adapters, <base>+<adapter>, with --output-dir, got whole models; mergekit-yaml merges them"
            )
    else:
        names, method, place = recipe.adapters, recipe.combination_type, None
        base = load_adapter(recipe.adapters[0]).base_name
    for name, weight in zip(names, recipe.weights, strict=True):
        say(f"{method}: {weight:g} of {name}")
    if place is not None:
        say(f"which is t = {place[1]:g} on {place[0]}")
    if args.output_dir is not None:
        save_adapter(recipe.point(), args.output_dir, base)
        say(f"the point, as a PEFT adapter: {args.output_dir}")
    if place is not None:
        of = ",".join(name.rpartition("+")[2] for name in names)
        next_step("connectivity", "--minima", of, "--data", "FILE", "--paths", place[0], "--recipe", args.read)
    else:
        next_step("check_merge")
    facts = {"path": place[0], "t": place[1]} if place else {}
    answer(method=method, models=list(names), weights=list(recipe.weights), saved=args.output_dir, **facts)


if __name__ == "__main__":
    run_script(main)
