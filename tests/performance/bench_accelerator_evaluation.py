"""Evaluating points of Llamas of 1 B and 7 B parameters on a GPU in bf16, against a plain matrix product."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from bench_accelerator import SHAPES, Shape, _free, linear_weights, matmul_rate, random_llama
from engine_way import make_engine
from points import Case, random_ends, random_objectives
from timing import Moment, take_turns
from workload import Aim, Options, Section, Table

from mcanalysis.training.peak_memory import peak_memory_bytes, reset_peak_memory

TITLE = "On an accelerator: points of 1 B and 7 B shapes in bf16"
COMMAND = "python tests/performance --only accelerator_evaluation"
LENGTH, ANSWER, EXAMPLES, POINTS = 256, 16, 64, 8
BUDGET = 16_384  # tokens of a batch
EAGER, COMPILED = "not compiled", "compiled"
UTILISATION = 0.45
_HEADER = ["shape", "way", "tokens/s", "share of the matrix product", "peak above loaded, GB", "loaded, GB"]
_HOW = (
    f"{POINTS} points, {EXAMPLES} random examples of {LENGTH} tokens ({ANSWER} of them the answer), batches of "
    f"{BUDGET} tokens, loss only, one point at a time; the adapter (rank 8 on q, k, v, o) is not merged, which bf16 "
    "would round away.",
    "Operations: 2·N per token and 2·H per answer token; N: weights of the linear layers without the head, H: those "
    "of the head. Attention's own products and LoRA's are left out, so the share is on the low side.",
)


@dataclass(frozen=True)
class Evaluated:
    """What was seen of one way on one shape; bytes are None where the device does not say."""

    shape: str
    way: str
    seconds: Sequence[float]
    tokens: int
    operations: float
    peak: int | None
    loaded: int | None

    def cells(self, rate: float) -> list[str]:
        """As a row of the table; `rate`: operations per second of a plain product."""
        seconds = float(np.median(self.seconds))
        above = None if self.peak is None or self.loaded is None else self.peak - self.loaded
        memory = ["–" if b is None else f"{b / 1e9:.2f}" for b in (above, self.loaded)]
        share = f"{100 * self.operations / seconds / rate:.1f} %"
        return [self.shape, self.way, f"{self.tokens / seconds:.0f}", share, *memory]


def measure(options: Options) -> Section:
    if not torch.cuda.is_available():
        return _not_measured()
    size = 1024 if options.quick else 8192
    rate = matmul_rate("cuda", size)
    aims, rows = [], []
    for shape in SHAPES:
        seen = evaluate_shape(shape, "cuda", options.repetitions)
        _free()  # only here is the model gone
        rows += [one.cells(rate) for one in seen]
        seconds = [float(np.median(one.seconds)) for one in seen]
        aims.append(_utilisation(shape, seen[0].operations / min(seconds) / rate))
        aims.append(_gain(shape, seconds[0] / seconds[1]))
    return Section(
        aims,
        [Table("bf16.", [_HEADER, *rows])],
        [f"Matrix product measured in this run: {size} × {size}, bf16, {rate / 1e12:.0f} TFLOP/s.", *_HOW],
        f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}",
    )


def _not_measured() -> Section:
    rows = [[shape.name, way, *["not measured"] * 4] for shape in SHAPES for way in (EAGER, COMPILED)]
    return Section(
        [aim for shape in SHAPES for aim in (_utilisation(shape, None), _gain(shape, None))],
        [Table("bf16.", [_HEADER, *rows])],
        [f"Not measured: this machine has no CUDA device. On one that has, run `{COMMAND}`.", *_HOW],
    )


def _utilisation(shape: Shape, value: float | None) -> Aim:
    return Aim(f"model operations / matrix product, {shape.name}, evaluation", UTILISATION, value, at_most=False)


def _gain(shape: Shape, value: float | None) -> Aim:
    return Aim(f"{EAGER} / {COMPILED}, {shape.name}", 1.0, value, at_most=False)


def evaluate_shape(
    shape: Shape,
    device: str,
    repetitions: int,
    length: int = LENGTH,
    answer: int = ANSWER,
    num_examples: int = EXAMPLES,
    num_points: int = POINTS,
) -> list[Evaluated]:
    """The engine's ways on one shape, in turns."""
    model = random_llama(shape, device, length)
    case = Case(model, random_objectives(model, 1, num_examples, length, answer), *random_ends(model))
    ts = np.linspace(0, 1, num_points)
    points = [case.point(t) for t in ts]
    ways: dict[str, Callable[[], object]] = {}
    for name, compiled in ((EAGER, False), (COMPILED, True)):
        engine = make_engine(case, token_budget=BUDGET, compile=compiled)
        ways[name] = lambda engine=engine: [engine.losses(point, case.objectives) for point in points]
    body, head = linear_weights(model.base)
    examples = num_points * num_examples
    operations = 2.0 * body * examples * length + 2.0 * head * examples * answer
    on_gpu = model.device.type == "cuda"
    loaded = torch.cuda.memory_allocated() if on_gpu else None
    peaks: dict[str, int | None] = {}
    for name, way in ways.items():  # also the warming up
        reset_peak_memory()
        way()
        peaks[name] = peak_memory_bytes() if on_gpu else None

    def timed(way: Callable[[], object]) -> float:
        started = Moment.now(device)
        way()
        return Moment.now(device).wall - started.wall

    found = take_turns({name: (lambda w=way: timed(w)) for name, way in ways.items()}, repetitions)
    return [
        Evaluated(shape.name, name, seconds, examples * length, operations, peaks[name], loaded)
        for name, seconds in found.items()
    ]
