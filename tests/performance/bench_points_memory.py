"""Memory along a path of many points, above the model: what is held while the network is not running, and the peak."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import weakref
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from workload import Aim, Options, Section, Table

TITLE = "W7: memory above the model along 1,000 points"
RANK = 64
NUMBERS = (10, 100, 1000)
_MB = 1e6


def measure(options: Options) -> Section:
    numbers = (2, 4) if options.quick else NUMBERS
    turns = 1 if options.quick else 3
    found = {n: [_in_own_process(n, turn == 0, options.quick) for turn in range(turns)] for n in numbers}
    one = found[numbers[0]][0]  # the path and the model are the same in all
    limit = 3 * one["adapter"] + one["weights"]
    held = {n: found[n][0]["held"] + 2 * one["adapter"] for n in numbers}
    above = {n: np.array([p["peak"] - p["loaded"] for p in found[n]]) / _MB for n in numbers}
    first, last = numbers[0], numbers[-1]
    rows = [
        [
            "points",
            "held between passes, MB",
            "of it beside the path's ends",
            "peak of the process above it, MB",
            "range",
        ]
    ]
    for n in numbers:
        cells = [f"{held[n] / _MB:.3f}", f"{(held[n] - 2 * one['adapter']) / _MB:.3f}", f"{np.median(above[n]):.2f}"]
        rows.append([str(n), *cells, f"{above[n].min():.2f} to {above[n].max():.2f}"])
    return Section(
        [
            Aim(
                f"bytes held for {last} points / (3 adapters + the adapted weights once)",
                1.0,
                held[last] / limit,
                detail=f"({held[last] / _MB:.2f} MB against {limit / _MB:.2f} MB)",
            ),
            Aim(f"the same for {last} points / for {first}", 1.0, held[last] / held[first], digits=3),
        ],
        [Table("Along a path between two adapters.", rows)],
        [
            f"`mcanalysis.profile` over the engine, embedded base, adapter of rank {RANK} "
            f"({one['adapter'] / _MB:.2f} MB; adapted weights {one['weights'] / _MB:.2f} MB), 4 examples of one "
            "task.",
            "Held: the most bytes of tensors alive at one time that were made after the path, what a pass over a batch "
            "makes for itself (activations, caches, logits) left out, plus the two ends; every operation of "
            "torch is watched, in one process.",
            "Peak: `VmHWM` of a process of its own, above its `VmRSS` after one point; a pass's activations are in "
            f"both. Medians of {turns} processes. The objective returns one number per point; per-example losses "
            "would be 8 bytes each. What grows is `profile`'s own: the places' arc lengths, computed at once.",
        ],
    )


def _in_own_process(num_points: int, watch: bool, quick: bool) -> dict[str, Any]:
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(128 * 1024), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, __file__, str(num_points), "watch" if watch else "", "quick" if quick else "full"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{num_points} points ended with {done.returncode}:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


class Alive(TorchDispatchMode):
    """Counts the bytes of tensors that operations inside make, as long as they live; `most` is the most at one time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.paused = False
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if not self.paused:
            given = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
            for tensor in tree_leaves(made):
                if isinstance(tensor, torch.Tensor):
                    self._add(tensor.untyped_storage(), given)
        return made

    def _add(self, storage: Any, given: set[int]) -> None:
        place = storage.data_ptr()
        if place in self._known or place in given or not storage.nbytes():
            return  # a view of what is counted, or of what was there before
        self._known.add(place)
        self.now += storage.nbytes()
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._forget, place, storage.nbytes())

    def _forget(self, place: int, size: int) -> None:
        self._known.discard(place)
        self.now -= size


def _measure_here(num_points: int, watch: bool, quick: bool) -> dict[str, Any]:
    from bench_peak_memory import _resident_bytes
    from engine_way import make_engine
    from points import embedded_case

    import mcanalysis as mc
    import mcanalysis.evaluation.engine as engine_module
    from mcanalysis.training.peak_memory import peak_memory_bytes, reset_peak_memory

    torch.set_num_threads(1)
    case = embedded_case(1, 2 if quick else 4, rank=RANK)
    engine = make_engine(case)
    path = mc.Linear(case.start, case.end)

    def objective(point: Any) -> float:
        return engine.losses(point, case.objectives)[0].loss

    found: dict[str, Any] = {
        "adapter": sum(t.numel() * t.element_size() for t in case.start.values()),
        "weights": sum(w.numel() * w.element_size() for w in case.model._adapted_weights()),
    }
    objective(path(0.5))  # what is made once
    ts = np.linspace(0, 1, num_points).tolist()
    reset_peak_memory()
    found["loaded"] = _resident_bytes()
    mc.profile(path, objective, ts)
    found["peak"] = peak_memory_bytes()
    if not watch:  # it takes several times as long
        return found
    with Alive() as alive:

        def unwatched(call: Any) -> Any:
            def passing(*args: Any, **kwargs: Any) -> Any:
                alive.paused = True
                try:
                    return call(*args, **kwargs)
                finally:
                    alive.paused = False

            return passing

        engine_module.run_batch = unwatched(engine_module.run_batch)
        engine_module.SharedPrefix = unwatched(engine_module.SharedPrefix)  # reads the prefix once per point
        mc.profile(path, objective, ts)
    return found | {"held": alive.most}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_measure_here(int(sys.argv[1]), bool(sys.argv[2]), sys.argv[3] == "quick")) + "\n")
