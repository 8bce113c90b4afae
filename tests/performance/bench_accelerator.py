"""Training Llamas of 1 B and 7 B parameters on a GPU in bf16, against a plain matrix product; and GPU against CPU."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
import torch
from setups import embedded_examples, embedded_model, in_mid_sequence
from timing import Moment, step_costs, train_steps
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig
from workload import Aim, Options, Section, Table

from mcanalysis.models.adapter_files import LoraSettings
from mcanalysis.models.base_source import EMBEDDED_DIRECTORY
from mcanalysis.models.encoding import EncodedExample
from mcanalysis.models.lora_model import LoraModel
from mcanalysis.training.config import TrainingConfig
from mcanalysis.training.peak_memory import peak_memory_bytes, reset_peak_memory

TITLE = "On an accelerator: 1 B and 7 B shapes in bf16"
STRATEGIES = ("sequential", "er", "ilora")
UTILISATION = 0.45
MEMORY = 1.15
CURVES = 1e-3  # nats; rounding differs between the devices, and grows with every step
COMMAND = "python tests/performance --only accelerator"


@dataclass(frozen=True)
class Shape:
    """A Llama with random weights; `rows`: the most examples per step that are tried, halved until they fit."""

    name: str
    width: int
    mlp: int
    layers: int
    heads: int
    kv_heads: int
    rows: int
    vocabulary: int = 32000


SHAPES = (
    Shape("1 B", 2048, 5632, 22, 32, 4, rows=32),  # TinyLlama's
    Shape("7 B", 4096, 11008, 32, 32, 32, rows=16),  # Llama 2's
)


@dataclass(frozen=True)
class Trained:
    """What was seen of one strategy on one shape; bytes are None where the device does not say."""

    shape: str
    strategy: str
    rows: int
    tokens_per_second: float
    flops_per_second: float
    peak: int | None
    loaded: int | None


def measure(options: Options) -> Section:
    if not torch.cuda.is_available():
        return _not_measured()
    matrix_size, num_steps = (1024, 3) if options.quick else (8192, 13)
    rate = matmul_rate("cuda", matrix_size)
    seen = [t for shape in SHAPES for t in train_shape(shape, "cuda", num_steps)]
    gaps = {s: loss_gap(s, "cuda", 4 if options.quick else 20) for s in ("er", "ilora")}
    aims = []
    for shape in SHAPES:
        one = {t.strategy: t for t in seen if t.shape == shape.name}
        aims.append(_utilisation_aim(shape, one["sequential"].flops_per_second / rate))
        aims.append(_memory_aim(shape, _above(one["ilora"]) / _above(one["er"])))
    aims += [_curve_aim(s, gap) for s, gap in gaps.items()]
    return Section(
        aims,
        [Table(f"bf16, examples of {LENGTH} tokens.", [_HEADER, *(_cells(t, rate) for t in seen)])],
        [
            f"Matrix product measured in this run: two bf16 matrices of {matrix_size} × {matrix_size}, "
            f"{rate / 1e12:.0f} TFLOP/s, median of 5 × 20.",
            *_HOW,
            f"Medians of {num_steps - 1} steps after a first one, the device waited for at the end of each.",
        ],
        f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}",
    )


LENGTH, ANSWER = 1024, 64
_HEADER = [
    "shape",
    "strategy",
    "examples per step",
    "tokens/s",
    "share of the matrix product",
    "peak, GB",
    "loaded, GB",
]
_HOW = (
    "Model operations per step: 4·N·(tokens) + 4·H·(answer tokens), and 2·N·(replayed tokens) more for I-LoRA's slow "
    "forward. N: weights of the linear layers without the head, H: those of the head; forward 2 per weight and token, "
    "backward 2 more for the gradient of the activations, none for frozen weights. Attention's own products and LoRA's "
    "are left out, so the share is on the low side. A replay step holds half current and half replayed examples.",
    "Weights are random, the adapter is the default one (rank 8 on q, k, v, o, in float32), nothing is checkpointed or "
    "compiled. Peak memory above what was loaded, I-LoRA against replay, holds the slow adapter.",
    "CPU against GPU: the embedded base in float32 (no TF32), 20 steps at rate 1e-3 on the same examples, largest "
    "difference between the losses of a step, in nats.",
)


def _not_measured() -> Section:
    aims = [aim for shape in SHAPES for aim in (_utilisation_aim(shape, None), _memory_aim(shape, None))]
    rows = [[shape.name, s, *["not measured"] * 5] for shape in SHAPES for s in STRATEGIES]
    return Section(
        [*aims, *(_curve_aim(s, None) for s in ("er", "ilora"))],
        [Table(f"bf16, examples of {LENGTH} tokens.", [_HEADER, *rows])],
        [f"Not measured: this machine has no CUDA device. On one that has, run `{COMMAND}`.", *_HOW],
    )


def _utilisation_aim(shape: Shape, value: float | None) -> Aim:
    return Aim(f"model operations / matrix product, {shape.name}, sequential", UTILISATION, value, at_most=False)


def _memory_aim(shape: Shape, value: float | None) -> Aim:
    return Aim(f"peak memory above what was loaded, ilora / er, {shape.name}", MEMORY, value)


def _curve_aim(strategy: str, value: float | None) -> Aim:
    return Aim(f"loss of CPU and GPU, {strategy}, largest difference", CURVES, value, digits=6)


def _above(seen: Trained) -> float:
    return float(seen.peak - seen.loaded) if seen.peak is not None and seen.loaded is not None else float("nan")


def _cells(seen: Trained, rate: float) -> list[str]:
    memory = ["–" if b is None else f"{b / 1e9:.2f}" for b in (seen.peak, seen.loaded)]
    share = f"{100 * seen.flops_per_second / rate:.1f} %"
    return [seen.shape, seen.strategy, str(seen.rows), f"{seen.tokens_per_second:.0f}", share, *memory]


def matmul_rate(device: str, size: int) -> float:
    """Operations per second of a plain bf16 matrix product."""
    a, b = (torch.randn(size, size, device=device).to(torch.bfloat16) for _ in range(2))
    product = a @ b
    seconds = []
    for _ in range(6):  # the first one warms up
        started = Moment.now(device)
        for _ in range(20):
            torch.matmul(a, b, out=product)
        seconds.append(Moment.now(device).wall - started.wall)
    return 20 * 2 * size**3 / statistics.median(seconds[1:])


def train_shape(shape: Shape, device: str, num_steps: int, length: int = LENGTH, answer: int = ANSWER) -> list[Trained]:
    """Every strategy on one shape, with as many examples per step as the hungriest of them can hold."""
    model = random_llama(shape, device, length)
    start = model.point()
    rows = shape.rows
    while rows > 2 and not _fits(model, shape, rows, length, answer):
        rows //= 2
    seen = []
    for strategy in STRATEGIES:
        model.load_point(start)
        seen.append(_train(model, strategy, shape, rows, num_steps, length, answer))
    del model, start
    _free()
    return seen


def random_llama(shape: Shape, device: str, length: int) -> LoraModel:
    """The shape, in bf16, its weights made where they stay; the tokenizer only lends its pad token."""
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.mlp,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=length,
        tie_word_embeddings=False,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
    )
    torch.manual_seed(0)
    with torch.device(device):
        base = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED_DIRECTORY)
    return LoraModel.attach(base.eval(), tokenizer, LoraSettings(), 0, f"random {shape.name}")


def _fits(model: LoraModel, shape: Shape, rows: int, length: int, answer: int) -> bool:
    """Whether two steps of I-LoRA run through."""
    try:
        _train(model, "ilora", shape, rows, 2, length, answer)
        return True
    except torch.OutOfMemoryError:
        model.peft.zero_grad()
    _free()  # only here is the exception, which holds what was computed, gone
    return False


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _train(
    model: LoraModel, strategy: str, shape: Shape, rows: int, num_steps: int, length: int, answer: int
) -> Trained:
    replays = strategy != "sequential"
    batch = rows // 2 if replays else rows
    examples = random_examples(shape.vocabulary, num_steps * batch, length, answer)
    remembered = random_examples(shape.vocabulary, 2 * batch, length, answer)
    gc.collect()
    reset_peak_memory()
    on_gpu = model.device.type == "cuda"
    loaded = torch.cuda.memory_allocated() if on_gpu else None
    prepared = in_mid_sequence(strategy, model, remembered, examples)
    settings = TrainingConfig(num_steps, batch, learning_rate=1e-4, max_length=length)
    seconds = float(np.median(step_costs(model, prepared, examples, settings).wall))
    peak = peak_memory_bytes() if on_gpu else None
    model.peft.zero_grad()
    body, head = linear_weights(model.base)
    operations = 4 * body * rows * length + 4 * head * rows * answer
    if strategy == "ilora":
        operations += 2 * body * batch * length
    return Trained(shape.name, strategy, rows, rows * length / seconds, operations / seconds, peak, loaded)


def linear_weights(base: Any) -> tuple[int, int]:
    """Numbers of weights of the linear layers: those of the network's body without adapters, and the head's."""
    head = base.get_output_embeddings()
    body = sum(
        module.weight.numel()
        for name, module in base.named_modules()
        if isinstance(module, nn.Linear) and module is not head and "lora_" not in name
    )
    return body, head.weight.numel()


def random_examples(vocabulary: int, number: int, length: int, answer: int) -> list[EncodedExample]:
    """Examples of one length, so that nothing is padded."""
    rng = Random(number)
    made = []
    for _ in range(number):
        ids = tuple(rng.randrange(2, vocabulary) for _ in range(length))
        made.append(EncodedExample(ids[:-answer], ids[-answer:]))
    return made


def loss_gap(strategy: str, device: str, num_steps: int) -> float:
    """The largest difference between the losses on the CPU and on a device, step by step, in float32."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        on_cpu = embedded_model("cpu")
        *earlier, examples = embedded_examples(on_cpu.tokenizer, 40).values()
        start, remembered = on_cpu.point(), [e for task in earlier for e in task]
        elsewhere = embedded_model(device)
        elsewhere.load_point(start)
        curves = [_losses(m, strategy, remembered, examples, num_steps) for m in (on_cpu, elsewhere)]
    finally:
        torch.set_float32_matmul_precision(precision)
    return float(np.abs(np.subtract(curves[0], curves[1])).max())


def _losses(
    model: LoraModel,
    strategy: str,
    remembered: Sequence[EncodedExample],
    examples: Sequence[EncodedExample],
    num_steps: int,
) -> list[float]:
    settings = TrainingConfig(num_steps, learning_rate=1e-3)
    prepared = in_mid_sequence(strategy, model, remembered, examples)
    return train_steps(model, prepared, examples, settings).losses
