"""`--minima` with whole models, DoRA, both mixed with LoRA, many at once; `--objective` with a loss of one's own."""

import json
import shutil
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform
from transformers import AutoModelForCausalLM

from mcanalysis.models.encoding import encode_all
from mcanalysis.store.measurements import MeasurementStore
from mcanalysis.tasks.task import Example

QUESTIONS = [("apple river:", "seven"), ("green Haus:", "stone quiet"), ("paper:", "north"), ("silver seven:", "apple")]
FLAGS = ("--score", "exact_match", "--max-new-tokens", 3, "--num-points", 3, "--device", "cpu", "--output-dir", "out")


@pytest.fixture
def data(tmp_path):
    (tmp_path / "data.json").write_text(json.dumps([{"prompt": p, "answer": a} for p, a in QUESTIONS]))
    return "data.json"


def moved(base_folder, folder, directions):
    """The base with a multiple of each of several random directions, by seed, added to its weights."""
    model = AutoModelForCausalLM.from_pretrained(base_folder)
    with torch.no_grad():
        for seed, size in directions.items():
            generator = torch.Generator().manual_seed(seed)
            for tensor in model.parameters():
                tensor.add_(size * tensor.abs().mean() * torch.randn(tensor.shape, generator=generator))
    model.save_pretrained(folder)
    return str(folder)


def adapter(base_folder, folder, dora, rank=2, modules=("q_proj", "down_proj")):
    torch.manual_seed(5)
    base = AutoModelForCausalLM.from_pretrained(base_folder)
    model = get_peft_model(base, LoraConfig(use_dora=dora, r=rank, target_modules=list(modules)))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
            elif "magnitude" in name:
                parameter.mul_(torch.rand_like(parameter) + 0.5)
    model.peft_config["default"].base_model_name_or_path = str(base_folder)
    model.save_pretrained(folder)
    return str(folder)


def loss_by_hand(model, tokenizer):
    """Nats per target token, one unpadded example at a time."""
    examples, _ = encode_all([Example(*q) for q in QUESTIONS], tokenizer, max_length=1024)
    total, number = 0.0, 0
    for example in examples:
        ids = torch.tensor([[*example.prompt_ids, *example.answer_ids]])
        labels = ids.clone()
        labels[:, : len(example.prompt_ids)] = -100
        with torch.no_grad():
            total += float(model(ids, labels=labels).loss) * len(example.answer_ids)
        number += len(example.answer_ids)
    return total / number


def mixed(models, shares):
    found = AutoModelForCausalLM.from_config(models[0].config)
    states = [model.state_dict() for model in models]
    found.load_state_dict({n: sum(c * s[n] for c, s in zip(shares, states, strict=True)) for n in states[0]})
    return found.eval()


def profile(rows, **where):
    for column, value in where.items():
        rows = rows[rows[column] == value]
    return rows.sort_values("t").loss.to_list()


def test_two_whole_models_and_the_base(script, base_folder, tokenizer, data, tmp_path):
    folders = [moved(base_folder, tmp_path / name, {k: 0.3}) for k, name in enumerate(("first", "second"), start=1)]
    flags = ("--model", base_folder, "--minima", "first,second", "--data", data, "--from-base", *FLAGS)
    code, out, err = script("connectivity", *flags)
    assert code == 0 and "Two models" in out, err
    models = [AutoModelForCausalLM.from_pretrained(folder).eval() for folder in (base_folder, *folders)]
    rows = pd.read_csv("out/tables/profiles.csv")
    assert set(zip(rows.path, rows.space, strict=True)) == {("linear", "delta")} and set(rows.strategy) == {"models"}
    for start, end, ends in (("1-first", "2-second", (1, 2)), ("0-BASE", "2-second", (0, 2))):
        pair = [models[k] for k in ends]
        wanted = [loss_by_hand(mixed(pair, (1 - t, t)), tokenizer) for t in (0.0, 0.5, 1.0)]
        assert profile(rows, start=start, end=end) == pytest.approx(wanted, rel=1e-4)
        lengths = pd.read_csv("out/tables/paths.csv").query("start == @start and end == @end").length
        squares = [(a - b).detach().square().sum().item() for a, b in zip(*(m.parameters() for m in pair), strict=True)]
        assert lengths.to_list() == pytest.approx([sum(squares) ** 0.5] * len(lengths), rel=1e-5)
    caption = Path("out/figures/connectivity_fast.txt").read_text()
    assert "between two models" in caption
    before = Path("out/measurements.sqlite").stat().st_mtime_ns
    assert script("connectivity", *flags)[0] == 0
    assert Path("out/measurements.sqlite").stat().st_mtime_ns == before  # nothing was measured anew


