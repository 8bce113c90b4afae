"""An objective from adapters, a base and a data file gives what PEFT gives, on every kind of path between them."""

import json

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

import mcanalysis as mc
from mcanalysis.errors import DataError, PointMismatchError, UserError
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
    with pytest.raises(DataError, match="Expected a JSON file"):
        mc.adapter_objective(name, [point], tmp_path / "absent.json", device="cpu")
