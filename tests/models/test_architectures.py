"""Not Llama only: every architecture trains, and merging gives what PEFT's own unmerged adapter gives."""

import pytest
import torch

from mcanalysis.models.encoding import collate
from mcanalysis.models.forward import forward
from mcanalysis.models.lora_model import LoraModel, LoraSettings
from mcanalysis.strategies import make_strategy

ARCHITECTURES = ("gpt2", "gpt_neox", "opt", "qwen2", "gemma")


@pytest.fixture
def attach(tiny_base, tokenizer):
    return lambda name: LoraModel.attach(tiny_base(name), tokenizer, LoraSettings(4, 12.0), 0, name)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_merged_evaluation_equals_pefts_own_unmerged_one(
    architecture, attach, encode_examples, random_point, tiny_base, add_by_hand
):
    model = attach(architecture)
    batch = collate(encode_examples(5), padding=0)
    point = random_point(model)
    with torch.no_grad():
        before = model.forward(batch).nll
        model.load_point(point)
        unmerged = model.forward(batch).nll
        with model.merged(point) as network:
            merged = forward(network, batch).nll
        functional = model.forward_at(point, batch).nll
        by_hand = forward(add_by_hand(tiny_base(architecture), point), batch).nll
    assert float((before - unmerged).abs().max()) > 0.01
    for other in (merged, functional, by_hand):
        torch.testing.assert_close(other, unmerged, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_two_steps_of_ilora_with_replay_train_the_adapter_only(architecture, attach, encode_examples, train_task):
    model = attach(architecture)
    strategy = make_strategy("ilora", seed=0, replay_from_first_step=True)
    strategy.begin(model, 1)
    strategy.begin_task(model, 0, [])
    start = model.point()
    frozen = {k: v.clone() for k, v in model.peft.state_dict().items() if ".lora_" not in k}
    trainer = train_task(model, strategy, encode_examples(8), num_steps=2)
    assert len(trainer.losses) == 2
    moved = model.point()
    for module in model.scaling:
        name = f"{module}.lora_B.weight"
        assert not torch.equal(start[name], moved[name]), name
        assert not torch.equal(strategy.slow[name], moved[name]), name
    assert all(torch.equal(v, frozen[k]) for k, v in model.peft.state_dict().items() if k in frozen)