def test_adapters_beside_a_whole_model_are_merged_into_the_base(script, base_folder, tokenizer, data, tmp_path):
    whole = moved(base_folder, tmp_path / "whole", {1: 0.3})
    places = [adapter(base_folder, tmp_path / "dora", True), adapter(base_folder, tmp_path / "lora", False)]
    base = lambda: AutoModelForCausalLM.from_pretrained(base_folder)  # noqa: E731
    models = [PeftModel.from_pretrained(base(), place).merge_and_unload() for place in places]
    models.append(AutoModelForCausalLM.from_pretrained(whole))
    code, out, err = script(
        "connectivity", "--model", base_folder, "--minima", "dora,lora,whole", "--data", data, *FLAGS
    )
    assert code == 0, err
    assert "3 minima: 3 paths of 3 points, 6 points in all" in out
    rows = pd.read_csv("out/tables/profiles.csv")
    labels = ["1-dora", "2-lora", "3-whole"]
    for i, j in combinations(range(3), 2):
        wanted = [loss_by_hand(mixed([models[i], models[j]], (1 - t, t)), tokenizer) for t in (0.0, 0.5, 1.0)]
        assert profile(rows, start=labels[i], end=labels[j]) == pytest.approx(wanted, rel=1e-4)


@pytest.mark.slow
def test_three_adapters_of_other_ranks_and_modules(script, base_folder, tokenizer, data, tmp_path):
    kinds = {"a": (2, ("q_proj",)), "b": (3, ("v_proj", "q_proj")), "c": (1, ("down_proj",))}
    places = [adapter(base_folder, tmp_path / name, False, *kind) for name, kind in kinds.items()]
    code, out, err = script(
        "connectivity", "--model", base_folder, "--minima", "[abc]", "--data", data, "--from-base", *FLAGS
    )
    assert code == 0 and "3 minima: 3 paths" in out, err
    models = [AutoModelForCausalLM.from_pretrained(base_folder)]
    for place in places:
        base = AutoModelForCausalLM.from_pretrained(base_folder)
        models.append(PeftModel.from_pretrained(base, place).merge_and_unload())
    rows = pd.read_csv("out/tables/profiles.csv")
    assert set(rows.strategy) == {"adapters"} and set(rows.space) == {"delta"}
    labels = ["0-BASE", "1-a", "2-b", "3-c"]
    for i, j in combinations(range(4), 2):
        wanted = [loss_by_hand(mixed([models[i], models[j]], (1 - t, t)), tokenizer) for t in (0.0, 0.5, 1.0)]
        assert profile(rows, start=labels[i], end=labels[j]) == pytest.approx(wanted, rel=1e-4)
    assert pd.read_csv("out/tables/barrier_matrix.csv").minimum.unique().tolist() == labels[1:]


WELLS = """
def double_well(model, tokenizer):
    x = float(model.model.norm.weight[0])
    return {"nll": [(1 - x * x) ** 2] * 60, "targets": [1] * 60}
"""


