"""Recipes of mergekit against its documented formulas in NumPy, and against itself where it is installed."""

import importlib.util

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import mcanalysis as mc
from mcanalysis.params.lora import delta_weights
from mcanalysis.recipes.mergekit import MergekitRecipe, mergekit_recipe, read_mergekit

NAMES = {"v.weight": (4, 6), "norm.weight": (5,), "q.weight": (5, 4)}


def whole(seed, around=None):
    g = torch.Generator().manual_seed(seed)
    drawn = {name: torch.randn(shape, generator=g) for name, shape in NAMES.items()}
    return drawn if around is None else {name: around[name] + 0.3 * t for name, t in drawn.items()}


BASE = whole(0)
MODELS = {"base": BASE, "a": whole(1, BASE), "b": whole(2, BASE), "c": whole(3, BASE)}


def adapter(seed, rank):
    g = torch.Generator().manual_seed(seed)
    point = {}
    for name in ("q", "v"):
        out, into = NAMES[f"{name}.weight"]
        point[f"{name}.lora_A.weight"] = torch.randn(rank, into, generator=g)
        point[f"{name}.lora_B.weight"] = torch.randn(out, rank, generator=g)
    return point


ADAPTERS = {"first": adapter(1, 2), "second": adapter(2, 3)}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, tensors in MODELS.items():
        (tmp_path / name).mkdir()
        names = list(tensors)
        for i, some in enumerate((names[:2], names[2:])):  # shards
            save_file({n: tensors[n] for n in some}, tmp_path / name / f"model-{i}.safetensors")
    for name, point in ADAPTERS.items():
        mc.save_adapter(point, tmp_path / name, "base")
    return tmp_path


def recipe(folder, method, models, weights, base=None, density=None, **shared):
    own = [{"weight": w} | ({} if density is None else {"density": d})
           for w, d in zip(weights, density or weights, strict=True)]  # fmt: skip
    tree = {"merge_method": method, "models": [{"model": m, "parameters": p} for m, p in zip(models, own, strict=True)]}
    tree |= {"base_model": base} if base else {}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(tree | {"parameters": shared, "dtype": "float32"}))
    return read_mergekit(folder / "recipe.yaml")


def dense(point):
    return {name: tensor.double().numpy() for name, tensor in point.items()}


def ties_by_hand(deltas, weights, densities, normalize, scale):
    """Trim each tensor by itself, weight, elect by the sum, and add what agrees, by its weights."""
    kept = []
    for delta, density in zip(deltas, densities, strict=True):
        smallest = np.sort(np.abs(delta), axis=None)[::-1][max(1, int(density * delta.size)) - 1]
        kept.append(np.where(np.abs(delta) >= smallest, delta, 0.0))
    weighted = np.stack([w * k for w, k in zip(weights, kept, strict=True)])
    sign = np.where(weighted.sum(0) >= 0, 1.0, -1.0)
    agrees = np.sign(weighted) == sign
    shares = sum(w * a for w, a in zip(weights, agrees, strict=True))
    total = (weighted * agrees).sum(0)
    return scale * (total / np.where(shares == 0, 1.0, shares) if normalize else total)


def close(found, expected):
    assert set(found) == set(expected)
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], atol=3e-6, err_msg=name)


def test_whole_models_by_every_method(folder):
    base, a, b, c = (dense(MODELS[name]) for name in ("base", "a", "b", "c"))

    def check(read, by_hand):
        close(dense(read.point()), {name: by_hand(name) for name in NAMES})

    check(recipe(folder, "linear", "abc", [2, 1, 1]), lambda n: (2 * a[n] + b[n] + c[n]) / 4)
    check(
        recipe(folder, "linear", "abc", [0.5, 0.3, -0.1], normalize=False),
        lambda n: 0.5 * a[n] + 0.3 * b[n] - 0.1 * c[n],
    )
    task = {"base": "base", "lambda": 1.3}
    check(recipe(folder, "task_arithmetic", "ab", [0.5, -0.2], **task),
          lambda n: base[n] + 1.3 * (0.5 * (a[n] - base[n]) - 0.2 * (b[n] - base[n])))  # fmt: skip
    for normalize in (True, False):
        read = recipe(folder, "ties", "abc", [0.5, 0.3, 0.9], "base", [0.3, 0.6, 1.0], normalize=normalize)
        check(read, lambda n, yes=normalize: base[n] + ties_by_hand(
            [m[n] - base[n] for m in (a, b, c)], [0.5, 0.3, 0.9], [0.3, 0.6, 1.0], yes, 1.0))  # fmt: skip
    check(recipe(folder, "dare_linear", "ab", [0.5, 0.2], "base", [1.0, 1.0]),
          lambda n: base[n] + 0.5 * (a[n] - base[n]) + 0.2 * (b[n] - base[n]))  # fmt: skip


