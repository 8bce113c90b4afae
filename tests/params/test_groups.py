"""Which tensors belong together: by layer, kind of module and module, for adapters and plain modules."""

import pytest
import torch

from mcanalysis.errors import UserError
from mcanalysis.params.groups import by_layer, by_module, by_module_kind, places


def adapter(*modules):
    return {f"{m}.lora_{x}.weight": torch.zeros(shape) for m in modules for x, shape in (("A", (2, 3)), ("B", (3, 2)))}


LLAMA = adapter(*(f"model.layers.{i}.{k}" for i in (0, 1, 10) for k in ("self_attn.q_proj", "mlp.up_proj")))


def names(*modules):
    return {f"{m}.lora_{x}.weight" for m in modules for x in "AB"}


def test_an_adapter_by_layer_kind_and_module():
    layers, kinds, modules = by_layer(LLAMA), by_module_kind(LLAMA), by_module(LLAMA)
    assert list(layers) == ["model.layers.0", "model.layers.1", "model.layers.10"]
    assert set(layers["model.layers.1"]) == names("model.layers.1.self_attn.q_proj", "model.layers.1.mlp.up_proj")
    assert set(kinds["q_proj"]) == names(*(f"model.layers.{i}.self_attn.q_proj" for i in (0, 1, 10)))
    assert list(kinds) == ["q_proj", "up_proj"] and len(modules) == 6
    assert set(modules["model.layers.10.mlp.up_proj"]) == names("model.layers.10.mlp.up_proj")


@pytest.mark.parametrize("make", [by_layer, by_module_kind, by_module])
@pytest.mark.parametrize(
    "point", [LLAMA, dict(torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1)).named_parameters())]
)
def test_groups_are_a_partition(make, point):
    grouped = [name for group in make(point).values() for name in group]
    assert sorted(grouped) == sorted(point)


def test_kinds_of_one_name_in_different_places_are_told_apart():
    """GPT-2 has a c_proj in its attention and one in its MLP."""
    point = adapter("h.0.attn.c_attn", "h.0.attn.c_proj", "h.0.mlp.c_proj")
    assert list(by_module_kind(point)) == ["c_attn", "attn.c_proj", "mlp.c_proj"]


def test_names_without_a_number_are_their_own_layer():
    assert list(by_layer(adapter("model.lm_head", "h.0.q"))) == ["model.lm_head", "h.0"]
    assert places(adapter("q"))["q.lora_A.weight"] == ("q", "q")
    assert places({"w": torch.zeros(1)}) == {"w": ("w", "w")}


def test_a_plain_module():
    network = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1))
    point = dict(network.named_parameters())
    assert by_layer(point) == by_module(point) == {"0": ("0.weight", "0.bias"), "2": ("2.weight", "2.bias")}
    assert by_module_kind(point) == {"weight": ("0.weight", "2.weight"), "bias": ("0.bias", "2.bias")}


def test_what_is_no_point_is_refused():
    with pytest.raises(UserError, match="at least one tensor"):
        by_layer({})