def test_many_minima_give_a_matrix_and_its_clusters(script, base_folder, tmp_path, monkeypatch):
    wells = {"checkpoint-9": -1.0, "checkpoint-10": -0.98, "checkpoint-20": 1.0, "checkpoint-100": 0.99}
    model = AutoModelForCausalLM.from_pretrained(base_folder)
    for name, x in wells.items():
        model.model.norm.weight.data[0] = x
        model.save_pretrained(tmp_path / name)
    (tmp_path / "checkpoint-log").write_text("no folder")
    (tmp_path / "wells.py").write_text(WELLS)
    monkeypatch.setattr("sys.path", sys.path.copy())
    flags = ("--model", base_folder, "--minima", "checkpoint-*", "--objective", "wells:double_well", "--num-points", 3)
    code, out, err = script("connectivity", *flags, "--device", "cpu", "--output-dir", "out")
    assert code == 0, err
    assert "4 minima: 6 paths of 3 points, 10 points in all" in out
    assert "Clusters: 1: 1-checkpoint-9, 2-checkpoint-10; 2: 3-checkpoint-20, 4-checkpoint-100." in out
    with MeasurementStore(tmp_path / "out/measurements.sqlite") as store:
        assert len(store) == 10  # each minimum once
    table = pd.read_csv("out/tables/barrier_matrix.csv").query("quantity == 'loss'")
    names = ["1-checkpoint-9", "2-checkpoint-10", "3-checkpoint-20", "4-checkpoint-100"]  # by number, not by letter
    assert table.minimum.to_list() == names
    matrix = table[names].to_numpy()
    loss = lambda x: (1 - x * x) ** 2  # noqa: E731
    for (i, x), (j, y) in combinations(enumerate(wells.values()), 2):
        barrier = max(0.0, loss((x + y) / 2) - (loss(x) + loss(y)) / 2)
        assert matrix[i, j] == matrix[j, i] == pytest.approx(barrier, abs=1e-6)
    assert not np.diag(matrix).any()
    tree = linkage(squareform(matrix), "average")
    wanted = fcluster(tree, 0.7 * tree[:, 2].max(), "distance")
    same = table.cluster.to_numpy()[:, None] == table.cluster.to_numpy()
    assert (same == (wanted[:, None] == wanted)).all() and table.cluster.to_list() == [1, 1, 2, 2]
    places = dict(zip(names, table.place, strict=True))
    assert abs(places[names[0]] - places[names[1]]) == abs(places[names[2]] - places[names[3]]) == 1
    assert "Frames: clusters" in Path("out/figures/barrier_matrix_linear_delta.txt").read_text()
    assert Path("out/figures/barrier_matrix_linear_delta.png").exists()


OWN = """
import torch

calls = []


def perplexity(model, tokenizer):
    calls.append(model)
    ids = torch.tensor([[5, 17, 40, 3, 9, 22]])
    assert not model.training and not torch.is_grad_enabled()
    return model(ids, labels=ids).loss.exp()


def each(model, tokenizer):
    ids = torch.tensor([[5, 17, 40, 3], [9, 22, 8, 30]])
    nll = torch.nn.functional.cross_entropy(model(ids).logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none")
    return {"nll": nll.sum(1), "targets": [3, 3]}


def broken(model, tokenizer):
    return {}["absent"]


number = 3
"""