def test_slerp_turns_whole_tensors_from_the_base_to_the_other(folder):
    (folder / "s.yaml").write_text(
        "merge_method: slerp\nbase_model: b\nmodels: [{model: a}, {model: b}]\nparameters: {t: 0.3}\ndtype: float32\n"
    )
    read = read_mergekit(folder / "s.yaml")
    assert read.place == ("slerp-delta", 0.3) and read.models == ("b", "a")
    start, end, found = dense(MODELS["b"]), dense(MODELS["a"]), dense(read.point())
    for name in NAMES:
        x, y = start[name], end[name]
        angle = np.arccos((x * y).sum() / np.linalg.norm(x) / np.linalg.norm(y))
        turned = (np.sin(0.7 * angle) * x + np.sin(0.3 * angle) * y) / np.sin(angle)
        np.testing.assert_allclose(found[name], turned, atol=1e-6)


def test_of_adapters_of_one_base_the_point_is_an_adapter(folder):
    one, two = ({m: d.double().numpy() for m, d in delta_weights(p).items()} for p in ADAPTERS.values())
    names = ["base+first", "base+second"]

    def check(read, by_hand):
        close({m: d.double().numpy() for m, d in delta_weights(read.point()).items()}, {m: by_hand(m) for m in one})

    check(recipe(folder, "linear", names, [1, 3]), lambda m: one[m] / 4 + 3 * two[m] / 4)
    check(recipe(folder, "linear", ["base", *names], [2, 1, 1]), lambda m: one[m] / 4 + two[m] / 4)
    check(recipe(folder, "task_arithmetic", names, [0.4, 0.4], "base"), lambda m: 0.4 * (one[m] + two[m]))
    check(recipe(folder, "ties", names, [1, 0.5], "base", [0.3, 0.5]),
          lambda m: ties_by_hand([one[m], two[m]], [1, 0.5], [0.3, 0.5], True, 1.0))  # fmt: skip
    assert recipe(folder, "linear", names, [1, 3]).place == ("linear-delta", 0.75)
    assert recipe(folder, "task_arithmetic", names, [0.4, 0.4], "base").place == ("task_arithmetic-delta", 0.4)
    assert recipe(folder, "task_arithmetic", names, [0.4, 0.5], "base").place is None


@pytest.mark.parametrize(
    ("kind", "models", "base"),
    [
        ("linear-delta", "ab", None), ("linear-factor", "ab", None), ("slerp-delta", "ab", None),
        ("linear-delta", ("first", "second"), "base"), ("task_arithmetic-delta", ("first", "second"), "base"),
    ],
)  # fmt: skip
def test_a_written_recipe_gives_the_point_of_the_path_and_says_where_it_is(folder, kind, models, base):
    made = mergekit_recipe(kind, 0.3, list(models), base)
    (folder / "made.yaml").write_text(made.to_yaml())
    read = read_mergekit(folder / "made.yaml")
    assert read.place == (kind.replace("-factor", "-delta"), pytest.approx(0.3))
    given = ADAPTERS if base else MODELS
    path = {"linear": mc.Linear, "slerp": mc.paths.Slerp, "task_arithmetic": mc.paths.TaskArithmetic}[
        kind.split("-")[0]
    ]
    expected, found = path(*(given[m] for m in models), space=kind.split("-")[1])(0.3), read.point()
    expected, found = (delta_weights(p) if base else p for p in (expected, found))
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "models", "base", "words"),
    [
        ("linear-factor", ("first", "second"), "base", "different ranks"),
        ("linear-aligned", ("first", "second"), "base", "off by 0"),
        ("slerp-delta", ("first", "second"), "base", "got adapters"),
        ("ties-delta", ("first", "second"), "base", "off by 0"),
        ("dare-delta", ("first", "second"), "base", "by chance"),
        ("magmax-delta", ("first", "second"), "base", "no method for it"),
        ("linear-delta", ("first", "second"), None, "got an adapter"),
        ("linear-delta", ("a", "b+c"), None, "without [+] and @"),
        ("linear-delta", ("a", "a"), None, "two different models"),
        ("linear-delta", ("a", "nowhere"), None, "got none"),
    ],
)
def test_a_point_that_mergekit_does_not_give_has_no_recipe(folder, kind, models, base, words):
    with pytest.raises(mc.UserError, match=words) as error:
        mergekit_recipe(kind, 0.3, models, base)
    assert "\n" not in str(error.value)


