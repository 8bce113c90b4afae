"""The ensemble that a path offers: class probabilities averaged over points of it, against each point alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from mcanalysis.errors import UserError
from mcanalysis.metrics.calibration import expected_calibration_error
from mcanalysis.params.point import Point


@dataclass(frozen=True, eq=False)
class Predictions:
    """What one predictor gave for each of n targets, which belong to examples.

    `nll` −log p(target) in nats, `confidence` the largest probability, `correct` whether it is the target's, `brier`
    Σ_c (p_c − [c = target])², `rows` which example a target belongs to, `entropy` −Σ_c p_c·log p_c in nats; all (n,).
    """

    nll: NDArray[np.float64]
    confidence: NDArray[np.float64]
    correct: NDArray[np.bool_]
    brier: NDArray[np.float64]
    rows: NDArray[np.int64]
    entropy: NDArray[np.float64]

    def summary(self) -> dict[str, float]:
        """`loss` (nats per target), `accuracy` (examples of which every target is right: for a language model what
        greedy decoding would answer exactly), `target_accuracy`, `ece` (15 bins, Guo et al. 2017) and `brier`, over
        targets."""
        wrong = np.zeros(int(self.rows.max()) + 1, dtype=bool)
        np.logical_or.at(wrong, self.rows, ~self.correct)
        return {
            "loss": float(self.nll.mean()),
            "accuracy": float(1 - wrong[np.unique(self.rows)].mean()),
            "target_accuracy": float(self.correct.mean()),
            "ece": expected_calibration_error(self.confidence, self.correct),
            "brier": float(self.brier.mean()),
        }


@dataclass(frozen=True, eq=False)
class Ensemble:
    """`members[i]`: the point at `ts[i]` alone; `together`: the mean of their probabilities."""

    ts: NDArray[np.float64]
    members: tuple[Predictions, ...]
    together: Predictions

    @property
    def mutual_information(self) -> NDArray[np.float64]:
        """How much the members differ at each target, (n,), in nats from 0 (all say the same) to log k: the entropy of
        their mean minus the mean of their entropies, which is the Jensen–Shannon divergence of the k members."""
        return np.maximum(self.together.entropy - np.mean([m.entropy for m in self.members], axis=0), 0.0)

    def rows(self) -> list[dict[str, Any]]:
        """One row per member (`member` point, with its `t`) and one for the `ensemble` (t NaN), which alone has
        `mutual_information`, the mean over targets."""
        rows = [{"member": "point", "t": float(t), **m.summary()} for t, m in zip(self.ts, self.members, strict=True)]
        diversity = {"mutual_information": float(self.mutual_information.mean())}
        rows = [{**row, "mutual_information": float("nan")} for row in rows]
        return [*rows, {"member": "ensemble", "t": float("nan"), **self.together.summary(), **diversity}]


Batch = tuple[Any, Tensor] | tuple[Any, Tensor, Tensor]
"""Inputs, labels (n,), and, where examples have several targets, the number of the example of each (n,)."""


@torch.no_grad()
def ensemble_along(
    path: Callable[[float], Point],
    ts: ArrayLike,
    predict: Callable[[Mapping[str, Tensor], Any], Tensor],
    batches: Iterable[Batch],
) -> Ensemble:
    """Average predicted probabilities over the points of a path at `ts`, and compare with each point alone.

    Batches are outside, points inside: what is held is one sum of probabilities of one batch and one point, however
    many points there are; of a finished batch five numbers per target and point are kept. Points are computed anew for
    every batch.

    Args:
        path: a map from t to points.
        ts: shape (k,), k ≥ 1; each point weighs the same.
        predict: `predict(point, inputs)` returns logits of shape (n, classes); or what `module_objective` makes, whose
            module is then called with the inputs.
        batches: tuples (inputs, labels) or (inputs, labels, rows); all batches together one data set.

    Raises:
        UserError: for no t, no batch, or logits that do not fit the labels; by the path for t outside [0, 1].

    >>> from mcanalysis.paths import Linear
    >>> line = Linear({"w": torch.tensor([[-1.0, 1.0]])}, {"w": torch.tensor([[1.0, -1.0]])})
    >>> data = [(torch.tensor([[2.0]]), torch.tensor([1]))]
    >>> found = ensemble_along(line, [0.0, 1.0], lambda point, x: x @ point["w"], data)
    >>> [round(row["loss"], 3) for row in found.rows()]  # the ensemble says ½
    [0.018, 4.018, 0.693]
    """
    own: Any = getattr(predict, "predict", None)
    predict = own if callable(own) else predict  # pyright: ignore
    places = np.asarray(ts, dtype=np.float64).reshape(-1)
    if not len(places):
        raise UserError("Expected at least one t to average over, got none; pass a few, such as 0, 0.5 and 1.")
    parts: list[list[tuple[NDArray, ...]]] = [[] for _ in range(len(places) + 1)]
    all_rows: list[NDArray[np.int64]] = []
    num_examples = 0
    for inputs, labels, rows in map(_checked, batches):
        all_rows.append(rows + num_examples)
        num_examples += int(rows.max()) + 1
        total: Tensor | None = None
        for i, t in enumerate(places):
            logits = predict(path(float(t)), inputs)
            if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(labels) or len(logits[0]) < 2:
                got = tuple(logits.shape) if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
                raise UserError(
                    f"Expected logits of shape ({len(labels)}, classes), one row per label and at least two classes, "
                    f"got {got}; let predict return such a tensor."
                )
            if int(labels.max()) >= len(logits[0]):
                raise UserError(
                    f"Expected labels below {len(logits[0])}, the number of classes that predict returns, got "
                    f"{int(labels.max())}; check the labels."
                )
            log_p = logits.double().log_softmax(-1) if logits.dtype == torch.float64 else logits.float().log_softmax(-1)
            parts[i].append(_per_target(log_p, labels))
            total = log_p if total is None else torch.logaddexp(total, log_p)
        assert total is not None
        parts[-1].append(_per_target(total - float(np.log(len(places))), labels))
    if not all_rows:
        raise UserError("Expected at least one batch to predict, got none; pass (inputs, labels) tuples.")
    joint = np.concatenate(all_rows)
    columns = [[np.concatenate(column) for column in zip(*part, strict=True)] for part in parts]
    made = [
        Predictions(nll, confidence, correct, brier, joint, entropy)
        for nll, confidence, correct, brier, entropy in columns
    ]
    return Ensemble(places, tuple(made[:-1]), made[-1])


def _checked(batch: Any) -> tuple[Any, Tensor, NDArray[np.int64]]:
    """Inputs, labels (n,) and the example of each (n,) of a batch; raises `UserError` for what is no such batch."""
    if not isinstance(batch, tuple | list) or len(batch) not in (2, 3):
        raise UserError(
            f"Expected batches (inputs, labels) or (inputs, labels, rows), got a {type(batch).__name__}; make a list "
            "of such tuples."
        )
    labels = torch.as_tensor(batch[1])
    rows = torch.as_tensor(batch[2]) if len(batch) == 3 else torch.arange(len(labels) if labels.ndim else 0)
    for name, values in (("labels", labels), ("rows", rows)):
        is_integer = not values.is_floating_point() and not values.is_complex()
        negative = is_integer and bool((values < 0).any())
        if values.ndim != 1 or len(values) != len(labels) or not len(values) or not is_integer or negative:
            got = f"{'negative ones of ' if negative else ''}{values.dtype} and shape {tuple(values.shape)}"
            raise UserError(
                f"Expected {name} of shape (n,), n > 0, whole numbers from 0, one per row of logits, got {got}; leave "
                "out what has no label."
            )
    return batch[0], labels.long(), rows.cpu().numpy()


def _per_target(log_p: Tensor, labels: Tensor) -> tuple[NDArray, ...]:
    labels = labels.to(log_p.device)
    of_label = log_p.gather(1, labels[:, None])[:, 0].double()
    highest, chosen = log_p.max(-1)
    squares = (2 * log_p).logsumexp(-1).exp().double()  # Σ p², without a second copy of p
    brier = squares - 2 * of_label.exp() + 1
    # A few rows at a time, without a second copy of p; 0 where p is 0, whose logarithm may be −∞.
    entropy = torch.cat([torch.special.entr(some.exp()).sum(-1) for some in log_p.split(64)]).double()
    found = (-of_label, highest.double().exp().clamp(max=1.0), chosen == labels, brier, entropy)
    return tuple(x.cpu().numpy() for x in found)