@pytest.mark.parametrize("kind", ["adapters", pytest.param("models", marks=pytest.mark.slow)])
def test_a_loss_of_ones_own(kind, script, base_folder, tmp_path, monkeypatch):
    name = f"losses_{kind}"  # a module is imported once in a process
    (tmp_path / f"{name}.py").write_text(OWN)
    monkeypatch.setattr("sys.path", sys.path.copy())
    if kind == "models":
        places = [moved(base_folder, tmp_path / f"m{k}", {k: 0.3}) for k in (1, 2)]
        ends = [AutoModelForCausalLM.from_pretrained(place) for place in places]
        middle = mixed(ends, (0.5, 0.5))
    else:
        places = [adapter(base_folder, tmp_path / "a", False)] * 2
        middle = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base_folder), places[0])
    flags = ("--model", base_folder, "--minima", ",".join(places), "--num-points", 3, "--device", "cpu")
    code, _, err = script("connectivity", *flags, "--objective", f"{name}:perplexity", "--output-dir", "one")
    assert code == 0, err
    ids = torch.tensor([[5, 17, 40, 3, 9, 22]])
    with torch.no_grad():
        wanted = float(middle.eval()(ids, labels=ids).loss.exp())
    rows = pd.read_csv("one/tables/profiles.csv")
    assert set(rows.task) == {"perplexity"} and not set(rows.path) - {"linear"}
    assert rows[(rows.t == 0.5) & (rows.space == "delta")].loss.to_list() == pytest.approx([wanted], rel=1e-4)
    assert rows[["loss_low", "loss_high", "score"]].isna().all(axis=None)  # one number has no interval
    code, _, err = script("connectivity", *flags, "--objective", f"{name}:each", "--output-dir", "each")
    assert code == 0, err
    rows = pd.read_csv("each/tables/profiles.csv")
    assert set(rows.num_examples) == {2} and set(rows.num_targets) == {6} and rows.loss_low.notna().all()


def test_what_cannot_be_measured_is_refused_in_one_line(script, base_folder, data, tmp_path):
    whole = moved(base_folder, tmp_path / "whole", {1: 0.1})
    (tmp_path / "own_losses.py").write_text(OWN)
    (tmp_path / "states").mkdir()
    (tmp_path / "states/optimizer.pt").write_bytes(b"")
    adapter(base_folder, tmp_path / "lora", False)
    shutil.copytree(whole, tmp_path / "both")
    shutil.copy("lora/adapter_config.json", "both/adapter_config.json")
    on_data, own = ("--data", data), ("--objective", "own_losses:perplexity")
    for flags, words in (
        (("--minima", "whole,states", *on_data), "optimizer states only"),
        (("--minima", "whole,both", *on_data), "which holds both"),
        (("--minima", "whole,no/model", *on_data), "Expected a model folder, an adapter folder or a hub id"),
        (("--minima", "nothing-*", *on_data), "Expected folders that fit 'nothing-*'"),
        (("--minima", "whole", *on_data), "two or more --minima"),
        (("--minima", "whole,lora", *on_data, "--dtype", "bfloat16"), "Expected float32 weights to merge adapters"),
        (("--minima", "whole,whole", *on_data, "--paths", "bezier-delta"), "got bezier-delta; give --paths"),
        (("--minima", "whole,whole", *on_data, "--ensemble", 3), "Expected --ensemble with adapters"),
        (("--minima", "whole,whole", *on_data, "--engine", "unmerged"), "got whole models"),
        (("--minima", "whole,whole", *on_data, *own), "Expected --data or --objective, got both"),
        (("--objective", "own_losses:perplexity"), "go together"),
        (("--minima", "lora,lora", "--objective", "own_losses"), "Expected --objective module:function"),
        (("--minima", "lora,lora", "--objective", "absent_module:f"), "Expected a module 'absent_module'"),
        (("--minima", "lora,lora", "--objective", "own_losses:number"), "got a int"),
        (("--minima", "lora,lora", *own, "--num-examples", 3), "--num-examples is for data files"),
        (("--minima", "lora,lora", *own, "--max-length", 64), "--max-length is for data files"),
        (("--minima", "lora,lora", *own, "--tolerance", 0.1), "Expected --tolerance with adapters and --data"),
        (("--minima", "lora,lora", "--objective", "own_losses:broken"), "got KeyError: 'absent'"),
    ):
        code, _, err = script("connectivity", "--model", base_folder, *flags, "--device", "cpu", "--output-dir", "out")
        last = err.strip().splitlines()[-1]
        assert code == 2 and last.startswith("error:") and words in last, (flags, err)