HEAD = "merge_method: linear\nmodels: [{model: a, parameters: {weight: 1}}, {model: b, parameters: {weight: 1}}]\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("merge_method: model_stock\nmodels: [{model: a}]\n", "method of mergekit 'model_stock'"),
        ("merge_method: passthrough\nslices: []\n", "'slices'"),
        (HEAD + "tokenizer_source: union\n", "'tokenizer_source'"),
        (HEAD + "parameters: {wieght: 1}\n", "Did you mean 'weight'"),
        (HEAD.replace("weight: 1", "weight: [0, 0.5]"), "by layer"),
        (HEAD.replace("weight: 1", "weight: [{filter: mlp, value: 1}]"), "by filter"),
        (HEAD.replace("weight: 1}}, ", "}}, "), "got nothing"),
        (HEAD.replace("weight: 1}}]", "weight: -1}}]"), "sum is not 0"),
        (HEAD.replace("linear", "ties"), "base_model with ties"),
        (HEAD + "base_model: another\n", "the base of a linear recipe among its models"),
        (HEAD.replace("linear", "dare_ties") + "base_model: base\nparameters: {density: 0.5}\n", "draws other entries"),
        (HEAD.replace("linear", "ties") + "base_model: base\nparameters: {density: 0}\n", "densities in"),
        (
            HEAD.replace("linear", "ties") + "base_model: base\nparameters: {density: 0.5, rescale: true}\n",
            "no rescale",
        ),
        (HEAD.replace("linear", "slerp"), "base_model and one other"),
        (HEAD.replace("model: b", "model: base+first"), "of one base"),
        ("merge_method: linear\n", "list of models"),
        ("[1, 2", "YAML or JSON"),
        ("- 1\n", "settings by name"),
    ],
)
def test_a_recipe_that_has_no_one_point_is_refused_by_name(folder, text, words):
    (folder / "bad.yaml").write_text(text)
    with pytest.raises(mc.UserError, match=words) as error:
        read_mergekit(folder / "bad.yaml").point()
    assert "\n" not in str(error.value)


def test_an_adapter_of_another_base_is_refused(folder):
    mc.save_adapter(ADAPTERS["first"], folder / "other", "some/other")
    with pytest.raises(mc.UserError, match="one base model"):
        MergekitRecipe("linear", ("my/base+first", "my/base+other"), (0.5, 0.5)).point()
    with pytest.raises(mc.UserError, match="one base model"):
        mergekit_recipe("linear-delta", 0.5, ("first", "other"), "my/base")


@pytest.mark.skipif(importlib.util.find_spec("mergekit") is None, reason="mergekit is not installed")
@pytest.mark.filterwarnings("ignore")  # of its own
@pytest.mark.parametrize("method", ["linear", "slerp", "task_arithmetic", "ties"])
def test_mergekit_itself_makes_the_same_weights(tmp_path, method):
    import transformers
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    for seed, name in enumerate(("base", "a", "b")):
        torch.manual_seed(seed)
        shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
        config = transformers.LlamaConfig(vocab_size=32, **shape)
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / name)
    first, second, base = (str(tmp_path / name) for name in ("a", "b", "base"))
    made = {
        "linear": MergekitRecipe("linear", (first, second), (0.7, 0.3)),
        "slerp": MergekitRecipe("slerp", (first, second), (0.7, 0.3)),
        "task_arithmetic": MergekitRecipe("task_arithmetic", (first, second), (0.7, 0.3), base),
        "ties": MergekitRecipe("ties", (first, second), (0.7, 0.3), base, (0.3, 0.6), normalize=True),
    }[method]
    config = MergeConfiguration.model_validate(yaml.safe_load(made.to_yaml()))
    run_merge(config, str(tmp_path / "out"), MergeOptions(copy_tokenizer=False, quiet=True))
    theirs, ours = load_file(tmp_path / "out" / "model.safetensors"), made.point()
    for name, tensor in theirs.items():
        assert float((ours[name] - tensor).norm() / tensor.norm()) <= 1e-6, name
