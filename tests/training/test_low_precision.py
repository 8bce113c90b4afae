"""Bases in bfloat16, float16, 8 and 4 bits: adapters stay float32 and learn, and ΔW is never rounded away."""

import importlib.util

import pytest
import torch
from peft import PeftModel
from torch import nn
from torch.nn.functional import linear
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from mcanalysis.errors import UnknownNameError, UserError
from mcanalysis.evaluation.engine import Engine
from mcanalysis.evaluation.objective import make_objective
from mcanalysis.models.adapter_files import LoraSettings
from mcanalysis.models.encoding import collate
from mcanalysis.models.forward import forward
from mcanalysis.models.loading import load_base
from mcanalysis.models.lora_model import LoraModel
from mcanalysis.models.target_modules import find_target_modules
from mcanalysis.pretraining.base_model import new_model
from mcanalysis.strategies import make_strategy
from mcanalysis.tasks.task import Task, TaskData
from mcanalysis.training.continual_trainer import train


def can_compute_in(dtype):
    """Whether this machine's PyTorch has the products and the normalisation a model is made of in this dtype."""
    try:
        x = torch.ones(2, 2, 4, dtype=dtype)
        nn.functional.scaled_dot_product_attention(x, x, x)
        nn.functional.layer_norm(linear(x, x[0]), (2,))
    except RuntimeError:
        return False
    return True


LOW = [
    pytest.param(dtype, marks=pytest.mark.skipif(not can_compute_in(dtype), reason=f"no {dtype} on this CPU"))
    for dtype in (torch.bfloat16, torch.float16)
]


def started(name, model):
    strategy = make_strategy(name, 0, replay_from_first_step=True)
    strategy.begin(model, 1)
    strategy.begin_task(model, 0, [])
    return strategy


def objective_of(examples, tokenizer):
    return make_objective(TaskData.of(Task("zeta", "en", "exact_match", 5), {"test": examples}), "test", tokenizer, 128)


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize("name", ["ilora", pytest.param("er", marks=pytest.mark.slow)])
def test_float32_adapters_learn_on_a_base_in_low_precision(
    name, architecture, dtype, tiny_base, tokenizer, make_examples, encode_examples, train_task, tmp_path
):
    base = tiny_base(architecture).to(dtype)
    weights = {k: v.clone() for k, v in base.state_dict().items()}
    model = LoraModel.attach(base, tokenizer, LoraSettings(4), 0, architecture)
    strategy = started(name, model)
    losses = train_task(model, strategy, encode_examples(4), num_steps=25, learning_rate=1e-2).losses
    assert all(torch.isfinite(torch.tensor(losses)))
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
    points = [model.point(), *([strategy.slow] if name == "ilora" else [])]
    for point in points:
        assert {v.dtype for v in point.values()} == {torch.float32}
        assert all(bool(v.isfinite().all()) and bool((v != 0).any()) for v in point.values())
    assert {v.dtype for v in weights.values()} == {dtype}
    after = {k.replace(".base_layer", ""): v for k, v in model.base.state_dict().items() if ".lora_" not in k}
    assert all(torch.equal(after[k], v) for k, v in weights.items())

    examples = make_examples(4)
    before, learned = (
        Engine(model).evaluate(p, [objective_of(examples, tokenizer)])[0].measurement.loss
        for p in (model.base_point(), points[0])
    )
    assert learned < 0.9 * before
    model.save(tmp_path / "adapter")
    plain = PeftModel.from_pretrained(tiny_base(architecture).to(dtype), tmp_path / "adapter").eval()
    ids = torch.tensor([encode_examples(1)[0].prompt_ids])
    with torch.no_grad():
        assert torch.equal(plain(input_ids=ids).logits, model.peft.eval()(input_ids=ids).logits)


@pytest.mark.parametrize("dtype", LOW)
def test_losses_in_low_precision_are_close_to_those_in_float32(dtype, make_model, encode_examples, train_task):
    runs = []
    for each in ("float32", str(dtype).removeprefix("torch.")):
        model = make_model(dtype=each)
        runs.append(train_task(model, started("er", model), encode_examples(8), num_steps=4).losses)
    assert runs[0] != runs[1]
    assert runs[1] == pytest.approx(runs[0], rel=0.02)


def test_a_quantised_base_needs_a_gpu_and_bitsandbytes(base_folder, run_config, make_tasks, tmp_path):
    for bits in ("4bit", "8bit"):
        with pytest.raises(UserError, match=rf"^Expected an NVIDIA GPU.*{bits} base.*'cpu'.*mcanalysis\[gpu\]"):
            load_base(str(base_folder), quantization=bits)
        run = tmp_path / bits
        with pytest.raises(UserError, match=r"mcanalysis\[gpu\]"):
            train(run_config(quantization=bits), run, device="cpu", tasks=make_tasks())
        assert not run.exists()


