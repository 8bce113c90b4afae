"""Bases whose layers are shared out by accelerate: tried on the CPU, with the hooks that several GPUs would have."""

import pytest
import torch
from accelerate import dispatch_model

from mcanalysis.errors import UserError
from mcanalysis.evaluation.engine import Engine
from mcanalysis.evaluation.objective import make_objective
from mcanalysis.models.adapter_files import LoraSettings
from mcanalysis.models.encoding import collate
from mcanalysis.models.loading import load_base
from mcanalysis.models.lora_model import LoraModel
from mcanalysis.models.weight_files import WeightFiles
from mcanalysis.models.whole_model import WholeModel
from mcanalysis.tasks.task import Example, Task, TaskData
from mcanalysis.training.processes import Processes

PARTS = ("model.embed_tokens", "model.layers.0", "model.layers.1", "model.norm", "model.rotary_emb", "lm_head")


def lora(base, tokenizer, folder):
    return LoraModel.attach(base, tokenizer, LoraSettings(rank=2), 0, str(folder))


def whole(base, tokenizer, folder):
    return WholeModel(base, tokenizer, str(folder), [WeightFiles(str(folder), base)])


@pytest.mark.parametrize("make", [lora, whole])
def test_what_is_measured_is_the_same(make, base_folder, random_point):
    words = [("apple river:", "seven"), ("green:", "stone quiet north"), ("paper paper:", "apple")]
    task = TaskData.of(Task("one", "en", "exact_match", 6), {"test": [Example(*pair) for pair in words]})
    found = []
    for device in ("cpu", {"": "cpu"}, "auto", "with hooks"):
        base, tokenizer = load_base(str(base_folder), device="cpu" if device == "with hooks" else device)
        if device == "with hooks":
            base = dispatch_model(base, dict.fromkeys(PARTS, "cpu"), force_hooks=True)
            assert hasattr(base.lm_head, "_hf_hook") and hasattr(base.model.layers[1], "_hf_hook")
        model = make(base, tokenizer, base_folder)
        point = random_point(model, 3) if make is lora else model.base_point()
        objective = make_objective(task, "test", tokenizer)
        (measured,) = Engine(model).evaluate(point, [objective])
        found.append((measured.measurement.nll.tolist(), measured.outputs))
        if make is lora:  # as curvature and fitted curves go
            batch = collate(objective.encoded, tokenizer.pad_token_id)
            leaves = {name: tensor.requires_grad_() for name, tensor in point.items()}
            nll = model.forward_at(leaves, batch).nll
            assert nll.tolist() == pytest.approx(found[0][0], rel=1e-4)
            assert all(g.any() for g in torch.autograd.grad(nll.sum(), list(leaves.values())))
    for nll, outputs in found[1:]:
        assert nll == pytest.approx(found[0][0], rel=1e-5) and outputs == found[0][1]


def test_what_is_left_on_disk_is_refused_and_so_is_training(base_folder):
    with pytest.raises(UserError, match=r"got none for \d+ tensors \(model\.layers\.1\."):
        load_base(str(base_folder), device=dict.fromkeys(PARTS, "cpu") | {"model.layers.1": "disk"})
    with pytest.raises(UserError, match="Expected one device for training, got --device auto"):
        Processes("auto")
    with pytest.raises(UserError, match="Expected one device for a 4bit base, got 'auto'"):
        load_base(str(base_folder), device="auto", quantization="4bit")
