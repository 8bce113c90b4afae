"""An objective from adapters, a base and a data file gives what PEFT gives, on every kind of path between them."""

import json

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

import mcanalysis as mc
from mcanalysis.errors import DataError, PointMismatchError, UserError
from mcanalysis.metrics.scores import get_score
from mcanalysis.models.encoding import collate, encode_all
from mcanalysis.models.forward import forward
from mcanalysis.tasks.task import Example

EXAMPLES = [Example(f"apple river {i}:", "green stone") for i in range(4)]


@pytest.fixture
def data(tmp_path):
    file = tmp_path / "mine.json"
    file.write_text(json.dumps([{"prompt": e.prompt, "answer": e.answer} for e in EXAMPLES]))
    return file


@pytest.mark.parametrize("space", ["factor", "delta", "aligned"])
def test_it_gives_what_peft_gives(make_model, random_point, base_folder, tokenizer, data, tmp_path, space):
    model = make_model()
    path = mc.Linear(random_point(model, 1), random_point(model, 2), space=space)
    objective = mc.adapter_objective(str(base_folder), [path(0.0), path(1.0)], data, device="cpu")
    for t in (0.0, 0.4):
        mc.save_adapter(path(t), tmp_path / "saved", str(base_folder))
        loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base_folder), tmp_path / "saved").eval()
        with torch.no_grad():
            nll = forward(loaded, collate(encode_all(EXAMPLES, tokenizer, 64)[0], tokenizer.pad_token_id)).nll
        torch.testing.assert_close(torch.tensor(objective(path(t)).nll), nll.double(), rtol=1e-5, atol=1e-5)
    profile = mc.profile(path, objective, ts=[0, 0.5, 1])
    low, high = profile.chord_barrier_interval()
    assert low <= high and profile.losses[0] == objective(path(0.0)).loss


def test_adapters_of_other_ranks_and_modules_fit(make_model, random_point, base_folder, data):
    a = random_point(make_model(target_modules=("q_proj", "k_proj")), 1)
    b = random_point(make_model(rank=2, target_modules=("q_proj", "v_proj")), 2)
    objective = mc.adapter_objective(str(base_folder), [a, b], data, device="cpu", num_examples=2)
    for space in ("delta", "aligned"):
        assert objective(mc.Linear(a, b, space=space)(0.5)).num_examples == 2


def test_what_does_not_fit_is_refused(make_model, random_point, base_folder, data, tmp_path):
    point = random_point(make_model())
    name = str(base_folder)
    wide = {k: torch.zeros(4, 99) if ".lora_A." in k else v for k, v in point.items()}
    with pytest.raises(PointMismatchError, match=r"of size 32 in dimension 1, .* got 99; give the base"):
        mc.adapter_objective(name, [point, wide], data, device="cpu")
    with pytest.raises(PointMismatchError, match="only LoRA factors"):
        mc.adapter_objective(name, [{"w": torch.ones(1)}], data, device="cpu")
    with pytest.raises(UserError, match="at least one adapter"):
        mc.adapter_objective(name, [], data, device="cpu")
    raw = {f"base_model.model.{k}": v for k, v in point.items()}
    with pytest.raises(PointMismatchError, match=r"got 'base_model\..*α/r|α/r.*got 'base_model\.model"):
        mc.adapter_objective(name, [raw], data, device="cpu")
    with pytest.raises(DataError, match="Expected a JSON file"):
        mc.adapter_objective(name, [point], tmp_path / "absent.json", device="cpu")


def test_arguments_of_another_kind_are_told_in_one_line(make_model, random_point, base_folder, data, tmp_path):
    point, name = random_point(make_model()), str(base_folder)
    (tmp_path / "m.parquet").write_bytes(b"PAR1\xff")
    (tmp_path / "m.csv").write_text("prompt,answer\na,b\n")
    for arguments, options, message in (
        ((make_model().peft, [point], data), {}, r"folder or hub id of the base, got a PeftModel.*save_pretrained"),
        ((name, [point], [{"prompt": "a", "answer": "b"}]), {}, r"path of a data file, got a list.*json\.dump"),
        ((name, point, data), {}, "a list of points, got a dict"),
        ((name, ["folder"], data), {}, r"got str; take .*mc\.load_adapter\(folder\)\.point"),
        ((name, [point], tmp_path / "m.csv"), {}, r"got a table \(\.csv\).*analyses/convert\.py --source"),
        ((name, [point], tmp_path / "m.parquet"), {}, r"got a table \(\.parquet\).*analyses/convert\.py"),
        ((name, [point], data), {"score": get_score("rouge_l")}, "name of a score, got a Score.*your-own-score"),
        ((name, [point], data), {"num_examples": 0}, "num_examples of at least 1, got 0"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            mc.adapter_objective(*arguments, device="cpu", **options)
        assert "\n" not in str(caught.value)
    assert mc.adapter_objective(base_folder, [point], data, device="cpu", num_examples=1)(point).num_examples == 1