def test_an_unknown_quantisation_names_the_known_ones(base_folder):
    with pytest.raises(UnknownNameError, match="4bit, 8bit"):
        load_base(str(base_folder), quantization="3bit")


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is not None, reason="bitsandbytes is here")
def test_a_folder_that_was_saved_quantised_says_what_is_missing(base_folder, tmp_path):
    model, tokenizer = load_base(str(base_folder))
    model.config.quantization_config = BitsAndBytesConfig(load_in_4bit=True)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="bitsandbytes"):
        load_base(str(tmp_path))


class Codes(nn.Linear):
    """A linear layer that keeps codes and a scale, as bitsandbytes does; 4-bit codes may lie in bytes or in float32."""

    def __init__(self, layer, storage):
        super().__init__(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
        self.bias = layer.bias
        self.scale = float(layer.weight.detach().abs().max()) / 127
        self.zero = 128.0 if storage == torch.uint8 else 0.0
        codes = (layer.weight.detach() / self.scale).round() + self.zero
        self.weight = nn.Parameter(codes.to(storage), requires_grad=False)
        if storage != torch.int8:
            self.weight.quant_state = object()

    def forward(self, x):
        return linear(x, (self.weight.to(x.dtype) - self.zero) * self.scale, self.bias)


@pytest.mark.parametrize("storage", [torch.int8, torch.uint8, torch.float32], ids=str)
def test_layers_of_codes_are_adapted_and_never_merged_into(
    storage, tiny_base, tokenizer, random_point, make_examples, encode_examples, train_task
):
    base = tiny_base("llama")
    for layer in base.model.layers:
        for block in (layer.self_attn, layer.mlp):
            for name, child in list(block.named_children()):
                if isinstance(child, nn.Linear):
                    setattr(block, name, Codes(child, storage))
    assert len(find_target_modules(base)) == 8
    assert len(find_target_modules(base, ("all-linear",))) == 14
    model = LoraModel.attach(base, tokenizer, LoraSettings(4), 0, "codes")
    assert not model.can_merge()
    assert {p.dtype for p in model.parameters.values()} == {torch.float32}
    with pytest.raises(UserError, match="unmerged"), model.merged(random_point(model)):
        pass
    losses = train_task(model, started("ilora", model), encode_examples(4), num_steps=10, learning_rate=1e-2).losses
    assert losses[-1] < losses[0]
    point, objective = random_point(model), objective_of(make_examples(5), tokenizer)
    measured = Engine(model).evaluate(point, [objective])[0].measurement.nll
    with torch.no_grad():
        expected = model.forward_at(point, collate(objective.encoded, 0)).nll
    assert measured == pytest.approx(expected.double().numpy(), rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("bits", ["4bit", "4bit in float32", "8bit"])
def test_a_base_of_bitsandbytes_trains_and_is_read_by_plain_peft(
    bits, tokenizer, make_examples, encode_examples, train_task, tmp_path
):
    """On the CPU, which bitsandbytes has kernels for; `load_base` asks for a GPU, where they are quick."""
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed (mcanalysis[gpu])")
    settings = {"load_in_8bit": True} if bits == "8bit" else {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    if "float32" in bits:
        settings["bnb_4bit_quant_storage"] = torch.float32
    with torch.random.fork_rng():
        torch.manual_seed(0)
        new_model(tokenizer, 64, num_layers=2, num_heads=2, intermediate_size=128).save_pretrained(tmp_path)

    def load():
        base = AutoModelForCausalLM.from_pretrained(
            tmp_path, quantization_config=BitsAndBytesConfig(**settings), device_map={"": "cpu"}
        ).eval()
        for module in base.modules():  # on some CPUs a pass in evaluation mode would leave weights without a gradient
            module.support_avx512bf16_for_cpu = False
        return base

    model = LoraModel.attach(load(), tokenizer, LoraSettings(4), 0, str(tmp_path))
    assert len(model.scaling) == 8
    assert not model.can_merge()
    losses = train_task(model, started("ilora", model), encode_examples(4), num_steps=10, learning_rate=1e-2).losses
    assert losses[-1] < losses[0]
    objective = objective_of(make_examples(4), tokenizer)
    measured = Engine(model).evaluate(model.point(), [objective])[0].measurement.nll
    model.save(tmp_path / "adapter")
    plain = PeftModel.from_pretrained(load(), tmp_path / "adapter").eval()
    with torch.no_grad():
        expected = forward(plain, collate(objective.encoded, 0)).nll.double().numpy()
    assert measured == pytest.approx(expected, rel=0.02, abs=0.02)
