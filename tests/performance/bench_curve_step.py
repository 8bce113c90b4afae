"""A step of curve fitting against a plain LoRA training step on the same batch."""

from __future__ import annotations

import time

import numpy as np
import torch
from points import random_ends
from setups import embedded_examples, embedded_model
from timing import ratio, take_turns
from torch import Tensor
from workload import Aim, Options, Section, Table

import mcanalysis as mc
from mcanalysis.models.encoding import collate, pad_id
from mcanalysis.params.point import Point

TITLE = "W5: a step of fit_curve against a plain LoRA training step"


def measure(options: Options) -> Section:
    num_steps, size = (3, 4) if options.quick else (60, 16)
    model = embedded_model()
    start, end = random_ends(model)
    examples = [e for task in embedded_examples(model.tokenizer, size).values() for e in task][::8][:size]
    batch = collate(examples, pad_id(model.tokenizer)).to(model.device)

    def loss(point: Point) -> Tensor:
        result = model.forward_at(point, batch)
        return result.nll.sum() / result.num_targets.sum()

    def fitted() -> float:
        steps = _Clock()
        mc.fit_curve(mc.Bezier(start, end), loss, num_steps=num_steps, progress=lambda **_: steps)
        return steps.median()

    def trained() -> float:
        model.load_point(start)
        network, steps = model.peft.train(), _Clock()
        optimizer = torch.optim.Adam(model.parameters.values(), lr=1e-3)
        for _ in range(num_steps):
            optimizer.zero_grad()
            result = model.forward(batch)
            (result.nll.sum() / result.num_targets.sum()).backward()
            optimizer.step()
            steps.update()
        network.eval()
        return steps.median()

    for way in (fitted, trained):
        way()  # warms up
    found = take_turns({"fit_curve": fitted, "plain": trained}, options.repetitions)
    value, detail = ratio(found["fit_curve"], found["plain"])
    milliseconds = [[name, f"{np.median(s) * 1e3:.2f}"] for name, s in found.items()]
    return Section(
        [Aim("fit_curve step / LoRA training step", 1.3, value, detail=detail)],
        [
            Table(
                f"Milliseconds per step, {len(examples)} examples, {batch.input_ids.shape[1]} columns.",
                [["step", "ms"], *milliseconds],
            )
        ],
        [
            f"{options.repetitions} turns of {num_steps} steps each; a turn's median step; range over turns in "
            "brackets. fit_curve: a Bezier curve with one bend in factor space, one t per step. Plain: forward, "
            "backward and Adam on the model's own adapter, without a trainer around it; logits where there are "
            "labels in both.",
        ],
    )


class _Clock:
    """A progress bar that keeps the seconds between its updates."""

    def __init__(self) -> None:
        self.moments: list[float] = []

    def update(self, n: int = 1) -> None:
        self.moments.append(time.perf_counter())

    def close(self) -> None:
        pass

    def median(self) -> float:
        """Of the steps but the first, in which the optimiser makes its state."""
        return float(np.median(np.diff(self.moments)))
