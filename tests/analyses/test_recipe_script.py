"""Recipes on the command line: written, read back, saved as an adapter; bad input."""

import json

import pytest
import torch
import yaml

import mcanalysis as mc
from mcanalysis.params.lora import delta_weights
from mcanalysis.recipes.place import place_between


@pytest.fixture
def ends(tmp_path):
    found = []
    for seed, name in enumerate(("first", "second")):
        g = torch.Generator().manual_seed(seed)
        point = {"q.lora_A.weight": torch.randn(2, 4, generator=g), "q.lora_B.weight": torch.randn(3, 2, generator=g)}
        mc.save_adapter(point, tmp_path / name, "my/base")
        found.append(delta_weights(point)["q"])
    return found


@pytest.mark.parametrize("tool", ["mergekit", "peft"])
def test_a_recipe_is_written_read_and_saved(script, ends, tmp_path, tool):
    base = ("--base", "my/base") if tool == "mergekit" else ()
    code, out, err = script("recipe", "first", "second", "--to", tool, "--t", 0.3, *base)
    assert code == 0 and "recipe.yaml" in out, err
    code, out, err = script("recipe", "--read", "recipe.yaml", "--output-dir", "point")
    assert code == 0 and "0.7 of " in out and (tool == "peft" or "t = 0.3 on linear-delta" in out), err
    saved = mc.load_adapter(tmp_path / "point")
    torch.testing.assert_close(delta_weights(saved.point)["q"], 0.7 * ends[0] + 0.3 * ends[1])
    assert saved.base_name == "my/base"
    config = tmp_path / "first" / "adapter_config.json"
    before = config.read_bytes()
    for output, done in ((config, 2), ("recipe.yaml", 0)):  # a file of another kind, and the recipe itself
        code, _, err = script("recipe", "first", "second", "--to", tool, "--t", 0.3, *base, "--output", output)
        assert code == done and ("would be lost" in err) == (done == 2), err
    assert config.read_bytes() == before
    code, out, _ = script("recipe", "--read", "recipe.yaml", "--json")
    assert code == 0 and json.loads(out)["weights"] == [0.7, 0.3] and json.loads(out)["saved"] is None


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ((), "FIRST and SECOND"),
        (("first",), "FIRST and SECOND"),
        (("first", "second", "--read", "r.yaml"), "FIRST and SECOND"),
        (("first", "second", "--output-dir", "x"), "--output-dir with --read"),
        (("first", "second"), "got an adapter"),
        (("first", "second", "--to", "peft", "--path", "slerp-delta"), "slerp-delta"),
        (("--read", "nothing.yaml"), "nothing.yaml"),
        (("--read", "whole.yaml", "--output-dir", "x"), "whole models"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(script, ends, tmp_path, flags, words):
    models = [{"model": name, "parameters": {"weight": 1}} for name in "ab"]
    (tmp_path / "whole.yaml").write_text(yaml.safe_dump({"merge_method": "linear", "models": models}))
    code, _, err = script("recipe", *flags)
    assert code == 2 and words in err and len(err.strip().splitlines()) == 1, err
    assert not (tmp_path / "recipe.yaml").exists() and not (tmp_path / "x").exists()


def test_a_recipes_point_is_marked_on_the_path(adapter_folder, base_folder, script):
    flags = (
        "--minima",
        "first,second",
        "--data",
        "old.json",
        "--model",
        base_folder,
        "--num-points",
        3,
        "--workers",
        1,
    )
    flags += ("--max-new-tokens", 2)
    assert script("recipe", "second", "first", "--base", base_folder, "--t", 0.2)[0] == 0
    code, out, _ = script("recipe", "--read", "recipe.yaml")
    assert code == 0 and "--recipe recipe.yaml" in out.splitlines()[-1]
    code, _, err = script("connectivity", *flags, "--paths", "linear-factor", "--recipe", "recipe.yaml")
    assert code == 2 and "the path of the recipe, linear-delta, among --paths" in err
    code, out, err = script("connectivity", *flags, "--paths", "linear-delta", "--recipe", "recipe.yaml")
    assert code == 0 and out.splitlines()[-1].startswith("next: python analyses/card.py first second"), err
    (words,) = adapter_folder.rglob("connectivity_*.txt")
    assert "the recipe's point, t = 0.8 on linear-delta" in words.read_text()  # counted from the first of --minima
    beyond = [
        {"model": f"{base_folder}+{n}", "parameters": {"weight": w}} for n, w in (("first", -0.5), ("second", 1.5))
    ]
    (adapter_folder / "beyond.yaml").write_text(yaml.safe_dump({"merge_method": "linear", "models": beyond}))
    code, _, err = script("connectivity", *flags, "--paths", "linear-delta", "--recipe", "beyond.yaml")
    assert code == 2 and "0 to 1, got 1.5; --extrapolate" in err
    models = [{"model": f"{base_folder}+{name}", "parameters": {"weight": 1}} for name in ("first", "other")]
    (adapter_folder / "other.yaml").write_text(yaml.safe_dump({"merge_method": "linear", "models": models}))
    code, _, err = script("connectivity", *flags, "--recipe", "other.yaml", "--output-dir", "x")
    assert code == 2 and "a recipe of the two --minima" in err and not (adapter_folder / "x").exists()


@pytest.mark.parametrize(
    ("recipe", "place"),
    [
        ({"merge_method": "linear"}, ("linear-delta", 0.25)),
        ({"merge_method": "task_arithmetic", "base_model": "B"}, ("task_arithmetic-delta", 0.7)),
    ],
)
def test_places_count_from_the_first_minimum_and_a_sum_has_no_first(tmp_path, monkeypatch, recipe, place):
    """By hand: weights 0.75 and 0.25 are t = 0.25 from the first, 0.75 from the second; 0.7·(ΔW₁ + ΔW₂) is t = 0.7."""
    monkeypatch.chdir(tmp_path)
    weights = (0.75, 0.25) if recipe["merge_method"] == "linear" else (0.7, 0.7)
    models = [
        {"model": f"B+{n}", "parameters": {"weight": w}} for n, w in zip(("first", "second"), weights, strict=True)
    ]
    (tmp_path / "r.yaml").write_text(yaml.safe_dump({**recipe, "models": models, "parameters": {"normalize": False}}))
    assert place_between("r.yaml", ("first", "second")) == place
    turned = (place[0], 1 - place[1]) if place[0] == "linear-delta" else place
    assert place_between("r.yaml", ("second", "first")) == turned


def test_slerp_of_adapters_is_on_no_path_of_ours(tmp_path, monkeypatch):
    """mergekit turns W₀ + ΔW, our `slerp-delta` turns ΔW: other points."""
    monkeypatch.chdir(tmp_path)
    slices = {"merge_method": "slerp", "base_model": "B+first", "parameters": {"t": 0.3}}
    (tmp_path / "r.yaml").write_text(
        yaml.safe_dump({**slices, "models": [{"model": "B+first"}, {"model": "B+second"}]})
    )
    with pytest.raises(mc.UserError, match="whose point does not"):
        place_between("r.yaml", ("first", "second"))
