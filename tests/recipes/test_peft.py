"""Recipes of `add_weighted_adapter` against PEFT on the real base, and NumPy where it does what it says."""

import json

import pytest
import torch
import yaml

import mcanalysis as mc
from mcanalysis.models.loading import load_base
from mcanalysis.params.lora import delta_weights
from mcanalysis.recipes.peft import PeftRecipe, peft_recipe, read_peft


@pytest.fixture(scope="module")
def folder(base_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    base, _ = load_base(str(base_folder))
    shapes = {n: m.weight.shape for n, m in base.named_modules() if n.endswith(("q_proj", "v_proj"))}
    for seed, (name, rank) in enumerate({"a": 2, "b": 2, "c": 3, "scaled": 2, "stable": 2}.items()):
        g = torch.Generator().manual_seed(seed)
        point = {f"{n}.lora_A.weight": torch.randn(rank, into, generator=g) for n, (_, into) in shapes.items()}
        point |= {f"{n}.lora_B.weight": torch.randn(out, rank, generator=g) for n, (out, _) in shapes.items()}
        mc.save_adapter(point, folder / name, str(base_folder))
    for name, changed in (("scaled", {"lora_alpha": 6}), ("stable", {"use_rslora": True})):
        file = folder / name / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changed))
    return folder


def of_peft(base_folder, recipe):
    """ΔW as PEFT has it on the base itself."""
    from peft import PeftModel

    base, _ = load_base(str(base_folder))
    model = PeftModel.from_pretrained(base, recipe.adapters[0], "0")
    for i, name in enumerate(recipe.adapters[1:], start=1):
        model.load_adapter(name, str(i))
    names = [str(i) for i in range(len(recipe.adapters))]
    options = {} if recipe.density is None else {"density": recipe.density}
    model.base_model.add_weighted_adapter(
        names, list(recipe.weights), "m", combination_type=recipe.combination_type, svd_rank=recipe.svd_rank, **options
    )
    layers = model.base_model.model.named_modules()
    return {n: layer.get_delta_weight("m") for n, layer in layers if "m" in getattr(layer, "lora_A", ())}


@pytest.mark.parametrize(
    ("names", "weights", "how"),
    [
        (("a", "scaled"), (0.7, 0.3), {"combination_type": "cat"}),
        (("a", "c"), (0.7, -0.3), {"combination_type": "cat"}),
        (("a", "b"), (0.49, 0.09), {"combination_type": "linear"}),
        (("a", "c"), (0.7, 0.3), {"combination_type": "svd", "svd_rank": 5}),
        (("a", "b"), (0.5, 0.5), {"combination_type": "ties", "density": 0.5}),
    ],
)
def test_the_point_is_what_peft_makes_on_the_real_base(folder, base_folder, tmp_path, names, weights, how):
    made = PeftRecipe(tuple(str(folder / n) for n in names), weights, **how)
    (tmp_path / "recipe.json").write_text(json.dumps(yaml.safe_load(made.to_yaml())))
    read = read_peft(tmp_path / "recipe.json")
    assert read == made
    found, theirs = delta_weights(read.point()), of_peft(base_folder, made)
    assert set(found) == set(theirs)
    for name, delta in theirs.items():
        torch.testing.assert_close(found[name], delta, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "names", "how"),
    [
        ("linear-delta", ("a", "c"), "cat"),
        ("linear-factor", ("a", "b"), "linear"),
        ("task_arithmetic-delta", "ab", "cat"),
    ],
)
def test_a_written_recipe_gives_the_point_of_the_path(folder, base_folder, kind, names, how):
    made = peft_recipe(kind, 0.3, [str(folder / n) for n in names])
    assert made.combination_type == how
    theirs = of_peft(base_folder, made)
    A, B = ([mc.load_adapter(folder / n).point[k] for n in names] for k in keys(theirs))
    if kind == "linear-factor":
        by_hand = (0.7 * B[0] + 0.3 * B[1]) @ (0.7 * A[0] + 0.3 * A[1])
    else:
        first = 0.7 if kind == "linear-delta" else 0.3
        by_hand = first * B[0] @ A[0] + 0.3 * B[1] @ A[1]
    torch.testing.assert_close(theirs[next(iter(theirs))], by_hand, rtol=1e-4, atol=1e-4)


def keys(deltas):
    name = next(iter(deltas))
    return f"{name}.lora_A.weight", f"{name}.lora_B.weight"


@pytest.mark.parametrize(
    ("kind", "names", "words"),
    [
        ("linear-delta", ("stable", "a"), "off by"),  # √r too large, in every mode
        ("linear-factor", ("a", "scaled"), "off by"),
        ("linear-factor", ("a", "c"), "different ranks"),
        ("ties-delta", ("a", "b"), "recipe of add_weighted_adapter 'ties-delta'"),
    ],
)
def test_what_peft_would_not_reproduce_is_not_written(folder, kind, names, words):
    with pytest.raises(mc.UserError, match=words):
        peft_recipe(kind, 0.3, [str(folder / n) for n in names])


def test_a_recipe_of_which_peft_makes_something_else_is_said(folder, caplog):
    PeftRecipe((str(folder / "a"), str(folder / "c")), (0.5, 0.5), "cat").point()
    assert not caplog.records
    PeftRecipe((str(folder / "a"), str(folder / "b")), (0.5, 0.5), "linear").point()
    assert "something else of this recipe" in caplog.text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("weights: [1]", "adapters and weights"),
        ("{adapters: [a, b], weights: [1]}", "weight for each adapter"),
        ("{adapters: [a], weights: [x]}", "lists of folders and of numbers"),
        ("{adapters: [a], weights: [1], combination_type: soup}", "combination_type of PEFT 'soup'"),
        ("{adapters: [a], weights: [1], densty: 1}", "Did you mean 'density'"),
        ("{adapters: [a], weights: [1], combination_type: ties}", "a density in"),
        ("{adapters: [a], weights: [1], combination_type: dare_ties, density: 0.5}", "draws other entries"),
        ("{adapters: [a], weights: [1], svd_rank: two}", "another value for svd_rank"),
        ("{adapters: [nowhere], weights: [1]}", "Expected a PEFT adapter"),
    ],
)
def test_bad_recipes_are_refused_by_name(tmp_path, text, words):
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(mc.UserError, match=words) as error:
        read_peft(tmp_path / "bad.yaml").point()
    assert "\n" not in str(error.value)


def test_what_peft_refuses_is_said_in_its_words(folder):
    with pytest.raises(mc.UserError, match=r"to merge .*, got: All adapters must have the same r"):
        PeftRecipe((str(folder / "a"), str(folder / "c")), (0.5, 0.5), "linear").point()


def test_adapters_of_different_bases_have_no_recipe(folder):
    pair = [str(folder / name) for name in ("here", "elsewhere")]
    for place, base in zip(pair, ("some/base", "some/other"), strict=True):
        mc.save_adapter(mc.load_adapter(folder / "a").point, place, base)
    with pytest.raises(mc.UserError, match="one base model"):
        peft_recipe("linear-delta", 0.3, pair)
    with pytest.raises(mc.UserError, match="one base model"):
        PeftRecipe(tuple(pair), (0.5, 0.5), "cat").point()
