"""A Hessian–vector product against a gradient, here and in curvlinops, in a process that can see the latter."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import peers
import torch
from timing import ratio, take_turns
from workload import Aim, Options, Section, Table

TITLE = "W6: a Hessian–vector product against a gradient"
GRADIENT, KEPT, ANEW, CURVLINOPS = (
    "gradient",
    "product, graph kept from the one before (the default)",
    "product, nothing kept",
    "product, curvlinops 3.0.1",
)


def measure(options: Options) -> Section:
    try:
        peer, missing = str(peers.folder()), ""
    except peers.PeerMissingError as reason:
        peer, missing = "", str(reason)
    command = [sys.executable, __file__, peer, "quick" if options.quick else "full", str(options.repetitions)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the process of its own ended with {done.returncode}:\n{done.stderr}")
    found = json.loads(done.stdout.splitlines()[-1])
    seconds, gap = found["seconds"], found["gap"]
    aims = []
    for way in (KEPT, ANEW):
        value, detail = ratio(seconds[way], seconds[GRADIENT])
        aims.append(Aim(f"{way} / {GRADIENT}", 4.0, value, detail=detail))
    rows = [["", "ms", f"times a {GRADIENT}"]]
    for way, turns in seconds.items():
        value, detail = ratio(turns, seconds[GRADIENT])
        rows.append([way, f"{np.median(turns) * 1e3:.1f}", f"{value:.2f} {detail}"])
    notes = [
        f"{found['examples']} examples of {found['length']} tokens, {found['coordinates']} coordinates (the factors "
        f"of the default adapter on the embedded base), one thread; {options.repetitions} turns, range in brackets.",
        "Gradient: forward and backward as in training, with the fused attention, logits where there are labels. "
        "Products use the math kernel, as the fused one has no second derivative. All are one batch with no padding.",
    ]
    if gap is None:
        notes.append(f"{CURVLINOPS} not measured: {found['missing'] or missing}")
    else:
        notes.append(
            f"curvlinops is given the same network, labels and parameters; its product differs from ours by {gap:.0e} "
            "of the product's norm. Its check for determinism is switched off, and SiLU is written out as x·σ(x), "
            "because torch's own has no forward derivative of its backward one."
        )
    return Section(aims, [Table("A product and a gradient.", rows)], notes)


def _measure_here(peer: str, quick: bool, repetitions: int) -> dict[str, Any]:
    from setups import embedded_examples, embedded_model

    from mcanalysis.landscape.hessian import HessianOperator
    from mcanalysis.models.encoding import collate, pad_id

    torch.set_num_threads(1)
    length, size, times = 36, (4 if quick else 32), (1 if quick else 10)
    model = embedded_model()
    all_examples = [e for task in embedded_examples(model.tokenizer, 200).values() for e in task]
    examples = [e for e in all_examples if len(e) == length][:size]
    batch = collate(examples, pad_id(model.tokenizer))
    generator = torch.Generator().manual_seed(0)
    point = {k: v + 0.02 * torch.randn(v.shape, generator=generator) for k, v in model.point().items()}
    model.load_point(point)
    leaves = {k: v.clone().requires_grad_(True) for k, v in point.items()}

    def loss(at: Any) -> torch.Tensor:
        result = model.forward_at(at, batch)
        return result.nll.sum() / result.num_targets.sum()

    kept, anew = HessianOperator(loss, point), HessianOperator(loss, point, memory_budget=0)
    vector = np.random.default_rng(0).standard_normal(kept.num_coordinates)
    ways: dict[str, Callable[[], Any]] = {
        GRADIENT: lambda: torch.autograd.grad(loss(leaves), list(leaves.values())),
        KEPT: lambda: kept @ vector,
        ANEW: lambda: anew @ vector,
    }
    gap, missing = None, ""
    if peer:
        try:
            ways[CURVLINOPS], gap = _curvlinops(peer, model, batch, kept, vector)
        except Exception as error:  # whatever a peer does here is no failure of ours
            missing = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    for way in ways.values():
        way()

    def timed(way: Callable[[], Any]) -> float:
        started = time.perf_counter()
        for _ in range(times):
            way()
        return (time.perf_counter() - started) / times

    seconds = take_turns({name: (lambda w=way: timed(w)) for name, way in ways.items()}, repetitions)
    return {
        "seconds": seconds,
        "gap": gap,
        "missing": missing,
        "examples": len(examples),
        "length": length,
        "coordinates": kept.num_coordinates,
    }


class _WrittenOut(torch.nn.Module):
    """SiLU as x·σ(x): curvlinops takes forward derivatives of backward ones, which torch's own has not."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(x)


def _curvlinops(peer: str, model: Any, batch: Any, ours: Any, vector: np.ndarray) -> tuple[Callable[[], Any], float]:
    """Its product, and how far that is from ours, relative to the norm."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    from mcanalysis.models.encoding import IGNORED
    from mcanalysis.params.point import flatten

    sys.path.append(peer)
    from curvlinops import HessianLinearOperator  # type: ignore[import-not-found]

    columns = batch.num_answer_columns
    kept = batch.labels[:, -columns:] != IGNORED

    network = copy.deepcopy(model.peft).eval()
    for module in network.modules():
        if hasattr(module, "act_fn"):
            module.act_fn = _WrittenOut()

    class Answers(torch.nn.Module):
        """Ids to the logits that predict a token of an answer."""

        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            output = self.network(input_ids=ids, use_cache=False, logits_to_keep=columns + 1)
            return output.logits[:, :-1][kept]

    targets = batch.labels[:, -columns:][kept]
    own = dict(network.named_parameters())
    parameters = [own[model._parameter_names[name]] for name in model.parameters]
    with sdpa_kernel(SDPBackend.MATH):
        operator = HessianLinearOperator(
            Answers(),
            torch.nn.CrossEntropyLoss(),
            parameters,
            [(batch.input_ids, targets)],
            check_deterministic=False,
            num_data=len(batch.input_ids),  # one batch: its mean is the mean
        )
    scaling = {k: model.scaling[k.rsplit(".lora_", 1)[0]] if ".lora_B." in k else 1.0 for k in model.parameters}
    at = ours.as_point(vector)
    # Our B is theirs times the scaling: a direction of theirs is ours divided by it, and so is a result of ours.
    direction = [at[k] / s for k, s in scaling.items()]

    def product() -> list[torch.Tensor]:
        with sdpa_kernel(SDPBackend.MATH):
            return operator @ direction

    theirs = {k: v.detach() / scaling[k] for k, v in zip(scaling, product(), strict=True)}
    mine = ours.product(at)
    gap = flatten({k: theirs[k] - mine[k] for k in mine}).norm() / flatten(mine).norm()
    return product, float(gap)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_measure_here(sys.argv[1], sys.argv[2] == "quick", int(sys.argv[3]))) + "\n")
